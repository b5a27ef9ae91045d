"""MobileNetV2 of any kind of convolution.

This is the network of Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2:
Inverted Residuals and Linear Bottlenecks" (2018), as changed by Lee, Park and
Lee, "Two-level Group Convolution" (section 4.2, Table 4): the 1x1 convolutions
that expand and project, and the last one, are of the chosen kind. If the kind
is two-level, the last one has no coarse level: only then are the numbers of
parameters those of the paper. Stem, depthwise convolutions and classifier are
standard.

Where the paper of Lee et al. is silent, this follows the code of Sandler et al.
(rounding of channels, dropout before the classifier) and the framework that Lee
et al. used (symmetric padding, batch normalisation with momentum 0.9 and
epsilon 1e-5). Weights are initialised as by He et al. (2015), as Lee et al.
say.
"""

import math
import os
from numbers import Real

import keras
from keras import layers

from keras_tlgc.applications.building import (
    batch_norm,
    check_arguments,
    check_groups,
    convolution_args,
    image_input,
    network,
    strided,
    top,
)
from keras_tlgc.applications.convolutions import convolution
from keras_tlgc.layers import DepthwiseConv2D

STEM = 32
STAGES = [  # Expansion, filters, blocks, stride of the first block.
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]
HEAD = 1280


def MobileNetV2(
    alpha: float = 1.0,
    conv: str = "standard",
    groups: int = 1,
    coarse_channels: int = 1,
    dropout: float = 0.2,
    include_top: bool = True,
    weights: str | os.PathLike | None = None,
    input_tensor=None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    name: str | None = None,
) -> keras.Model:
    """Build a MobileNetV2 of width `alpha` (Table 4).

    Layers are named `stem_conv`, `stem_bn`, then, for blocks b = 1 to 17,
    `block{b}_{expand,expand_bn,depthwise,depthwise_bn,project,project_bn}`,
    then `head_conv`, `head_bn` and `predictions`. Block 1 does not expand.

    Args:
        alpha: float, the factor on the filters of all layers, except that below
            1 it leaves the last convolution as it is. Filters are rounded to
            multiples of 8.
        conv: kind of the 1x1 convolutions: `"standard"`, `"group"`,
            `"shuffle"`, `"learnable"`, `"two_level"`, `"balanced"` or
            `"low_rank"`.
        groups: int, the number N of groups: 1, 2, 4 or 8 for `alpha=1`.
        coarse_channels: int, coarse channels of each group (`"two_level"` and
            `"low_rank"`).
        dropout: float, the rate of dropout before the classifier.
        include_top: bool, whether to end with pooling and classifier.
        weights: path of a weights file to load, or `None`.
        input_tensor: optional Keras tensor to use as the model's input.
        input_shape: shape of one image. Defaults to `(224, 224, 3)`, or
            `(3, 224, 224)` if Keras' image data format is `"channels_first"`.
        pooling: how to pool over space without the top: `"avg"`, `"max"` or
            `None`.
        classes: int, the number of classes.
        classifier_activation: activation of the top. `None` gives logits.
        name: optional name of the model.

    Returns:
        A `keras.Model` from images to class scores of shape
        `(batch, classes)`, or, without the top, to features.

    Raises:
        ValueError: if an argument is out of its range, `groups` does not
            divide the channels of every convolution, or the weights are not
            those of the same network.

    Example:

    >>> model = keras_tlgc.applications.MobileNetV2(conv="two_level", groups=8)
    >>> model.output_shape
    (None, 1000)
    """
    blocks = _blocks(alpha)
    make_conv = convolution(conv, groups, coarse_channels)
    make_head = make_conv
    if conv == "two_level":
        make_head = convolution("group", groups)
    head = _round(HEAD * max(alpha, 1.0))
    check_groups(groups, _channels(blocks, head))
    check_arguments(
        weights, pooling, classes, dropout, classifier_activation, name
    )
    inputs = image_input(input_tensor, input_shape, size=224)

    stem = _round(STEM * alpha)
    args = convolution_args()
    x = strided(layers.Conv2D, inputs, stem, 3, 2, "stem_conv", **args)
    x = _batch_norm_relu6(x, name="stem_bn")
    for number, (channels, hidden, filters, stride) in enumerate(blocks, 1):
        x = _inverted_residual(
            x, channels, hidden, filters, stride, make_conv, f"block{number}"
        )
    x = make_head(head, 1, name="head_conv", **convolution_args())(x)
    x = _batch_norm_relu6(x, name="head_bn")

    x = top(x, include_top, pooling, classes, classifier_activation, dropout)
    name = name or f"mobilenet_v2_{alpha}"
    return network(inputs, input_tensor, x, weights, name)


def _blocks(alpha):
    """Return input channels, hidden channels, filters and stride of blocks."""
    is_number = isinstance(alpha, Real) and not isinstance(alpha, bool)
    if not is_number or not 0 < alpha < math.inf:
        raise ValueError(
            "`alpha` must be a positive number. "
            f"Received: alpha={alpha!r}. Try 1.0, 0.75 or 0.5."
        )
    blocks, channels = [], _round(STEM * alpha)
    for expansion, filters, number, first_stride in STAGES:
        for stride in [first_stride] + [1] * (number - 1):
            rounded = _round(filters * alpha)
            blocks.append((channels, expansion * channels, rounded, stride))
            channels = rounded
    return blocks


def _inverted_residual(x, channels, hidden, filters, stride, make_conv, name):
    """Expand, convolve each channel, project; add `x` if shapes agree."""
    shortcut = x
    if hidden != channels:
        expand = make_conv(
            hidden, 1, name=f"{name}_expand", **convolution_args()
        )
        x = _batch_norm_relu6(expand(x), name=f"{name}_expand_bn")
    x = strided(_depthwise, x, hidden, 3, stride, f"{name}_depthwise")
    x = _batch_norm_relu6(x, name=f"{name}_depthwise_bn")
    x = make_conv(filters, 1, name=f"{name}_project", **convolution_args())(x)
    x = batch_norm(x, name=f"{name}_project_bn")
    if stride == 1 and channels == filters:
        x = layers.Add(name=f"{name}_add")([shortcut, x])
    return x


def _depthwise(filters, kernel_size, padding="same", **kwargs):
    del filters  # There is one for each channel.
    # Keras' He initializers count all channels as inputs of every filter.
    he_normal = keras.initializers.RandomNormal(
        stddev=(2 / kernel_size**2) ** 0.5
    )
    return DepthwiseConv2D(
        kernel_size,
        padding=padding,
        use_bias=False,
        depthwise_initializer=he_normal,
        **kwargs,
    )


def _batch_norm_relu6(x, name):
    return layers.ReLU(6.0, name=f"{name}_relu")(batch_norm(x, name))


def _channels(blocks, head):
    """List each convolution of the chosen kind with its inputs and filters."""
    listed = []
    for number, (channels, hidden, filters, _) in enumerate(blocks, 1):
        if hidden != channels:
            listed += [(f"block{number}_expand", n) for n in (channels, hidden)]
        listed += [(f"block{number}_project", n) for n in (hidden, filters)]
    last = blocks[-1][2]
    return [*listed, ("head_conv", last), ("head_conv", head)]


def _round(channels):
    """Return the nearest multiple of 8, at least 8 and 90% of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
