"""Sizes and paddings of convolution windows, in plain integers."""

from keras import ops


def output_size(
    size: int | None, kernel: int, stride: int, dilation: int, padding: str
) -> int | None:
    """Return a convolution's output size along one axis (None stays None)."""
    if size is None:
        return None
    if padding == "valid":
        size -= dilation * (kernel - 1)
    return (size - 1) // stride + 1


def same_padding(size, kernel: int, stride: int, dilation: int):
    """Return the (low, high) zeros that `padding="same"` adds on one axis.

    `size` may be a tensor, when the size is known at run time only.
    """
    outputs = (size - 1) // stride + 1
    total = (outputs - 1) * stride + dilation * (kernel - 1) + 1 - size
    total = max(total, 0) if isinstance(total, int) else ops.maximum(total, 0)
    return total // 2, total - total // 2


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
