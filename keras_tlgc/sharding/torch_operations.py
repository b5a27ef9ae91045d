"""What PyTorch lacks for layers of Keras whose channels are split over a mesh.

Its own rule for convolutions knows a split batch only. Given split channels it
fails, or returns a part of the output as the whole. The gradients of some
activations have no rule.
"""

from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
)
from torch.distributed.tensor.experimental import register_sharding

from keras_tlgc._keras import handle_on_mesh
from keras_tlgc.types import Tensor

aten = torch.ops.aten
# The gradients of activations, computed entry by entry.
ACTIVATIONS = (
    aten.elu_backward.default,
    aten.hardsigmoid_backward.default,
    aten.hardswish.default,
    aten.hardswish_backward.default,
    aten.hardtanh_backward.default,
    aten.leaky_relu_backward.default,
    aten.log_sigmoid_backward.default,
    aten.mish_backward.default,
    aten.softplus_backward.default,
)

# The axes of inputs and outputs of PyTorch's convolutions, and of kernels.
BATCH, CHANNELS = 0, 1
FILTERS = 0


def install() -> None:
    """Let PyTorch compute on a mesh what it cannot do, or does wrongly.

    This concerns convolutions with a kernel or an input that is split by
    channels, and the gradients of activations of anything that is split.
    """
    handle_on_mesh(aten.convolution.default, _forward)
    handle_on_mesh(aten.convolution_backward.default, _backward)
    register_sharding(list(ACTIVATIONS))(_entry_by_entry)


def _entry_by_entry(*args: Any) -> list[Any]:
    """Return the placements of outputs and inputs that go together."""
    return [
        (
            [placement],
            [placement if hasattr(arg, "ndim") else None for arg in args],
        )
        for placement in (Replicate(), *map(Shard, range(args[0].ndim)))
    ]


class _Place(NamedTuple):
    """Where the parts of a convolution are, along one axis of the mesh or all.

    Gradients of outputs are where the outputs are. A bias and its gradient are
    where the kernel and its gradient are.
    """

    inputs: Placement | tuple[Placement, ...]
    kernel: Placement | tuple[Placement, ...]
    outputs: Placement | tuple[Placement, ...]
    input_gradient: Placement | tuple[Placement, ...]
    kernel_gradient: Placement | tuple[Placement, ...]


WHOLE, ROWS, GROUPS = Replicate(), Shard(BATCH), Shard(CHANNELS)
EVERYTHING_WHOLE = _Place(WHOLE, WHOLE, WHOLE, WHOLE, WHOLE)
BY_ROWS = _Place(ROWS, WHOLE, ROWS, ROWS, Partial())
BY_FILTERS = _Place(WHOLE, Shard(FILTERS), GROUPS, Partial(), Shard(FILTERS))
BY_GROUPS = _Place(GROUPS, Shard(FILTERS), GROUPS, GROUPS, Shard(FILTERS))


def _places(
    inputs: DTensor, kernel: DTensor, groups: int
) -> tuple[_Place, int]:
    """Return the places of all parts, and how many groups a device computes.

    Where filters are split, each device computes its own, from all channels of
    the input or, of a grouped convolution, from those of its own groups. Where
    they are not, it computes all filters of the rows that it has.
    """
    places = []
    own = groups
    pairs = zip(inputs.placements, kernel.placements, strict=True)
    for size, (at, kernel_at) in zip(
        kernel.device_mesh.shape, pairs, strict=True
    ):
        if kernel_at.is_shard(FILTERS) and groups > 1:
            places.append(BY_GROUPS)
            own //= size
        elif kernel_at.is_shard(FILTERS):
            places.append(BY_FILTERS)
        else:
            places.append(BY_ROWS if at.is_shard(BATCH) else EVERYTHING_WHOLE)
    # Of each part, the placements along all axes of the mesh.
    return _Place(*zip(*places, strict=True)), own


def _local(tensor: DTensor | None, placements: Any) -> Any:
    """Return the part of a tensor that this device computes with."""
    if tensor is None:
        return None
    return tensor.redistribute(placements=placements).to_local()


def _is_split(inputs: DTensor, kernel: DTensor) -> bool:
    return any(
        at.is_shard(CHANNELS) or at.is_partial() or kernel_at.is_shard()
        for at, kernel_at in zip(
            inputs.placements, kernel.placements, strict=True
        )
    )


def _forward(otherwise: Any, op: Any, args: Any, kwargs: Any) -> Any:
    inputs, kernel, bias, *window, groups = args
    if not _is_split(inputs, kernel):
        return otherwise(op, args, kwargs)
    at, own_groups = _places(inputs, kernel, groups)
    outputs = op(
        _local(inputs, at.inputs),
        _local(kernel, at.kernel),
        _local(bias, at.kernel),
        *window,
        own_groups,
        **kwargs,
    )
    return _joined(kernel, outputs, at.outputs)


def _backward(otherwise: Any, op: Any, args: Any, kwargs: Any) -> Any:
    gradient, inputs, kernel, bias_shape, *window, groups, wanted = args
    if not _is_split(inputs, kernel):
        return otherwise(op, args, kwargs)
    at, own_groups = _places(inputs, kernel, groups)
    own_kernel = _local(kernel, at.kernel)
    gradients = op(
        _local(gradient, at.outputs),
        _local(inputs, at.inputs),
        own_kernel,
        bias_shape and [own_kernel.shape[FILTERS]],
        *window,
        own_groups,
        wanted,
        **kwargs,
    )
    places = (at.input_gradient, at.kernel_gradient, at.kernel_gradient)
    return tuple(
        part if part is None else _joined(kernel, part, placements)
        for part, placements in zip(gradients, places, strict=True)
    )


def _joined(kernel: DTensor, part: Tensor, placements: Any) -> DTensor:
    """Return the tensor on the kernel's mesh that this is a part of."""
    return DTensor.from_local(
        part, kernel.device_mesh, placements, run_check=False
    )
