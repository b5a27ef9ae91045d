"""Wide residual networks of any kind of convolution.

The network of Zagoruyko and Komodakis, "Wide Residual Networks" (2016), in
the CIFAR form of Lee, Park and Lee, "Two-level Group Convolution" (section
4.1, Tables 1 to 3): every convolution but the stem, 1x1 shortcuts included, is
of the chosen kind. Where the latter paper is silent, this follows the former
authors' code: pre-activation blocks; the shortcut of a widening block reads
the pre-activated input and has no batch normalisation; dropout, if any,
stands before a block's second convolution; no convolution has a bias; strided
3x3 convolutions pad by one on every side.
"""

import os

import keras
from keras import layers

from keras_tlgc.applications.convolutions import convolution
from keras_tlgc.validation import one_of, positive_int

STEM_FILTERS = 16
STAGES = [(16, 1), (32, 2), (64, 2)]  # Filters (times `width`) and stride.


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
    """Build a WideResNet-`depth`-`width` for small images.

    Batch normalisation has momentum 0.9 and epsilon 1e-5, convolutions are
    initialised as He et al. (2015): the values of the networks of the paper.
    Layers are named `stem_conv`, `stage{s}_block{b}_{bn1,conv1,bn2,conv2,
    shortcut}`, `head_bn` and `predictions`.

    Args:
        depth: int, the number of layers, 6 b + 4 for b blocks in a stage.
        width: int, the factor k on the stages' 16, 32 and 64 filters.
        conv: kind of convolution: `"standard"`, `"group"` or `"two_level"`.
        groups: int, the number N of groups, a divisor of 16.
        coarse_channels: int, coarse channels of each group (`"two_level"`).
        dropout: float, the rate of dropout in each block.
        include_top: bool, whether to end with pooling and classifier.
        weights: path of a weights file to load, or `None`.
        input_tensor: optional Keras tensor to use as the model's input.
        input_shape: shape of one image, as `(32, 32, 3)`, the default, or
            `(3, 32, 32)` with `"channels_first"` as Keras' image data format.
        pooling: `"avg"` or `"max"` over space, or `None`, without the top.
        classes: int, the number of classes.
        classifier_activation: activation of the top. `None` gives logits.
        name: optional name of the model.

    Returns:
        A `keras.Model` from images to class scores of shape
        `(batch, classes)`, or, without the top, to features of 64 `width`
        channels.

    Raises:
        ValueError: if an argument is out of its range or `groups` does not
            divide the channels of every convolution.

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
    _check_groups(groups)
    one_of("pooling", pooling or "none", ["none", "avg", "max"])
    inputs = _input(input_tensor, input_shape)

    x = layers.Conv2D(STEM_FILTERS, 3, name="stem_conv", **_conv_args())(inputs)
    for stage, (filters, stride) in enumerate(STAGES, start=1):
        for block in range(1, blocks + 1):
            x = _residual_block(
                x,
                filters * width,
                stride if block == 1 else 1,
                make_conv,
                dropout,
                name=f"stage{stage}_block{block}",
            )
    x = _batch_norm_relu(x, name="head_bn")

    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(
            positive_int("classes", classes),
            activation=classifier_activation,
            kernel_initializer=_torch_linear(),
            name="predictions",
        )(x)
    elif pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)

    if input_tensor is not None:
        inputs = keras.utils.get_source_inputs(input_tensor)
    model = keras.Model(inputs, x, name=name or f"wide_resnet_{depth}_{width}")
    if weights is not None:
        model.load_weights(_existing(weights))
    return model


def _residual_block(x, filters, stride, make_conv, dropout, name):
    """Return `shortcut(x) + conv(dropout(bn_relu(conv(bn_relu(x)))))`."""
    channel_axis = _channel_axis()
    shortcut = x
    x = _batch_norm_relu(x, name=f"{name}_bn1")
    if stride != 1 or shortcut.shape[channel_axis] != filters:
        shortcut = make_conv(
            filters, 1, strides=stride, name=f"{name}_shortcut", **_conv_args()
        )(x)
    args = _conv_args()
    if stride != 1:
        x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
        args["padding"] = "valid"
    x = make_conv(filters, 3, strides=stride, name=f"{name}_conv1", **args)(x)
    x = _batch_norm_relu(x, name=f"{name}_bn2")
    if dropout:
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    x = make_conv(filters, 3, name=f"{name}_conv2", **_conv_args())(x)
    return layers.Add(name=f"{name}_add")([shortcut, x])


def _batch_norm_relu(x, name):
    x = layers.BatchNormalization(
        axis=_channel_axis(), momentum=0.9, epsilon=1e-5, name=name
    )(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _conv_args():
    he_normal = keras.initializers.VarianceScaling(
        2.0, mode="fan_in", distribution="untruncated_normal"
    )
    return {
        "padding": "same",
        "use_bias": False,
        "kernel_initializer": he_normal,
    }


def _torch_linear():
    # The default of the authors' framework: uniform within 1 / sqrt(fan_in).
    return keras.initializers.VarianceScaling(
        1 / 3, mode="fan_in", distribution="uniform"
    )


def _channel_axis():
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def _blocks_of(depth):
    depth = positive_int("depth", depth)
    if depth < 10 or depth % 6 != 4:
        raise ValueError(
            "`depth` must be 6 b + 4 for b >= 1 blocks in each stage. "
            f"Received: depth={depth}. Try 10, 16, 22, 28 or 40."
        )
    return (depth - 4) // 6


def _check_groups(groups):
    # Every other channel count of the network is a multiple of the stem's.
    if STEM_FILTERS % groups:
        allowed = [n for n in range(1, 17) if STEM_FILTERS % n == 0]
        raise ValueError(
            "`groups` must divide the channels of every convolution. "
            f"Received: groups={groups}, but 'stage1_block1_conv1' has "
            f"{STEM_FILTERS} input channels. Allowed groups: {allowed}."
        )


def _input(input_tensor, input_shape):
    if input_tensor is not None:
        return input_tensor
    if input_shape is None:
        input_shape = (32, 32, 3) if _channel_axis() == -1 else (3, 32, 32)
    if len(input_shape) != 3:
        raise ValueError(
            "`input_shape` must have 3 entries, those of one image. "
            f"Received: input_shape={tuple(input_shape)}. "
            "Leave the batch out, as in (32, 32, 3)."
        )
    return keras.Input(input_shape)


def _existing(weights):
    if not os.path.exists(weights):
        raise ValueError(
            "`weights` must be None or the path of a weights file. "
            f"Received: weights={os.fspath(weights)!r}, which does not exist. "
            "Check the path: no pretrained weights are shipped."
        )
    return weights
