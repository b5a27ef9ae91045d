"""Kinds of convolution side by side: the same recipe, groups and seeds."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from rich import progress

from keras_tlgc.applications.convolutions import CONVOLUTIONS, pair
from keras_tlgc.costs import count_params
from keras_tlgc.distribution import mesh
from keras_tlgc.files import write_text, write_whole
from keras_tlgc.training.folder import (
    BAD_JSON,
    RunFolder,
    check_unchanged,
    contents,
    locked,
    versions,
    write_json,
)
from keras_tlgc.training.outcomes import (
    Configuration,
    Row,
    as_csv,
    plot_errors,
    plot_losses,
    table,
)
from keras_tlgc.training.run import Settings, build_network, train
from keras_tlgc.validation import at_most, positive_int

CONFIG = "config.json"
RESULTS = "results.csv"
TABLE = "table.md"
ERRORS = "errors.png"
LOSSES = "losses.png"
COMPARISON_FILES = {
    RESULTS: "one row for each run: its error rate, or what it failed with",
    TABLE: "mean and spread over the seeds, as the paper's Table 3",
    ERRORS: "the same as a picture, as the paper's Figures 5 and 7",
    LOSSES: "training loss of each epoch, as the paper's Figure 4",
    CONFIG: "all that repeats the comparison: settings and versions",
    "runs": "the folder of each run",
}
LISTS = ("convs", "groups", "coarse_channels", "seeds")
VARIED = (
    "conv",
    "groups",
    "coarse_channels",
    "seed",
)  # All other settings are the recipe.


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What to compare: every kind, with every number of groups and every seed.

    Args:
        convs: kinds of convolution, keys of
            `keras_tlgc.applications.convolutions.CONVOLUTIONS`. Those that
            take no groups run once for each seed.
        groups: integers, the numbers N of groups.
        coarse_channels: integers, the numbers r of coarse channels of each
            group, for the kinds that have them.
        seeds: integers.
        recipe: dict, the other `Settings`, the same for all runs.
        model_parallel: bool, whether each run of N groups is spread over N
            devices, on JAX.

    Raises:
        ValueError: if a list is empty or names a value twice, or a value is
            out of its range.
    """

    convs: tuple[str, ...] = tuple(CONVOLUTIONS)
    groups: tuple[int, ...] = (2, 4, 8, 16)
    coarse_channels: tuple[int, ...] = (1,)
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: dict = dataclasses.field(default_factory=dict)
    model_parallel: bool = False

    def __post_init__(self):
        for name in LISTS:
            values = getattr(self, name)
            if (
                not isinstance(values, list | tuple)
                or not values
                or any(values.count(value) > 1 for value in values)
            ):
                raise ValueError(
                    f"`{name}` must list at least one value, none twice. "
                    f"Received: {name}={values!r}. Name each value once."
                )
            object.__setattr__(self, name, tuple(values))
        if not isinstance(self.recipe, dict):
            raise ValueError(
                "`recipe` must be a dict of settings. "
                f"Received: recipe={self.recipe!r}. Pass one, as {{}}."
            )
        if not isinstance(self.model_parallel, bool):
            raise ValueError(
                "`model_parallel` must be True or False. "
                f"Received: {self.model_parallel!r}. Pass one of the two."
            )
        if varied := set(VARIED) & set(self.recipe):
            raise ValueError(
                "`recipe` must hold what all runs share. "
                f"Received: {sorted(varied)}. "
                f"Use {', '.join(f'`{name}`' for name in LISTS)} for these."
            )
        for r in self.coarse_channels:
            at_most("coarse_channels", positive_int("coarse_channels", r))
        settings = dataclasses.asdict(Settings.from_dict(self.recipe))
        recipe = {k: v for k, v in settings.items() if k not in VARIED}
        object.__setattr__(self, "recipe", recipe)
        self.runs()  # Checks kinds, groups and seeds.

    def runs(self) -> list[Settings]:
        """Return the settings of all runs, all those of one seed together."""
        return [
            Settings(**self.recipe, **configuration._asdict(), seed=seed)
            for seed in self.seeds
            for configuration in self.configurations()
        ]

    def configurations(self) -> list[Configuration]:
        """Return what is trained with every seed."""
        return [
            Configuration(conv, n, r)
            for conv, n in pair(self.convs, self.groups)
            for r in (
                self.coarse_channels
                if "coarse_channels" in CONVOLUTIONS[conv].options
                else (1,)
            )
        ]


