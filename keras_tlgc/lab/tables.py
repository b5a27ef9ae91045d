"""Tables in Markdown, for reports and for commands."""

from collections.abc import Iterable, Sequence


def markdown_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    texts: Sequence[str] = (),
) -> str:
    """Return a table in Markdown, with all cells of a column equally wide.

    Args:
        columns: the headings.
        rows: sequences of a string for each column.
        texts: the columns that hold text. The others hold numbers, which
            stand to the right.
    """
    cells = [[" ".join(c.replace("|", r"\|").split()) for c in r] for r in rows]
    pads = [str.ljust if name in texts else str.rjust for name in columns]
    widths = [
        max(4, *map(len, column))
        for column in zip(columns, *cells, strict=True)
    ]
    rule = [
        "-" * width if name in texts else "-" * (width - 1) + ":"
        for name, width in zip(columns, widths, strict=True)
    ]
    return "\n".join(
        "| "
        + " | ".join(
            pad(cell, width)
            for pad, cell, width in zip(pads, line, widths, strict=True)
        )
        + " |"
        for line in (columns, rule, *cells)
    )
