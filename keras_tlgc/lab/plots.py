"""Plots of one run and of many."""

import functools
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from matplotlib import ticker
from matplotlib.figure import Figure

from keras_tlgc.applications.convolutions import CONVOLUTIONS
from keras_tlgc.lab import paper
from keras_tlgc.lab.outcomes import Configuration, Row, Summary, summarize

# With more epochs, the markers would hide the line.
EPOCHS_WITH_MARKERS = 30


def plot_errors(
    rows: Iterable[Row],
    path: str | os.PathLike,
    title: str,
    printed: Mapping[Configuration, paper.Printed] | None = None,
) -> None:
    """Draw error rate against N, as in the paper's Figures 5 and 7.

    Lines go through the means. Bars are 95% confidence intervals of the mean,
    where there are enough runs for one; otherwise each run is a point. With one
    N and several numbers of coarse channels, the latter are on the horizontal
    axis. At each number on it, the kinds stand side by side. What the paper
    prints is drawn as dotted lines.
    """
    measured = [s for s in summarize(rows) if s.errors]
    of_paper = [
        Summary(c, 0, (about.error_rate,), 0, 1)
        for c, about in sorted((printed or {}).items())
    ]
    option = "groups"
    with_groups = [s for s in measured if _takes(s.configuration, "groups")]
    if _varied(measured, "coarse_channels") and not _varied(
        with_groups, "groups"
    ):
        option = "coarse_channels"
    on_axis = [
        s.configuration
        for s in measured + of_paper
        if _takes(s.configuration, option)
    ]
    kinds = list(dict.fromkeys(_label(c, option) for c in on_axis))
    place = functools.partial(_place, kinds, option)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    names = {"groups": "number of groups N", "coarse_channels": "coarse rank r"}
    axes.set(xlabel=names[option], ylabel="error rate (%)", title=title)
    _number_axis(axes, sorted({getattr(c, option) for c in on_axis}))
    for label, line in _lines(measured, option).items():
        _draw_line(axes, label, line, place, ls="-")
        _draw_runs(axes, line, place)
    for label, line in _lines(of_paper, option).items():
        _draw_line(axes, f"{label}, paper", line, place, ls=":", marker="x")
    _save(figure, axes, path)


def _number_axis(axes, numbers):
    """Put these numbers on the horizontal axis, in a scale of doublings."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    if numbers:
        axes.set_xlim(numbers[0] / 1.5, numbers[-1] * 1.5)


def _draw_line(axes, label, line, place, **style):
    """Draw the means of a kind, or a level where it has no place."""
    style |= {"label": label, "color": _color(line[0].configuration)}
    x = [place(s.configuration) for s in line]
    if x[0] is None:
        style |= {"ls": "--" if style["ls"] == "-" else ":", "marker": ""}
        axes.axhline(line[0].mean, **style)
    else:
        axes.plot(x, [s.mean for s in line], **style)


def _draw_runs(axes, line, place):
    """Draw the interval of each mean, or the runs where they are too few."""
    for s in line:
        c = s.configuration
        style = {"color": _color(c), "alpha": c.coarse_channels**-0.5}
        x = place(c) or axes.get_xlim()[0]
        if s.interval:
            low, high = s.interval
            bars = [[s.mean - low], [high - s.mean]]
            axes.errorbar(x, s.mean, bars, capsize=3, marker="o", **style)
        else:
            axes.plot([x] * len(s.errors), s.errors, "o", **style)


def plot_losses(
    losses: Mapping[Configuration, list[float]],
    path: str | os.PathLike,
    title: str,
) -> None:
    """Draw the training loss of each epoch, as in the paper's Figure 4."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    styles = ["-", "--", "-.", ":"]
    numbers = sorted({c.groups for c in losses if _takes(c, "groups")})
    for configuration, line in losses.items():
        label, style = configuration.label, "-"
        if _takes(configuration, "groups"):
            label += f", N = {configuration.groups}"
            style = styles[numbers.index(configuration.groups) % len(styles)]
        _draw_epochs(
            axes, line, ls=style, color=_color(configuration), label=label
        )
    axes.set(ylabel="training loss", title=title)
    _count_epochs(axes)
    _logarithmic(axes)
    _save(figure, axes, path)


def plot_history(
    history: list[dict[str, float]], path: Path, title: str
) -> None:
    """Draw loss and error rate of each epoch of a run."""
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    loss, error = figure.subplots(1, 2)
    for name, label in (("", "training"), ("val_", "held out")):
        _draw_epochs(loss, [row[f"{name}loss"] for row in history])
        errors = [100 * (1 - row[f"{name}accuracy"]) for row in history]
        _draw_epochs(error, errors, label=label)
    for axes in (loss, error):
        _count_epochs(axes)
    loss.set(ylabel="loss")
    _logarithmic(loss)
    error.set(ylabel="error rate (%)")
    figure.suptitle(title)
    _save(figure, error, path)


def _draw_epochs(axes, values, **style):
    """Draw a value for each epoch."""
    marker = "o" if len(values) <= EPOCHS_WITH_MARKERS else None
    axes.plot(
        range(1, len(values) + 1), values, marker=marker, markersize=4, **style
    )


def _count_epochs(axes):
    """Put whole epochs on the horizontal axis, from the first to the last."""
    last = max([1, *(len(line.get_xdata()) for line in axes.lines)])
    axes.set(xlabel="epoch", xlim=(0.5, last + 0.5))
    axes.xaxis.set_major_locator(
        ticker.MaxNLocator(integer=True, min_n_ticks=1)
    )


def _logarithmic(axes):
    """Make the vertical axis logarithmic, without powers in its numbers."""
    values = [y for line in axes.lines for y in line.get_ydata()]
    if not any(0 < value < math.inf for value in values):
        return  # A run that diverged has nothing to show.
    axes.set_yscale("log")
    # The limits are fixed, since another locator would move them down to 0.
    low, high = axes.set_ylim(axes.get_ylim())
    of_decades = ticker.LogLocator(subs=(1, 2, 5))
    axes.yaxis.set_major_locator(
        of_decades if high > 10 * low else ticker.AutoLocator()
    )
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _place(kinds, option, configuration):
    """Return where a configuration is on the axis, beside other kinds.

    It is `None` for kinds that do not take the option.
    """
    if not _takes(configuration, option):
        return None
    step = min(0.08, 0.5 / len(kinds))  # In doublings, as on the axis.
    moved = kinds.index(_label(configuration, option)) - (len(kinds) - 1) / 2
    return getattr(configuration, option) * 2 ** (moved * step)


def _lines(summaries, option):
    """Return the summaries of each line of a plot against an option."""
    lines: dict[str, list[Summary]] = {}
    for s in summaries:
        lines.setdefault(_label(s.configuration, option), []).append(s)
    return lines


def _label(configuration, option):
    """Return the name of a line whose points differ in an option."""
    return configuration._replace(**{option: 1}).label


def _varied(summaries, option):
    return len({getattr(s.configuration, option) for s in summaries}) > 1


def _takes(configuration, option):
    return option in CONVOLUTIONS[configuration.conv].options


def _color(configuration):
    """Return the color of a kind, the same in all plots."""
    return f"C{list(CONVOLUTIONS).index(configuration.conv)}"


def _save(figure, axes, path):
    if axes.get_legend_handles_labels()[1]:
        handles = axes.get_legend_handles_labels()
        figure.legend(*handles, loc="outside right upper", fontsize="small")
    # While the file is written, its name may have another suffix.
    figure.savefig(path, dpi=120, format="png")
