"""The outcomes of many runs: rows, their summaries, tables and plots."""

import csv
import io
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from keras_tlgc.applications.convolutions import CONVOLUTIONS


class Configuration(NamedTuple):
    """A kind of convolution with N groups of r coarse channels."""

    conv: str
    groups: int
    coarse_channels: int = 1

    @property
    def label(self) -> str:
        """The paper's name of the kind, with r where it is not the paper's."""
        r = self.coarse_channels
        return CONVOLUTIONS[self.conv].label + (f", r = {r}" if r > 1 else "")

    @property
    def name(self) -> str:
        """The name of its files."""
        has_r = "coarse_channels" in CONVOLUTIONS[self.conv].options
        r = f"-r{self.coarse_channels}" if has_r else ""
        return f"{self.conv}-n{self.groups}{r}"


class Row(NamedTuple):
    """The outcome of one run, as `results.csv` holds it.

    `parameters` are counted as in the paper, `error_rate` is in percent of the
    held-out images after the last epoch. A run that failed has no error rate,
    and says why in `failure`; one that was not run yet has neither.
    """

    conv: str
    groups: int
    coarse_channels: int
    seed: int
    parameters: int
    error_rate: float | None = None
    failure: str = ""

    @property
    def configuration(self) -> Configuration:
        return Configuration(self.conv, self.groups, self.coarse_channels)


class Summary(NamedTuple):
    """Mean and spread over the seeds of one configuration, in percent.

    `spread` is the standard deviation of the runs, and `interval` half the
    width of the 95% confidence interval of the mean, by Student's t: both 0
    for a single run.
    """

    configuration: Configuration
    parameters: int
    mean: float
    spread: float
    interval: float
    finished: int
    failed: int
    runs: int


def summarize(rows: Iterable[Row]) -> list[Summary]:
    """Return a summary for each configuration, ordered by N, kind and r.

    The mean is NaN where no run has finished.
    """
    runs: dict[Configuration, list[Row]] = {}
    for row in rows:
        runs.setdefault(row.configuration, []).append(row)
    kinds = list(CONVOLUTIONS)
    return sorted(
        (_summary(*item) for item in runs.items()),
        key=lambda s: (
            s.configuration.groups,
            kinds.index(s.configuration.conv),
            s.configuration.coarse_channels,
        ),
    )


def _summary(configuration, rows):
    errors = [r.error_rate for r in rows if r.error_rate is not None]
    count = len(errors)
    spread = statistics.stdev(errors) if count > 1 else 0.0
    quantile = stats.t.ppf(0.975, count - 1) if count > 1 else 0.0
    return Summary(
        configuration,
        rows[0].parameters,
        statistics.fmean(errors) if errors else math.nan,
        spread,
        float(quantile) * spread / math.sqrt(max(1, count)),
        count,
        sum(bool(row.failure) for row in rows),
        len(rows),
    )


def table(
    rows: Iterable[Row],
    columns: Mapping[str, Callable[[Summary], str]] | None = None,
) -> str:
    """Return a Markdown table in the form of the paper's Table 3.

    Args:
        rows: `Row`s. What is not known yet is a dash.
        columns: names of more columns, and what gives their cells.
    """
    more = columns or {}
    names = "Type", "N", "Parameters", "Error rate (%)", "95% interval", "Runs"
    lines = ["| " + " | ".join((*names, *more)) + " |"]
    lines.append("| --- |" + " ---: |" * (len(names) - 1 + len(more)))
    for s in summarize(rows):
        error, interval = "failed" if s.failed else "-", ""
        if s.finished:
            error = f"{s.mean:.2f}"
        if s.finished > 1:
            error += f" ± {s.spread:.2f}"
            below, above = _bars(s)
            interval = f"{s.mean - below:.2f} to {s.mean + above:.2f}"
        runs = f"{s.finished} of {s.runs}" if s.finished < s.runs else s.runs
        cells = [s.configuration.label, s.configuration.groups]
        parameters = format_params(s.parameters) if s.parameters else "-"
        cells += [parameters, error, interval, runs]
        cells += [column(s) for column in more.values()]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _bars(summary):
    """Return how far the interval reaches below and above the mean."""
    mean, interval = summary.mean, summary.interval
    return min(interval, mean), min(interval, 100 - mean)


def format_params(parameters: int) -> str:
    """Return a number of parameters in millions or thousands."""
    if parameters >= 1e6:
        return f"{parameters / 1e6:.2f}M"
    return f"{parameters / 1e3:.1f}K"


