"""Which convolutions can become group convolutions, and of how many groups."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import keras
from keras import layers

from keras_tlgc.layers import (
    GroupConv1D,
    GroupConv2D,
    GroupConv3D,
    TwoLevelGroupConv1D,
    TwoLevelGroupConv2D,
    TwoLevelGroupConv3D,
)
from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.validation import divisors, one_of, positive_int

STANDARD = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
OTHERS = (
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
    BaseGroupConv,
)
KINDS: dict[str, tuple] = {
    "group": (GroupConv1D, GroupConv2D, GroupConv3D),
    "two_level": (
        TwoLevelGroupConv1D,
        TwoLevelGroupConv2D,
        TwoLevelGroupConv3D,
    ),
}


def largest_divisor(limit: int) -> Callable[[int, int], int]:
    """Return a rule for `groups`: as many groups as divide, up to a limit.

    Args:
        limit: integer, the most groups that a layer gets.

    Returns:
        A function of input channels and filters, two integers, that returns
        the largest number up to `limit` that divides both.

    Raises:
        ValueError: if the limit is no positive integer.

    Example:

    >>> rule = keras_tlgc.conversion.largest_divisor(8)
    >>> rule(24, 144), rule(3, 32)
    (8, 1)
    """
    positive_int("limit", limit)
    return lambda channels, filters: max(
        n for n in divisors(math.gcd(channels, filters)) if n <= limit
    )


def is_convolution(layer) -> bool:
    """Return whether a report has a row for the layer."""
    return isinstance(layer, STANDARD + OTHERS)


class Rules(NamedTuple):
    """What to convert, and to what: the arguments of `convert`, checked."""

    groups: Callable[[int, int], int]
    conv: str
    coarse_channels: int
    where: Callable[[keras.layers.Layer, str], bool]

    @classmethod
    def make(cls, groups, conv, coarse_channels, where):
        """Check the arguments. Raises a `ValueError` for what is wrong."""
        one_of("conv", conv, KINDS)
        positive_int("coarse_channels", coarse_channels)
        if conv == "group" and coarse_channels != 1:
            raise ValueError(
                "`coarse_channels` must be 1 for conv='group'. Received: "
                f"coarse_channels={coarse_channels}. Leave it out, or choose "
                "conv='two_level'."
            )
        rule = groups
        if not callable(groups):
            if positive_int("groups", groups) == 1:
                raise ValueError(
                    "`groups` must be at least 2 to convert anything. "
                    "Received: groups=1. Pass a larger number."
                )

            def rule(channels, filters):
                return groups

        return cls(rule, conv, coarse_channels, _selector(where))

    def groups_of(self, layer, path: str) -> tuple[int, str]:
        """Return how many groups a layer gets, or 1 and why it is kept."""
        if isinstance(layer, BaseGroupConv):
            return 1, "it is a group convolution already"
        if type(layer) not in STANDARD:
            return 1, "it is not a standard convolution"
        if not layer.built:
            return 1, "it has no weights yet"
        if layer.groups != 1:
            return 1, f"it has {layer.groups} groups already"
        if layer.lora_enabled:
            return 1, "it has LoRA weights: merge them first"
        if not self.where(layer, path):
            return 1, "`where` does not select it"
        channels, filters = layer.kernel.shape[-2:]
        groups = positive_int("groups", self.groups(channels, filters))
        if groups == 1:
            return 1, f"1 group for {channels} channels, {filters} filters"
        if channels % groups or filters % groups:
            return 1, (
                f"{groups} groups do not divide {channels} channels, "
                f"{filters} filters"
            )
        size = math.prod(layer.kernel.shape)
        if self.kernel_size(layer, groups) >= size:
            return 1, f"with {groups} groups it would have no fewer parameters"
        return groups, ""

    def kernel_size(self, layer, groups: int) -> int:
        """Return the entries of the kernels that replace the layer's."""
        *window, channels, filters = layer.kernel.shape
        window, coarse = math.prod(window), self.coarse_channels
        size = window * channels * filters // groups
        if self.conv == "two_level":
            size += window * channels * coarse + groups * coarse * filters
        return size

    def replacement(self, layer, groups: int) -> keras.layers.Layer:
        """Return a new layer in the place of a standard convolution.

        What regularises its kernel does so for G, R and C.
        """
        config = layer.get_config()
        config["groups"] = groups
        if self.conv == "two_level":
            config |= {
                "coarse_channels": self.coarse_channels,
                "restriction_initializer": config["kernel_initializer"],
                "coarse_initializer": keras.initializers.VarianceScaling(
                    2.0, mode="fan_out", distribution="untruncated_normal"
                ),
                "restriction_regularizer": config["kernel_regularizer"],
                "coarse_regularizer": config["kernel_regularizer"],
            }
        return KINDS[self.conv][layer.rank - 1].from_config(config)


def _selector(where):
    if where is None:
        return lambda layer, path: True
    if callable(where):
        return lambda layer, path: where(layer)
    try:
        pattern = re.compile(where)
    except (TypeError, re.error) as error:
        raise ValueError(
            "`where` must be a regular expression or a function of a layer. "
            f"Received: where={where!r} ({error}). Mend it."
        ) from error
    return lambda layer, path: pattern.search(path) is not None
