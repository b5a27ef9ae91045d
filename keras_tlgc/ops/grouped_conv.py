"""Grouped convolution, and the one place that decides how it is computed.

XLA's CPU gradient of a grouped convolution costs 10 to 200 times what it
should, on JAX and, through Keras, on TensorFlow. Splitting it into dense
convolutions avoids that. `benchmarks/layer.py` prints the table behind the
choices made here; `benchmarks/README.md` keeps what was measured.
"""

import functools
import itertools
from collections.abc import Sequence

import keras
from keras import ops

from keras_tlgc.validation import divisible_by_groups, divisors, one_of

LOWERINGS = ("auto", "native", "slices", "matmul")

# More slices make more nodes to compile, and thin ones run no faster: beyond
# 16 slices, or below 16 channels, several groups share one, in a kernel with
# zeros between them.
MAX_SLICES = 16
MIN_SLICE_CHANNELS = 16

# Slices of several kernels get zero filters up to a multiple of the width of
# the processor's vectors.
FILTER_MULTIPLE = 8


def choose_lowering(
    backend: str, device: str, kernel_size: tuple[int, ...]
) -> str:
    """Return the lowering that measured fastest for a grouped convolution.

    Args:
        backend: string, `keras.backend.backend()`.
        device: string, the kind of device: `"cpu"`, `"gpu"`, `"cuda"`...
        kernel_size: tuple of integers, the spatial size of the kernel.

    Returns:
        `"native"`, `"slices"` or `"matmul"`.
    """
    if device != "cpu":
        return "native"  # Not measured yet.
    if backend == "torch":
        return "native"  # oneDNN: no slower than slices in nearly all rows.
    if backend == "jax" and set(kernel_size) == {1}:
        return "matmul"  # 14x14x384 and 16x16x320, 1x1: 1 to 3 times slices.
    return "slices"  # 3x3: 10 to 160 times native on JAX and TensorFlow.


def grouped_conv(inputs, kernel, groups: int, **options):
    """Convolve each group of input channels with its own kernel (eq. 2.9).

    Output channel block i depends on input channel block i alone. The result
    is that of `keras.ops.conv(inputs, kernel, ...)`; only the way it is
    computed differs.

    Args:
        inputs: tensor of shape `(batch, *spatial, m)` (channels_last) or
            `(batch, m, *spatial)` (channels_first), of 1 to 3 spatial
            dimensions.
        kernel: tensor of shape `(*kernel_size, m // groups, n)`.
        groups: integer N, the number of groups.
        **options: those of `grouped_convs`.

    Returns:
        Tensor of shape `(batch, *spatial_out, n)` or
        `(batch, n, *spatial_out)`.

    Raises:
        ValueError: as `grouped_convs`.
    """
    return grouped_convs(inputs, [kernel], groups, **options)[0]


