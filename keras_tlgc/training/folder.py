"""The folder of a run: what is on disk is whole at every moment."""

import contextlib
import csv
import importlib
import itertools
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import keras
import numpy as np
from matplotlib.figure import Figure

import keras_tlgc
from keras_tlgc.distribution import save
from keras_tlgc.files import write_text, write_whole

MODEL = "model.keras"
HISTORY = "history.csv"
CONFIG = "config.json"
CURVES = "curves.png"
TIMES = "times.csv"
CHECKPOINT = "checkpoint.weights.h5"  # While the run lasts.
LOCK = ".lock"  # While a process does.
# What may be in a folder that holds nothing else.
PASSED_OVER = (f".partial-{CONFIG}", LOCK, ".DS_Store", "Thumbs.db")
COLUMNS = ("epoch", "accuracy", "loss", "val_accuracy", "val_loss")
# What a file raises that is no JSON, or holds something else.
BAD_JSON = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
)
FILES = {
    MODEL: "the trained model, for keras.saving.load_model",
    HISTORY: "loss and accuracy of each epoch",
    CONFIG: "all that repeats the run: settings and versions",
    CURVES: "the history as a picture",
    TIMES: "seconds that each epoch took, with its evaluation",
}


class RunFolder:
    """The files of one run.

    `config.json` comes first. Each epoch ends with a row of `history.csv`,
    then with `checkpoint.weights.h5`: weights, optimizer and its step count,
    which tells the epoch. `model.keras` and `curves.png` come last, and the
    checkpoint goes. All but the rows of history and times are written under
    another name and then renamed; rows of the history beyond the checkpoint are
    dropped.
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
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(
                "The output must be a folder. "
                f"Received: '{self.path}', a file. Choose another name."
            )
        if resume:
            self._check_resume(settings)
        elif not overwrite and (names := contents(self.path)):
            raise ValueError(
                "The output folder must be new or empty. "
                f"Received: '{self.path}', which holds {', '.join(names)}. "
                "Continue its run with --resume, replace it with --overwrite, "
                "or choose another folder."
            )

    def settings(self) -> dict:
        """Return the settings of the run that the folder holds."""
        return self._config()["settings"]

    def begin(self, settings: dict, facts: dict) -> None:
        """Write the configuration of a new run, and remove an old one."""
        config = {"settings": settings, "facts": facts, "versions": versions()}

        def write(path):
            path.write_text(as_json(config), "utf-8")
            # The old run goes once the new one can be written.
            for name in (CHECKPOINT, *FILES):
                (self.path / name).unlink(missing_ok=True)

        self._replace(CONFIG, write)

    def restore(
        self,
        model: keras.Model,
        steps_per_epoch: int,
        facts: dict,
        epochs: int | None,
    ) -> int:
        """Load the checkpoint into `model`; return the epochs it has done.

        Args:
            model: compiled network of the run.
            steps_per_epoch: batches in an epoch.
            facts: what `begin` would be given.
            epochs: those of a finished run, if they are known.

        Raises:
            ValueError: if the run began with other facts, or checkpoint or
                history are damaged, before anything is changed.
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
            self.history(epochs)
        elif (self.path / HISTORY).exists():
            # Where lines end as on Windows, there are two ends to a row.
            rows = re.findall(rb"[^\n]*\n", (self.path / HISTORY).read_bytes())
            kept = b"".join(rows[: done + 1] if done else [])
            self._replace(HISTORY, lambda path: path.write_bytes(kept))
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

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Return three callbacks: for history, checkpoint and times."""
        return [
            keras.callbacks.CSVLogger(self.path / HISTORY, append=True),
            _Checkpoint(self),
            _Times(self.path / TIMES),
        ]

    def checkpoint(self, model: keras.Model) -> None:
        """Save weights and optimizer state of `model`."""
        save(model, self.path / CHECKPOINT)

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

    def finish(self, model: keras.Model) -> None:
        """Write the results of a run that has done all its epochs."""
        self._replace(CURVES, lambda path: _plot(self.history(), path))
        save(model, self.path / MODEL)
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def history(self, epochs: int | None = None) -> list[dict[str, float]]:
        """Return one dict of numbers for each finished epoch.

        Args:
            epochs: how many to read, at least 1; all if not given.

        Raises:
            ValueError: if there are not as many, or they hold something else.
        """
        path = self.path / HISTORY
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = [
                    {name: float(row[name]) for name in COLUMNS}
                    for row in itertools.islice(csv.DictReader(file), epochs)
                ]
            numbers = [row["epoch"] for row in rows]
            if numbers != list(range(epochs or len(rows) or 1)):
                raise ValueError(f"epochs {numbers}")
        except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
            raise ValueError(
                "The history must have a row of numbers for each epoch of its "
                f"run. Received: '{path}' ({str(error)[:200]}). Restore the "
                "file, or delete the folder to begin again."
            ) from error
        return rows

    def seconds(self) -> list[float]:
        """Return how long the epochs took, as far as they are known."""
        if not (self.path / TIMES).exists():
            return []
        # An epoch that was repeated after a kill counts once. A row that a
        # kill or a full disk cut off does not.
        text = (self.path / TIMES).read_text("utf-8", errors="replace")
        rows = re.findall(r"^(\d+),(\d+\.\d+)\n", text, re.MULTILINE)
        return list({epoch: float(time) for epoch, time in rows}.values())

    def _check_resume(self, settings):
        config = self._config()
        check_unchanged(
            "--resume continues a run with its own settings.",
            {**config["settings"], "backend": config["versions"]["backend"]},
            {**settings, "backend": keras.backend.backend()},
            self.path,
        )

    def _config(self):
        path = self.path / CONFIG
        if not path.exists():
            raise ValueError(
                "--resume needs the folder of a run. "
                f"Received: '{self.path}', which has no {CONFIG}. "
                "Leave --resume out to begin a run there."
            )
        try:
            config = json.loads(path.read_text("utf-8"))
            config["settings"].items(), config["facts"].items()
            config["versions"]["backend"]
        except BAD_JSON as error:
            raise ValueError(
                "--resume needs the configuration that the run wrote. "
                f"Received: '{path}', which cannot be read ({error!r}). "
                "Restore the file, or delete the folder to begin again."
            ) from error
        return config

    def _replace(self, name, write):
        write_whole(self.path / name, write)


class _Checkpoint(keras.callbacks.Callback):
    # Not keras.callbacks.BackupAndRestore: it writes weights and epoch to two
    # files, in place, so a kill between or amid them repeats an epoch or
    # leaves nothing to load.

    def __init__(self, folder: RunFolder):
        super().__init__()
        self.folder = folder

    def on_epoch_end(self, epoch, logs=None):
        self.folder.checkpoint(self.model)


class _Times(keras.callbacks.Callback):
    """Writes the seconds of each epoch, apart from what a seed decides."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def on_epoch_begin(self, epoch, logs=None):
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.begin
        header = "" if self.path.exists() else "epoch,seconds\n"
        with open(self.path, "a") as file:
            file.write(f"{header}{epoch},{seconds:.3f}\n")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Make a folder, if it is not there, and keep other processes out of it.

    Raises:
        ValueError: if it cannot be made, or another process is at work in it.
    """
    try:
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


def contents(path: Path) -> list[str]:
    """Return the names in a folder, but for what may be in an empty one."""
    names = os.listdir(path) if path.exists() else []
    return sorted(name for name in names if name not in PASSED_OVER)


def as_json(content: dict) -> str:
    """Return `content` as the text of a file."""
    return json.dumps(content, indent=2) + "\n"


def write_json(path: Path, content: dict) -> None:
    """Write `content` to `path` as a whole, as JSON."""
    write_text(path, as_json(content))


def check_unchanged(rule: str, old: dict, new: dict, path: Path) -> None:
    """Raise a `ValueError` if a new value differs from that in the folder.

    Where the data are changes no result.
    """
    # Lists for tuples, as in the file.
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


def _plot(history, path):
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, error = figure.subplots(1, 2)
    epochs = [row["epoch"] + 1 for row in history]
    for name, label in (("", "training"), ("val_", "held out")):
        losses = [row[f"{name}loss"] for row in history]
        errors = [100 * (1 - row[f"{name}accuracy"]) for row in history]
        loss.plot(epochs, losses, label=label)
        error.plot(epochs, errors, label=label)
    loss.set(xlabel="epoch", ylabel="loss", yscale="log")
    error.set(xlabel="epoch", ylabel="error rate (%)")
    error.legend()
    figure.savefig(path, dpi=120)
