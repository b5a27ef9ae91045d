"""Sizes and paddings of convolution windows, in plain integers."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_tlgc.types import Tensor


def output_size(
    size: int | None, kernel: int, stride: int, dilation: int, padding: str
) -> int | None:
    """Return a convolution's output size along one axis (None stays None)."""
    if size is None:
        return None
    if padding == "valid":
        size -= dilation * (kernel - 1)
    return (size - 1) // stride + 1


def convolved_shape(
    input_shape: Sequence[int | None],
    filters: int,
    kernel_size: tuple[int, ...],
    strides: tuple[int, ...],
    padding: str,
    data_format: str,
    dilation_rate: tuple[int, ...],
) -> tuple[int | None, ...]:
    """Return a convolution's output shape, or raise a `ValueError`."""
    if not kernel_size:
        return (*input_shape[:-1], filters)  # At each position.
    first = 1 if data_format == "channels_last" else 2
    sizes = [
        output_size(input_shape[first + i], *window, padding)
        for i, window in enumerate(
            zip(kernel_size, strides, dilation_rate, strict=True)
        )
    ]
    shape = [input_shape[0], *sizes]
    shape.insert(len(shape) if first == 1 else 1, filters)
    # Symbolic dimensions, of JAX or PyTorch, are not compared.
    if any(isinstance(size, int) and size < 1 for size in sizes):
        raise ValueError(
            "The window must fit into the input. Received: "
            f"input_shape={tuple(input_shape)}, "
            f"kernel_size={kernel_size}, "
            f"dilation_rate={dilation_rate}, "
            f"padding={padding!r}, which leaves {tuple(shape)}. "
            "Use a smaller window, a larger input or padding='same'."
        )
    return tuple(shape)


def same_padding(
    size: Any, kernel: int, stride: int, dilation: int
) -> tuple[Any, Any]:
    """Return the (low, high) zeros that `padding="same"` adds on one axis.

    `size` may be a tensor, if the size is known only at run time, or a symbolic
    dimension of JAX. On JAX the formula must be JAX's own, since JAX cannot
    tell that another one gives the same size.
    """
    outputs = (size - 1) // stride + 1
    if keras.backend.backend() == "jax":
        outputs = -(-size // stride)
    total = (outputs - 1) * stride + dilation * (kernel - 1) + 1 - size
    total = _at_least_0(total)
    return total // 2, total - total // 2


def _at_least_0(size: Any) -> Any:
    if isinstance(size, int):
        return max(size, 0)
    if keras.backend.backend() == "torch":
        # Keras' maximum has 32 bits, and ONNX cannot combine it with sizes.
        return (size + abs(size)) // 2
    if keras.backend.backend() == "jax":
        import jax
        import jax.export

        if jax.export.is_symbolic_dim(size):
            return jax.core.max_dim(size, 0)
    return ops.maximum(size, 0)


def is_traced(tensor: Tensor) -> bool:
    """Return whether the sizes of a tensor may differ at run time.

    They may if PyTorch traces the model for another format, such as ONNX.
    """
    return keras.backend.backend() == "torch" and not all(
        isinstance(size, int) for size in tensor.shape
    )


def margins(
    kernel_size: tuple[int, ...], coarse_size: tuple[int, ...], causal: bool
) -> list[tuple[int, int]]:
    """Return the taps between the coarse window and the fine one, per axis.

    The coarse window is centred in the fine one; under causal padding both
    end at the same, latest tap. A coarse window that is larger than the fine
    one has negative margins.
    """
    gaps = [k - c for k, c in zip(kernel_size, coarse_size, strict=True)]
    lows = gaps if causal else [gap // 2 for gap in gaps]
    return [(low, gap - low) for low, gap in zip(lows, gaps, strict=True)]


def padding_of(
    kernel_size: tuple[int, ...],
    margins: Sequence[tuple[int, int]],
    strides: tuple[int, ...],
    padding: str,
    dilation_rate: tuple[int, ...],
    sizes: Sequence[int | None],
) -> str | list[tuple[int, int]] | None:
    """Return the padding of a window that lies within or around another one.

    Args:
        kernel_size: the size of this window.
        margins: the taps between this window and the other one: see `margins`.
        strides, padding, dilation_rate: of the other window, and of this one,
            except for its padding.
        sizes: the sizes of the input along each spatial axis, None if unknown.

    Returns:
        `"valid"`, `"same"` or `"causal"` where this means the same, or else
        the (low, high) zeros along each axis, negative where the window begins
        within the input. `None` if they depend on unknown sizes.
    """
    if not any(map(any, margins)):
        return padding
    pads, alike = [], padding == "same"
    for own, (low, high), stride, rate, size in zip(
        kernel_size, margins, strides, dilation_rate, sizes, strict=True
    ):
        other, before = own + low + high, (0, 0)
        if padding == "same":
            if size is None and stride > 1:
                return None
            size = size or 1  # With stride 1, it makes no difference.
            before = same_padding(size, other, stride, rate)
        elif padding == "causal":
            before = rate * (other - 1), 0
        pads.append((before[0] - rate * low, before[1] - rate * high))
        if alike:
            alike = pads[-1] == same_padding(size, own, stride, rate)
    if alike:
        return "same"
    return pads if any(map(any, pads)) else "valid"


def same_pads(
    inputs: Tensor,
    kernel_size: Sequence[int],
    strides: Sequence[int],
    dilation_rate: Sequence[int],
    data_format: str,
) -> list[tuple[Any, Any]]:
    """Return what `padding="same"` adds on each spatial axis of `inputs`."""
    first = 1 if data_format == "channels_last" else 2
    windows = zip(kernel_size, strides, dilation_rate, strict=True)
    return [
        same_padding(ops.shape(inputs)[axis], *window)
        for axis, window in enumerate(windows, first)
    ]


def pad_spatial(
    inputs: Tensor, pads: list[tuple[Any, Any]], data_format: str
) -> Tensor:
    """Surround `inputs` with (low, high) zeros along each spatial axis."""
    around = [(0, 0), *pads, (0, 0)]
    if data_format == "channels_first":
        around = [(0, 0), (0, 0), *pads]
    return ops.pad(inputs, around)
