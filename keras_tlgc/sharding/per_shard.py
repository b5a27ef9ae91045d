"""Computing a layer where its groups are: on the device that holds them.

XLA partitions a grouped convolution by gathering input and kernel on every
device, or, if its batch is sharded, by gathering the batch. PyTorch computes a
part of it, or fails. To avoid this, they are told which part each device
computes and what is gathered.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_tlgc.types import Tensor


class Peers(NamedTuple):
    """What the devices that share a layer's groups can do together.

    Attributes:
        gather: function of a tensor with the channels of the groups at hand,
            which returns it with those of all groups.
        add_up: function of a tensor of which each device has a part of the sum,
            which returns the sum.
    """

    gather: Callable[[Tensor], Tensor]
    add_up: Callable[[Tensor], Tensor]


def per_shard(
    compute: Callable[..., Tensor],
    inputs: Tensor,
    kernels: Sequence[keras.Variable],
    groups: int,
    channel_axis: int,
) -> Tensor:
    """Compute a layer of groups on the shards of inputs and kernels.

    Under a `keras.distribution` that splits the kernels' last axis (or, with
    `DataParallel`, the batch alone) each device computes its own groups from
    its own channels, and only what `compute` asks of its peers crosses the
    mesh.
    Otherwise `compute` gets everything. This holds on JAX and, with Keras 3.16
    and `ModelParallel`, on PyTorch.

    Args:
        compute: function of `(inputs, kernels, groups, peers)` that returns
            outputs with their channels on `channel_axis`. `peers` is a `Peers`,
            or `None` where all groups are at hand.
        inputs: tensor, a batch on its first axis.
        kernels: list of variables with the groups along their last axes.
        groups: integer N, the number of groups.
        channel_axis: int, the axis of the channels of inputs and outputs.

    Returns:
        What `compute` returns, of the whole batch and all groups.
    """
    values = [ops.convert_to_tensor(kernel) for kernel in kernels]
    axis = channel_axis % len(inputs.shape)
    if keras.backend.backend() == "torch":
        from keras_tlgc.sharding import on_torch

        return on_torch.per_shard(compute, inputs, values, groups, axis)
    shards = _shards(kernels[0], inputs)
    if shards is None:
        return compute(inputs, values, groups, peers=None)
    from keras_tlgc.sharding import on_jax

    return on_jax.per_shard(compute, inputs, values, groups, axis, *shards)


def check_fits_mesh(path: str, name: str, count: int) -> None:
    """Raise a `ValueError` unless the mesh gives each device whole parts.

    Args:
        path: string, the path of a kernel that is about to be created.
        name: string, what lies along its last axis: `"groups"`, `"filters"`.
        count: int, how many of them.
    """
    distribution = active_distribution()
    layout = distribution and distribution.get_tensor_layout(path)
    axes = layout.axes if layout else ()
    if distribution is None or not axes or axes[-1] is None:
        return
    devices = axis_size(distribution.device_mesh, axes[-1])
    if count % devices:
        raise ValueError(
            f"The devices along the model axis must divide the {name}, so "
            f"that each holds whole {name}. Received: {name}={count}, and "
            f"{devices} devices along the axis '{axes[-1]}' of the mesh, for "
            f"'{path}'. Use {name}={devices} or a multiple, a smaller axis, "
            "or keep this layer whole: "
            f"layout_map['{path}'] = {(None,) * len(axes)}."
        )


def can_split() -> bool:
    """Return whether Keras splits variables over devices on this backend."""
    version = tuple(map(int, keras.__version__.split(".")[:2]))
    return keras.backend.backend() == "jax" or (
        keras.backend.backend() == "torch" and version >= (3, 16)
    )


def check_can_split() -> None:
    """Raise a `ValueError` unless Keras splits variables on this backend."""
    if not can_split():
        backend = keras.backend.backend()
        raise ValueError(
            "A mesh needs the JAX backend, or PyTorch with Keras 3.16 or "
            f"newer. Received: KERAS_BACKEND={backend} and Keras "
            f"{keras.__version__}. Set KERAS_BACKEND=jax"
            + (", or install keras>=3.16." if backend == "torch" else ".")
        )


def _shards(kernel: keras.Variable, inputs: Tensor) -> tuple[Any, ...] | None:
    distribution, batch = active_distribution(), inputs.shape[0]
    if distribution is None or not isinstance(batch, int):
        return None  # No mesh, or a symbolic batch, of shape inference.
    axes = axes_of(distribution.get_variable_layout(kernel))
    model = axes[-1] if len(axes) == len(kernel.shape) else None
    data = distribution.batch_dim_name
    is_data_parallel = isinstance(distribution, keras.distribution.DataParallel)
    if model == data or (model is None and not is_data_parallel):
        return None
    if batch % axis_size(distribution.device_mesh, data):
        data = None  # Every row of the mesh computes the whole batch.
        if model is None:
            return None
    mesh = distribution.device_mesh
    devices = 1 if model is None else axis_size(mesh, model)
    return mesh.backend_mesh, data, model, devices


def active_distribution() -> keras.distribution.ModelParallel | None:
    """Return the distribution that is set, if this backend splits anything.

    Other backends accept one and do nothing with it.
    """
    return keras.distribution.distribution() if can_split() else None


def local_batch(batch: int) -> int:
    """Return how many rows of a batch one device of the mesh computes."""
    distribution = active_distribution()
    if distribution is None:
        return batch
    devices = axis_size(distribution.device_mesh, distribution.batch_dim_name)
    return batch if batch % devices else batch // devices


def axes_of(layout: Any) -> tuple[str | None, ...]:
    """Return the axes of the mesh that a variable is split over.

    On PyTorch, and before version 3.15 on JAX, Keras keeps as the layout of a
    variable what the backend takes. That of PyTorch does not tell how many axes
    the variable has: the last ones may be missing if they are not split.
    """
    if hasattr(layout, "placements"):
        names = layout.device_mesh.mesh_dim_names
        split = {
            placement.dim: name
            for name, placement in zip(names, layout.placements, strict=True)
            if placement.is_shard()
        }
        return tuple(map(split.get, range(max(split, default=-1) + 1)))
    return tuple(layout.axes if hasattr(layout, "axes") else layout.spec)


def axis_size(mesh: keras.distribution.DeviceMesh, axis: str) -> int:
    """Return the number of devices along an axis of a mesh."""
    return mesh.shape[mesh.axis_names.index(axis)]
