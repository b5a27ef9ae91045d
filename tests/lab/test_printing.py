"""Tables as commands print them."""

import pytest
from commands import rows_of

from keras_tlgc.cli import printing
from keras_tlgc.lab.tables import markdown_table


@pytest.fixture
def terminal(monkeypatch):
    """Draw tables, as for a terminal of 80 columns."""
    monkeypatch.setattr(printing, "draws", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")


def test_tables_of_a_terminal(terminal, capsys):
    """They fit, names fold, numbers stay whole, and spare columns go."""
    columns = ["convolution", "layer", "parameters", "multiply-adds"]
    columns += ["Error rate (%)", "seconds", "kept, because"]
    row = ["block_12/[red]conv2d_of_a_long_name", "DepthwiseConv2D"]
    row += ["1,234,567 -> 234,567", "1,234,567,890 -> 234,567,890"]
    row += ["23.45 ± 1.23", "", "it is no standard | one"]
    texts = ["convolution", "layer", "kept, because"]
    text = markdown_table(columns, [row, row], texts)
    printing.show(f"### Title\n\n{text}\nEnd.", spare=["layer"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Title" and lines[-1] == "End."
    printed = " ".join(lines)
    for whole in (
        "1,234,567 ",
        "-> 234,567,890",
        "23.45",
        "standard |",
        "[red]",
    ):
        assert printed.count(whole) == 2
    assert "seconds" not in printed  # All empty.
    assert "Too narrow for: layer. --markdown shows all." in lines

    printing.show(text, markdown=True)
    assert capsys.readouterr().out == f"{text}\n"
    assert rows_of(text.replace(r"\|", "/"))[0] == [
        *row[:-1],
        "it is no standard / one",
    ]


@pytest.mark.parametrize(
    ("drawn", "no_color", "bars"),
    [(True, "", True), (True, "1", False), (False, "", False)],
)
def test_bars_of_keras(monkeypatch, drawn, no_color, bars):
    """They have colors, in any terminal and in any file."""
    monkeypatch.setattr(printing, "draws", lambda: drawn)
    monkeypatch.setenv("NO_COLOR", no_color)
    assert printing.shows_bars() == bars
