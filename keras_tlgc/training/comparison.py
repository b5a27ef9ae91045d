"""Kinds of convolution side by side: the same recipe, groups and seeds."""

import csv
import dataclasses
import functools
import io
import json
import math
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import keras
from matplotlib.figure import Figure
from rich import progress

from keras_tlgc.applications.convolutions import CONVOLUTIONS, pair
from keras_tlgc.costs import count_params
from keras_tlgc.files import write_text, write_whole
from keras_tlgc.training.folder import (
    RunFolder,
    check_unchanged,
    contents,
    versions,
    write_json,
)
from keras_tlgc.training.run import Settings, build_network, train
from keras_tlgc.validation import positive_int

CONFIG = "config.json"
RESULTS = "results.csv"
TABLE = "table.md"
PLOT = "errors.png"
COMPARISON_FILES = {
    RESULTS: "one row for each run: its error rate, or what it failed with",
    TABLE: "mean and spread over the seeds, as the paper's Table 3",
    PLOT: "the same as a picture, as the paper's Figures 5 and 7",
    CONFIG: "all that repeats the comparison: settings and versions",
    "runs": "the folder of each run",
}
VARIED = ("conv", "groups", "seed")  # All other settings are the recipe.


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What to compare: every kind, with every number of groups and every seed.

    Args:
        convs: kinds of convolution, keys of
            `keras_tlgc.applications.convolutions.CONVOLUTIONS`. Those that
            take no groups run once for each seed.
        groups: integers, the numbers N of groups.
        seeds: integers.
        recipe: dict, the other `Settings`, the same for all runs. Its
            `coarse_channels` are for the kinds that take them.

    Raises:
        ValueError: if a list is empty or names a value twice, or a value is
            out of its range.
    """

    convs: tuple[str, ...] = tuple(CONVOLUTIONS)
    groups: tuple[int, ...] = (2, 4, 8, 16)
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("convs", "groups", "seeds"):
            values = tuple(getattr(self, name))
            if not values or len(set(values)) < len(values):
                raise ValueError(
                    f"`{name}` must list at least one value, none twice. "
                    f"Received: {name}={list(values)}. Name each value once."
                )
            object.__setattr__(self, name, values)
        if varied := set(VARIED) & set(self.recipe):
            raise ValueError(
                "`recipe` must hold what all runs share. "
                f"Received: {sorted(varied)}. "
                "Use `convs`, `groups` and `seeds` for these."
            )
        settings = dataclasses.asdict(Settings.from_dict(self.recipe))
        positive_int("coarse_channels", settings["coarse_channels"])
        recipe = {k: v for k, v in settings.items() if k not in VARIED}
        object.__setattr__(self, "recipe", recipe)
        self.runs()  # Checks kinds, groups and seeds.

    def runs(self) -> list[Settings]:
        """Return the settings of all runs, all those of one seed together."""
        runs = []
        for seed in self.seeds:
            for conv, groups in pair(self.convs, self.groups):
                values = dict(self.recipe, conv=conv, groups=groups, seed=seed)
                if "coarse_channels" not in CONVOLUTIONS[conv].options:
                    values["coarse_channels"] = 1
                runs.append(Settings(**values))
        return runs


class Row(NamedTuple):
    """The outcome of one run, as `results.csv` holds it.

    `parameters` are counted as in the paper, `error_rate` is in percent of the
    held-out images after the last epoch. A run that failed has no error rate,
    and says why in `failure`.
    """

    conv: str
    groups: int
    seed: int
    parameters: int
    error_rate: float | None
    failure: str


def compare(
    comparison: Comparison,
    output: str | os.PathLike,
    resume: bool = False,
) -> list[Row]:
    """Train every kind with every number of groups and every seed.

    `results.csv`, the table and the plot are written anew after each run. A
    run that fails becomes a row with its error, and the next one begins.
    A comparison that was killed at any moment goes on with `resume`: finished
    runs are read from their folders, one that was interrupted goes on from its
    last finished epoch, and one that failed is tried again, unless it came to
    its end with a loss that is not finite.

    Args:
        comparison: the `Comparison`.
        output: folder for the files in `COMPARISON_FILES`.
        resume: bool, whether to go on with the comparison that the folder
            holds. Kinds, groups and seeds may have changed since.

    Returns:
        A list with one `Row` for each run.

    Raises:
        ValueError: before anything is written, if the folder holds files and
            `resume` is not given, if there is nothing to resume or it has
            another recipe or backend, or if some settings make no network.
    """
    folder = Path(output)
    if resume:
        stored, backend = _stored(folder)
        check_unchanged(
            "--resume goes on with the recipe and backend of a comparison.",
            {**stored.recipe, "backend": backend},
            {**comparison.recipe, "backend": keras.backend.backend()},
            folder,
        )
    elif folder.exists() and (not folder.is_dir() or contents(folder)):
        raise ValueError(
            "The output folder of a comparison must be new or empty. "
            f"Received: '{folder}'. "
            "Continue its comparison with --resume, or choose another folder."
        )
    parameters = _count_all(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**dataclasses.asdict(comparison), "versions": versions()}
    write_json(folder / CONFIG, config)

    runs, rows = comparison.runs(), {}
    # The finished ones first, so that the files never hold fewer than before.
    order = sorted(runs, key=lambda s: not _folder_of(folder, s).finished)
    with _progress() as bars:
        overall = bars.add_task("runs", total=len(runs))
        for settings in order:
            run_folder = _folder_of(folder, settings)
            was_finished = run_folder.finished
            row = _run(settings, run_folder, bars)
            row = row._replace(parameters=parameters[_configuration(settings)])
            rows[settings] = row
            if not was_finished or settings == order[-1]:
                _write_results([rows[s] for s in runs if s in rows], folder)
            # Messages may hold what looks like rich's markup.
            bars.console.print(_describe(row), markup=False, highlight=False)
            bars.advance(overall)
    return [rows[settings] for settings in runs]


def stored_comparison(output: str | os.PathLike) -> Comparison:
    """Return the comparison that a folder holds.

    Raises:
        ValueError: if the folder holds none.
    """
    return _stored(Path(output))[0]


def _run(settings, folder: RunFolder, bars) -> Row:
    """Return the row of a run, which is trained as far as it is not yet."""
    name = f"{_label(settings.conv)}, N = {settings.groups}"
    task = bars.add_task(name, total=None)  # Until it has begun.
    row = Row(settings.conv, settings.groups, settings.seed, 0, None, "")
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
            )
        last = folder.history()[-1]
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
    return f"{_label(row.conv)}, N = {row.groups}, seed {row.seed}: {outcome}"


def _label(conv):
    return CONVOLUTIONS[conv].label


def _folder_of(folder, settings):
    name = f"{settings.conv}-n{settings.groups}-seed{settings.seed}"
    return RunFolder(folder / "runs" / name)


def _configuration(settings):
    return settings.conv, settings.groups


def _count_all(comparison: Comparison) -> dict[tuple[str, int], int]:
    """Return the parameters of each network; raise if one cannot be built."""
    first_seed = [s for s in comparison.runs() if s.seed == comparison.seeds[0]]
    data = first_seed[0].load_data()
    data.train_batches(first_seed[0], comparison.seeds[0])  # Checks them.
    return {
        _configuration(settings): count_params(
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
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            "--resume needs the folder of a comparison. "
            f"Received: '{folder}', whose {CONFIG} cannot be read ({error!r}). "
            "Leave --resume out to begin a comparison there."
        ) from error


def _write_results(rows: list[Row], folder: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    write_text(folder / RESULTS, text.getvalue())
    write_text(folder / TABLE, table(rows))
    write_whole(folder / PLOT, lambda path: plot(rows, path))


class Summary(NamedTuple):
    """Mean and spread over the seeds of one kind with N groups, in percent.

    `spread` is the standard deviation of the runs, 0 for a single one.
    """

    conv: str
    groups: int
    parameters: int
    mean: float
    spread: float
    finished: int
    runs: int


def summarize(rows: Iterable[Row]) -> list[Summary]:
    """Return a summary for each kind and number of groups, in that order.

    The mean is NaN where no run has finished.
    """
    runs: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        runs.setdefault((row.conv, row.groups), []).append(row)
    summaries = []
    for (conv, groups), members in runs.items():
        errors = [r.error_rate for r in members if r.error_rate is not None]
        summaries.append(
            Summary(
                conv,
                groups,
                members[0].parameters,
                statistics.fmean(errors) if errors else math.nan,
                statistics.stdev(errors) if len(errors) > 1 else 0.0,
                len(errors),
                len(members),
            )
        )
    kinds = list(CONVOLUTIONS)
    return sorted(summaries, key=lambda s: (s.groups, kinds.index(s.conv)))


def table(rows: Iterable[Row]) -> str:
    """Return a Markdown table in the form of the paper's Table 3."""
    lines = [
        "| Type | N | Parameters | Error rate (%) | Runs |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for s in summarize(rows):
        error = f"{s.mean:.2f}" if s.finished else "failed"
        if s.finished > 1:
            error += f" ± {s.spread:.2f}"
        runs = f"{s.finished} of {s.runs}" if s.finished < s.runs else s.runs
        cells = _label(s.conv), s.groups, format_params(s.parameters), error
        lines.append("| " + " | ".join(map(str, (*cells, runs))) + " |")
    return "\n".join(lines) + "\n"


def format_params(parameters: int) -> str:
    """Return a number of parameters in millions or thousands."""
    if parameters >= 1e6:
        return f"{parameters / 1e6:.2f}M"
    return f"{parameters / 1e3:.1f}K"


def plot(rows: Iterable[Row], path: str | os.PathLike) -> None:
    """Draw error rate against N, as the paper's Figures 5 and 7."""
    summaries = [s for s in summarize(rows) if s.finished]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for conv, kind in CONVOLUTIONS.items():
        line = [s for s in summaries if s.conv == conv]
        means = [s.mean for s in line]
        if line and "groups" not in kind.options:
            axes.axhline(means[0], color="gray", ls=":", label=kind.label)
            low, high = means[0] - line[0].spread, means[0] + line[0].spread
            axes.axhspan(low, high, color="gray", alpha=0.15)
        elif line:
            axes.errorbar(
                [s.groups for s in line],
                means,
                [s.spread for s in line],
                marker="o",
                capsize=3,
                label=kind.label,
            )
    groups = sorted(
        {
            s.groups
            for s in summaries
            if "groups" in CONVOLUTIONS[s.conv].options
        }
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(groups, [str(n) for n in groups])
    axes.set(xlabel="number of groups N", ylabel="error rate (%)")
    if summaries:
        axes.legend()
    # The file name may end in anything while it is being written.
    figure.savefig(path, dpi=120, format="png")
