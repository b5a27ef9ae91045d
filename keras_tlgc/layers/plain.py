"""How a layer is written as plain convolutions, for deployment."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from keras import ops

from keras_tlgc.ops.geometry import padding_of
from keras_tlgc.ops.two_level_conv import embed
from keras_tlgc.types import Tensor


class PlainConv(NamedTuple):
    """A convolution of Keras, without bias and activation.

    Attributes:
        name: string, what it is for, such as `"coarse"`.
        kernel: tensor of shape `(*kernel_size, m // groups, n)`.
        groups: int, its number of groups.
        window: dict of `strides`, `padding` and `dilation_rate`. The padding
            may be a list of the (low, high) zeros along each spatial axis.
        apart: bool, whether each group is a convolution by itself.
    """

    name: str
    kernel: Tensor
    groups: int = 1
    window: dict[str, Any] = {}  # noqa: RUF012  It is never changed.
    apart: bool = False


def pointwise(name: str, kernel: Tensor, rank: int) -> PlainConv:
    """Return the convolution whose window is 1 and whose kernel is a matrix."""
    kernel = ops.convert_to_tensor(kernel)
    return PlainConv(name, ops.reshape(kernel, (1,) * rank + kernel.shape))


def plain_conv(
    layer: Any,
    name: str,
    kernel: Tensor,
    sizes: Sequence[int | None],
    groups: int = 1,
    margins: Any = None,
) -> PlainConv:
    """Return a convolution with the strides and the dilation of a layer.

    Args:
        layer: a `BaseGroupConv`.
        name: string, what it is for.
        kernel: tensor of shape `(*kernel_size, m // groups, n)`.
        sizes: see `plain_forms`.
        groups: int, the number of its groups.
        margins: the taps between its window and the layer's, which it
            fills by default: see `keras_tlgc.ops.geometry.margins`.

    Raises:
        ValueError: if the padding depends on sizes that are unknown.
    """
    margins = margins or [(0, 0)] * layer.rank
    window = layer.window(layer.padding)
    del window["data_format"]
    find: Callable[..., Any] = functools.partial(
        padding_of, sizes=sizes, **window
    )
    pads = find(kernel.shape[:-2], margins)
    begins_within = isinstance(pads, list) and min(map(min, pads)) < 0
    if pads is None or begins_within:
        # Zeros around the kernel make its window begin where this one does.
        kernel = embed(kernel, margins)
        margins = [(min(lo, 0), min(hi, 0)) for lo, hi in margins]
        pads = find(kernel.shape[:-2], margins)
    if pads is None:
        raise ValueError(
            "A larger coarse window with strides and padding='same' needs "
            f"inputs of known sizes. Received: the layer '{layer.name}', "
            f"coarse_kernel_size={layer.coarse_kernel_size}, called on "
            f"sizes {sizes}. Give the model's input fixed sizes."
        )
    return PlainConv(name, kernel, groups, {**window, "padding": pads})


# Chains of convolutions, each applied to the output of the one before it. The
# outputs of all chains are added.
Form: TypeAlias = list[list[PlainConv]]