def compare(
    comparison: Comparison,
    output: str | os.PathLike,
    resume: bool = False,
    report: Callable[[list[Row]], None] | None = None,
) -> list[Row]:
    """Train every kind with every number of groups and every seed.

    `results.csv`, the table and the plots are written anew after each run. A
    run that fails becomes a row with its error, and the next one begins.
    A comparison that was killed at any moment goes on with `resume`: finished
    runs are read from their folders, one that was interrupted goes on from its
    last finished epoch, and one that failed is tried again, unless it came to
    its end with a loss that is not finite.

    Args:
        comparison: the `Comparison`.
        output: folder for the files in `COMPARISON_FILES`.
        resume: bool, whether to go on with the comparison that the folder
            holds. Kinds, groups, coarse channels and seeds may have changed
            since.
        report: optional function, called with the rows of all runs whenever
            the files are written.

    Returns:
        A list with one `Row` for each run.

    Raises:
        ValueError: before anything is written, if the folder holds files and
            `resume` is not given, if there is nothing to resume or it has
            another recipe or backend, if another process works in it, if some
            settings make no network, or if there are not the devices for
            `model_parallel`.
    """
    folder = Path(output)
    parameters = check(comparison, folder, resume)
    rows = {
        s: Row(*_key(s), s.seed, parameters[_key(s)]) for s in comparison.runs()
    }
    config = {**dataclasses.asdict(comparison), "versions": versions()}
    with locked(folder):
        write_json(folder / CONFIG, config)
        _run_all(rows, comparison, folder, report or (lambda rows: None))
    return list(rows.values())


def check(
    comparison: Comparison, output: str | os.PathLike, resume: bool = False
) -> dict[Configuration, int]:
    """Return the parameters of each network, or raise what `compare` would."""
    folder = Path(output)
    if resume:
        stored, backend = _stored(folder)
        check_unchanged(
            "--resume goes on with the recipe and backend of a comparison.",
            {**_unchanging(stored), "backend": backend},
            {**_unchanging(comparison), "backend": keras.backend.backend()},
            folder,
        )
    elif folder.exists() and (not folder.is_dir() or contents(folder)):
        raise ValueError(
            "The output folder of a comparison must be new or empty. "
            f"Received: '{folder}'. "
            "Continue its comparison with --resume, or choose another folder."
        )
    if comparison.model_parallel:
        mesh.model_parallel((1, max(comparison.groups)))  # Has it devices?
    return _count_all(comparison)


def run_folder(output: str | os.PathLike, settings: Settings) -> RunFolder:
    """Return the folder of one run of a comparison."""
    name = f"{_key(settings).name}-seed{settings.seed}"
    return RunFolder(Path(output) / "runs" / name)


def stored_comparison(output: str | os.PathLike) -> Comparison:
    """Return the comparison that a folder holds.

    Raises:
        ValueError: if the folder holds none.
    """
    return _stored(Path(output))[0]


def _run_all(rows: dict[Settings, Row], comparison, folder, report) -> None:
    """Fill in the rows, and write the files after each run."""
    # The finished ones first, so that the files never hold fewer than before.
    order = sorted(rows, key=lambda s: not run_folder(folder, s).finished)
    with _progress() as bars:
        overall = bars.add_task("runs", total=len(rows))
        for settings in order:
            run = run_folder(folder, settings)
            was_finished = run.finished
            row = rows[settings] = _run(
                settings, rows[settings], run, bars, comparison.model_parallel
            )
            if not was_finished or settings == order[-1]:
                _write_results(list(rows.values()), folder, comparison)
                report(list(rows.values()))
            # Messages may hold what looks like rich's markup.
            bars.console.print(_describe(row), markup=False, highlight=False)
            bars.advance(overall)


