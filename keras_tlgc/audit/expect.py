"""What layers need to move over a mesh, and which collectives that explains."""

import math
import re
from collections import Counter, defaultdict

import keras

from keras_tlgc._keras import layout_map_of
from keras_tlgc.audit.hlo import Collective, mesh_axes, received
from keras_tlgc.audit.report import MOVED, Row
from keras_tlgc.audit.step import Call, Step
from keras_tlgc.distribution.layout_map import GroupLayoutMap
from keras_tlgc.layers.answers import (
    Answers,
    Exchange,
    about,
    is_convolution,
    is_unknown,
)
from keras_tlgc.precision import bytes_of
from keras_tlgc.sharding.per_shard import axes_of, axis_size
from keras_tlgc.variables import role_of

# What Keras calls the losses of `compile`, in the names of operations.
LOSS = "compile_loss"


def explained_rows(step: Step) -> list[Row]:
    """Return a row for each array that moves, with its role if it has one."""
    mesh = step.distribution.device_mesh
    rows = [_row(collective, step, mesh) for collective in step.collectives]
    return _explain(rows, _expected(step), step)


def formula(step: Step, rows: list[Row]) -> dict[str, int]:
    """Return the bytes that each device receives by the paper, section 3.2."""
    found = {"all-gather": 0, "reduce-scatter": 0}
    for _, size, need in _coarse_needs(step, rows):
        found[need.kind] = found.get(need.kind, 0) + need.times * size
    return found


def hiding(step: Step, rows: list[Row]) -> dict[str, float]:
    """Return what can hide the exchange of coarse channels, by layer.

    Returns:
        A dict from the name of a layer to the FLOPs of G on one device for each
        byte that this device receives meanwhile.
    """
    return {
        name: 2 * need.hidden_by / size
        for name, size, need in _coarse_needs(step, rows)
        if size and need.kind != "reduce-scatter"
    }


def _coarse_needs(step, rows):
    """Yield layer, bytes that a device receives each time, and need."""
    axis = model_axis(step)
    devices = _axis_size(step, axis)
    # On a CPU the compiler moves bfloat16 as float32.
    itemsize = next(
        (bytes_of(row.dtype) for row in rows if row.role == "coarse"), 4
    )
    for call in step.calls:
        for need in _exchanges(call, step, axis):
            if need.purpose == "coarse":
                result = need.entries * itemsize
                yield (
                    call.layer.name,
                    received(need.kind, result, devices),
                    need,
                )


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
    axes = _axes(layer, step)
    if axis is None:
        return None
    return next((i for i in (-1, -2) if axis in axes[i:][:1]), None)


def _axes(layer, step):
    """Return the axes of the mesh that split the layer's first kernel."""
    kernels = [v for v in layer.weights if role_of(v).is_kernel]
    if not kernels:
        return ()
    axes = axes_of(step.distribution.get_variable_layout(kernels[0]))
    return axes + (None,) * (len(kernels[0].shape) - len(axes))


def _explain(rows, needs, step):
    """Give rows their roles: each need explains as many rows as it counts."""
    axis, data = model_axis(step), step.distribution.batch_dim_name
    sums, knows_all = _sizes_of_sums(step), _knows_all(step)
    layers: dict[str, list[keras.layers.Layer]] = defaultdict(list)
    for call in step.calls:
        layers[call.layer.name].append(call.layer)
    explained = []
    for row in rows:
        found = [layer for name in _names(row) for layer in layers[name]]
        role, entries = "", math.prod(row.shape)
        if entries == 1 and row.kind == "all-reduce":
            role = "scalar"
        elif row.axes == (data,):
            is_part = row.kind == "reduce-scatter"
            entries *= batch_shards(step.distribution) if is_part else 1
            is_sum = entries in sums or _is_gradient(row, found)
            if row.kind in step.sum_kinds and is_sum:
                role = "gradient or statistic"
        elif row.axes == (axis,):
            role = _needed(row, needs) or next(
                filter(None, (about(layer).exchanged for layer in found)), ""
            )
        if not (role or _is_fault(found, knows_all, step)):
            role = MOVED
        explained.append(row._replace(role=role))
    return explained


def _needed(row, needs):
    """Return what a row is needed for, and count the need down."""
    names = _names(row)
    for name, exchange in needs:
        is_same = (row.kind, math.prod(row.shape)) == exchange[:2]
        if is_same and name in names and needs[name, exchange] > 0:
            needs[name, exchange] -= 1
            return exchange.purpose
    return ""


def _is_fault(layers, knows_all, step):
    """Return whether a row that nothing explains should not be there.

    What the layers of this package need is known under any distribution, and
    what Keras' convolutions need as long as only the model axis splits them.
    """
    within = {None, model_axis(step)}
    return knows_all or any(
        isinstance(layer, Answers)
        or (is_convolution(layer) and within.issuperset(_axes(layer, step)))
        for layer in layers
    )


def _knows_all(step):
    """Return whether it is known what each layer of the model needs.

    Under the layout map of this package it is. If the model has a layer that
    nothing is known about, XLA may split its inputs and outputs as it sees fit,
    and so those of the layers around it.
    """
    return isinstance(layout_map_of(step.distribution), GroupLayoutMap) and (
        not any(is_unknown(call.layer) for call in step.calls)
    )


def _sizes_of_sums(step):
    """Return how many entries a sum along the batch may have."""
    axis, data = model_axis(step), step.distribution.batch_dim_name
    count = batch_shards(step.distribution)
    shapes, sizes = [], set()
    for v in [*step.trainable, *step.fixed, *step.metrics]:
        size = math.prod(v.local_shape)
        shapes.append(v.local_shape)
        # The sum is that of the part that each device keeps, or of what the
        # devices along the batch keep together. If a variable is whole along
        # the model axis, each device there may still sum up a part of it.
        sizes |= {size, size * count if data in v.axes else size}
        if axis and axis not in v.axes:
            sizes.add(size // _axis_size(step, axis))
    if "reduce-scatter" in step.sum_kinds:
        # Parts have one size, so that an axis may be longer than it was.
        for shape in shapes:
            size = math.prod(shape)
            sizes.update(size // n * (n + -n % count) for n in shape)
    return sizes


def _is_gradient(row, layers):
    """Return whether a row may be the gradient of a kernel of its layers."""
    return any(row.shape[:-2] == about(layer).shared_window for layer in layers)


def _names(row):
    return re.split(", |/", row.layer)


def _row(collective: Collective, step, mesh):
    names = {call.layer.name for call in step.calls} | {LOSS}
    return Row(
        layer=", ".join(_paths(collective.op_name, names)),
        kind=collective.kind,
        dtype=collective.dtype,
        shape=collective.shape,
        axes=mesh_axes(collective.groups, mesh.shape, mesh.axis_names),
        bytes=collective.bytes,
        role="",
        times=collective.times,
    )


def _paths(op_name, names):
    """Return the layers of an operation, those within others as `a/b`."""
    found = {}
    for part in op_name.split(":"):
        # Functions and operations of JAX have such names as `relu` and `add`.
        scopes = re.sub(r"\bp?jit\(\w*\)|[^/]*$", "", part)
        path = [name for name in re.split(r"[/()]+", scopes) if name in names]
        found["/".join(dict.fromkeys(path))] = None
    return list(filter(None, found))
