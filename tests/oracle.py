"""Two-level group convolution, written from its definition in NumPy.

    y_i = G_i x_i + C_i r,   r_j = R_j x_j,   r = (r_1, ..., r_N)

Loops over groups, output positions and taps; nothing is shared with the
package, and nothing is fast.
"""

import numpy as np


def two_level_group_conv(
    x,
    kernel,
    bias=None,
    restriction_kernel=None,
    coarse_kernel=None,
    *,
    groups=1,
    strides=1,
    padding="valid",
    dilation_rate=1,
    data_format="channels_last",
):
    """Return the outputs, in float64; without a restriction, those of G."""
    x = np.asarray(x, "float64")
    if data_format == "channels_first":
        x = np.moveaxis(x, 1, -1)
    rank = x.ndim - 2
    strides = np.broadcast_to(strides, rank)
    dilation = np.broadcast_to(dilation_rate, rank)
    window = kernel.shape[:rank]

    sizes, starts = [], []  # Of the output; of the window at output 0.
    for axis in range(rank):
        size, start = _output_size_and_start(
            x.shape[axis + 1],
            window[axis],
            strides[axis],
            dilation[axis],
            padding,
        )
        sizes.append(size)
        starts.append(start)

    blocks = np.split(x, groups, axis=-1)
    fine = [
        _slide(x_i, g_i, sizes, starts, strides, dilation)
        for x_i, g_i in zip(blocks, np.split(kernel, groups, -1), strict=True)
    ]
    y = np.concatenate(fine, axis=-1)

    if restriction_kernel is not None:
        coarse_window = restriction_kernel.shape[:rank]
        for axis in range(rank):
            taps = window[axis] - coarse_window[axis]
            if padding != "causal":
                taps = int(np.floor(taps / 2))
            starts[axis] += taps * dilation[axis]
        restrictions = np.split(restriction_kernel, groups, -1)
        r = [
            _slide(x_i, r_i, sizes, starts, strides, dilation)
            for x_i, r_i in zip(blocks, restrictions, strict=True)
        ]
        y = y + np.concatenate(r, axis=-1) @ np.asarray(coarse_kernel)

    if bias is not None:
        y = y + bias
    return np.moveaxis(y, -1, 1) if data_format == "channels_first" else y


def low_rank_conv(
    x, restriction_kernel, coarse_kernel, bias=0, data_format=None, **window
):
    """Return `C R x`, in float64: R is a group convolution with more groups."""
    r = two_level_group_conv(
        x, restriction_kernel, data_format=data_format, **window
    )
    axis = 1 if data_format == "channels_first" else -1
    y = np.moveaxis(r, axis, -1) @ np.asarray(coarse_kernel) + bias
    return np.moveaxis(y, -1, axis)


def balanced_conv(
    x, kernel, balance, bias=0, data_format=None, groups=1, **window
):
    """Return `G x + B x_mean`, in float64."""
    axis = 1 if data_format == "channels_first" else -1
    parts = np.split(np.asarray(x, "float64"), groups, axis)
    mean = sum(parts) / groups
    options = {"data_format": data_format, **window}
    y = two_level_group_conv(x, kernel, groups=groups, **options)
    y = y + two_level_group_conv(mean, balance, **options)
    return np.moveaxis(np.moveaxis(y, axis, -1) + bias, -1, axis)


def _output_size_and_start(size, kernel, stride, dilation, padding):
    reach = dilation * (kernel - 1)
    if padding == "valid":
        return len(range(0, size - reach, stride)), 0
    outputs = len(range(0, size, stride))
    if padding == "causal":
        return outputs, -reach
    zeros = max((outputs - 1) * stride + reach + 1 - size, 0)
    return outputs, -(zeros // 2)


def _slide(x, kernel, sizes, starts, strides, dilation):
    y = np.zeros((len(x), *sizes, kernel.shape[-1]))
    for position in np.ndindex(*sizes):
        for tap in np.ndindex(*kernel.shape[:-2]):
            at = starts + position * strides + tap * dilation
            if np.all(at >= 0) and np.all(at < x.shape[1:-1]):
                y[:, *position] += x[:, *at] @ kernel[tap]
    return y
