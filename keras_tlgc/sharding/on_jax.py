"""A layer of groups on JAX, as `jax.shard_map` divides it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from keras_tlgc.sharding.per_shard import Peers
from keras_tlgc.types import Tensor


def per_shard(
    compute: Callable[..., Tensor],
    inputs: Tensor,
    values: Sequence[Tensor],
    groups: int,
    axis: int,
    mesh: Any,
    batch: str | None,
    model: str | None,
    devices: int,
) -> Tensor:
    """Compute a layer of groups. See `keras_tlgc.sharding.per_shard`.

    Args:
        compute, inputs, values, groups, axis: function, tensor, kernels, number
            of groups and axis of the channels.
        mesh: the `jax.sharding.Mesh`.
        batch: name of the mesh axis that splits the batch, or None.
        model: name of the mesh axis that splits the groups, or None.
        devices: int, the size of the axis `model`, 1 without it.
    """

    def gather(coarse: Tensor) -> Tensor:
        return jax.lax.all_gather(coarse, model, axis=axis, tiled=True)

    def add_up(part: Tensor) -> Tensor:
        return jax.lax.psum(part, model)

    peers = Peers(gather, add_up)

    def on_one_device(inputs: Tensor, *values: Tensor) -> Tensor:
        own = groups // devices
        return compute(inputs, values, own, peers if own < groups else None)

    activations = [batch] + [None] * (len(inputs.shape) - 1)
    activations[axis] = model
    activations = PartitionSpec(*activations)
    weights = [
        PartitionSpec(*[None] * (len(value.shape) - 1), model)
        for value in values
    ]
    # `shard_map` is in charge of all axes of the mesh, even those that split
    # nothing. If these were left to XLA, it would gather the batch at every
    # layer.
    return jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(activations, *weights),
        out_specs=activations,
    )(inputs, *values)
