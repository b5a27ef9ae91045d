"""What a train step moves over a mesh, and the text that says so."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from keras_tlgc.text import aligned


class Row(NamedTuple):
    """What one collective moves.

    Attributes:
        layer: string, names of the layers it comes from, or "" where the
            compiler names none.
        kind: string, such as `"all-gather"`.
        dtype: string, such as `"f32"`.
        shape: tuple of integers, the shape of its result on one device.
        axes: tuple of strings, the axes of the mesh it crosses.
        bytes: int, what each device receives.
        role: string, what it is for, or "" if it is not expected.
    """

    layer: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    bytes: int
    role: str


@dataclasses.dataclass(frozen=True)
class Audit:
    """What a train step moves and what each device holds. See `audit`.

    Attributes:
        mesh: dict, from the names of the mesh's axes to their sizes.
        model_axis: string, the axis of the mesh that splits the model, or
            `None` if the only axis is that of the batch.
        batch_size: int, samples in a global batch.
        rows: list of `Row`, one for each array that a collective moves.
        formula: dict, bytes that each device receives by the paper's formula,
            for `"all-gather"` (forward) and `"reduce-scatter"` (backward).
        warnings: list of strings, about rules of the layout map and, on
            PyTorch, about what fails or is not trained.
        params, local_params: ints, parameters in total and on one device.
        optimizer_bytes, local_optimizer_bytes: ints, the same for the bytes of
            the optimizer's state.
        temporary_bytes: int, the most bytes that activations and gradients take
            on one device, as the compiler counts them; NaN on PyTorch.
        flops: float, operations of one step on one device, as the compiler
            counts them; on PyTorch those of convolutions and products.
        whole: list of strings, the paths of the variables of layers that every
            device holds whole.
    """

    mesh: dict[str, int]
    model_axis: str | None
    batch_size: int
    rows: list[Row]
    formula: dict[str, int]
    warnings: list[str]
    params: int
    local_params: int
    optimizer_bytes: int
    local_optimizer_bytes: int
    temporary_bytes: float
    flops: float
    whole: list[str]

    @property
    def unexpected(self) -> list[Row]:
        """The rows that nothing explains."""
        return [row for row in self.rows if not row.role]

    @property
    def ok(self) -> bool:
        """Whether all that moves is expected, and no rule hits an output."""
        return not self.unexpected and not self.warnings

    def bytes(self, role: str) -> int:
        """Return the bytes that a device receives for one purpose."""
        return sum(row.bytes for row in self.rows if row.role == role)

    def __str__(self):
        return "\n".join(report_lines(self, _aligned))


def report_lines(
    result: Audit, draw: Callable[[list[tuple[str, ...]]], str]
) -> Iterator[str]:
    """Yield the lines of a report.

    Args:
        result: an `Audit`.
        draw: function that takes the lines of a table, the headings first, and
            returns its text.
    """
    shape = " x ".join(f"{name} {n}" for name, n in result.mesh.items())
    yield f"Train step, global batch {result.batch_size}, mesh {shape}."
    yield ""
    yield draw(_table(result))
    yield ""
    yield from _totals(result)
    yield ""
    yield from _verdict(result)


def _table(result):
    """Return the rows of the model axis or without a role; sum up the rest."""
    lines = [("layer", "collective", "shape", "axis", "bytes/device", "for")]
    sums = Counter()
    counts = Counter()
    for row in result.rows:
        if row.role and row.axes != (result.model_axis,):
            key = (row.kind, ", ".join(row.axes), row.role)
            sums[key] += row.bytes
            counts[key] += 1
            continue
        lines.append(
            (
                row.layer or "?",
                row.kind,
                f"{row.dtype}{list(row.shape)}",
                ", ".join(row.axes),
                f"{row.bytes:,}",
                row.role or "NOT EXPECTED",
            )
        )
    lines += [
        (f"{counts[key]} arrays", key[0], "", key[1], f"{total:,}", key[2])
        for key, total in sums.items()
    ]
    return lines


def _aligned(lines):
    return aligned(lines, right=[4])  # Bytes.


def _totals(result):
    coarse = [row for row in result.rows if row.role == "coarse"]
    moved = Counter()
    for row in coarse:
        moved[row.kind] += row.bytes
    for kind, received in result.formula.items():
        if received:
            yield (
                f"Coarse channels, {kind}: {moved[kind]:,} bytes a device; "
                f"the paper's formula gives {received:,}."
            )
    held = (
        ("Parameters", result.local_params, result.params, ""),
        (
            "Optimizer state",
            result.local_optimizer_bytes,
            result.optimizer_bytes,
            " bytes",
        ),
    )
    devices = result.mesh.get(result.model_axis, 1)
    for name, local, total, unit in held:
        share = local / total if total else 0
        yield (
            f"{name} of one device: {local:,} of {total:,}{unit} "
            f"({share:.1%}; 1/{devices} is {1 / devices:.1%})."
        )
    if result.whole:
        yield f"Whole on every device: {some(result.whole)}."
    peak = (
        "Peak of activations and gradients of one device: "
        f"{result.temporary_bytes:,} bytes. "
    )
    known = "" if math.isnan(result.temporary_bytes) else peak
    yield f"{known}FLOPs of one device: {result.flops:,.0f}."


def _verdict(result):
    yield from result.warnings
    if result.unexpected:
        layers = [row.layer or row.kind for row in result.unexpected]
        yield (
            f"NOT OK: {len(result.unexpected)} arrays move that should not, "
            f"{sum(row.bytes for row in result.unexpected):,} bytes a device: "
            f"{some(list(dict.fromkeys(layers)))}."
        )
    elif result.warnings:
        yield "NOT OK: mend the layout map."
    else:
        yield "OK: nothing moves but what is expected."


def some(names: list[str], count: int = 3) -> str:
    """Return the first few of some names, and how many more there are."""
    shown = ", ".join(dict.fromkeys(names[:count]))
    return shown + (f" and {len(names) - count} more" * (len(names) > count))
