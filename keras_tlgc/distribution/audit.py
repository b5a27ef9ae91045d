"""The proof of what a train step moves over a mesh, and where it comes from."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import keras

from keras_tlgc.distribution.guard import check_on_mesh
from keras_tlgc.distribution.hlo import (
    BYTES,
    Collective,
    collectives,
    mesh_axes,
)
from keras_tlgc.distribution.layout_map import matching_rules
from keras_tlgc.distribution.step import (
    Call,
    Step,
    compile_network,
    compile_step,
)
from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.layers.two_level_group_conv import BaseTwoLevelGroupConv
from keras_tlgc.validation import positive_int

CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)


class Row(NamedTuple):
    """What one collective moves.

    Attributes:
        layer: string, names of the layers it comes from, or "" where the
            compiler names none.
        kind: string, as `"all-gather"`.
        dtype: string, as `"f32"`.
        shape: tuple of integers, of its result on one device.
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
            `None` if there is only the batch's.
        batch_size: int, samples in a global batch.
        rows: list of `Row`, one for each array that a collective moves.
        formula: dict, bytes that each device receives by the paper's formula,
            for `"all-gather"` (forward) and `"reduce-scatter"` (backward).
        warnings: list of strings, about rules of the layout map.
        params, local_params: ints, parameters in total and of one device.
        optimizer_bytes, local_optimizer_bytes: ints, of the optimizer's state.
        temporary_bytes: int, the compiler's peak for activations and gradients
            of one device.
        flops: float, the compiler's count for one device and step.
        whole: list of strings, variables of layers that every device holds.
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
    temporary_bytes: int
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
        return "\n".join(_lines(self))


def audit(model: keras.Model, batch_size: int, data=None) -> Audit:
    """Compile the model's train step and list what it moves over the mesh.

    The step is the one that `model.fit` runs under the distribution the model
    was built under; nothing is executed. Each collective of the compiled
    program is attributed to axes of the mesh and to layers, and compared with
    what the layers need:

    - a two-level layer gathers its coarse channels, `N r` for each output
      position, and scatters their gradients (section 3.2 of the paper);
    - a standard convolution that is split by filters gathers its input and
      adds up its gradient;
    - a dense layer that is split by inputs adds up its outputs;
    - along the batch, gradients and statistics are added up.

    `print(audit(...))` shows the table, the totals and a verdict.

    Args:
        model: `keras.Model`, built and compiled under a
            `keras.distribution.ModelParallel` or `DataParallel` that is still
            set.
        batch_size: int, samples in a global batch. The mesh's batch axis must
            divide it.
        data: optional batch, `(x, y)` or `(x, y, sample_weight)`, of arrays:
            only shapes and types are read. Needed where the model does not
            tell them.

    Returns:
        An `Audit`; its `ok` is the verdict.

    Raises:
        ValueError: if the backend is not JAX, no distribution is set, the
            model is not compiled or was built outside of the distribution, or
            the mesh cannot split the batch.

    Example:

    >>> from keras_tlgc.distribution import audit, model_parallel
    >>> distribution = model_parallel((1, 1))  # On more devices, (1, 4).
    >>> keras.distribution.set_distribution(distribution)
    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((8, 8, 16)),
    ...         keras_tlgc.layers.TwoLevelGroupConv2D(16, 3, groups=4),
    ...     ]
    ... )
    >>> model.compile("sgd", "mse")
    >>> audit(model, batch_size=4).ok
    True
    """
    distribution = _checked_distribution(batch_size)
    if not (model.built and model.compiled):
        raise ValueError(
            "`audit` needs a model that is built and compiled. Received: "
            f"'{model.name}', built={model.built}, compiled={model.compiled}. "
            "Call compile(), and build it."
        )
    check_on_mesh(model, distribution)
    step = compile_step(model, distribution, batch_size, data)
    return audit_step(step, batch_size)


def audit_network(
    build: Callable[[], keras.Model], distribution, batch_size: int
) -> Audit:
    """Audit a network without allocating its weights. See `audit`.

    Args:
        build: function without arguments that returns a classifier; it is
            compiled for SGD with momentum.
        distribution: the `keras.distribution` to compile for.
        batch_size: int, samples in a global batch.

    Returns:
        An `Audit`.

    Raises:
        ValueError: if the mesh cannot split the batch.
    """
    with distribution.scope():
        _checked_distribution(batch_size)
    return audit_step(
        compile_network(build, distribution, batch_size), batch_size
    )


