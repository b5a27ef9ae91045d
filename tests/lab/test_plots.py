"""Tables and plots of many runs."""

import math

import pytest
from commands import squeezed
from tiny import (
    contents,
    drawn_figures,  # noqa: F401  A fixture.
)

from keras_tlgc.lab import Configuration, Row, outcomes, plots
from keras_tlgc.lab.paper import Printed


def rows_of(*outcomes):
    """Return rows of (kind, N, error rate), in that order."""
    return [
        Row(conv, groups, 1, seed, 1_234_567, error, "" if error else "failed")
        for seed, (conv, groups, error) in enumerate(outcomes)
    ]


def test_table():
    rows = rows_of(
        ("two_level", 2, 4.0),
        ("group", 4, None),
        ("two_level", 2, 6.0),
        ("two_level", 2, 8.0),
        ("standard", 1, 3.125),
        ("group", 2, 90.0),
        ("group", 2, None),
        ("group", 2, 100.0),
        ("two_level", 4, 5.0),
    )
    rows[4] = rows[4]._replace(parameters=999)
    rows[-1] = rows[-1]._replace(coarse_channels=2)
    rows.append(Row("two_level", 8, 1, 0, 0))
    # Student's t of 2 degrees is 4.303. Of 1 it is 12.71, which says nothing.
    heading, _, *lines = squeezed(outcomes.table(rows)).splitlines()
    assert heading == (
        "| Type | N | Parameters | Error rate (%) | 95% interval | Runs |"
    )
    assert lines == [
        "| SC | 1 | 1.0K | 3.12 | | 1 |",
        "| GC | 2 | 1.23M | 95.00 ± 7.07 | | 2 of 3 |",
        "| GC-2L | 2 | 1.23M | 6.00 ± 2.00 | 1.03 to 10.97 | 3 |",
        "| GC | 4 | 1.23M | failed | | 0 of 1 |",
        "| GC-2L, r = 2 | 4 | 1.23M | 5.00 | | 1 |",
        "| GC-2L | 8 | - | - | | 0 of 1 |",
    ]


