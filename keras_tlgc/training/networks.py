"""The networks that a run can train, by name."""

import functools
import re
from collections.abc import Callable

import keras

from keras_tlgc.applications import (
    MobileNetV2,
    WideResNet,
    WideResNetImageNet,
)
from keras_tlgc.applications.building import (
    batch_norm_relu,
    channel_axis,
    check_groups,
    convolution_args,
    image_input,
    top,
)
from keras_tlgc.applications.convolutions import convolution
from keras_tlgc.validation import at_most, positive_int


def plain(
    depth: int,
    width: int,
    conv: str,
    groups: int,
    coarse_channels: int,
    input_shape: tuple[int, int, int],
    classes: int,
) -> keras.Model:
    """Return `depth` convolutions of `width` filters, all of one kind.

    Unlike in the paper's networks no standard convolution comes first, so what
    crosses between groups crosses in the kind of convolution alone.
    """
    inputs = x = image_input(None, input_shape, 0)
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
    return keras.Model(inputs, x, name="plain")


# Form of the name, pattern, and what builds the network of its numbers.
NETWORKS: dict[str, tuple[str, Callable]] = {
    "wrn-DEPTH-WIDTH": (
        r"wrn-(\d+)-(\d+)",
        lambda depth, width: functools.partial(
            WideResNet, int(depth), int(width)
        ),
    ),
    "wrn-imagenet-DEPTH-WIDTH": (
        r"wrn-imagenet-(\d+)-(\d+)",
        lambda depth, width: functools.partial(
            WideResNetImageNet, int(depth), int(width)
        ),
    ),
    "mobilenetv2-ALPHA": (
        r"mobilenetv2-(\d+(?:\.\d+)?)",
        lambda alpha: functools.partial(MobileNetV2, float(alpha)),
    ),
    "plain-DEPTH-WIDTH": (
        r"plain-(\d+)-(\d+)",
        lambda depth, width: functools.partial(plain, int(depth), int(width)),
    ),
}


def network_builder(name: str) -> Callable:
    """Return what builds the network of a name.

    Args:
        name: string, as `"wrn-28-10"` for `WideResNet(28, 10)`,
            `"wrn-imagenet-34-2"` for `WideResNetImageNet(34, 2)`,
            `"mobilenetv2-1.0"` for `MobileNetV2(1.0)`, `"plain-4-64"` for
            `plain(4, 64)`.

    Returns:
        A function of `conv`, `groups`, `coarse_channels`, `input_shape` and
        `classes` that returns a `keras.Model`.

    Raises:
        ValueError: if there is no network of that form.
    """
    for pattern, builder in NETWORKS.values():
        if isinstance(name, str) and (match := re.fullmatch(pattern, name)):
            for number in match.groups():
                # Not int(): it refuses thousands of digits, in its own words.
                at_most("model", float(number))
            return builder(*match.groups())
    raise ValueError(
        f"`model` must be of the form {' or '.join(NETWORKS)}. "
        f"Received: model={name!r}. Try wrn-10-2 or wrn-28-10 for small "
        "images, wrn-imagenet-34-2 or mobilenetv2-1.0 for large ones."
    )
