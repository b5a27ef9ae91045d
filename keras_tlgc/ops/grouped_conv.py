"""Grouped convolution, and the one place that decides how it is computed.

XLA's CPU gradient of a grouped convolution costs many times what it should,
on JAX and, through Keras, on TensorFlow. Splitting it into dense
convolutions avoids that. `keras-tlgc benchmark` prints the rows behind the
choices made here; `benchmarks/README.md` keeps what was measured.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import keras
from keras import ops

from keras_tlgc.validation import divisible_by_groups, one_of

LOWERINGS = ("auto", "native", "slices", "matmul")

# Each slice adds to the time to compile (rows WideResNet28x10, N = 16), and
# thin ones run no faster (rows wrn1, N = 16 and 32): beyond so many slices, or
# below 16 channels, several groups share one, in a kernel with zeros between
# them.
MAX_SLICES = 16
MIN_SLICE_CHANNELS = 16


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

    Example:

    >>> keras_tlgc.ops.choose_lowering("jax", "cpu", (3, 3))
    'slices'
    """
    if device != "cpu":
        return "native"  # Not measured yet.
    if backend == "torch":
        return "native"  # Rows wrn: no slower than Conv2D(groups) anywhere.
    if backend == "jax" and set(kernel_size) == {1}:
        return "matmul"  # Rows mobilenet, N = 4: faster than slices.
    return "slices"  # Rows wrn, JAX and TensorFlow: 7 to 90 times native.


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

    Example:

    >>> x = keras.random.normal((4, 10, 32))
    >>> kernel = keras.random.normal((3, 8, 64))
    >>> keras_tlgc.ops.grouped_conv(
    ...     x, kernel, groups=4, data_format="channels_last"
    ... ).shape
    (4, 8, 64)
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
    """Convolve the same input with several grouped kernels.

    Each output is that of `grouped_conv` with its kernel. Where it pays, all
    kernels of a group read its channels at once: then the second one costs
    little more than its arithmetic.

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

    Example:

    >>> x = keras.random.normal((4, 10, 32))
    >>> kernels = [keras.random.normal((3, 8, n)) for n in (64, 4)]
    >>> both = keras_tlgc.ops.grouped_convs(
    ...     x, kernels, groups=4, data_format="channels_last"
    ... )
    >>> [y.shape[-1] for y in both]
    [64, 4]
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
    compute = functools.partial(
        _LOWERINGS[lowering] if groups > 1 else _native,
        inputs,
        groups=groups,
        strides=strides,
        padding=padding,
        data_format=data_format,
        dilation_rate=dilation_rate,
    )
    kernels = [ops.convert_to_tensor(kernel) for kernel in kernels]
    # To read the input once more, at every tap, or to separate the outputs: the
    # latter pays but in rows mobilenet-expand and -head.
    reads = groups * math.prod(kernels[0].shape[:-1])
    if len(kernels) == 1 or reads <= kernels[0].shape[-1]:
        return [compute(kernel) for kernel in kernels]
    outputs = compute(_interleave(kernels, groups))
    sizes = [kernel.shape[-1] // groups for kernel in kernels]
    return _separate(outputs, sizes, groups, axis % len(inputs.shape))


def block_diagonal(kernel, groups: int):
    """Return the dense kernel that a grouped kernel stands for (eq. 2.7).

    Args:
        kernel: tensor of shape `(*kernel_size, m // groups, n)`.
        groups: integer N, the number of groups.

    Returns:
        Tensor of shape `(*kernel_size, m, n)`, zero outside of the N diagonal
        blocks of `m // groups` by `n // groups` channels.

    Example:

    >>> kernel = keras.ops.array([[1.0, 2.0]])  # A channel and filter a group.
    >>> dense = keras_tlgc.ops.block_diagonal(kernel, groups=2)
    >>> keras.ops.convert_to_numpy(dense).tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """
    if groups == 1:
        return kernel
    *window, m, n = kernel.shape
    blocks = ops.reshape(kernel, (*window, 1, m, groups, n // groups))
    diagonal = ops.eye(
        groups, dtype=keras.backend.standardize_dtype(kernel.dtype)
    )
    blocks = blocks * ops.reshape(diagonal, (groups, 1, groups, 1))
    return ops.reshape(blocks, (*window, groups * m, n))


def check_lowering(lowering: str, kernel_size: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless `lowering` can compute this kernel."""
    one_of("lowering", lowering, LOWERINGS)
    # PyTorch has tensors for sizes while it traces.
    if lowering == "matmul" and set(map(int, kernel_size)) != {1}:
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


