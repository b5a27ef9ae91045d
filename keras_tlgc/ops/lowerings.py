"""The ways to compute a grouped convolution, and the one place that picks one.

XLA's CPU gradient of a grouped convolution costs many times what it should,
on JAX and, through Keras, on TensorFlow. Splitting it into dense
convolutions avoids that. `keras-tlgc benchmark` prints the rows behind the
choices made here; `benchmarks/README.md` keeps what was measured.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_tlgc.ops.taps import taps
from keras_tlgc.ops.tensorflow_gaps import fill_gaps
from keras_tlgc.types import Tensor
from keras_tlgc.validation import one_of

LOWERINGS = ("auto", "native", "slices", "matmul", "taps")

# Letters for the axes between the batch and the channels, in `ops.einsum`.
SPATIAL = "uvwxyz"

# Each slice adds to the time to compile (rows WideResNet28x10, N = 16), and
# slices of few channels run no faster (rows wrn1, N = 16 and 32). So there are
# at most MAX_SLICES slices, of at least MIN_SLICE_CHANNELS channels each; where
# needed, several groups share a slice, in a kernel with zeros between them.
MAX_SLICES = 16
MIN_SLICE_CHANNELS = 16


def choose_lowering(
    backend: str,
    device: str,
    kernel_size: tuple[int, ...],
    channels: int | None = None,
) -> str:
    """Return the lowering that measured fastest for a grouped convolution.

    Args:
        backend: string, `keras.backend.backend()`.
        device: string, the kind of device: `"cpu"`, `"gpu"`, `"cuda"`...
        kernel_size: tuple of integers, the spatial size of the kernel.
        channels: integer, the input channels of a group, `None` for many.

    Returns:
        `"native"`, `"slices"`, `"matmul"` or `"taps"`.

    Example:

    >>> keras_tlgc.ops.choose_lowering("jax", "cpu", (3, 3))
    'slices'
    """
    if device != "cpu":
        return "native"  # Not measured yet.
    if backend == "torch":
        return "native"  # Rows wrn: never slower than Conv2D(groups).
    if backend == "jax" and channels == 1:
        return "taps"  # Rows depthwise: 19 to 50 times as fast as native.
    if backend == "jax" and set(kernel_size) == {1}:
        return "matmul"  # Rows mobilenet, N = 4: faster than slices.
    # Rows wrn, JAX and TensorFlow: 7 to 90 times as fast as native.
    return "slices"


def check_lowering(lowering: str, kernel_size: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless `lowering` can compute this kernel."""
    one_of("lowering", lowering, LOWERINGS)
    # While PyTorch traces, sizes are tensors.
    if lowering == "matmul" and max(map(int, kernel_size), default=1) > 1:
        raise ValueError(
            "`lowering='matmul'` computes kernels of size 1 only. "
            f"Received: kernel size {tuple(kernel_size)}. "
            "Use 'auto', 'slices' or 'native'."
        )


def lowered(
    lowering: str, inputs: Tensor, kernel: Tensor, groups: int
) -> Callable[..., Any]:
    """Return the function that convolves `inputs` with one grouped kernel.

    It takes `(inputs, kernel, groups, **window)`, all of which were checked.
    """
    if len(kernel.shape) == 2:
        return _matmul  # A kernel without a window is a matrix for each group.
    if lowering == "auto":
        lowering = choose_lowering(
            keras.backend.backend(),
            device_of(inputs),
            kernel.shape[:-2],
            kernel.shape[-2],
        )
    return _FUNCTIONS[lowering if groups > 1 else "slices"]


def device_of(tensor: Tensor) -> str:
    """Return the kind of device that computes on `tensor`: `"cpu"`, ..."""
    if keras.backend.backend() == "torch":
        return tensor.device.type
    return _default_device()


@functools.cache
def _default_device() -> str:
    return keras.distribution.list_devices()[0].split(":")[0].lower()


def _native(
    inputs: Tensor, kernel: Tensor, groups: int, **window: Any
) -> Tensor:
    del groups  # Keras infers them from the channels of input and kernel.
    return ops.conv(inputs, kernel, **window)


@fill_gaps
def _slices(
    inputs: Tensor, kernel: Tensor, groups: int, data_format: str, **window: Any
) -> Tensor:
    """Convolve channel slices, each of one or a few whole groups."""
    conv = functools.partial(ops.conv, data_format=data_format, **window)
    axis = -1 if data_format == "channels_last" else 1
    m, n = kernel.shape[-2], kernel.shape[-1] // groups
    groups_per_slice = max(
        -(-groups // MAX_SLICES), -(-MIN_SLICE_CHANNELS // m)
    )
    firsts = range(groups_per_slice, groups, groups_per_slice)
    if not firsts:
        return conv(inputs, block_diagonal(kernel, groups))
    counts = [groups_per_slice] * len(firsts) + [groups - firsts[-1]]
    inputs = split(inputs, [m * count for count in counts], axis)
    kernels = split(kernel, [n * count for count in counts], -1)
    outputs = [
        conv(x, block_diagonal(k, k.shape[-1] // n))
        for x, k in zip(inputs, kernels, strict=True)
    ]
    return ops.concatenate(outputs, axis=axis)


def _matmul(
    inputs: Tensor,
    kernel: Tensor,
    groups: int,
    strides: tuple[int, ...],
    data_format: str,
    **window: Any,
) -> Tensor:
    """Multiply the channels of every group by its matrix, in one product."""
    del window  # A 1x1 window needs no padding and no dilation.
    steps = tuple(slice(None, None, stride) for stride in strides)
    m, n = kernel.shape[-2:]
    kernel = ops.reshape(kernel, (m, groups, n // groups))
    spatial = SPATIAL[: len(inputs.shape) - 2]
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


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "native": _native,
    "slices": _slices,
    "matmul": _matmul,
    "taps": taps,
}


def split(tensor: Tensor, sizes: Sequence[int], axis: int) -> list[Tensor]:
    """Split `tensor` into parts that have these sizes along `axis`."""
    if keras.backend.backend() == "torch":
        # Keras puts the sizes into a tensor. torch.export cannot trace that,
        # and on a GPU the tensor would have to be copied back.
        return tensor.split(sizes, axis)
    return ops.split(tensor, list(itertools.accumulate(sizes[:-1])), axis=axis)


def block_diagonal(kernel: Tensor, groups: int) -> Tensor:
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
    # Each weight of a block becomes the diagonal of an N x N matrix. The
    # diagonal is selected and not multiplied by ones, since the gradient of a
    # product would have 0 * NaN off the diagonal.
    blocks = ops.reshape(kernel, (*window, m, groups, n // groups, 1))
    blocks = ops.swapaxes(blocks, -3, -2)
    # This copies instead of broadcasting, since LiteRT's converter can fold
    # copies into a constant.
    blocks = ops.concatenate([blocks] * groups, axis=-1)
    blocks = ops.triu(ops.tril(blocks))
    axes = [len(window) + axis for axis in (2, 0, 3, 1)]
    blocks = ops.transpose(blocks, (*range(len(window)), *axes))
    return ops.reshape(blocks, (*window, groups * m, n))
