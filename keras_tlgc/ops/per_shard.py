"""Computing a layer where its groups are: on the device that holds them.

XLA partitions a grouped convolution by gathering input and kernel on every
device, and a batch-sharded one by gathering the batch. Both are avoided by
telling it which part each device computes, and what is gathered.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
from keras import ops


class Shards(NamedTuple):
    """How a layer is split over a mesh.

    Attributes:
        mesh: the `jax.sharding.Mesh`.
        batch: name of the mesh axis that splits the batch, or None.
        model: name of the mesh axis that splits the groups, or None.
        devices: int, the size of the axis `model`, 1 without it.
    """

    mesh: object
    batch: str | None
    model: str | None
    devices: int


def per_shard(
    compute: Callable, inputs, kernels: Sequence, groups: int, channel_axis: int
):
    """Compute a layer of groups on the shards of inputs and kernels.

    Under a `keras.distribution` on JAX that splits the kernels' last axis (or,
    with `DataParallel`, the batch alone) each device computes its own groups
    from its own channels, and nothing crosses the mesh but what `compute`
    gathers. Otherwise `compute` gets everything.

    Args:
        compute: function of `(inputs, kernels, groups, gather)`, that returns
            outputs with their channels on `channel_axis`. `gather` takes a
            tensor with the channels of the groups at hand and returns it with
            those of all groups.
        inputs: tensor, a batch on its first axis.
        kernels: list of variables with the groups along their last axes.
        groups: integer N, the number of groups.
        channel_axis: int, the axis of the channels of inputs and outputs.

    Returns:
        What `compute` returns, of the whole batch and all groups.
    """
    values = [ops.convert_to_tensor(kernel) for kernel in kernels]
    shards = _shards(kernels[0], inputs)
    if shards is None:
        return compute(inputs, values, groups, gather=lambda coarse: coarse)

    import jax
    from jax.sharding import PartitionSpec

    axis = channel_axis % len(inputs.shape)

    def gather(coarse):
        if shards.model is None:
            return coarse
        return jax.lax.all_gather(coarse, shards.model, axis=axis, tiled=True)

    def on_one_device(inputs, *values):
        return compute(inputs, values, groups // shards.devices, gather)

    activations = [shards.batch] + [None] * (len(inputs.shape) - 1)
    activations[axis] = shards.model
    activations = PartitionSpec(*activations)
    weights = [
        PartitionSpec(*[None] * (len(value.shape) - 1), shards.model)
        for value in values
    ]
    # All axes of the mesh are named in it, also those that nothing is split
    # over: with the others left to XLA it gathers the batch at every layer.
    return jax.shard_map(
        on_one_device,
        mesh=shards.mesh,
        in_specs=(activations, *weights),
        out_specs=activations,
    )(inputs, *values)


def check_fits_mesh(path: str, name: str, count: int) -> None:
    """Raise a `ValueError` unless the mesh gives each device whole parts.

    Args:
        path: string, the path of a kernel that is about to be created.
        name: string, what lies along its last axis: `"groups"`, `"filters"`.
        count: int, how many of them.
    """
    distribution = _distribution()
    layout = distribution and distribution.get_tensor_layout(path)
    if not layout or layout.axes[-1] is None:
        return
    axis, devices = layout.axes[-1], _size(distribution, layout.axes[-1])
    if count % devices:
        raise ValueError(
            f"The devices along the model axis must divide the {name}, so "
            f"that each holds whole {name}. Received: {name}={count}, and "
            f"{devices} devices along the axis '{axis}' of the mesh, for "
            f"'{path}'. Use {name}={devices} or a multiple, a smaller axis, "
            "or keep this layer whole: "
            f"layout_map['{path}'] = {(None,) * len(layout.axes)}."
        )


def _shards(kernel, inputs):
    distribution, batch = _distribution(), inputs.shape[0]
    if distribution is None or not isinstance(batch, int):
        return None  # No mesh, or a symbolic batch, of shape inference.
    axes = distribution.get_variable_layout(kernel).axes
    model = axes[-1] if len(axes) == len(kernel.shape) else None
    data = distribution.batch_dim_name
    is_data_parallel = isinstance(distribution, keras.distribution.DataParallel)
    if model == data or (model is None and not is_data_parallel):
        return None
    if batch % _size(distribution, data):
        data = None  # Every row of the mesh computes the whole batch.
        if model is None:
            return None
    devices = 1 if model is None else _size(distribution, model)
    return Shards(distribution.device_mesh.backend_mesh, data, model, devices)


def _distribution():
    # Other backends accept a distribution and do nothing with it.
    if keras.backend.backend() != "jax":
        return None
    return keras.distribution.distribution()


def _size(distribution, axis):
    mesh = distribution.device_mesh
    return mesh.shape[mesh.axis_names.index(axis)]
