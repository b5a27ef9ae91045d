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

# The axes of inputs and outputs of PyTorch's convolutions.
BATCH, CHANNELS = 0, 1
# Where a convolution's arguments after the bias say whether it is transposed.
TRANSPOSED = 3


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

    Of each part, `Replicate` is all of it on every device, `Shard` a piece of
    it, and `Partial` a summand.
    """

    inputs: Placement | tuple[Placement, ...]
    kernel: Placement | tuple[Placement, ...]
    bias: Placement | tuple[Placement, ...]
    outputs: Placement | tuple[Placement, ...]
    output_gradient: Placement | tuple[Placement, ...]
    input_gradient: Placement | tuple[Placement, ...]
    kernel_gradient: Placement | tuple[Placement, ...]
    bias_gradient: Placement | tuple[Placement, ...]


WHOLE, ROWS, SOME, SUM = Replicate(), Shard(BATCH), Shard(CHANNELS), Partial()
FILTERS_OF_BIAS = Shard(0)
EVERYTHING_WHOLE = _Place(*[WHOLE] * 8)
BY_ROWS = _Place(ROWS, WHOLE, WHOLE, ROWS, ROWS, ROWS, SUM, SUM)


def _by_groups(kernel: Placement) -> _Place:
    """Each device has some groups: their inputs, filters and outputs."""
    bias = FILTERS_OF_BIAS
    return _Place(SOME, kernel, bias, SOME, SOME, SOME, kernel, bias)


def _by_filters(kernel: Placement) -> _Place:
    """Each device computes some outputs, from all inputs."""
    bias = FILTERS_OF_BIAS
    return _Place(WHOLE, kernel, bias, SOME, SOME, SUM, kernel, bias)


def _by_inputs(kernel: Placement) -> _Place:
    """Each device computes what some inputs add to all outputs."""
    return _Place(SOME, kernel, WHOLE, SUM, WHOLE, SOME, kernel, WHOLE)


def _places(
    inputs: DTensor,
    kernel: DTensor,
    has_bias: bool,
    transposed: bool,
    groups: int,
) -> tuple[_Place, int]:
    """Return the places of all parts, and how many groups a device computes.

    Where the kernel is not split, a device computes all filters of the rows
    that it has.
    """
    filters = 1 if transposed else 0  # The axis of the kernel.
    places = []
    own = groups
    pairs = zip(inputs.placements, kernel.placements, strict=True)
    for size, (at, kernel_at) in zip(
        kernel.device_mesh.shape, pairs, strict=True
    ):
        if kernel_at.is_shard(0) and groups > 1:
            places.append(_by_groups(kernel_at))
            own //= size
        elif kernel_at.is_shard(filters) and groups == 1:
            places.append(_by_filters(kernel_at))
        elif kernel_at.is_shard(1 - filters) and groups == 1 and not has_bias:
            # Every device would add a bias, to what is then added up.
            places.append(_by_inputs(kernel_at))
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
    has_bias, transposed = bias is not None, window[TRANSPOSED]
    at, own_groups = _places(inputs, kernel, has_bias, transposed, groups)
    outputs = op(
        _local(inputs, at.inputs),
        _local(kernel, at.kernel),
        _local(bias, at.bias),
        *window,
        own_groups,
        **kwargs,
    )
    # A sum that waits to be added up would be moved twice: DTensor scatters it.
    return _joined(kernel, outputs, at.outputs).redistribute(
        placements=[WHOLE if place == SUM else place for place in at.outputs]
    )


def _backward(otherwise: Any, op: Any, args: Any, kwargs: Any) -> Any:
    gradient, inputs, kernel, bias_shape, *window, groups, wanted = args
    if not _is_split(inputs, kernel):
        return otherwise(op, args, kwargs)
    has_bias, transposed = wanted[2], window[TRANSPOSED]
    at, own_groups = _places(inputs, kernel, has_bias, transposed, groups)
    own_gradient = _local(gradient, at.output_gradient)
    gradients = op(
        own_gradient,
        _local(inputs, at.inputs),
        _local(kernel, at.kernel),
        bias_shape and [own_gradient.shape[CHANNELS]],
        *window,
        own_groups,
        wanted,
        **kwargs,
    )
    places = (at.input_gradient, at.kernel_gradient, at.bias_gradient)
    return tuple(
        part if part is None else _joined(kernel, part, placements)
        for part, placements in zip(gradients, places, strict=True)
    )


def _joined(kernel: DTensor, part: Tensor, placements: Any) -> DTensor:
    """Return the tensor on the kernel's mesh that this is a part of."""
    return DTensor.from_local(
        part, kernel.device_mesh, placements, run_check=False
    )