def grouped_convs(
    inputs,
    kernels: Sequence,
    groups: int,
    strides=1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate=1,
    lowering: str = "auto",
):
    """Convolve the same input with several grouped kernels, in one pass.

    Each output is that of `grouped_conv` with its kernel. All kernels of a
    group read its channels at once: the second one costs little more than its
    arithmetic.

    Args:
        inputs: tensor, as for `grouped_conv`.
        kernels: list of tensors of shapes `(*kernel_size, m // groups, n_i)`,
            the same but for n_i.
        groups: integer N, the number of groups.
        strides: int or tuple of integers.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"`, or `None` for
            `keras.config.image_data_format()`.
        dilation_rate: int or tuple of integers.
        lowering: how to compute it. `"native"` is the framework's grouped
            convolution, `"slices"` at most 16 dense convolutions on channel
            slices, `"matmul"` one batched matrix product (1x1 kernels only),
            `"auto"` the one that `choose_lowering` names.

    Returns:
        List of tensors of shapes `(batch, *spatial_out, n_i)` or
        `(batch, n_i, *spatial_out)`.

    Raises:
        ValueError: if the channels do not fit the kernels and the groups, if
            the lowering is unknown, or `"matmul"` for a kernel beyond 1x1.
    """
    data_format = data_format or keras.config.image_data_format()
    axis = -1 if data_format == "channels_last" else 1
    for kernel in kernels:
        check_lowering(lowering, kernel.shape[:-2])
        divisible_by_groups("kernel.shape[-1]", kernel.shape[-1], groups)
        if inputs.shape[axis] != groups * kernel.shape[-2]:
            raise ValueError(
                "The input must have `groups * kernel.shape[-2]` channels. "
                f"Received: inputs.shape={tuple(inputs.shape)}, "
                f"groups={groups}, kernel.shape={tuple(kernel.shape)}, "
                f"data_format={data_format!r}. "
                "Pass the kernel of one group, or check `data_format`."
            )
    if lowering == "auto":
        lowering = choose_lowering(
            keras.backend.backend(), device_of(inputs), kernels[0].shape[:-2]
        )
    compute = _LOWERINGS[lowering] if groups > 1 else _native
    return compute(
        inputs,
        [ops.convert_to_tensor(kernel) for kernel in kernels],
        groups,
        strides=strides,
        padding=padding,
        data_format=data_format,
        dilation_rate=dilation_rate,
    )


def block_diagonal(kernel, groups: int):
    """Return the dense kernel that a grouped kernel stands for (eq. 2.7).

    Args:
        kernel: tensor of shape `(*kernel_size, m // groups, n)`.
        groups: integer N, the number of groups.

    Returns:
        Tensor of shape `(*kernel_size, m, n)`, zero outside of the N diagonal
        blocks of `m // groups` by `n // groups` channels.
    """
    *window, m, n = kernel.shape
    return ops.reshape(_blocks(kernel, 1, groups), (*window, groups * m, n))


