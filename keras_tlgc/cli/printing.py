"""How commands print: a terminal gets drawn tables, all else Markdown."""

import itertools
import os
import re
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# A column of text folds down to this width; numbers stay whole.
NARROW = 14
# Where the cell of a number may be broken into a second line.
BREAKS = re.compile(r" (?=(?:->|±|to) )")


def draws() -> bool:
    """Return whether tables are drawn, as they are if a terminal shows them."""
    return sys.stdout.isatty()


def shows_bars() -> bool:
    """Return whether Keras may draw its bars, which always have colors."""
    return draws() and not os.environ.get("NO_COLOR")


def show(text: str, markdown: bool = False, spare: Sequence[str] = ()) -> None:
    """Print Markdown, with its tables drawn if a terminal shows them.

    Args:
        text: the Markdown. In a table, the columns whose rule ends with a colon
            hold numbers.
        markdown: whether to print it as it is in a terminal too.
        spare: the columns that a narrow terminal can do without, in the order
            in which they are left out.
    """
    if markdown or not draws():
        print(text, flush=True)
        return
    console = Console()
    for is_table, lines in itertools.groupby(
        text.splitlines(), lambda line: line.startswith("|")
    ):
        if is_table:
            _draw(console, [_cells(line) for line in lines], spare)
        else:
            for line in lines:
                style = "bold" if line.startswith("#") else ""
                console.print(Text(line.lstrip("# "), style))


def print_files(files):
    table = Table.grid(padding=(0, 2))
    for name, content in files.items():
        table.add_row(f"  {name}", content)
    Console().print(table)


def _cells(line):
    parts = re.split(r"(?<!\\)\|", line.strip()[1:-1])
    return [part.strip().replace(r"\|", "|") for part in parts]


def _draw(console, lines, spare):
    """Draw a table, without spare columns if it is too wide with them."""
    columns, narrow, wide = {}, {}, {}
    for name, rule, *cells in zip(*lines, strict=True):
        if any(cells):
            is_number = rule.endswith(":")
            columns[name] = is_number, cells
            parts = [part for cell in cells for part in BREAKS.split(cell)]
            longest = max(map(len, parts))
            narrowest = longest if is_number else min(longest, NARROW)
            narrow[name] = max(narrowest, *map(len, name.split()))
            wide[name] = max(map(len, [name, *cells]))

    def is_too_wide(widths):
        gaps = 2 * (len(columns) - 1)
        return sum(widths[name] for name in columns) + gaps > console.width

    dropped = []
    for name in spare:
        if name in columns and is_too_wide(narrow):
            dropped.append(name)
            del columns[name]
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    drawn = []
    is_folded = is_too_wide(wide)
    for name, (is_number, cells) in columns.items():
        folds = is_number and is_folded
        # rich makes only those columns narrower that have no width here.
        table.add_column(
            Text(name),
            justify="right" if is_number else "left",
            overflow="fold",
            width=narrow[name] if folds else None,
        )
        drawn.append([BREAKS.sub("\n", c) if folds else c for c in cells])
    for row in zip(*drawn, strict=True):
        table.add_row(*map(Text, row))
    console.print(table)
    if dropped:
        console.print(
            Text(f"Too narrow for: {', '.join(dropped)}. --markdown shows all.")
        )
