"""Grouped convolution of one kernel, or of several that share an input."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_tlgc.ops.concrete import concatenate, reshape, split
from keras_tlgc.ops.geometry import convolved_shape
from keras_tlgc.ops.lowerings import (
    check_lowering,
    fuses,
    lowered,
    resolved,
)
from keras_tlgc.types import Tensor
from keras_tlgc.validation import (
    divisible_by_groups,
    one_of,
    positive_int,
    positive_ints,
)


def grouped_conv(
    inputs: Tensor, kernel: Tensor, groups: int, **options: Any
) -> Tensor:
    """Convolve each group of input channels with its own kernel (eq. 2.9).

    Block i of the output channels depends only on block i of the input
    channels. The result is that of `keras.ops.conv(inputs, kernel, ...)`; only
    the way it is computed differs.

    This holds for finite values. A NaN or an infinity stays in its group with
    `lowering="native"`, except in the kernel's gradient on JAX and TensorFlow
    on CPUs, where XLA spreads it over all groups. It also stays in its group
    with `"matmul"` and `"taps"`, and with `"slices"` if there are at most 16
    groups of at least 16 input channels each. Otherwise several groups share a
    slice, and in outputs and gradients it spreads over the groups of its slice.
    With `"dense"` it spreads over all groups.

    Args:
        inputs: tensor of shape `(batch, *spatial, m)` (channels_last) or
            `(batch, m, *spatial)` (channels_first), of 1 to 3 spatial
            dimensions, or `(batch, ..., m)` for a kernel without a window, as
            that of a `Dense` layer. It is cast to the data type of the kernel.
            As in `keras.ops`, it may also be an array or a symbolic tensor
            (`keras.Input`).
        kernel: tensor of shape `(*kernel_size, m // groups, n)`.
        groups: integer N, the number of groups.
        **options: the other arguments of `grouped_convs`.

    Returns:
        Tensor of shape `(batch, *spatial_out, n)` or
        `(batch, n, *spatial_out)`.

    Raises:
        ValueError: as in `grouped_convs`.

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
    inputs: Tensor,
    kernels: Sequence[Tensor],
    groups: int,
    strides: int | tuple[int, ...] = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: int | tuple[int, ...] = 1,
    lowering: str = "auto",
) -> list[Tensor]:
    """Convolve the same input with several grouped kernels.

    Each output is that of `grouped_conv` with its kernel. Where this is faster,
    all kernels of a group are convolved at once, so that its channels are read
    once and the second kernel costs little more than its arithmetic.

    Args:
        inputs: tensor, as for `grouped_conv`.
        kernels: list of tensors of shapes `(*kernel_size, m // groups, n_i)`,
            which differ only in n_i.
        groups: integer N, the number of groups.
        strides: int or tuple of integers.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"`, `"channels_first"`, or `None` for
            `keras.config.image_data_format()`.
        dilation_rate: int or tuple of integers.
        lowering: how to compute it. `"native"` is the framework's grouped
            convolution, `"slices"` at most 16 dense convolutions on channel
            slices, `"matmul"` one batched matrix product (1x1 kernels only),
            `"taps"` a product for each tap of the window, `"dense"` the
            standard convolution whose kernel is `block_diagonal`. `"auto"` is
            the one that `choose_lowering` names; on a mesh, where the kernel of
            all groups would have to be gathered, never `"dense"`. Kernels
            without a window are always one batched matrix product.

    Returns:
        List of tensors of shapes `(batch, *spatial_out, n_i)` or
        `(batch, n_i, *spatial_out)`.

    Raises:
        ValueError: if the channels do not fit the kernels and the groups, if
            there are no kernels or their windows differ, if another argument
            is out of its range, or if the lowering is `"matmul"` and a kernel
            is larger than 1x1.

    Example:

    >>> x = keras.random.normal((4, 10, 32))
    >>> kernels = [keras.random.normal((3, 8, n)) for n in (64, 4)]
    >>> both = keras_tlgc.ops.grouped_convs(
    ...     x, kernels, groups=4, data_format="channels_last"
    ... )
    >>> [y.shape[-1] for y in both]
    [64, 4]
    """
    inputs, *kernels = map(_tensor, (inputs, *kernels))
    window = _check_window(
        inputs, kernels, strides, padding, data_format, dilation_rate
    )
    _check_channels(inputs, kernels, groups, lowering, window["data_format"])
    if any(isinstance(x, keras.KerasTensor) for x in (inputs, *kernels)):
        symbolic = GroupedConvs(groups, lowering, **window)
        return symbolic.symbolic_call(inputs, kernels)
    if inputs.dtype != kernels[0].dtype:
        inputs = ops.cast(inputs, kernels[0].dtype)
    return _convolve(inputs, kernels, groups, lowering, window)


def one_level_conv(
    inputs: Tensor,
    kernels: Sequence[Tensor],
    groups: int,
    peers: Any,
    **options: Any,
) -> Tensor:
    """Return `G x` of all groups, or of those of one device.

    Args:
        inputs: tensor x, with the channels of these groups.
        kernels: list of one tensor G, the part that belongs to these groups.
        groups: integer, how many groups these are.
        peers: the `Peers` that have the other groups. They exchange nothing.
        **options: as in `grouped_conv`.
    """
    del peers
    [kernel] = kernels
    return grouped_conv(inputs, kernel, groups, **options)