def drawn(axes):
    """Return the points of each line of a plot, by labels and in order."""
    return [
        (line.get_label(), list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if line.get_transform().contains_branch(axes.transData)
    ]


def tick_labels(figure, axis):
    figure.draw_without_rendering()
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [
        tick.label1.get_text()
        for tick in ticks
        if low <= tick.get_loc() <= high
    ]


def legend(figure):
    """Return the texts of a figure's legend, which is beside the plot."""
    figure.draw_without_rendering()
    [found] = figure.legends
    [*_, axes] = figure.axes
    assert found.get_window_extent().x0 >= axes.get_window_extent().x1
    return sorted(text.get_text() for text in found.get_texts())


def test_plot_shows_mean_and_interval(tmp_path, figures):
    rows = rows_of(
        *(("standard", 1, error) for error in (1.0, 2.0, 3.0)),
        *(("group", 2, error) for error in (1.0, 4.0, 7.0)),
        *(("group", 8, error) for error in (98.0, 98.0, 100.0)),
        *(("shuffle", 2, error) for error in (4.0, 6.0)),
        ("shuffle", 8, 9.0),
        ("two_level", 2, None),
    )
    paper = {
        Configuration("standard", 1): Printed(2.5, "1M", None),
        Configuration("two_level", 4): Printed(3.5, "1M", None),
        Configuration("two_level", 2): Printed(3.0, "1M", None),
    }
    title = "pairs, plain-2-8"
    plots.plot_errors(rows, tmp_path / "plot.png", title, paper)
    [axes] = figures[0].axes
    assert axes.get_title() == title
    names = ["GC", "GC-2L, paper", "SC", "SC, paper", "Shuffle"]
    assert legend(figures[0]) == names
    assert tick_labels(figures[0], axes.xaxis) == ["2", "4", "8"]
    # Three runs of a kind are a mean with an interval, within 0 and 100%.
    intervals = [bars[2][0].get_segments()[0] for bars in axes.containers]
    _, [low, high], [low_8, high_8] = (bars[:, 1] for bars in intervals)
    assert low == 0 and high == pytest.approx(4 + 4.3027 * 3 / 3**0.5, 1e-4)
    assert high_8 == 100 and 95 < low_8 < 96
    # Fewer are points, and a kind without groups is a line from edge to edge.
    lines = {label: (x, y) for label, x, y in drawn(axes)}
    assert lines["GC"][1] == pytest.approx([4, 98 + 2 / 3])
    assert lines["Shuffle"][1] == [5, 9]
    points = [y for label, _, y in drawn(axes) if label.startswith("_")]
    assert [4.0, 6.0] in points and [9.0] in points
    assert lines["GC-2L, paper"][1] == [3.0, 3.5]
    # Kinds stand beside each other.
    places = [lines[kind][0][0] for kind in ("GC", "Shuffle", "GC-2L, paper")]
    assert 1.6 < places[0] < places[1] < places[2] < 2.5
    plots.plot_errors([], tmp_path / "empty.png", "nothing")


def test_plot_over_the_coarse_rank(tmp_path, figures):
    rows = [
        Row("standard", 1, 1, 0, 9, 1.0),
        Row("group", 16, 1, 0, 9, 8.0),
        Row("two_level", 16, 1, 0, 9, 5.0),
        Row("two_level", 16, 4, 0, 9, 3.0),
    ]
    plots.plot_errors(rows, tmp_path / "plot.png", "title")
    [axes] = figures[0].axes
    assert axes.get_xlabel() == "coarse rank r"
    assert legend(figures[0]) == ["GC", "GC-2L", "SC"]
    assert tick_labels(figures[0], axes.xaxis) == ["1", "4"]
    [line] = [y for label, _, y in drawn(axes) if label == "GC-2L"]
    assert line == [5, 3]


def test_plot_of_losses(tmp_path, figures):
    losses = {
        Configuration("standard", 1): [20.0, 1.0],
        Configuration("group", 2): [4.0, 2.0],
        Configuration("group", 8): [5.0, 3.0],
    }
    plots.plot_losses(losses, tmp_path / "plot.png", "title")
    [axes] = figures[0].axes
    assert axes.get_title() == "title"
    assert legend(figures[0]) == ["GC, N = 2", "GC, N = 8", "SC"]
    assert [y for *_, y in drawn(axes)] == list(losses.values())
    assert len({x.get_linestyle() for x in axes.lines[1:]}) == 2
    assert tick_labels(figures[0], axes.yaxis) == ["1", "2", "5", "10", "20"]
    plots.plot_losses({}, tmp_path / "empty.png", "nothing")


@pytest.mark.parametrize("epochs", [1, 3, 200])
def test_plots_count_whole_epochs(tmp_path, figures, epochs):
    """With something to see of a single one, and usual numbers."""
    losses = [1.01 - 0.001 * epoch for epoch in range(epochs)]
    plots.plot_losses(
        {Configuration("standard", 1): losses}, tmp_path / "a", ""
    )
    columns = ("loss", "val_loss", "accuracy", "val_accuracy")
    history = [dict.fromkeys(columns, loss / 2) for loss in losses]
    plots.plot_history(history, tmp_path / "b", "digits")
    assert figures[1].get_suptitle() == "digits"
    assert legend(figures[1]) == ["held out", "training"]
    for figure in figures:
        for axes in figure.axes:
            labels = tick_labels(figure, axes.xaxis)
            assert labels and all(label.isdecimal() for label in labels)
            if epochs < 4:
                assert labels == [str(i + 1) for i in range(epochs)]
                assert all(line.get_marker() == "o" for line in axes.lines)
            assert tick_labels(figure, axes.yaxis)
            for label in tick_labels(figure, axes.yaxis):
                float(label)


@pytest.mark.parametrize(
    "losses",
    [[], [0.0], [math.inf, 1.0], [1.0, 0.0, math.nan]],
    ids=str,
)
def test_plots_of_losses_without_logarithm(tmp_path, losses):
    """They are drawn as far as they can be, and warn of nothing."""
    of_one = {Configuration("standard", 1): losses}
    plots.plot_losses(of_one, tmp_path / "plot.png", "title")
    columns = ("loss", "val_loss", "accuracy", "val_accuracy")
    history = [dict.fromkeys(columns, loss) for loss in losses]
    plots.plot_history(history, tmp_path / "curves.png", "title")
    assert len(contents(tmp_path)) == 2


def test_names_of_configurations():
    assert Configuration("group", 2).name == "group-n2"
    assert Configuration("two_level", 4, 2).name == "two_level-n4-r2"
    assert Configuration("two_level", 4, 2).label == "GC-2L, r = 2"
    row = Row("two_level", 4, 2, 0, 9)
    assert row.configuration == Configuration("two_level", 4, 2)
    assert outcomes.format_params(999) == "1.0K"
