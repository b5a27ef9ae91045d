"""What a conversion did, convolution by convolution."""

import dataclasses
from typing import NamedTuple


class Row(NamedTuple):
    """What became of one convolution.

    Attributes:
        name: path of the layer: the names of the models and layers around it
            and its own, joined by `/`.
        layer: name of its class, before.
        groups: number of groups, after: 1 where it was kept.
        reason: why it was kept; empty where it was converted.
        params, new_params: parameters before and after.
        multiply_adds, new_multiply_adds: multiplications for one input, of one
            time step in a model within `TimeDistributed`; `None` where sizes
            are not known.
        error: share of the kernel's squared norm that the projection leaves
            out, from 0 to 1 (`Projection.error`); `None` where there was none.
    """

    name: str
    layer: str
    groups: int
    reason: str
    params: int
    new_params: int
    multiply_adds: int | None
    new_multiply_adds: int | None
    error: float | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did. `print` shows it as a table.

    Attributes:
        rows: tuple of a `Row` for each convolution, in the order of the model.
        params, new_params: parameters of the whole model before and after.
        notes: tuple of strings: what else the new model has not kept.
    """

    rows: tuple[Row, ...]
    params: int
    new_params: int
    notes: tuple[str, ...] = ()

    @property
    def converted(self) -> list[Row]:
        """The rows of the convolutions that were converted."""
        return [row for row in self.rows if not row.reason]

    @property
    def kept(self) -> list[Row]:
        """The rows of the convolutions that were kept, each with a reason."""
        return [row for row in self.rows if row.reason]

    @property
    def columns(self) -> tuple[str, ...]:
        """The headings of `cells`."""
        return (
            "convolution",
            "layer",
            "groups",
            "parameters",
            "multiply-adds",
            "error",
            "kept, because",
        )

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """The rows as text, to be printed below `columns`."""
        return [
            (
                row.name,
                row.layer,
                "" if row.reason else str(row.groups),
                _change(row.params, row.new_params),
                _change(row.multiply_adds, row.new_multiply_adds),
                "" if row.error is None else f"{row.error:.3f}",
                row.reason,
            )
            for row in self.rows
        ]

    @property
    def summary(self) -> str:
        """What changed in all: a line, one more for each note."""
        first = (
            f"{len(self.converted)} of {len(self.rows)} convolutions "
            f"converted; parameters {_change(self.params, self.new_params)}"
        )
        before = [row.multiply_adds for row in self.rows]
        after = [row.new_multiply_adds for row in self.rows]
        if None not in before:
            first += f"; multiply-adds {_change(sum(before), sum(after))}"
        return "\n".join([first, *self.notes])

    def __str__(self):
        lines = [self.columns, *self.cells]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(
                cell.ljust(width)
                for cell, width in zip(line, widths, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*table, self.summary])


def _change(before, after):
    if before is None:
        return ""
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"