def as_csv(rows: Iterable[Row]) -> str:
    """Return the rows that have an outcome, as `results.csv` holds them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(r for r in rows if r.error_rate is not None or r.failure)
    return text.getvalue()


def plot_errors(
    rows: Iterable[Row],
    path: str | os.PathLike,
    paper: Mapping[Configuration, float] | None = None,
) -> None:
    """Draw error rate against N, as the paper's Figures 5 and 7.

    Bars are 95% confidence intervals of the mean, within 0 and 100%. With one
    N and several numbers of coarse channels, those are the horizontal axis.

    Args:
        rows: `Row`s.
        path: PNG file to write.
        paper: optional error rates in percent, drawn as dotted lines.
    """
    summaries = [s for s in summarize(rows) if s.finished]
    over_rank = _varied(summaries, "coarse_channels") and not _varied(
        [s for s in summaries if _takes(s.configuration, "groups")], "groups"
    )
    option = "coarse_channels" if over_rank else "groups"
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    ticks = set()
    for label, line in _lines(summaries, option).items():
        first = line[0]
        color = _color(first.configuration)
        if not _takes(first.configuration, option):
            _band(axes, first.mean, first.interval, color, label)
            continue
        x = [getattr(s.configuration, option) for s in line]
        ticks.update(x)
        axes.errorbar(
            x,
            [s.mean for s in line],
            np.transpose([_bars(s) for s in line]),
            marker="o",
            capsize=3,
            color=color,
            label=label,
            alpha=1 / math.sqrt(first.configuration.coarse_channels)
            if not over_rank
            else 1,
        )
    if paper:
        ticks.update(_plot_paper(axes, paper))
    names = {"groups": "number of groups N", "coarse_channels": "coarse rank r"}
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [str(n) for n in sorted(ticks)])
    axes.set(xlabel=names[option], ylabel="error rate (%)")
    if axes.get_legend_handles_labels()[1]:
        axes.legend()
    _save(figure, path)


def plot_losses(
    losses: Mapping[Configuration, list[float]], path: str | os.PathLike
) -> None:
    """Draw the training loss of each epoch, as the paper's Figure 4.

    Args:
        losses: for each configuration the losses, an epoch after the other.
        path: PNG file to write.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    styles = ["-", "--", "-.", ":"]
    numbers = sorted({c.groups for c in losses if _takes(c, "groups")})
    for configuration, line in losses.items():
        label, style = configuration.label, "-"
        if _takes(configuration, "groups"):
            label += f", N = {configuration.groups}"
            style = styles[numbers.index(configuration.groups) % len(styles)]
        axes.plot(
            range(1, len(line) + 1),
            line,
            style,
            color=_color(configuration),
            label=label,
        )
    axes.set(xlabel="epoch", ylabel="training loss", yscale="log")
    if losses:
        figure.legend(loc="outside right upper", fontsize="small")
    _save(figure, path)


def _plot_paper(axes, paper):
    """Draw the paper's error rates; return their numbers of groups."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for configuration, error in paper.items():
        points = lines.setdefault(configuration.conv, [])
        points.append((configuration.groups, error))
    numbers = set()
    for conv, points in lines.items():
        configuration = Configuration(conv, 1)
        color, label = _color(configuration), f"{configuration.label}, paper"
        if not _takes(configuration, "groups"):
            axes.axhline(points[0][1], color=color, ls=":", label=label)
            continue
        x, y = zip(*sorted(points), strict=True)
        numbers.update(x)
        axes.plot(x, y, ":", color=color, marker="x", label=label)
    return numbers


def _band(axes, mean, interval, color, label):
    axes.axhline(mean, color=color, ls="--", label=label)
    axes.axhspan(mean - interval, mean + interval, color=color, alpha=0.15)


def _lines(summaries, option):
    """Return the summaries of each line of a plot against an option."""
    lines: dict[str, list[Summary]] = {}
    for s in summaries:
        whole = s.configuration._replace(**{option: 1})
        lines.setdefault(whole.label, []).append(s)
    return lines


def _varied(summaries, option):
    return len({getattr(s.configuration, option) for s in summaries}) > 1


def _takes(configuration, option):
    return option in CONVOLUTIONS[configuration.conv].options


def _color(configuration):
    """Return the color of a kind, the same in all plots."""
    return f"C{list(CONVOLUTIONS).index(configuration.conv)}"


def _save(figure, path):
    # The file name may end in anything while it is being written.
    figure.savefig(path, dpi=120, format="png")