def audit_step(step: Step, batch_size: int) -> Audit:
    """Return the `Audit` of a step that is compiled."""
    mesh = step.distribution.device_mesh
    sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
    rows = [
        _row(collective, step, mesh)
        for collective in collectives(step.text, mesh.devices.size)
    ]
    rows = _explain(rows, _expected(step), step)
    held = [*step.trainable, *step.fixed]
    return Audit(
        mesh=sizes,
        model_axis=_model_axis(step),
        batch_size=batch_size,
        rows=rows,
        formula=_formula(step, rows),
        warnings=_rule_warnings(step),
        params=sum(math.prod(v.shape) for v in step.trainable),
        local_params=sum(math.prod(v.local_shape) for v in step.trainable),
        optimizer_bytes=sum(v.bytes for v in step.slots),
        local_optimizer_bytes=sum(v.local_bytes for v in step.slots),
        temporary_bytes=step.temporary_bytes,
        flops=step.flops,
        whole=[
            v.path
            for v in held
            if v.local_shape == v.shape and len(v.shape) > 0
        ],
    )


def _checked_distribution(batch_size):
    if keras.backend.backend() != "jax":
        raise ValueError(
            "Model parallelism and its audit need the JAX backend. "
            f"Received: KERAS_BACKEND={keras.backend.backend()}. "
            "Set KERAS_BACKEND=jax."
        )
    distribution = keras.distribution.distribution()
    if distribution is None:
        raise ValueError(
            "`audit` needs a distribution. Received: none is set. "
            "Call keras.distribution.set_distribution before the model is "
            "made."
        )
    count = batch_shards(distribution)
    if positive_int("batch_size", batch_size) % count:
        raise ValueError(
            "The devices along the batch axis must divide the batch. "
            f"Received: batch_size={batch_size}, {count} devices along "
            f"'{distribution.batch_dim_name}'. Use a multiple of {count}."
        )
    return distribution


def batch_shards(distribution) -> int:
    """Return the number of devices along the axis that splits the batch."""
    mesh = distribution.device_mesh
    return mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]


class _Need(NamedTuple):
    """A collective that a layer needs on the model axis, and why."""

    layer: str
    kind: str
    elements: int
    role: str


def _expected(step) -> Counter:
    """Count what the calls of the layers need to move on the model axis."""
    needs: Counter[_Need] = Counter()
    for call in step.calls:
        for kind, elements, role, times in _needs(call, step):
            needs[_Need(call.layer.name, kind, elements, role)] += times
    return needs


def _needs(call: Call, step):
    """Yield kind, entries of its result, role and number of collectives."""
    layer, axis = call.layer, _model_axis(step)
    devices = _axis_size(step, axis)
    rows = batch_shards(step.distribution)
    split = _split_axis(step, layer, axis)
    if isinstance(layer, BaseTwoLevelGroupConv) and split == -1:
        coarse = _coarse_elements(call) // rows
        yield "all-gather", coarse, "coarse", 1
        yield "reduce-scatter", coarse // devices, "coarse", 1
    elif _is_standard(layer) and split == -1:
        entries = math.prod(call.input_shape) // rows
        # XLA gathers an input once more for the kernel's gradient.
        yield "all-gather", entries, "input", 2
        yield "all-reduce", entries, "input", 1
        yield "reduce-scatter", entries // devices, "input", 1
    elif isinstance(layer, keras.layers.Dense) and split == 0:
        entries = math.prod(call.output_shape) // rows
        yield "all-reduce", entries, "logits", 1


def _is_standard(layer):
    # A grouped one needs no more than its own groups' channels.
    return isinstance(layer, CONVOLUTIONS) and layer.groups == 1


def _explain(rows, needs, step):
    """Give each row its role, each need explaining as many as it counts."""
    axis, data = _model_axis(step), step.distribution.batch_dim_name
    sums = {
        math.prod(v.local_shape)
        for v in [*step.trainable, *step.fixed, *step.metrics]
    }
    explained = []
    for row in rows:
        role, entries = "", math.prod(row.shape)
        if entries == 1 and row.kind == "all-reduce":
            role = "scalar"
        elif row.axes == (data,):
            is_sum = entries in sums or _is_kernel(row, step)
            if row.kind == "all-reduce" and is_sum:
                role = "gradient or statistic"
        elif row.axes == (axis,):
            need = next(
                (
                    need
                    for need in needs
                    if needs[need] > 0
                    and row.kind == need.kind
                    and entries == need.elements
                    and need.layer in row.layer.split(", ")
                ),
                None,
            )
            if need:
                needs[need] -= 1
                role = need.role
        explained.append(row._replace(role=role))
    return explained


def _is_kernel(row, step):
    """Tell whether a row is a kernel of its layer with zeros between groups."""
    return any(
        row.shape[:-2] == call.layer.kernel_size
        for call in step.calls
        if isinstance(call.layer, BaseGroupConv)
        and call.layer.name in row.layer.split(", ")
    )


