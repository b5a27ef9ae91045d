"""The balanced group convolution of tensors, and the kernel that it equals."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_tlgc.ops.grouped_conv import grouped_conv
from keras_tlgc.ops.lowerings import block_diagonal, resolved
from keras_tlgc.types import Tensor


def balanced_conv(
    inputs: Tensor,
    kernels: Sequence[Tensor],
    groups: int,
    peers: Any,
    all_groups: int,
    lowering: str,
    data_format: str,
    **window: Any,
) -> Tensor:
    """Return `G x + B x_mean` of all groups, or of those of one device.

    Args:
        inputs: tensor x, with the channels of these groups.
        kernels: tensors G and B, the parts that belong to these groups.
        groups: integer, how many groups these are.
        peers: the `Peers` that have the other groups, or `None`.
        all_groups: integer N, how many groups there are.
        lowering: as in `grouped_convs`.
        data_format: `"channels_last"` or `"channels_first"`.
        **window: `strides`, `padding` and `dilation_rate`.
    """
    kernel, balance = kernels
    if peers is None:
        lowering = resolved(lowering, inputs, kernel, groups, data_format)
    options = {"data_format": data_format, "lowering": lowering, **window}
    if lowering == "dense" and peers is None:
        dense = balanced_kernel(kernel, balance, groups)
        return grouped_conv(inputs, dense, 1, **options)
    # The mean is computed first, so that adding it up over the devices of a
    # mesh can overlap with G.
    mean = _sum_of_groups(inputs, groups, data_format) / all_groups
    mean = peers.add_up(mean) if peers else mean
    fine = grouped_conv(inputs, kernel, groups, **options)
    return fine + grouped_conv(mean, balance, 1, **options)


def _sum_of_groups(inputs: Tensor, groups: int, data_format: str) -> Tensor:
    """Add up the first channels of all groups, the second ones, and so on."""
    shape, axis = ops.shape(inputs), 1
    if data_format == "channels_last":
        axis = len(shape) - 1
    each = inputs.shape[axis] // groups
    shape = (*shape[:axis], groups, each, *shape[axis + 1 :])
    return ops.sum(ops.reshape(inputs, shape), axis=axis)


def balanced_kernel(kernel: Tensor, balance: Tensor, groups: int) -> Tensor:
    """Return the dense kernel of G and B, of shape `(*kernel_size, m, n)`.

    Args:
        kernel: tensor G of shape `(*kernel_size, m // groups, n)`.
        balance: tensor B of the same shape.
        groups: integer N, the number of groups.
    """
    kernel, balance = map(ops.convert_to_tensor, (kernel, balance))
    spread = ops.concatenate([balance / groups] * groups, axis=-2)
    return block_diagonal(kernel, groups) + spread
