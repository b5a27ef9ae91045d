"""What layers need to move over a mesh, and which collectives that explains."""

import math
import re
from collections import Counter

from keras_tlgc._keras import layout_map_of
from keras_tlgc.audit.hlo import Collective, mesh_axes
from keras_tlgc.audit.report import Row, some
from keras_tlgc.audit.step import Call, Step
from keras_tlgc.distribution.layout_map import matching_rules
from keras_tlgc.layers.answers import Exchange, about
from keras_tlgc.precision import bytes_of
from keras_tlgc.sharding.per_shard import axes_of, axis_size
from keras_tlgc.variables import role_of


def explained_rows(step: Step) -> list[Row]:
    """Return a row for each array that moves, with its role if it has one."""
    mesh = step.distribution.device_mesh
    rows = [_row(collective, step, mesh) for collective in step.collectives]
    return _explain(rows, _expected(step), step)


def formula(step: Step, rows: list[Row]) -> dict[str, int]:
    """Return the bytes that each device receives by the paper, section 3.2."""
    axis = model_axis(step)
    devices = _axis_size(step, axis)
    # On a CPU the compiler moves bfloat16 as float32.
    itemsize = next(
        (bytes_of(row.dtype) for row in rows if row.role == "coarse"), 4
    )
    entries = sum(
        need.entries
        for call in step.calls
        for need in _exchanges(call, step, axis)
        if (need.kind, need.purpose) == ("all-gather", "coarse")
    )
    received = entries * itemsize * (devices - 1) // devices
    return {"all-gather": received, "reduce-scatter": received}


def rule_warnings(step: Step) -> list[str]:
    """Report rules that match outputs, and rules that match nothing."""
    layout_map = layout_map_of(step.distribution)
    if layout_map is None:
        return []
    outputs: dict[str, list[str]] = {}
    matched = set()
    for call in step.calls:
        path = f"{call.layer.path or call.layer.name}/output"
        for rule in matching_rules(layout_map, path):
            if not rule.endswith("output"):  # It was not meant.
                outputs.setdefault(rule, []).append(path)
    for variable in [*step.trainable, *step.fixed]:
        matched.update(matching_rules(layout_map, variable.path))
    warnings = [
        f"The rule {rule!r} of the layout map matches outputs of layers: "
        f"{some(paths)}. End it with the names of variables, as in "
        "'.*/(gamma|beta)'."
        for rule, paths in outputs.items()
    ]
    return warnings + [
        f"The rule {rule!r} of the layout map matches no variable and no "
        "output. It must match a whole path, as 'block/conv/kernel'."
        for rule in layout_map
        if not rule.endswith("output")
        and rule not in matched
        and rule not in outputs
    ]


def model_axis(step: Step) -> str | None:
    """Return the axis of the mesh that splits the model, or None.

    A mesh may have more axes, such as those of size 1 that a scheduler adds.
    The model's axis is one that variables are split over, if there is any.
    """
    distribution = step.distribution
    others = [
        name
        for name in distribution.device_mesh.axis_names
        if name != distribution.batch_dim_name
    ]
    used = {axis for v in [*step.trainable, *step.fixed] for axis in v.axes}
    found = [name for name in others if name in used] or others
    return found[-1] if found else None


def _axis_size(step, axis):
    return axis_size(step.distribution.device_mesh, axis) if axis else 1


def batch_shards(distribution) -> int:
    """Return the number of devices along the axis that splits the batch."""
    return axis_size(distribution.device_mesh, distribution.batch_dim_name)


def _expected(step) -> Counter:
    """Count what the calls of the layers need to move on the model axis."""
    axis = model_axis(step)
    needs: Counter[tuple[str, Exchange]] = Counter()
    for call in step.calls:
        for exchange in _exchanges(call, step, axis):
            needs[call.layer.name, exchange] += exchange.times
    return needs


def _exchanges(call: Call, step, axis):
    """Return the exchanges of a call, for one device's rows of a batch."""
    split = _split_axis(step, call.layer, axis)
    if split is None:
        return []
    count = batch_shards(step.distribution)
    inputs, outputs = (
        shape and (shape[0] // count, *shape[1:])
        for shape in (call.input_shape, call.output_shape)
    )
    devices = _axis_size(step, axis)
    return about(call.layer).exchanges(split, inputs, outputs, devices)


def _split_axis(step, layer, axis):
    """Return the axis along which the layer's kernel is split: -1, -2, None."""
    kernels = [v for v in layer.weights if role_of(v).is_kernel]
    if not kernels or axis is None:
        return None
    axes = axes_of(step.distribution.get_variable_layout(kernels[0]))
    axes += (None,) * (len(kernels[0].shape) - len(axes))
    return next((i for i in (-1, -2) if axis in axes[i:][:1]), None)


def _explain(rows, needs, step):
    """Give rows their roles: each need explains as many rows as it counts."""
    axis, data = model_axis(step), step.distribution.batch_dim_name
    sums = _sizes_of_sums(step)
    explained = []
    for row in rows:
        role, entries = "", math.prod(row.shape)
        if entries == 1 and row.kind == "all-reduce":
            role = "scalar"
        elif row.axes == (data,):
            is_part = row.kind == "reduce-scatter"
            entries *= batch_shards(step.distribution) if is_part else 1
            is_sum = entries in sums or _is_gradient(row, step)
            if row.kind in step.sum_kinds and is_sum:
                role = "gradient or statistic"
        elif row.axes == (axis,):
            for need in needs:
                name, exchange = need
                if (
                    needs[need] > 0
                    and (row.kind, entries) == exchange[:2]
                    and name in row.layer.split(", ")
                ):
                    needs[need] -= 1
                    role = exchange.purpose
                    break
            else:
                role = _exchanged(row, step)
        explained.append(row._replace(role=role))
    return explained


def _sizes_of_sums(step):
    """Return how many entries a sum along the batch may have."""
    shapes = [
        v.local_shape for v in [*step.trainable, *step.fixed, *step.metrics]
    ]
    sizes = set(map(math.prod, shapes))
    if "reduce-scatter" in step.sum_kinds:
        # Parts have one size, so that an axis may be longer than it was.
        count = batch_shards(step.distribution)
        for shape in shapes:
            size = math.prod(shape)
            sizes.update(size // n * (n + -n % count) for n in shape)
    return sizes


def _exchanged(row, step):
    """Return what XLA exchanges as it sees fit for a layer of the row."""
    names = row.layer.split(", ")
    found = (
        about(call.layer).exchanged
        for call in step.calls
        if call.layer.name in names
    )
    return next(filter(None, found), "")


def _is_gradient(row, step):
    """Return whether a row may be the gradient of a kernel of its layer."""
    return any(
        row.shape[:-2] == about(call.layer).shared_window
        for call in step.calls
        if call.layer.name in row.layer.split(", ")
    )


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
