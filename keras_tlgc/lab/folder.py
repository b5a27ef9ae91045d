"""The folder of a run, whose files are whole at every moment."""

import contextlib
import csv
import importlib
import itertools
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import keras
import numpy as np

import keras_tlgc
from keras_tlgc.distribution import save
from keras_tlgc.files import write_text, write_whole
from keras_tlgc.lab.data.batches import Batches
from keras_tlgc.lab.plots import plot_history

MODEL = "model.keras"
HISTORY = "history.csv"
CONFIG = "config.json"
CURVES = "curves.png"
TIMES = "times.csv"
CHECKPOINT = "checkpoint.weights.h5"  # It exists while the run lasts.
LOCK = ".lock"  # It exists while a process works there.
# Files that may be in a folder that counts as empty.
PASSED_OVER = (f".partial-{CONFIG}", LOCK, ".DS_Store", "Thumbs.db")
COLUMNS = ("epoch", "accuracy", "loss", "val_accuracy", "val_loss")
FILES = {
    MODEL: "the trained model, which takes pixels from 0 to 255",
    HISTORY: "loss and accuracy of each epoch",
    CONFIG: "all that repeats the run: settings and versions",
    CURVES: "the history as a picture",
    TIMES: "seconds that each epoch took, with its evaluation",
}


class RunFolder:
    """The files of one run.

    `config.json` is written first. At the end of each epoch `history.csv` gets
    a row, and then `checkpoint.weights.h5` is written: weights and optimizer,
    whose step count tells the epoch. At the end of the run `model.keras` and
    `curves.png` are written, and the checkpoint is removed. All files are
    written under another name and then renamed.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def check(self, settings: dict, resume: bool, overwrite: bool) -> None:
        """Raise a `ValueError` unless a run can be begun or resumed here."""
        if resume and overwrite:
            raise ValueError(
                "--resume and --overwrite exclude each other. "
                "Received: both. Leave one out."
            )
        if resume:
            self._check_resume(settings)
        elif not overwrite:
            check_empty(self.path, ", replace it with --overwrite,")

    def settings(self) -> dict:
        """Return the settings of the run that the folder holds."""
        return self._config()["settings"]

    def facts(self) -> dict:
        """Return what the run found: counts, statistics of pixels, names."""
        return self._config()["facts"]

    def begin(self, settings: dict, facts: dict) -> None:
        """Write the configuration of a new run, and remove an old one."""
        config = {"settings": settings, "facts": facts, "versions": versions()}

        def write(path):
            path.write_text(_json(config), "utf-8")
            # The old run is removed only once the new one can be written.
            for name in (CHECKPOINT, *FILES):
                (self.path / name).unlink(missing_ok=True)

        write_whole(self.path / CONFIG, write)

    def restore(
        self, model: keras.Model, steps_per_epoch: int, facts: dict
    ) -> int:
        """Load the checkpoint into the compiled network of the run.

        Args:
            model: the network.
            steps_per_epoch: int, batches in an epoch.
            facts: what `begin` would be given.

        Returns:
            How many epochs it has done, 0 if there is no checkpoint.

        Raises:
            ValueError: before anything is changed, if the run began with other
                facts, or if the checkpoint or the history is damaged.
        """
        check_unchanged(
            "--resume continues a run with its own images.",
            self._config()["facts"],
            {name: facts[name] for name in ("train_images", "test_images")},
            self.path,
        )
        done = 0
        if (self.path / CHECKPOINT).exists():
            self._load_checkpoint(model)
            done = int(model.optimizer.iterations) // steps_per_epoch
            self.history(done)
        if self.finished:
            self.history()
        return done

    def _load_checkpoint(self, model):
        path = self.path / CHECKPOINT
        try:
            model.optimizer.build(model.trainable_variables)
            model.load_weights(path)
        except Exception as error:  # Whatever a damaged file raises.
            raise ValueError(
                "--resume needs the checkpoint that the run wrote. "
                f"Received: '{path}', which cannot be loaded "
                f"({type(error).__name__}: {str(error)[:200]}). Restore the "
                "file, or delete it to go on from the first epoch."
            ) from error

    def record(
        self, epoch: int, logs: dict[str, float], seconds: float
    ) -> None:
        """Write the results of the 0-based `epoch`, and drop later ones."""
        history = self.history(epoch) if epoch else []
        self._write(HISTORY, COLUMNS, [*history, logs | {"epoch": epoch}])
        times = [row for row in self._times() if row["epoch"] < epoch]
        now = {"epoch": epoch, "seconds": round(seconds, 3)}
        self._write(TIMES, ("epoch", "seconds"), [*times, now])

    def _write(self, name, columns, rows):
        lines = [",".join(str(row[key]) for key in columns) for row in rows]
        text = "\n".join([",".join(columns), *lines]) + "\n"
        write_text(self.path / name, text)

    def _read(self, name, columns, count=None):
        with open(self.path / name, newline="", encoding="utf-8") as file:
            return [
                {key: float(row[key]) for key in columns}
                | {"epoch": int(row["epoch"])}
                for row in itertools.islice(csv.DictReader(file), count)
            ]

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run, finished or not."""
        return (self.path / CONFIG).exists()

    @property
    def finished(self) -> bool:
        """Whether the folder holds a run that has come to its end."""
        return (self.path / MODEL).exists() and not (
            self.path / CHECKPOINT
        ).exists()

    def finish(self, model: keras.Model, title: str) -> None:
        """Write the results of a run that has done all its epochs."""
        history = self.history()
        write_whole(
            self.path / CURVES, lambda path: plot_history(history, path, title)
        )
        save(model, self.path / MODEL)
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def history(self, epochs: int | None = None) -> list[dict[str, float]]:
        """Return one dict of numbers for each finished epoch.

        Args:
            epochs: how many to read, at least 1; all if not given.

        Raises:
            ValueError: if there are fewer, or they hold something else.
        """
        try:
            rows = self._read(HISTORY, COLUMNS, epochs)
            numbers = [row["epoch"] for row in rows]
            if numbers != list(range(epochs or len(rows) or 1)):
                raise ValueError(f"epochs {numbers}")
        except Exception as error:  # Whatever a damaged file raises.
            raise ValueError(
                "The history must have a row of numbers for each epoch of its "
                f"run. Received: '{self.path / HISTORY}' ({str(error)[:200]}). "
                "Restore the file, or delete the folder to begin again."
            ) from error
        return rows

    def seconds(self) -> list[float]:
        """Return how long the epochs took, as far as they are known."""
        # Files of version 0.1.0 name an epoch twice that was repeated.
        return list(
            {row["epoch"]: row["seconds"] for row in self._times()}.values()
        )

    def _times(self):
        # They decide nothing, so a damaged file counts as none.
        with contextlib.suppress(Exception):
            return self._read(TIMES, ("epoch", "seconds"))
        return []

    def _check_resume(self, settings):
        config = self._config()
        check_unchanged(
            "--resume continues a run with its own settings.",
            {
                **config["settings"],
                "backend": config["versions"].get("backend"),
            },
            {**settings, "backend": keras.backend.backend()},
            self.path,
        )

    def _config(self):
        return read_json(self.path / CONFIG, "settings", "facts", "versions")


