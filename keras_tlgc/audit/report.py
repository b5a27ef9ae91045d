"""What a train step moves over a mesh, and the text that says so."""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from keras_tlgc.text import aligned, wrapped

# The role of what moves for a layer whose needs nobody has told.
MOVED = "moved"
WIDTH = 80


class Row(NamedTuple):
    """What one collective moves.

    Attributes:
        layer: string, the layers it comes from, those within others as
            `"block/attention"`, or "" where the compiler names none.
        kind: string, such as `"all-gather"`.
        dtype: string, such as `"f32"`.
        shape: tuple of integers, the shape of its result on one device.
        axes: tuple of strings, the axes of the mesh it crosses.
        bytes: int, what each device receives.
        role: string, what it is for: "" if it is not expected, `"moved"` for a
            layer of which nothing is known that would tell.
        times: int, how often a step moves it, as for each step of an LSTM.
    """

    layer: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    bytes: int
    role: str
    times: int = 1


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
            for `"all-gather"` (forward) and `"reduce-scatter"` (backward), and
            with balanced layers for the `"all-reduce"` of their means.
        hiding: dict, from the name of each layer with coarse channels or means
            to the FLOPs of G that one device can do for each byte while it
            receives these.
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
        shards: int, the most devices that a variable is split over.
    """

    mesh: dict[str, int]
    model_axis: str | None
    batch_size: int
    rows: list[Row]
    formula: dict[str, int]
    hiding: dict[str, float]
    warnings: list[str]
    params: int
    local_params: int
    optimizer_bytes: int
    local_optimizer_bytes: int
    temporary_bytes: float
    flops: float
    whole: list[str]
    shards: int

    @property
    def unexpected(self) -> list[Row]:
        """The rows that should not be there."""
        return [row for row in self.rows if not row.role]

    @property
    def moved(self) -> list[Row]:
        """The rows of which nobody can tell whether they should be there."""
        return [row for row in self.rows if row.role == MOVED]

    @property
    def ok(self) -> bool:
        """Whether nothing is unexpected, and the rules do what they say."""
        return not self.unexpected and not self.warnings

    def bytes(self, role: str) -> int:
        """Return the bytes that a device receives for one purpose."""
        return sum(row.bytes for row in self.rows if row.role == role)

    def __str__(self):
        return "\n".join(report_lines(self, _aligned, wrapped))


def report_lines(
    result: Audit,
    draw: Callable[[list[tuple[str, ...]]], str],
    write: Callable[[str], str] = str,
) -> Iterator[str]:
    """Yield the parts of a report.

    Args:
        result: an `Audit`.
        draw: function that takes the lines of a table, the headings first, and
            returns its text.
        write: function that breaks a paragraph into lines.
    """
    shape = " x ".join(f"{name} {n}" for name, n in result.mesh.items())
    yield (
        f"Train step, global batch {result.batch_size}, mesh {shape} (bytes of "
        "one device)."
    )
    yield ""
    table = _table(result)
    if len(table) > 1:
        yield draw(table)
        yield ""
    for part in (_sums(result), _totals(result), _verdict(result)):
        yield from map(write, part)


def _is_summed(row, result):
    """Return whether many rows like this one make one line."""
    return row.role not in ("", MOVED) and row.axes != (result.model_axis,)


def _table(result):
    """Return a line for each row, or for several that are the same."""
    times = Counter()
    for row in result.rows:
        if not _is_summed(row, result):
            once = row._replace(bytes=row.bytes // row.times, times=1)
            times[once] += row.times
    layers = list(dict.fromkeys(row.layer for row in times))
    lines = [("layer", "collective", "shape", "axis", "bytes", "for")]
    lines += [
        (
            row.layer or "unknown",
            f"{n} x {row.kind}" if n > 1 else row.kind,
            f"{row.dtype}[{','.join(map(str, row.shape))}]",
            ", ".join(row.axes),
            f"{n * row.bytes:,}",
            row.role or "NOT EXPECTED",
        )
        for row, n in sorted(
            times.items(), key=lambda pair: layers.index(pair[0].layer)
        )
    ]
    return lines


def _sums(result):
    """Yield a line for all rows of one kind that are expected."""
    kinds = defaultdict(list)
    for row in result.rows:
        if _is_summed(row, result):
            kinds[row.kind, ", ".join(row.axes), row.role].append(row)
    for (kind, axes, role), rows in kinds.items():
        yield (
            f"{kind} over {axes}: {_arrays(rows)}, {_bytes(rows)} a device "
            f"({role})."
        )
    if kinds:
        yield ""


def _aligned(lines):
    return aligned(lines, right=[4], width=WIDTH)  # Bytes.


def _totals(result):
    coarse = [row for row in result.rows if row.role == "coarse"]
    moved = Counter()
    for row in coarse:
        moved[row.kind] += row.bytes
    for kind, received in result.formula.items():
        if received:
            yield (
                f"Coarse {kind}: {moved[kind]:,} bytes a device; "
                f"the paper's formula gives {received:,}."
            )
    if any(result.hiding.values()):
        layer, least = min(result.hiding.items(), key=lambda pair: pair[1])
        yield (
            "While coarse channels arrive, G can run: "
            f"{least:,.0f} to {max(result.hiding.values()):,.0f} FLOPs a byte, "
            f"fewest in {layer}."
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
    devices = max(result.shards, result.mesh.get(result.model_axis, 1))
    for name, local, total, unit in held:
        share = local / total if total else 0
        ideal = f"; 1/{devices} is {1 / devices:.1%}" * (devices > 1)
        yield (
            f"{name} of one device: {local:,} of {total:,}{unit} "
            f"({share:.1%}{ideal})."
        )
    if result.whole:
        yield f"Whole on every device: {some(result.whole)}."
    if not math.isnan(result.temporary_bytes):
        yield (
            "Peak of activations and gradients of one device: "
            f"{result.temporary_bytes:,} bytes."
        )
    yield f"FLOPs of one device: {result.flops:,.0f}."
    yield ""


def _verdict(result):
    yield from result.warnings
    if result.moved:
        yield (
            f"{_amount(result.moved)} that the audit cannot judge: those "
            "marked 'moved'."
        )
    if result.unexpected:
        layers = [row.layer or row.kind for row in result.unexpected]
        yield (
            f"NOT OK: {_amount(result.unexpected)} that should not: "
            f"{some(list(dict.fromkeys(layers)))}."
        )
    elif result.warnings:
        yield "NOT OK: mend the layout map."
    elif result.moved:
        yield "OK: all else that moves is expected."
    else:
        yield "OK: nothing moves but what is expected."


def _amount(rows):
    """Return how much moves, as the start of a sentence."""
    verb = "moves" if len(rows) == 1 else "move"
    return f"{_arrays(rows)} {verb}, {_bytes(rows)} a device,"


def _arrays(rows):
    return "1 array" if len(rows) == 1 else f"{len(rows)} arrays"


def _bytes(rows):
    return f"{sum(row.bytes for row in rows):,} bytes"


def some(names: list[str], count: int = 3) -> str:
    """Return the first few of some names, and how many more there are."""
    shown = ", ".join(dict.fromkeys(names[:count]))
    return shown + (f" and {len(names) - count} more" * (len(names) > count))