def check_lowering(lowering: str, kernel_size: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless `lowering` can compute this kernel."""
    one_of("lowering", lowering, LOWERINGS)
    if lowering == "matmul" and set(kernel_size) != {1}:
        raise ValueError(
            "`lowering='matmul'` computes kernels of size 1 only. "
            f"Received: kernel size {tuple(kernel_size)}. "
            "Use 'auto', 'slices' or 'native'."
        )


def device_of(tensor) -> str:
    """Return the kind of device that computes on `tensor`, as `"cpu"`."""
    if keras.backend.backend() == "torch":
        return tensor.device.type
    return _default_device()


@functools.cache
def _default_device() -> str:
    return keras.distribution.list_devices()[0].split(":")[0].lower()


def _native(inputs, kernels, groups, **window):
    if len(kernels) == 1:  # Keras infers the groups from the channels.
        return [ops.conv(inputs, kernels[0], **window)]
    kernel = ops.concatenate([_grouped(k, groups) for k in kernels], axis=-1)
    kernel = ops.reshape(kernel, (*kernel.shape[:-2], -1))
    outputs = ops.conv(inputs, kernel, **window)
    return _ungroup(outputs, kernels, groups, window["data_format"])


def _slices(inputs, kernels, groups, **window):
    """Convolve channel slices, each of one or a few whole groups."""
    axis = -1 if window["data_format"] == "channels_last" else 1
    m = kernels[0].shape[-2]
    least = max(groups / MAX_SLICES, min(MIN_SLICE_CHANNELS / m, groups))
    slices = groups // next(n for n in divisors(groups) if n >= least)
    blocks = [_blocks(kernel, slices, groups // slices) for kernel in kernels]
    ends = list(itertools.accumulate(block.shape[-1] for block in blocks))
    kernel = ops.concatenate(blocks, axis=-1) if len(blocks) > 1 else blocks[0]
    if len(blocks) > 1:
        spare = -ends[-1] % FILTER_MULTIPLE
        pads = [(0, 0)] * (len(kernel.shape) - 1)
        kernel = ops.pad(kernel, [*pads, (0, spare)])
    kernel = ops.reshape(kernel, (*kernel.shape[:-2], -1))
    outputs = [
        _split(ops.conv(x, k, **window), ends, axis)[: len(kernels)]
        for x, k in zip(
            ops.split(inputs, slices, axis=axis),
            ops.split(kernel, slices, axis=-1),
            strict=True,
        )
    ]
    return [
        ops.concatenate(parts, axis=axis)
        for parts in zip(*outputs, strict=True)
    ]


def _blocks(kernel, slices, groups):
    """Return the dense kernels of slices, each with zeros between its groups.

    Their shape is `(*kernel_size, channels, slices, filters)` of one slice.
    """
    *window, m, n = kernel.shape
    n //= slices * groups
    shape = (*window, groups * m, slices, groups * n)
    if groups == 1:
        return ops.reshape(kernel, shape)
    kernel = ops.reshape(kernel, (*window, 1, m, slices, groups, n))
    diagonal = ops.eye(
        groups, dtype=keras.backend.standardize_dtype(kernel.dtype)
    )
    diagonal = ops.reshape(diagonal, (groups, 1, 1, groups, 1))
    return ops.reshape(kernel * diagonal, shape)


def _matmul(inputs, kernels, groups, strides, data_format, **window):
    """Multiply the channels of every group by its matrix, in one product."""
    del window  # A window of one value has no padding and no dilation.
    rank = len(inputs.shape) - 2
    strides = (strides,) * rank if isinstance(strides, int) else strides
    steps = tuple(slice(None, None, stride) for stride in strides)
    m = kernels[0].shape[-2]
    kernel = ops.concatenate([_grouped(k, groups) for k in kernels], axis=-1)
    kernel = ops.reshape(kernel, (m, *kernel.shape[-2:]))
    spatial = "xyz"[:rank]
    if data_format == "channels_last":
        inputs = inputs[(slice(None), *steps)]
        shape = ops.shape(inputs)[:-1]
        inputs = ops.reshape(inputs, (*shape, groups, m))
        equation = f"b{spatial}gm,mgn->b{spatial}gn"
    else:
        inputs = inputs[(slice(None), slice(None), *steps)]
        batch, _, *sizes = ops.shape(inputs)
        inputs = ops.reshape(inputs, (batch, groups, m, *sizes))
        equation = f"bgm{spatial},mgn->bgn{spatial}"
    outputs = ops.einsum(equation, inputs, kernel)
    return _ungroup(outputs, kernels, groups, data_format)


_LOWERINGS = {"native": _native, "slices": _slices, "matmul": _matmul}


def _grouped(kernel, groups):
    """Give the groups of a kernel's filters an axis of their own."""
    *shape, n = kernel.shape
    return ops.reshape(kernel, (*shape, groups, n // groups))


def _ungroup(outputs, kernels, groups, data_format):
    """Split the channels of each group by kernel, and join those of groups."""
    sizes = [kernel.shape[-1] // groups for kernel in kernels]
    ends = list(itertools.accumulate(sizes))
    rank = len(kernels[0].shape) - 2
    shape = ops.shape(outputs)
    if data_format == "channels_last":
        before, after = shape[: 1 + rank], ()
    else:
        before, after = shape[:1], shape[-rank:]
    outputs = ops.reshape(outputs, (*before, groups, ends[-1], *after))
    parts = _split(outputs, ends[:-1], len(before) + 1)
    return [
        ops.reshape(part, (*before, groups * size, *after))
        for part, size in zip(parts, sizes, strict=True)
    ]


def _split(tensor, indices, axis):
    """Split a tensor, or return it whole where there is nothing to split."""
    indices = [i for i in indices if i < tensor.shape[axis]]
    return ops.split(tensor, indices, axis=axis) if indices else [tensor]
