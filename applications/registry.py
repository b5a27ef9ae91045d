"""The networks by name, in Python and on the command line."""

import functools
import re
from collections.abc import Callable

import keras

from keras_tlgc.applications.mobilenet_v2 import MobileNetV2
from keras_tlgc.applications.plain import plain
from keras_tlgc.applications.wide_resnet import WideResNet, WideResNetImageNet

# The form of a name, and the function whose first arguments are its numbers.
NETWORKS: dict[str, Callable[..., keras.Model]] = {
    "wrn-DEPTH-WIDTH": WideResNet,
    "wrn-imagenet-DEPTH-WIDTH": WideResNetImageNet,
    "mobilenetv2-ALPHA": MobileNetV2,
    "plain-DEPTH-WIDTH": plain,
}
# The names of functions stand for the networks that they build by default.
DEFAULTS = {
    "WideResNet": "wrn-28-10",
    "WideResNet28x10": "wrn-28-10",
    "WideResNetImageNet": "wrn-imagenet-34-2",
    "WideResNet34x2": "wrn-imagenet-34-2",
    "MobileNetV2": "mobilenetv2-1.0",
}
NUMBERS = {"DEPTH": r"(\d+)", "WIDTH": r"(\d+)", "ALPHA": r"(\d+(?:\.\d+)?)"}


def network_builder(name: str) -> Callable[..., keras.Model]:
    """Return the function that builds the network with this name.

    Args:
        name: string, such as `"wrn-28-10"` for `WideResNet(28, 10)`,
            `"wrn-imagenet-34-2"` for `WideResNetImageNet(34, 2)`,
            `"mobilenetv2-1.0"` for `MobileNetV2(1.0)` or `"plain-4-64"` for
            four convolutions of 64 filters. `"WideResNet"`, `"MobileNetV2"`
            and the like name what these functions build by default.

    Returns:
        A function of `conv`, `groups`, `coarse_channels`, `classes` and
        either `input_shape` or `input_tensor` that returns a `keras.Model`.

    Raises:
        ValueError: if no network has a name of that form.

    Example:

    >>> build = keras_tlgc.applications.network_builder("wrn-16-4")
    >>> build(conv="two_level", groups=4).name
    'wide_resnet_16_4'
    """
    for form, build in NETWORKS.items():
        pattern = re.sub("[A-Z]+", lambda match: NUMBERS[match[0]], form)
        if match := re.fullmatch(pattern, DEFAULTS.get(str(name), str(name))):
            number = float if "ALPHA" in form else int
            return functools.partial(build, *map(number, match.groups()))
    raise ValueError(
        f"`model` must be of the form {' or '.join(NETWORKS)}. "
        f"Received: model={name!r}. Try wrn-10-2 or wrn-28-10 for small "
        "images, wrn-imagenet-34-2 or mobilenetv2-1.0 for large ones."
    )
