"""The networks that a run can train, by name."""

import functools
import re
from collections.abc import Callable

from keras_tlgc.applications import (
    MobileNetV2,
    WideResNet,
    WideResNetImageNet,
)

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
}


def network_builder(name: str) -> Callable:
    """Return what builds the network of a name.

    Args:
        name: string, as `"wrn-28-10"` for `WideResNet(28, 10)`,
            `"wrn-imagenet-34-2"` for `WideResNetImageNet(34, 2)`,
            `"mobilenetv2-1.0"` for `MobileNetV2(1.0)`.

    Returns:
        A function of `conv`, `groups`, `coarse_channels`, `input_shape` and
        `classes` that returns a `keras.Model`.

    Raises:
        ValueError: if there is no network of that form.
    """
    for pattern, builder in NETWORKS.values():
        if isinstance(name, str) and (match := re.fullmatch(pattern, name)):
            return builder(*match.groups())
    raise ValueError(
        f"`model` must be of the form {' or '.join(NETWORKS)}. "
        f"Received: model={name!r}. Try wrn-10-2 or wrn-28-10 for small "
        "images, wrn-imagenet-34-2 or mobilenetv2-1.0 for large ones."
    )