def _run(settings, row: Row, folder: RunFolder, bars, model_parallel) -> Row:
    """Return the row of a run, which is trained as far as it is not yet."""
    task = bars.add_task(_name(row), total=None)  # Until it has begun.
    devices = settings.groups if model_parallel else 1
    try:
        begun = folder.begun
        folder.check(dataclasses.asdict(settings), begun, not begun)
        if not folder.finished:
            keras.utils.clear_session()  # What the last run has left.
            train(
                settings,
                folder.path,
                resume=begun,
                overwrite=not begun,
                verbose=0,
                callbacks=[_Bar(bars, task)],
                mesh=(1, devices) if devices > 1 else None,
            )
        last = folder.history(settings.epochs)[-1]
        if not math.isfinite(last["loss"]):
            return row._replace(failure=f"the loss became {last['loss']}")
        error_rate = round(100 * (1 - last["val_accuracy"]), 4)
        return row._replace(error_rate=error_rate)
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return row._replace(failure=message)
    finally:
        bars.remove_task(task)


class _Bar(keras.callbacks.Callback):
    """Shows the epochs and batches of one run in a line of progress bars."""

    def __init__(self, bars, task):
        super().__init__()
        self.bars, self.task = bars, task

    def on_epoch_begin(self, epoch, logs=None):
        steps = self.params["steps"]
        self.bars.update(
            self.task,
            total=steps * self.params["epochs"],
            completed=steps * epoch,
        )

    def on_train_batch_end(self, batch, logs=None):
        self.bars.advance(self.task)


def _progress():
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )


def _describe(row: Row):
    outcome = row.failure or f"{row.error_rate:.2f}% error"
    return f"{_name(row)}, seed {row.seed}: {outcome}"


def _name(row):
    return f"{row.configuration.label}, N = {row.groups}"


def _key(settings: Any) -> Configuration:
    return Configuration(
        settings.conv, settings.groups, settings.coarse_channels
    )


def _unchanging(comparison):
    """Return what may not change when a comparison goes on."""
    return {
        **comparison.recipe,
        "model_parallel": comparison.model_parallel,
    }


def _count_all(comparison: Comparison) -> dict[Configuration, int]:
    """Return the parameters of each network; raise if one cannot be built."""
    first_seed = [s for s in comparison.runs() if s.seed == comparison.seeds[0]]
    data = first_seed[0].load_data()
    batches = data.train_batches(first_seed[0], comparison.seeds[0])
    first_seed[0].check_steps(len(batches))
    return {
        _key(settings): count_params(
            functools.partial(build_network, settings, data)
        )
        for settings in first_seed
    }


def _stored(folder: Path) -> tuple[Comparison, str]:
    """Return the comparison in the folder, and its backend."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
        backend = config.pop("versions")["backend"]
        return Comparison(**config), backend
    except BAD_JSON as error:
        raise ValueError(
            "--resume needs the folder of a comparison. "
            f"Received: '{folder}', whose {CONFIG} cannot be read ({error!r}). "
            "Leave --resume out to begin a comparison there."
        ) from error


def _write_results(rows: list[Row], folder: Path, comparison) -> None:
    write_text(folder / RESULTS, as_csv(rows))
    write_text(folder / TABLE, table(rows))
    write_whole(folder / ERRORS, lambda path: plot_errors(rows, path))
    losses = training_losses(comparison, folder)
    write_whole(folder / LOSSES, lambda path: plot_losses(losses, path))


def training_losses(
    comparison: Comparison, output: str | os.PathLike
) -> dict[Configuration, list[float]]:
    """Return the training losses of each epoch, means over the finished runs.

    Args:
        comparison: the `Comparison`.
        output: its folder.
    """
    return {
        # A history that was cut ends the line, and no comparison.
        configuration: [
            statistics.fmean(epoch) for epoch in zip(*runs, strict=False)
        ]
        for configuration, runs in _finished(
            comparison,
            output,
            lambda run: [epoch["loss"] for epoch in run.history()],
        ).items()
    }


def epoch_seconds(
    comparison: Comparison, output: str | os.PathLike
) -> dict[Configuration, float]:
    """Return the median time of an epoch of the finished runs, in seconds."""
    runs = _finished(comparison, output, RunFolder.seconds)
    times = {key: list(itertools.chain(*value)) for key, value in runs.items()}
    return {key: statistics.median(all) for key, all in times.items() if all}


def _finished(comparison, output, read):
    """Return what `read` returns of the folder of each finished run."""
    found: dict[Configuration, list] = {}
    for settings in comparison.runs():
        run = run_folder(output, settings)
        if run.finished:
            with contextlib.suppress(ValueError):  # Its row says so.
                found.setdefault(_key(settings), []).append(read(run))
    return found
