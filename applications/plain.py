"""A network of one kind of convolution and nothing else."""

import keras

from keras_tlgc.applications.building import (
    batch_norm_relu,
    channel_axis,
    check_groups,
    convolution_args,
    image_input,
    network,
    top,
)
from keras_tlgc.applications.convolutions import convolution
from keras_tlgc.validation import positive_int


def plain(
    depth: int,
    width: int,
    conv: str = "standard",
    groups: int = 1,
    coarse_channels: int = 1,
    input_tensor=None,
    input_shape: tuple[int, int, int] | None = None,
    classes: int = 10,
) -> keras.Model:
    """Return `depth` convolutions of `width` filters, all of one kind.

    Unlike in the paper's networks, no standard convolution comes first. So
    groups exchange only what this kind of convolution exchanges.
    """
    inputs = x = image_input(input_tensor, input_shape, 32)
    make_conv = convolution(conv, groups, coarse_channels)
    positive_int("depth", depth)
    channels = inputs.shape[channel_axis()]
    check_groups(
        groups, [("input", channels), ("conv1", positive_int("width", width))]
    )
    for i in range(1, depth + 1):
        x = make_conv(width, 3, name=f"conv{i}", **convolution_args())(x)
        x = batch_norm_relu(x, f"norm{i}")
    x = top(x, True, None, classes, "softmax")
    return network(inputs, input_tensor, x, None, "plain")
