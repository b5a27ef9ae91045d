"""The two-level group convolution of tensors."""

import functools
from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_tlgc.ops.concrete import reshape
from keras_tlgc.ops.geometry import pad_spatial, same_pads
from keras_tlgc.ops.grouped_conv import grouped_conv, grouped_convs
from keras_tlgc.ops.low_rank_conv import low_rank_kernel
from keras_tlgc.ops.lowerings import block_diagonal, resolved
from keras_tlgc.ops.pointwise import add_pointwise
from keras_tlgc.types import Tensor


def two_level_conv(
    inputs: Tensor,
    kernels: Sequence[Tensor],
    groups: int,
    peers: Any,
    margins: Sequence[tuple[int, int]],
    lowering: str,
    **window: Any,
) -> Tensor:
    """Return `G x + C R x` (eq. 3.5) of all groups, or of those of one device.

    Args:
        inputs: tensor x, with the channels of these groups.
        kernels: tensors G, R and C, the parts that belong to these groups.
        groups: integer, how many groups these are.
        peers: the `Peers` that have the other groups, or `None`.
        margins: the taps between the windows of R and G: see
            `keras_tlgc.ops.geometry.margins`.
        lowering: as in `grouped_convs`.
        **window: `strides`, `padding`, `data_format` and `dilation_rate`.
    """
    kernel, restriction, coarse_kernel = kernels
    if peers is None:
        coarse_channels = restriction.shape[-1] // groups
        lowering = resolved(
            lowering,
            inputs,
            kernel,
            groups,
            window["data_format"],
            coarse_channels,
        )
    if lowering == "dense" and peers is None:
        outer = [(-low, -high) for low, high in margins]
        dense = embed(block_diagonal(kernel, groups), outer) + embed(
            low_rank_kernel(restriction, coarse_kernel, groups), margins
        )
        # The convolution of torch.onnx needs a kernel of known shape.
        dense = reshape(dense, tuple(map(int, dense.shape)))
        sizes = tuple(map(int, kernel.shape[:-2]))
        inputs, window = _widened(inputs, sizes, margins, **window)
        return grouped_conv(inputs, dense, 1, lowering="dense", **window)
    convolve = functools.partial(
        grouped_convs, groups=groups, lowering=lowering
    )
    # Both levels need aligned windows at every stride, padding and size. So R
    # gets zeros around a smaller window, and wider padding for a larger one.
    restriction = embed(restriction, margins)
    sizes = tuple(map(int, kernel.shape[:-2]))
    padded, padded_window = _widened(inputs, sizes, margins, **window)
    if peers is None and padded is inputs:
        fine, coarse = convolve(inputs, [kernel, restriction], **window)
    else:
        # On a mesh R is computed first, so that gathering its outputs can
        # overlap with G.
        [coarse] = convolve(padded, [restriction], **padded_window)
        coarse = peers.gather(coarse) if peers else coarse
        [fine] = convolve(inputs, [kernel], **window)
    return add_pointwise(fine, coarse, coarse_kernel, window["data_format"])


def embed(kernel: Tensor, margins: Sequence[tuple[int, int]]) -> Tensor:
    """Surround the window of `kernel` with zeros where margins are positive."""
    pads = [(max(low, 0), max(high, 0)) for low, high in margins]
    if not any(map(any, pads)):
        return kernel
    return ops.pad(kernel, [*pads, (0, 0), (0, 0)])


def _widened(
    inputs: Tensor,
    kernel_size: tuple[int, ...],
    margins: Sequence[tuple[int, int]],
    padding: str,
    **window: Any,
) -> Any:
    """Return the inputs and options of R, padded if its window is larger."""
    more = [(max(-low, 0), max(-high, 0)) for low, high in margins]
    if not any(map(any, more)):
        return inputs, {"padding": padding, **window}
    pads = [(0, 0)] * len(more)
    if padding == "same":
        pads = same_pads(inputs, kernel_size, **window)
    pads = [
        (low + rate * before, high + rate * after)
        for (low, high), (before, after), rate in zip(
            pads, more, window["dilation_rate"], strict=True
        )
    ]
    inputs = pad_spatial(inputs, pads, window["data_format"])
    return inputs, {"padding": "valid", **window}
