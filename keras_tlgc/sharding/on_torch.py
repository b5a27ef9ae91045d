"""A layer of groups on PyTorch, as `torch.distributed.tensor` divides it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.experimental import local_map

from keras_tlgc.sharding.per_shard import Peers
from keras_tlgc.types import Tensor


def per_shard(
    compute: Callable[..., Tensor],
    inputs: Tensor,
    values: Sequence[Tensor],
    groups: int,
    axis: int,
) -> Tensor:
    """Compute a layer of groups where its kernels and inputs are.

    See `keras_tlgc.sharding.per_shard`. The kernels tell what is split: along
    each axis of the mesh either their groups are, or whatever part of the batch
    is at hand is computed with all of them.
    """
    meshes = [t.device_mesh for t in (inputs, *values) if _is_split(t)]
    if not meshes:
        return compute(inputs, values, groups, peers=None)
    mesh = meshes[0]
    inputs, *values = (_on(mesh, tensor) for tensor in (inputs, *values))
    last = values[0].ndim - 1
    along = [placement.is_shard(last) for placement in values[0].placements]
    rows = [placement.is_shard(0) for placement in inputs.placements]

    def placed(groups: Any, batch: Any) -> tuple[Any, ...]:
        return tuple(
            groups if has_groups else batch if has_rows else Replicate()
            for has_groups, has_rows in zip(along, rows, strict=True)
        )

    activations = placed(Shard(axis), Shard(0))
    # Each device reads what is shared, for its own groups only.
    shared = placed(Replicate(), Shard(0))
    gradients = placed(Partial(), Shard(0))
    parts = [Shard(value.ndim - 1) for value in values]

    def share(part: Tensor, placements: Any) -> Tensor:
        whole = DTensor.from_local(part, mesh, placements, run_check=False)
        whole = whole.redistribute(placements=shared)
        return whole.to_local(grad_placements=gradients)

    peers = Peers(
        gather=lambda part: share(part, activations),
        add_up=lambda part: share(part, gradients),
    )

    own = groups
    for size, has_groups in zip(mesh.shape, along, strict=True):
        own //= size if has_groups else 1

    def on_one_device(inputs: Tensor, *values: Tensor) -> Tensor:
        return compute(inputs, values, own, peers if own < groups else None)

    return local_map(
        on_one_device,
        out_placements=list(activations),
        in_placements=(
            activations,
            *(placed(part, Replicate()) for part in parts),
        ),
        # A device has the gradients of its own rows alone. Unless told so,
        # `local_map` would take them for those of the batch.
        in_grad_placements=(
            activations,
            *(placed(part, Partial()) for part in parts),
        ),
        device_mesh=mesh,
        redistribute_inputs=True,
    )(inputs, *values)


def _is_split(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def _on(mesh: Any, tensor: Tensor) -> Any:
    """Return a tensor on a mesh; one that is not on it yet is whole."""
    if _is_split(tensor):
        return tensor
    return DTensor.from_local(
        torch.as_tensor(tensor),
        mesh,
        [Replicate()] * mesh.ndim,
        run_check=False,
    )
