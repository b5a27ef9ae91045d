"""Tables as plain text."""

import textwrap
from collections.abc import Collection, Sequence


def aligned(
    lines: Sequence[Sequence[str]],
    right: Collection[int] = (),
    width: int | None = None,
) -> str:
    """Return a table with a line for each row of cells.

    Args:
        lines: rows of cells, the headings first.
        right: the numbers of the columns that end, not begin, at one place.
        width: how wide the table should be. First cells that would make it
            wider get a line of their own, one for several rows that have it.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if width is not None:
        room = max(width - sum(2 + n for n in widths[1:]), len(lines[0][0]))
        widths[0] = max(
            n for n in (len(line[0]) for line in lines) if n <= room
        )
    rows, above = [], ""
    for first, *others in lines:
        is_alone = len(first) > widths[0]
        if is_alone and first != above:
            rows.append(first)
        first, above = "" if is_alone else first, first
        rows.append(
            "  ".join(
                cell.rjust(size) if i in right else cell.ljust(size)
                for i, (cell, size) in enumerate(
                    zip([first, *others], widths, strict=True)
                )
            ).rstrip()
        )
    return "\n".join(rows)


def wrapped(paragraph: str, width: int = 80) -> str:
    """Break a paragraph into lines, between words."""
    return textwrap.fill(
        paragraph, width, break_long_words=False, break_on_hyphens=False
    )
