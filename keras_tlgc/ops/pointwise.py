"""Products over the channels at every position."""

import keras
from keras import ops


def add_pointwise(outputs, inputs, kernel, data_format: str):
    """Return `outputs` plus a 1x1 convolution of `inputs` (eq. 3.5: + C r).

    On PyTorch the product is accumulated upon `outputs`, without a tensor of
    its own.

    Args:
        outputs: tensor of shape `(batch, *spatial, n)` (channels_last) or
            `(batch, n, *spatial)` (channels_first).
        inputs: tensor of the same shape but for m channels.
        kernel: tensor of shape `(m, n)`.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        Tensor of the shape of `outputs`.
    """
    if keras.backend.backend() == "torch":
        return _accumulate(outputs, inputs, kernel, data_format)
    spatial = "xyz"[: len(outputs.shape) - 2]
    equation = {
        "channels_last": f"b{spatial}m,mn->b{spatial}n",
        "channels_first": f"bm{spatial},mn->bn{spatial}",
    }[data_format]
    return outputs + ops.einsum(equation, inputs, kernel)


def _accumulate(outputs, inputs, kernel, data_format):
    m, n = kernel.shape
    shape = outputs.shape
    # What backpropagation keeps must be no view of the larger tensor that R
    # was computed in.
    inputs = inputs.contiguous()
    if data_format == "channels_last":
        y = outputs.reshape(-1, n).addmm(inputs.reshape(-1, m), kernel)
    else:
        y = outputs.flatten(2).baddbmm(
            kernel.t().expand(shape[0], n, m), inputs.flatten(2)
        )
    return y.reshape(shape)
