"""Wide residual networks of any kind of convolution.

This is the network of Zagoruyko and Komodakis, "Wide Residual Networks" (2016),
in the forms of Lee, Park and Lee, "Two-level Group Convolution" (section 4.1,
Tables 1 to 3): every convolution except the stem is of the chosen kind, 1x1
shortcuts included. Where the paper of Lee et al. is silent, this follows the
code of Zagoruyko and Komodakis for CIFAR: pre-activation blocks; the shortcut
of a widening block reads the pre-activated input and has no batch
normalisation; dropout, if any, stands before a block's second convolution; no
convolution has a bias; strided convolutions pad equally on every side.

The ImageNet form has the same blocks. Its parameters are those that Table 1
prints. (The ImageNet network of Zagoruyko and Komodakis was post-activated.)
"""

import os

import keras
from keras import layers

from keras_tlgc.applications.building import (
    batch_norm_relu,
    channel_axis,
    check_arguments,
    check_groups,
    convolution_args,
    image_input,
    network,
    strided,
    top,
)
from keras_tlgc.applications.convolutions import convolution
from keras_tlgc.validation import one_of, positive_int

# Filters and strides. In the stages, not in the stem, `width` multiplies
# filters.
CIFAR_STEM = 16
CIFAR_STAGES = [(16, 1), (32, 2), (64, 2)]
IMAGENET_STEM = 64
IMAGENET_STAGES = [(64, 1), (128, 2), (256, 2), (512, 2)]
IMAGENET_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def WideResNet(
    depth: int = 28,
    width: int = 10,
    conv: str = "standard",
    groups: int = 1,
    coarse_channels: int = 1,
    dropout: float = 0.0,
    include_top: bool = True,
    weights: str | os.PathLike | None = None,
    input_tensor=None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int = 10,
    classifier_activation: str | None = "softmax",
    name: str | None = None,
) -> keras.Model:
    """Build a WideResNet-`depth`-`width` for small images (Tables 1 to 3).

    As in the paper's networks, batch normalisation has momentum 0.9 and epsilon
    1e-5, and convolutions are initialised as by He et al. (2015). Layers are
    named `stem_conv`, `stage{s}_block{b}_{bn1,conv1,bn2,conv2,shortcut}`,
    `head_bn` and `predictions`.

    Args:
        depth: int, the number of layers, 6 b + 4 for b blocks in a stage.
        width: int, the factor k on the stages' 16, 32 and 64 filters.
        conv: kind of convolution: `"standard"`, `"group"`, `"shuffle"`,
            `"learnable"`, `"two_level"`, `"balanced"` or `"low_rank"`.
        groups: int, the number N of groups, a divisor of 16.
        coarse_channels: int, coarse channels of each group (`"two_level"` and
            `"low_rank"`).
        dropout: float, the rate of dropout in each block.
        include_top: bool, whether to end with pooling and classifier.
        weights: path of a weights file to load, or `None`.
        input_tensor: optional Keras tensor to use as the model's input.
        input_shape: shape of one image. Defaults to `(32, 32, 3)`, or
            `(3, 32, 32)` if Keras' image data format is `"channels_first"`.
        pooling: how to pool over space without the top: `"avg"`, `"max"` or
            `None`.
        classes: int, the number of classes.
        classifier_activation: activation of the top. `None` gives logits.
        name: optional name of the model.

    Returns:
        A `keras.Model` from images to class scores of shape
        `(batch, classes)`, or, without the top, to features of 64 `width`
        channels.

    Raises:
        ValueError: if an argument is out of its range, `groups` does not
            divide the channels of every convolution, or the weights are not
            those of the same network.

    Example:

    >>> model = keras_tlgc.applications.WideResNet(
    ...     16, 4, conv="two_level", groups=4
    ... )
    >>> model.output_shape
    (None, 10)
    """
    blocks = _blocks_of(depth)
    width = positive_int("width", width)
    make_conv = convolution(conv, groups, coarse_channels)
    # Every other number of channels is a multiple of the stem's.
    check_groups(groups, [("stage1_block1_conv1", CIFAR_STEM)])
    check_arguments(
        weights, pooling, classes, dropout, classifier_activation, name
    )
    inputs = image_input(input_tensor, input_shape, size=32)
    args = convolution_args()
    x = strided(layers.Conv2D, inputs, CIFAR_STEM, 3, 1, "stem_conv", **args)
    stages = [(filters, stride, blocks) for filters, stride in CIFAR_STAGES]
    x = _stages(x, stages, width, make_conv, dropout)
    x = top(x, include_top, pooling, classes, classifier_activation)
    name = name or f"wide_resnet_{depth}_{width}"
    return network(inputs, input_tensor, x, weights, name)


