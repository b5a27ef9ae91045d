"""What was tuned, layer by layer."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from keras_tlgc.ops.tuned import Call
from keras_tlgc.text import aligned


class Row(NamedTuple):
    """What was measured for layers that do the same work.

    Attributes:
        names: tuple of strings, the layers.
        call: what they do, or `None` for a layer that was not timed.
        lowering: the fastest one, or `"auto"` if none is clearly faster than
            what that takes anyway.
        to_auto: dict, the time of each lowering relative to `"auto"`. It lacks
            those that are many times slower.
        reason: why the layers were not timed, or what failed; mostly empty.
    """

    names: tuple[str, ...]
    call: Call | None
    lowering: str
    to_auto: dict[str, float]
    reason: str = ""

    @property
    def gain(self) -> float:
        """The time of the chosen lowering relative to `"auto"`."""
        return self.to_auto.get(self.lowering, 1.0)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What `keras_tlgc.tune` measured and did. `print` shows it as a table.

    Attributes:
        rows: tuple of a `Row` for each kind of call, in the order of the model.
        step: float, the time of the whole step with what was chosen, relative
            to that with `"auto"`; 1 if nothing was to be changed.
        training: bool, whether that is a train step, or the forward pass alone.
        batch_size: int.
        is_applied: bool, whether the layers have got what was chosen. They have
            not if the whole step would be slower.
    """

    rows: tuple[Row, ...]
    step: float
    training: bool
    batch_size: int
    is_applied: bool

    columns: ClassVar[tuple[str, ...]] = (
        *("layers", "work", "auto ->", "time", "others", "because"),
    )

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """The rows as text, to be printed below `columns`."""
        return [
            (
                _named(row.names),
                "" if row.call is None else _work(row.call),
                row.lowering if row.to_auto else "",
                f"1 -> {row.gain:.2f}" if row.to_auto else "",
                ", ".join(
                    f"{name} {to_auto:.2f}"
                    for name, to_auto in row.to_auto.items()
                    if name not in ("auto", row.lowering)
                ),
                row.reason,
            )
            for row in self.rows
        ]

    @property
    def summary(self) -> str:
        """What became of the whole step, in one line."""
        what = "train step" if self.training else "forward pass"
        changed = sum(
            len(row.names) for row in self.rows if row.lowering != "auto"
        )
        if not changed:
            return (
                f"No lowering is clearly faster than 'auto' takes, at batch "
                f"{self.batch_size}. Nothing was changed."
            )
        done = f"{what} at batch {self.batch_size}: 1 -> {self.step:.2f}"
        if self.is_applied:
            return f"Whole {done}. Layers with a new lowering: {changed}."
        return (
            f"Whole {done}. It got slower, although layers got faster by "
            "themselves, so all keep 'auto'."
        )

    def __str__(self) -> str:
        lines = [self.columns, *self.cells]
        return f"{aligned(lines)}\n{self.summary}"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"


def _work(call: Call) -> str:
    """Return a description of a call such as `3x3/2, 32 -> 64 at 16x16`."""
    window, size = (
        "x".join(map(str, s)) for s in (call.kernel_size, call.size)
    )
    stride = "" if set(call.strides) == {1} else f"/{max(call.strides)}"
    return (
        f"{window}{stride}, {call.channels} -> {call.filters} at {size}, "
        f"N = {call.groups}"
    )
