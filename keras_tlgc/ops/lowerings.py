"""The ways to compute a grouped convolution, and the one place that picks one.

XLA's CPU gradient of a grouped convolution costs many times what it should,
on JAX and, through Keras, on TensorFlow. Splitting it into dense
convolutions avoids that. `keras-tlgc benchmark` prints the rows behind the
choices made here; `benchmarks/README.md` keeps what was measured.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_tlgc.ops.concrete import (
    concatenate,
    einsum,
    reshape,
    split,
    swapaxes,
)
from keras_tlgc.ops.conv import conv
from keras_tlgc.ops.pointwise import SPATIAL, pointwise
from keras_tlgc.ops.taps import taps
from keras_tlgc.ops.tensorflow_gaps import fill_gaps
from keras_tlgc.sharding.per_shard import active_distribution
from keras_tlgc.types import Tensor
from keras_tlgc.validation import one_of

LOWERINGS = ("auto", "native", "slices", "matmul", "taps", "dense")

# Each slice adds to the time to compile (rows WideResNet28x10, N = 16), and
# slices of few channels run no faster (rows wrn1, N = 16 and 32). So there are
# at most MAX_SLICES slices, of at least MIN_SLICE_CHANNELS channels each; where
# needed, several groups share a slice, in a kernel with zeros between them.
MAX_SLICES = 16
MIN_SLICE_CHANNELS = 16


class Least(NamedTuple):
    """How much the equal standard convolution has to do for groups to pay.

    The numbers are multiply-adds for each value that it reads or writes. With
    fewer, most of the time goes into reading and writing, which groups do not
    make less, so that one dense kernel is faster.
    """

    one_level: int
    two_levels: int
    one_level_of_1x1: int
    two_levels_of_1x1: int


# Rows narrow and mobilenet.
OTHERS = Least(200, 400, 50, 160)
LEAST = {"jax": Least(400, 400, 50, 160), "torch": Least(50, 140, 50, 50)}


def choose_lowering(
    backend: str,
    device: str,
    kernel_size: tuple[int, ...],
    channels: int | None = None,
    filters: int | None = None,
    groups: int = 1,
    coarse_channels: int = 0,
    data_format: str = "channels_last",
) -> str:
    """Return the lowering that measured fastest for a grouped convolution.

    Args:
        backend: string, `keras.backend.backend()`.
        device: string, the kind of device: `"cpu"`, `"gpu"`, `"cuda"`...
        kernel_size: tuple of integers, the spatial size of the kernel.
        channels: integer, the input channels of a group, `None` for many.
        filters: integer, the filters of a group, `None` for many, or where no
            device has all groups.
        groups: integer N, the number of groups, 1 if it is unknown.
        coarse_channels: integer, the coarse channels of a group, 0 without a
            second level.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        `"native"`, `"slices"`, `"matmul"`, `"taps"` or `"dense"`.

    Example:

    >>> keras_tlgc.ops.choose_lowering("jax", "cpu", (3, 3))
    'slices'
    """
    if device != "cpu":
        return "native"  # Not measured yet.
    if backend == "jax" and channels == 1 and not coarse_channels:
        return "taps"  # Rows depthwise: 40 to 130 times as fast as native.
    taps = math.prod(kernel_size)
    if channels is not None and filters is not None:
        sizes = groups * channels, groups * filters
        coarse = groups * coarse_channels
        of_one, of_two, of_one_1x1, of_two_1x1 = LEAST.get(backend, OTHERS)
        if taps == 1:
            of_one, of_two = of_one_1x1, of_two_1x1
        least = of_two if coarse else of_one
        dense = taps * math.prod(sizes)
        both = dense // groups + coarse * (taps * channels + sizes[1])
        # Two levels of very many coarse channels compute about as much. Those
        # of two groups compute half, and take 0.6 to 0.75 (rows wrn, N = 2).
        if dense < least * sum(sizes) or (coarse and both > dense / 1.5):
            return "dense"
    if backend == "jax" and channels == 1:
        return "taps"
    if taps == 1 and groups > 1 and data_format == "channels_last":
        return "matmul"  # Rows mobilenet. With channels first they are slower.
    if backend == "torch":
        return "native"  # Rows wrn: never slower than Conv2D(groups).
    # Rows wrn, JAX and TensorFlow: 10 to 100 times as fast as native.
    return "slices"


def fuses(lowering: str, kernel: Tensor, groups: int) -> bool:
    """Return whether kernels that share an input are convolved as one.

    They are not where a second pass over the input, at every tap, is cheaper
    than to separate the outputs. This holds for rows mobilenet-head; for taps,
    which read an input that is in the cache; and on PyTorch for groups of one
    channel, of which its convolution has a kernel only for one filter each.
    """
    if lowering == "taps":
        return False
    if keras.backend.backend() == "torch" and kernel.shape[-2] == 1:
        return False
    reads = groups * math.prod(kernel.shape[:-1])
    return reads > kernel.shape[-1]


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


def resolved(
    lowering: str,
    inputs: Tensor,
    kernel: Tensor,
    groups: int,
    data_format: str,
    coarse_channels: int = 0,
) -> str:
    """Return the lowering that `"auto"` stands for, or else `lowering`."""
    *window, m, n = kernel.shape
    if not window:
        return "matmul"  # Each group has a matrix, and there is no other way.
    if lowering != "auto":
        return lowering
    # On a mesh, a kernel of all groups would have to be gathered.
    on_mesh = active_distribution() is not None
    return choose_lowering(
        keras.backend.backend(),
        device_of(inputs),
        tuple(window),
        m,
        None if on_mesh else n // groups,
        groups,
        coarse_channels,
        data_format,
    )


def lowered(lowering: str, groups: int) -> Callable[..., Any]:
    """Return the function that convolves inputs with one grouped kernel.

    It takes `(inputs, kernel, groups, **window)`, all of which were checked.
    """
    # Of one group, Keras' own convolution is the fastest. It needs a window.
    own = groups > 1 or lowering == "matmul"
    return _FUNCTIONS[lowering if own else "dense"]


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
    del groups  # The channels of input and kernel tell how many there are.
    return conv(inputs, kernel, **window)


@fill_gaps
def _slices(
    inputs: Tensor, kernel: Tensor, groups: int, data_format: str, **window: Any
) -> Tensor:
    """Convolve channel slices, each of one or a few whole groups."""
    convolve: Callable[..., Tensor] = functools.partial(
        conv, data_format=data_format, **window
    )
    axis = -1 if data_format == "channels_last" else 1
    m, n = kernel.shape[-2], kernel.shape[-1] // groups
    groups_per_slice = max(
        -(-groups // MAX_SLICES), -(-MIN_SLICE_CHANNELS // m)
    )
    firsts = range(groups_per_slice, groups, groups_per_slice)
    if not firsts:
        return convolve(inputs, block_diagonal(kernel, groups))
    counts = [groups_per_slice] * len(firsts) + [groups - firsts[-1]]
    inputs = split(inputs, [m * count for count in counts], axis)
    kernels = split(kernel, [n * count for count in counts], -1)
    outputs = [
        convolve(x, block_diagonal(k, k.shape[-1] // n))
        for x, k in zip(inputs, kernels, strict=True)
    ]
    return concatenate(outputs, axis=axis)


@fill_gaps
def _dense(
    inputs: Tensor, kernel: Tensor, groups: int, data_format: str, **window: Any
) -> Tensor:
    """Convolve all channels with one kernel, zero between the groups."""
    kernel = block_diagonal(kernel, groups)
    if keras.backend.backend() == "jax" and set(kernel.shape[:-2]) == {1}:
        # Rows mobilenet: faster than XLA's convolution of size 1.
        inputs = _strided(inputs, window["strides"], data_format)
        kernel = reshape(kernel, kernel.shape[-2:])
        return pointwise(inputs, kernel, data_format)
    return conv(inputs, kernel, data_format=data_format, **window)


def _strided(
    inputs: Tensor, strides: tuple[int, ...], data_format: str
) -> Tensor:
    """Return the positions that a window of size 1 reads."""
    steps = [slice(None, None, stride) for stride in strides]
    last = data_format == "channels_last"
    return inputs[(slice(None), *[slice(None)] * (not last), *steps)]


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
    inputs = _strided(inputs, strides, data_format)
    m, n = kernel.shape[-2:]
    kernel = reshape(kernel, (m, groups, n // groups))
    if data_format == "channels_last":
        # Of an einsum over several axes XLA computes up to 2.2 times as long.
        shape = ops.shape(inputs)[:-1]
        rows = swapaxes(reshape(inputs, (-1, groups, m)), 0, 1)
        outputs = rows @ swapaxes(kernel, 0, 1)
        return reshape(swapaxes(outputs, 0, 1), (*shape, n))
    batch, _, *sizes = ops.shape(inputs)
    inputs = reshape(inputs, (batch, groups, m, *sizes))
    spatial = SPATIAL[: len(sizes)]
    equation = f"bgm{spatial},mgn->bgn{spatial}"
    return reshape(einsum(equation, inputs, kernel), (batch, n, *sizes))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "native": _native,
    "slices": _slices,
    "matmul": _matmul,
    "taps": taps,
    "dense": _dense,
}


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
    is_symbolic = isinstance(kernel, keras.KerasTensor)
    if keras.backend.backend() == "torch" and not is_symbolic:
        return _block_diagonal_on_torch(ops.convert_to_tensor(kernel), groups)
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


def _block_diagonal_on_torch(kernel: Tensor, groups: int) -> Tensor:
    """Return `block_diagonal`, in fewer operations, which count there."""
    import torch

    *window, m, n = map(int, kernel.shape)
    blocks = kernel.reshape(*window, 1, m, groups, n // groups)
    own = torch.eye(groups, dtype=torch.bool, device=kernel.device)
    zero = torch.zeros((), dtype=kernel.dtype, device=kernel.device)
    dense = torch.where(own[:, None, :, None], blocks, zero)
    return dense.reshape(*window, groups * m, n)