def _native(inputs, kernel, groups, **window):
    del groups  # Keras infers them from the channels of input and kernel.
    return ops.conv(inputs, kernel, **window)


def _slices(inputs, kernel, groups, **window):
    """Convolve channel slices, each of one or a few whole groups."""
    axis = -1 if window["data_format"] == "channels_last" else 1
    m, n = kernel.shape[-2], kernel.shape[-1] // groups
    groups_per_slice = max(
        -(-groups // MAX_SLICES), -(-MIN_SLICE_CHANNELS // m)
    )
    firsts = range(groups_per_slice, groups, groups_per_slice)
    if not firsts:
        return ops.conv(inputs, block_diagonal(kernel, groups), **window)
    counts = [groups_per_slice] * len(firsts) + [groups - firsts[-1]]
    inputs = _split(inputs, [m * count for count in counts], axis)
    kernels = _split(kernel, [n * count for count in counts], -1)
    outputs = [
        ops.conv(x, block_diagonal(k, k.shape[-1] // n), **window)
        for x, k in zip(inputs, kernels, strict=True)
    ]
    return ops.concatenate(outputs, axis=axis)


def _matmul(inputs, kernel, groups, strides, data_format, **window):
    """Multiply the channels of every group by its matrix, in one product."""
    del window  # A window of one value has no padding and no dilation.
    rank = len(inputs.shape) - 2
    strides = (strides,) * rank if isinstance(strides, int) else strides
    steps = tuple(slice(None, None, stride) for stride in strides)
    m, n = kernel.shape[-2:]
    kernel = ops.reshape(kernel, (m, groups, n // groups))
    spatial = "xyz"[:rank]
    if data_format == "channels_last":
        inputs = inputs[(slice(None), *steps)]
        shape = ops.shape(inputs)[:-1]
        inputs = ops.reshape(inputs, (*shape, groups, m))
        equation = f"b{spatial}gm,mgn->b{spatial}gn"
        return ops.reshape(ops.einsum(equation, inputs, kernel), (*shape, n))
    inputs = inputs[(slice(None), slice(None), *steps)]
    batch, _, *sizes = ops.shape(inputs)
    inputs = ops.reshape(inputs, (batch, groups, m, *sizes))
    equation = f"bgm{spatial},mgn->bgn{spatial}"
    return ops.reshape(ops.einsum(equation, inputs, kernel), (batch, n, *sizes))


_LOWERINGS: dict[str, Callable] = {
    "native": _native,
    "slices": _slices,
    "matmul": _matmul,
}


def _interleave(kernels, groups):
    """Return one grouped kernel: in each group, the filters of every kernel."""
    # Integers also under torch.onnx, whose convolution wants a known kernel.
    window = [int(size) for size in kernels[0].shape[:-1]]
    sizes = [int(k.shape[-1]) // groups for k in kernels]
    parts = [
        ops.reshape(k, (*window, groups, size))
        for k, size in zip(kernels, sizes, strict=True)
    ]
    kernel = ops.concatenate(parts, axis=-1)
    return ops.reshape(kernel, (*window, groups * sum(sizes)))


def _separate(outputs, sizes, groups, axis):
    """Return the outputs of the kernels of `_interleave`, of such sizes."""
    shape = ops.shape(outputs)
    before, after = shape[:axis], shape[axis + 1 :]
    outputs = ops.reshape(outputs, (*before, groups, sum(sizes), *after))
    parts = _split(outputs, sizes, axis + 1)
    return [
        ops.reshape(part, (*before, groups * size, *after))
        for part, size in zip(parts, sizes, strict=True)
    ]


def _split(tensor, sizes, axis):
    """Return the parts of `tensor` that have such sizes along `axis`."""
    if keras.backend.backend() == "torch":
        # Keras puts the sizes into a tensor: torch.export cannot trace that,
        # and a GPU has to send it back.
        return tensor.split(sizes, axis)
    return ops.split(tensor, list(itertools.accumulate(sizes[:-1])), axis=axis)
