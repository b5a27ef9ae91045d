"""Products over the channels at every position."""

import keras
from keras import ops

from keras_tlgc.ops.concrete import einsum
from keras_tlgc.types import Tensor

# Letters for the axes between the batch and the channels, in `ops.einsum`.
SPATIAL = "uvwxyz"


def pointwise(inputs: Tensor, kernel: Tensor, data_format: str) -> Tensor:
    """Return a 1x1 convolution of `inputs`, as a product.

    Args:
        inputs: tensor of shape `(batch, *spatial, m)` (channels_last) or
            `(batch, m, *spatial)` (channels_first).
        kernel: tensor of shape `(m, n)`.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        Tensor of the shape of `inputs`, except that it has n channels.
    """
    if keras.backend.backend() == "jax" and data_format == "channels_last":
        # Of an einsum over several axes XLA transposes what the gradient of the
        # kernel reads, which took up to 1.6 times as long.
        rows = ops.reshape(inputs, (-1, inputs.shape[-1]))
        shape = (*inputs.shape[:-1], kernel.shape[-1])
        return ops.reshape(ops.matmul(rows, kernel), shape)
    spatial = SPATIAL[: len(inputs.shape) - 2]
    equation = {
        "channels_last": f"b{spatial}m,mn->b{spatial}n",
        "channels_first": f"bm{spatial},mn->bn{spatial}",
    }[data_format]
    return einsum(equation, inputs, kernel)


def add_pointwise(
    outputs: Tensor, inputs: Tensor, kernel: Tensor, data_format: str
) -> Tensor:
    """Return `outputs` plus a 1x1 convolution of `inputs` (eq. 3.5: + C r).

    On PyTorch the product is added to `outputs` as it is computed, without a
    tensor of its own, and in place unless there are gradients.

    Args:
        outputs: tensor of shape `(batch, *spatial, n)` (channels_last) or
            `(batch, n, *spatial)` (channels_first), which is not read again.
        inputs: tensor of the same shape, except that it has m channels.
        kernel: tensor of shape `(m, n)`.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        Tensor of the shape of `outputs`.
    """
    if keras.backend.backend() == "torch":
        return _accumulate(outputs, inputs, kernel, data_format)
    return outputs + pointwise(inputs, kernel, data_format)


def _accumulate(
    outputs: Tensor, inputs: Tensor, kernel: Tensor, data_format: str
) -> Tensor:
    import torch

    m, n = kernel.shape
    shape = outputs.shape
    # What autograd makes of it in place, where `outputs` is a view, costs more.
    in_place = not torch.is_grad_enabled()
    # Backpropagation keeps this tensor. If it were a view, it would keep alive
    # the larger tensor that R was computed in.
    inputs = inputs.contiguous()
    if data_format == "channels_last":
        y = outputs.reshape(-1, n)
        factors = inputs.reshape(-1, m), kernel
        y = y.addmm_(*factors) if in_place else y.addmm(*factors)
    else:
        y = outputs.flatten(2)
        factors = kernel.t().expand(shape[0], n, m), inputs.flatten(2)
        y = y.baddbmm_(*factors) if in_place else y.baddbmm(*factors)
    return y.reshape(shape)