def _formula(step, rows):
    """Return the bytes that each device receives by section 3.2."""
    devices = _axis_size(step, _model_axis(step))
    # On a CPU the compiler moves bfloat16 as float32.
    itemsize = next((BYTES[r.dtype] for r in rows if r.role == "coarse"), 4)
    entries = sum(
        _coarse_elements(call) // batch_shards(step.distribution)
        for call in step.calls
        if isinstance(call.layer, BaseTwoLevelGroupConv)
        and _split_axis(step, call.layer, _model_axis(step)) == -1
    )
    received = entries * itemsize * (devices - 1) // devices
    return {"all-gather": received, "reduce-scatter": received}


def _coarse_elements(call: Call):
    """Count the coarse channels of all groups at all output positions."""
    layer = call.layer
    positions = math.prod(call.output_shape) // layer.filters
    return positions * layer.groups * layer.coarse_channels


def _row(collective: Collective, step, mesh):
    names = {call.layer.name for call in step.calls}
    scopes = re.split(r"[/():]+", collective.op_name)
    found = list(dict.fromkeys(name for name in scopes if name in names))
    return Row(
        layer=", ".join(found),
        kind=collective.kind,
        dtype=collective.dtype,
        shape=collective.shape,
        axes=mesh_axes(collective.groups, mesh.shape, mesh.axis_names),
        bytes=collective.bytes,
        role="",
    )


def _model_axis(step):
    """Return the axis of the mesh that does not split the batch, or None."""
    distribution = step.distribution
    others = [
        name
        for name in distribution.device_mesh.axis_names
        if name != distribution.batch_dim_name
    ]
    return others[-1] if others else None


def _axis_size(step, axis):
    mesh = step.distribution.device_mesh
    return mesh.shape[mesh.axis_names.index(axis)] if axis else 1


def _split_axis(step, layer, axis):
    """Return 0 or -1 where the layer's kernel is split there, else None."""
    kernels = [v for v in layer.weights if "kernel" in v.name]
    if not kernels or axis is None:
        return None
    axes = step.distribution.get_variable_layout(kernels[0]).axes
    if axes and axes[-1] == axis:
        return -1
    return 0 if axes and axes[0] == axis else None


def _rule_warnings(step):
    """Report rules that match outputs, and rules that match nothing."""
    layout_map = getattr(step.distribution, "_layout_map", None)
    if layout_map is None:
        return []
    outputs, matched = {}, set()
    for call in step.calls:
        path = f"{call.layer.path or call.layer.name}/output"
        for rule in matching_rules(layout_map, path):
            if not rule.endswith("output"):  # Else it was meant.
                outputs.setdefault(rule, []).append(path)
    for variable in [*step.trainable, *step.fixed]:
        matched.update(matching_rules(layout_map, variable.path))
    warnings = [
        f"The rule {rule!r} of the layout map matches outputs of layers: "
        f"{_some(paths)}. End it with the names of variables, as in "
        "'.*/(gamma|beta)'."
        for rule, paths in outputs.items()
    ]
    added = getattr(layout_map, "added", list(layout_map))
    return warnings + [
        f"The rule {rule!r} of the layout map matches no variable and no "
        "output. It must match a whole path, as 'block/conv/kernel'."
        for rule in added
        if not rule.endswith("output")
        and rule not in matched
        and rule not in outputs
    ]


def _some(names, count=3):
    shown = ", ".join(dict.fromkeys(names[:count]))
    return shown + (f" and {len(names) - count} more" * (len(names) > count))


def _lines(result: Audit):
    shape = " x ".join(f"{name} {n}" for name, n in result.mesh.items())
    yield f"Train step, global batch {result.batch_size}, mesh {shape}."
    yield ""
    yield from _table(result)
    yield ""
    yield from _totals(result)
    yield ""
    yield from _verdict(result)


def _table(result):
    """One line for each collective on the model axis; sums for the others."""
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
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if i == 4 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


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
        yield f"Whole on every device: {_some(result.whole)}."
    yield (
        f"Peak of activations and gradients of one device: "
        f"{result.temporary_bytes:,} bytes. "
        f"FLOPs of one device: {result.flops:,.0f}."
    )


def _verdict(result):
    yield from result.warnings
    if result.unexpected:
        layers = [row.layer or row.kind for row in result.unexpected]
        yield (
            f"NOT OK: {len(result.unexpected)} arrays move that should not, "
            f"{sum(row.bytes for row in result.unexpected):,} bytes a device: "
            f"{_some(list(dict.fromkeys(layers)))}."
        )
    elif result.warnings:
        yield "NOT OK: mend the layout map."
    else:
        yield "OK: nothing moves but what is expected."
