"""The low-rank convolution of tensors, and the kernel that it equals."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_tlgc.ops.concrete import einsum, reshape
from keras_tlgc.ops.grouped_conv import grouped_conv
from keras_tlgc.ops.lowerings import block_diagonal
from keras_tlgc.types import Tensor


def low_rank_conv(
    inputs: Tensor,
    kernels: Sequence[Tensor],
    groups: int,
    peers: Any,
    lowering: str,
    data_format: str,
    **window: Any,
) -> Tensor:
    """Return `C R x` of all groups, or of those of one device.

    Runtimes see two plain convolutions, of which the second is a dense 1x1 one.

    Args:
        inputs: tensor x, with the channels of these groups.
        kernels: tensors R and C, the parts that belong to these groups.
        groups: integer, how many groups these are.
        peers: the `Peers` that have the other groups, or `None`.
        lowering: as in `grouped_convs`.
        data_format: `"channels_last"` or `"channels_first"`.
        **window: `strides`, `padding` and `dilation_rate`.
    """
    restriction, coarse_kernel = kernels
    options = {"data_format": data_format, "lowering": lowering}
    if lowering == "dense" and peers is None:
        kernel = low_rank_kernel(restriction, coarse_kernel, groups)
        return grouped_conv(inputs, kernel, 1, **options, **window)
    coarse = grouped_conv(inputs, restriction, groups, **options, **window)
    if peers:
        coarse = peers.gather(coarse)
    rank = len(restriction.shape) - 2
    return grouped_conv(coarse, coarse_kernel[(None,) * rank], 1, **options)


def low_rank_kernel(
    restriction: Tensor, coarse_kernel: Tensor, groups: int
) -> Tensor:
    """Return the dense kernel `C R`, of shape `(*kernel_size, m, n)`.

    Args:
        restriction: tensor R of shape `(*kernel_size, m // groups, N * r)`.
        coarse_kernel: tensor C of shape `(N * r, n)`.
        groups: integer N, the number of groups.
    """
    restriction, coarse_kernel = map(
        ops.convert_to_tensor, (restriction, coarse_kernel)
    )
    if keras.backend.backend() == "tensorflow":
        # LiteRT's converter folds this product into a constant, and no einsum.
        return ops.matmul(block_diagonal(restriction, groups), coarse_kernel)
    *window, m, coarse = map(int, restriction.shape)
    n = coarse_kernel.shape[-1]
    # Each group's own product, of its coarse channels only.
    product = einsum(
        "kmgr,grn->kgmn",
        reshape(restriction, (-1, m, groups, coarse // groups)),
        reshape(coarse_kernel, (groups, coarse // groups, n)),
    )
    return reshape(product, (*window, groups * m, n))