def WideResNetImageNet(
    depth: int = 34,
    width: int = 2,
    conv: str = "standard",
    groups: int = 1,
    coarse_channels: int = 1,
    dropout: float = 0.0,
    include_top: bool = True,
    weights: str | os.PathLike | None = None,
    input_tensor=None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    name: str | None = None,
) -> keras.Model:
    """Build a WideResNet-`depth`-`width` for large images (Tables 1 and 3).

    It has a stem (64 filters of 7x7 with stride 2, batch normalisation, ReLU
    and max pooling), then four stages of 64, 128, 256 and 512 times `width`
    filters. Layers are named as those of `WideResNet`, with `stem_bn` and
    `stem_pool`.

    Args:
        depth: int, the number of layers: 10, 18 or 34, with (1, 1, 1, 1),
            (2, 2, 2, 2) or (3, 4, 6, 3) blocks in the stages.
        width: int, the factor on the stages' 64, 128, 256 and 512 filters.
        conv: kind of convolution, as for `WideResNet`.
        groups: int, the number N of groups, a divisor of 64.
        coarse_channels: int, coarse channels of each group (`"two_level"` and
            `"low_rank"`).
        dropout: float, the rate of dropout in each block.
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
        `(batch, classes)`, or, without the top, to features of 512 `width`
        channels.

    Raises:
        ValueError: as `WideResNet`.

    Example:

    >>> model = keras_tlgc.applications.WideResNetImageNet(
    ...     18, 1, conv="two_level", groups=8
    ... )
    >>> model.output_shape
    (None, 1000)
    """
    depth = one_of("depth", positive_int("depth", depth), IMAGENET_BLOCKS)
    blocks = IMAGENET_BLOCKS[depth]
    width = positive_int("width", width)
    make_conv = convolution(conv, groups, coarse_channels)
    check_groups(groups, [("stage1_block1_conv1", IMAGENET_STEM)])
    check_arguments(
        weights, pooling, classes, dropout, classifier_activation, name
    )
    inputs = image_input(input_tensor, input_shape, size=224)
    args = convolution_args()
    x = strided(layers.Conv2D, inputs, IMAGENET_STEM, 7, 2, "stem_conv", **args)
    x = batch_norm_relu(x, name="stem_bn")
    # After the ReLU no value is below zero, so zeros serve as -inf would.
    x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    x = layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    stages = [
        (filters, stride, number)
        for (filters, stride), number in zip(
            IMAGENET_STAGES, blocks, strict=True
        )
    ]
    x = _stages(x, stages, width, make_conv, dropout)
    x = top(x, include_top, pooling, classes, classifier_activation)
    name = name or f"wide_resnet_imagenet_{depth}_{width}"
    return network(inputs, input_tensor, x, weights, name)


def WideResNet28x10(**kwargs) -> keras.Model:
    """Build the paper's network for CIFAR (Tables 1 and 3).

    Args:
        **kwargs: the arguments of `WideResNet` except `depth` and `width`.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: as `WideResNet`.

    Example:

    >>> model = keras_tlgc.applications.WideResNet28x10(
    ...     conv="two_level", groups=16, classes=100
    ... )
    >>> model.name
    'wide_resnet_28_10'
    """
    return WideResNet(28, 10, **kwargs)


def WideResNet34x2(**kwargs) -> keras.Model:
    """Build the paper's network for ImageNet (Tables 1 and 3).

    Args:
        **kwargs: the arguments of `WideResNetImageNet` except `depth` and
            `width`.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: as `WideResNetImageNet`.

    Example:

    >>> model = keras_tlgc.applications.WideResNet34x2(
    ...     conv="two_level", groups=16
    ... )
    >>> model.name
    'wide_resnet_imagenet_34_2'
    """
    return WideResNetImageNet(34, 2, **kwargs)


def _stages(x, stages, width, make_conv, dropout):
    """Chain the blocks of all stages: (filters, stride, number of blocks)."""
    for stage, (filters, stride, blocks) in enumerate(stages, start=1):
        for block in range(1, blocks + 1):
            x = _residual_block(
                x,
                filters * width,
                stride if block == 1 else 1,
                make_conv,
                dropout,
                name=f"stage{stage}_block{block}",
            )
    return batch_norm_relu(x, name="head_bn")


def _residual_block(x, filters, stride, make_conv, dropout, name):
    """Return `shortcut(x) + conv(dropout(bn_relu(conv(bn_relu(x)))))`."""
    shortcut = x
    x = batch_norm_relu(x, name=f"{name}_bn1")
    if stride != 1 or shortcut.shape[channel_axis()] != filters:
        shortcut = make_conv(
            filters,
            1,
            strides=stride,
            name=f"{name}_shortcut",
            **convolution_args(),
        )(x)
    conv1 = f"{name}_conv1"
    x = strided(make_conv, x, filters, 3, stride, conv1, **convolution_args())
    x = batch_norm_relu(x, name=f"{name}_bn2")
    if dropout:
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    x = make_conv(filters, 3, name=f"{name}_conv2", **convolution_args())(x)
    return layers.Add(name=f"{name}_add")([shortcut, x])


def _blocks_of(depth):
    depth = positive_int("depth", depth)
    if depth < 10 or depth % 6 != 4:
        raise ValueError(
            "`depth` must be 6 b + 4 for b >= 1 blocks in each stage. "
            f"Received: depth={depth}. Try 10, 16, 22, 28 or 40."
        )
    return (depth - 4) // 6
