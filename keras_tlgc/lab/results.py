"""The files that a comparison writes from the folders of its runs."""

import contextlib
import csv
import io
import itertools
import math
import os
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from keras_tlgc.files import write_text, write_whole
from keras_tlgc.lab import paper
from keras_tlgc.lab.folder import RunFolder
from keras_tlgc.lab.outcomes import Configuration, Row, table
from keras_tlgc.lab.plots import plot_errors, plot_losses
from keras_tlgc.lab.run import Settings

RESULTS = "results.csv"
TABLE = "table.md"
ERRORS = "errors.png"
LOSSES = "losses.png"


def run_folder(output: str | os.PathLike, run: Settings | Row) -> RunFolder:
    """Return the folder of one run of a comparison."""
    name = f"{Configuration.of(run).name}-seed{run.seed}"
    return RunFolder(Path(output) / "runs" / name)


def with_outcome(row: Row, run: RunFolder, epochs: int | None = None) -> Row:
    """Return the row with the outcome of its run, which is finished.

    A history that is damaged, or has another number of epochs than `epochs`, if
    that is given, raises a `ValueError`.
    """
    last = run.history(epochs)[-1]
    if not math.isfinite(last["loss"]):
        return row._replace(failure=f"the loss became {last['loss']}")
    error_rate = round(100 * (1 - last["val_accuracy"]), 4)
    return row._replace(error_rate=error_rate)


def other_rows(rows: Iterable[Row], output: Path) -> list[Row]:
    """Return the finished runs in the folder of a comparison except `rows`."""
    known = {row[:4] for row in rows}
    others = []
    for path in sorted(output.glob("runs/*")):
        run = RunFolder(path)
        with contextlib.suppress(ValueError):  # A damaged one is left out.
            run_of = Settings.from_dict(run.settings())
            parameters = run.facts().get("parameters", 0)
            row = Row(*Configuration.of(run_of), run_of.seed, parameters)
            if run.finished and row[:4] not in known:
                others.append(with_outcome(row, run))
    return others


def write_results(rows: list[Row], folder: Path, title: str) -> None:
    """Write the files of a comparison in `folder`, except those of its runs.

    They hold `rows`, and finished runs that the folder has beside these.
    """
    rows = rows + other_rows(rows, folder)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(r for r in rows if r.failure or r.error_rate is not None)
    write_text(folder / RESULTS, text.getvalue())
    write_text(folder / TABLE, table(rows))
    write_plots(rows, folder, folder / ERRORS, folder / LOSSES, title)


def write_plots(
    rows: list[Row],
    folder: Path,
    errors: Path,
    losses: Path,
    title: str,
    printed: Mapping[Configuration, paper.Printed] | None = None,
) -> None:
    """Write the plots of the errors and the losses of a comparison's runs."""
    write_whole(errors, lambda path: plot_errors(rows, path, title, printed))
    of_runs = training_losses(rows, folder)
    write_whole(losses, lambda path: plot_losses(of_runs, path, title))


def training_losses(
    rows: Iterable[Row], output: str | os.PathLike
) -> dict[Configuration, list[float]]:
    """Return the mean training loss of the finished runs at each epoch."""
    losses = _finished(
        rows, output, lambda run: [row["loss"] for row in run.history()]
    )
    return {
        # A history that was cut off ends the line, but not the comparison.
        key: list(map(statistics.fmean, zip(*runs, strict=False)))
        for key, runs in losses.items()
    }


def epoch_seconds(
    rows: Iterable[Row], output: str | os.PathLike
) -> dict[Configuration, float]:
    """Return the median time of an epoch of the finished runs, in seconds."""
    return {
        key: statistics.median(itertools.chain(*runs))
        for key, runs in _finished(rows, output, RunFolder.seconds).items()
        if any(runs)
    }


def _finished(rows, output, read):
    """Return what `read` returns of the folder of each finished run."""
    found: dict[Configuration, list] = {}
    for row in rows:
        run = run_folder(output, row)
        if run.finished:
            with contextlib.suppress(ValueError):  # Its row has this.
                found.setdefault(row.configuration, []).append(read(run))
    return found
