"""The kinds of convolution that a network can be built of."""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import keras

from keras_tlgc.layers import (
    GroupConv2D,
    LearnableGroupConv2D,
    ShuffleGroupConv2D,
    TwoLevelGroupConv2D,
)
from keras_tlgc.validation import one_of, positive_int


class Kind(NamedTuple):
    """A kind of convolution: what makes its layers, and the options it takes.

    `make` takes the arguments of `keras.layers.Conv2D` and the options.
    `label` is the name in tables and plots, that of the paper.
    """

    make: Callable[..., keras.layers.Layer]
    options: tuple[str, ...]
    label: str


def two_level(filters, kernel_size, kernel_initializer, **kwargs):
    """Return a two-level group convolution, initialised for a network.

    `kernel_initializer` is a `keras.initializers.Initializer` for G and R: a
    random one gives one value to one shape, so R gets a clone. C starts as He
    et al. (2015) for the backward pass (fan-out): as for the forward pass, its
    few inputs, one from each group, would outweigh G at the start.
    """
    return TwoLevelGroupConv2D(
        filters,
        kernel_size,
        kernel_initializer=kernel_initializer,
        restriction_initializer=kernel_initializer.clone(),
        coarse_initializer=keras.initializers.VarianceScaling(
            2.0, mode="fan_out", distribution="untruncated_normal"
        ),
        **kwargs,
    )


CONVOLUTIONS: dict[str, Kind] = {
    "standard": Kind(keras.layers.Conv2D, (), "SC"),
    "group": Kind(GroupConv2D, ("groups",), "GC"),
    "shuffle": Kind(ShuffleGroupConv2D, ("groups",), "Shuffle"),
    "learnable": Kind(LearnableGroupConv2D, ("groups",), "FLGC"),
    "two_level": Kind(two_level, ("groups", "coarse_channels"), "GC-2L"),
}


def convolution(
    conv: str, groups: int = 1, coarse_channels: int = 1
) -> Callable[..., keras.layers.Layer]:
    """Return a function that makes 2D convolution layers of one kind.

    Args:
        conv: string, a key of `CONVOLUTIONS`.
        groups: integer N, the number of groups.
        coarse_channels: integer r, the coarse channels of each group.

    Returns:
        A function that takes the arguments of `keras.layers.Conv2D` and
        returns a layer.

    Raises:
        ValueError: if the kind is unknown, an option is no positive integer,
            or the kind does not take an option that is not 1.
    """
    kind = CONVOLUTIONS[one_of("conv", conv, CONVOLUTIONS)]
    options = {"groups": groups, "coarse_channels": coarse_channels}
    for name, value in options.items():
        if positive_int(name, value) != 1 and name not in kind.options:
            raise ValueError(
                f"`{name}` must be 1 for conv={conv!r}. "
                f"Received: {name}={value}. "
                "Leave it out, or choose another `conv`."
            )
    options = {name: options[name] for name in kind.options}
    return functools.partial(kind.make, **options)


def pair(convs: Iterable[str], groups: Iterable[int]) -> list[tuple[str, int]]:
    """Pair every kind with every number of groups, those without with 1.

    Args:
        convs: strings, keys of `CONVOLUTIONS`.
        groups: integers.

    Returns:
        A list of pairs: kinds without groups first, then number by number.

    Raises:
        ValueError: if a kind is unknown or a number no positive integer.
    """
    grouped: list[str] = []
    alone: list[str] = []
    for conv in convs:
        kind = CONVOLUTIONS[one_of("conv", conv, CONVOLUTIONS)]
        (grouped if "groups" in kind.options else alone).append(conv)
    pairs = [(conv, 1) for conv in alone]
    return pairs + [
        (conv, positive_int("groups", n)) for n in groups for conv in grouped
    ]