@keras.saving.register_keras_serializable(package="keras_tlgc")
class GroupedConvs(keras.Operation):
    """`grouped_convs` of symbolic tensors, as one node of a Keras model."""

    def __init__(
        self, groups: int, lowering: str, name: str | None = None, **window: Any
    ) -> None:
        super().__init__(name=name)
        self.groups = groups
        self.lowering = lowering
        self.window = window

    def call(self, inputs: Tensor, kernels: Sequence[Tensor]) -> list[Tensor]:
        return grouped_convs(
            inputs, kernels, self.groups, lowering=self.lowering, **self.window
        )

    def compute_output_spec(
        self, inputs: Tensor, kernels: Sequence[Tensor]
    ) -> list[keras.KerasTensor]:
        return [
            keras.KerasTensor(
                convolved_shape(
                    inputs.shape,
                    kernel.shape[-1],
                    tuple(kernel.shape[:-2]),
                    **self.window,
                ),
                dtype=keras.backend.standardize_dtype(kernel.dtype),
            )
            for kernel in kernels
        ]


def _tensor(value: Tensor) -> Tensor:
    if isinstance(value, keras.KerasTensor):
        return value
    return ops.convert_to_tensor(value)


def _check_window(
    inputs: Tensor,
    kernels: Sequence[Tensor],
    strides: int | tuple[int, ...],
    padding: str,
    data_format: str | None,
    dilation_rate: int | tuple[int, ...],
) -> dict[str, Any]:
    """Check the arguments that say where windows lie, and return them."""
    # While PyTorch traces, sizes are tensors.
    windows = [tuple(map(int, kernel.shape[:-2])) for kernel in kernels]
    rank = len(inputs.shape) - 2
    if windows and not any(windows) and rank >= 0:
        rank = 0  # Kernels without a window meet inputs of any rank.
        data_format = "channels_last"
    if (
        rank not in (0, 1, 2, 3)
        or not windows
        or {*map(len, windows)} != {rank}
    ):
        raise ValueError(
            "`inputs` must have 3 to 5 dimensions, and each kernel as many, or "
            "two. "
            f"Received: inputs.shape={tuple(inputs.shape)}, kernels of shapes "
            f"{[tuple(kernel.shape) for kernel in kernels]}. "
            "Pass at least one kernel of shape `(*kernel_size, m, n)`."
        )
    if len({*windows}) > 1:
        raise ValueError(
            "The kernels must have one window. Received: kernel sizes "
            f"{windows}. Surround the smaller ones with zeros."
        )
    dilation_rate = positive_ints("dilation_rate", dilation_rate, rank)
    return {
        "strides": positive_ints("strides", strides, rank),
        "padding": one_of(
            "padding",
            padding.lower() if isinstance(padding, str) else padding,
            ["valid", "same"],
        ),
        "data_format": one_of(
            "data_format",
            data_format or keras.config.image_data_format(),
            ["channels_last", "channels_first"],
        ),
        # Along an axis where the window has size 1, dilation does nothing, but
        # TensorFlow refuses it if strides are above 1.
        "dilation_rate": tuple(
            rate if size > 1 else 1
            for rate, size in zip(dilation_rate, windows[0], strict=True)
        ),
    }


def _check_channels(
    inputs: Tensor,
    kernels: Sequence[Tensor],
    groups: int,
    lowering: str,
    data_format: str,
) -> None:
    positive_int("groups", groups)
    channels = inputs.shape[-1 if data_format == "channels_last" else 1]
    for kernel in kernels:
        check_lowering(lowering, kernel.shape[:-2])
        divisible_by_groups("kernel.shape[-1]", kernel.shape[-1], groups)
        # The channels of a symbolic input may be unknown until it has values.
        if channels not in (None, groups * kernel.shape[-2]):
            raise ValueError(
                "The input must have `groups * kernel.shape[-2]` channels. "
                f"Received: inputs.shape={tuple(inputs.shape)}, "
                f"groups={groups}, kernel.shape={tuple(kernel.shape)}, "
                f"data_format={data_format!r}. "
                "Pass the kernel of one group, or check `data_format`."
            )


def _convolve(
    inputs: Tensor,
    kernels: Sequence[Tensor],
    groups: int,
    lowering: str,
    window: Any,
) -> list[Tensor]:
    """Return the outputs of all kernels, from tensors that were checked."""
    lowering = resolved(
        lowering, inputs, kernels[0], groups, window["data_format"]
    )
    compute = functools.partial(
        lowered(lowering, groups), inputs, groups=groups, **window
    )
    if len(kernels) == 1 or not fuses(lowering, kernels[0], groups):
        return [compute(kernel) for kernel in kernels]
    outputs = compute(_interleave(kernels, groups))
    sizes = [kernel.shape[-1] // groups for kernel in kernels]
    axis = -1 if window["data_format"] == "channels_last" else 1
    return _separate(outputs, sizes, groups, axis % len(inputs.shape))


def _interleave(kernels: Sequence[Tensor], groups: int) -> Tensor:
    """Return one grouped kernel, with all kernels' filters in each group."""
    # The sizes must be integers under torch.onnx too, whose convolution needs a
    # kernel of known shape.
    window = [int(size) for size in kernels[0].shape[:-1]]
    sizes = [int(k.shape[-1]) // groups for k in kernels]
    parts = [
        reshape(k, (*window, groups, size))
        for k, size in zip(kernels, sizes, strict=True)
    ]
    kernel = concatenate(parts, axis=-1)
    return reshape(kernel, (*window, groups * sum(sizes)))


def _separate(
    outputs: Tensor, sizes: Sequence[int], groups: int, axis: int
) -> list[Tensor]:
    """Return each kernel's outputs from those of the interleaved kernel."""
    shape = ops.shape(outputs)
    before, after = shape[:axis], shape[axis + 1 :]
    outputs = reshape(outputs, (*before, groups, sum(sizes), *after))
    parts = split(outputs, sizes, axis + 1)
    return [
        reshape(part, (*before, groups * size, *after))
        for part, size in zip(parts, sizes, strict=True)
    ]