class Recorder(keras.callbacks.Callback):
    """Keeps a run's folder up to date, and shuffles before each epoch.

    `keras.callbacks.BackupAndRestore` is not enough: it writes weights and
    epoch to two files, in place. So a kill between the two repeats an epoch,
    and a kill while one is written leaves nothing to load.
    """

    def __init__(self, folder: RunFolder, batches: Batches):
        super().__init__()
        self.folder, self.batches = folder, batches

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.set_epoch(epoch)
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.folder.record(epoch, logs, time.perf_counter() - self.begin)
        save(self.model, self.folder.path / CHECKPOINT)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Make a folder, if it is not there, and keep other processes out of it.

    A folder that was made and is still empty in the end is removed.

    Raises:
        ValueError: if it cannot be made, or another process is at work in it.
    """
    try:
        made = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            "The output must be a folder that is there or can be made. "
            f"Received: '{path}' ({error}). Choose another."
        ) from error
    lock = filelock.FileLock(path / LOCK, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ValueError(
            "A folder takes one process at a time. Received: "
            f"'{path}', where another is at work. Wait for it, or choose "
            "another folder."
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes it on release.
            (path / LOCK).unlink()
        lock.release()
        with contextlib.suppress(OSError):  # Ends at one that holds files.
            for folder in made:
                folder.rmdir()


def check_empty(path: Path, remedy: str = "") -> None:
    """Raise a `ValueError` if a folder holds files of a user or of a run.

    Args:
        path: path of the folder, which need not be there.
        remedy: what can be done besides, for the message.
    """
    held = set(os.listdir(path)) if path.is_dir() else set()
    if names := sorted(held - set(PASSED_OVER)):
        raise ValueError(
            "The output folder must be new or empty. "
            f"Received: '{path}', which holds {', '.join(names)}. "
            f"Continue its run with --resume{remedy} or choose another folder."
        )


def write_json(path: Path, content: dict) -> None:
    """Write `content` to `path` as JSON, whole at every moment."""
    write_text(path, _json(content))


def read_json(path: Path, *parts: str) -> dict:
    """Return what `write_json` wrote, or raise a `ValueError`.

    Each of `parts` must be a key of it, with a dict as its value.
    """
    if not path.exists():
        raise ValueError(
            f"--resume needs the folder of a run. Received: '{path.parent}', "
            f"which has no {path.name}. Leave --resume out to begin a run "
            "there."
        )
    try:
        content = json.loads(path.read_text("utf-8"))
        for part in parts:
            content[part].items()
    except Exception as error:  # Whatever a damaged file raises.
        raise ValueError(
            "--resume needs the configuration that the run wrote. "
            f"Received: '{path}', which cannot be read ({error!r}). "
            "Restore the file, or delete the folder to begin again."
        ) from error
    return content


def _json(content):
    return json.dumps(content, indent=2) + "\n"


def check_unchanged(rule: str, old: dict, new: dict, path: Path) -> None:
    """Raise a `ValueError` if a new value differs from that in the folder.

    `data_dir` may differ, since where the data are changes no result.
    """
    # Tuples become lists, as in the file.
    old, new = json.loads(json.dumps([old, new]))
    changed = [
        name
        for name in new
        if new[name] != old.get(name) and name != "data_dir"
    ]
    if changed:
        raise ValueError(
            f"{rule} Received: "
            + ", ".join(f"{name}={new[name]!r}" for name in changed)
            + f"; '{path}' has "
            + ", ".join(f"{name}={old.get(name)!r}" for name in changed)
            + ". Leave these options out, or choose another folder."
        )


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    backend = keras.backend.backend()
    return {
        "keras_tlgc": keras_tlgc.__version__,
        "keras": keras.__version__,
        "backend": backend,
        backend: importlib.import_module(backend).__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
