"""The kinds of convolution that a network can be built of."""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import keras

from keras_tlgc.layers import (
    BalancedGroupConv2D,
    GroupConv2D,
    LearnableGroupConv2D,
    LowRankConv2D,
    ShuffleGroupConv2D,
    TwoLevelGroupConv2D,
)
from keras_tlgc.validation import one_of, positive_int


class Kind(NamedTuple):
    """A kind of convolution: what makes its layers, and the options it takes.

    `make` takes the arguments of `keras.layers.Conv2D` and the options. `label`
    is its name in tables and plots, as in the paper.
    """

    make: Callable[..., keras.layers.Layer]
    options: tuple[str, ...]
    label: str

    def taken(self, **options: int) -> dict[str, int]:
        """Return those of the options that this kind takes."""
        return {name: options[name] for name in self.options}

    def label_of(self, coarse_channels: int) -> str:
        """Return the label of layers with so many coarse channels a group."""
        if coarse_channels == 1 or "coarse_channels" not in self.options:
            return self.label
        return f"{self.label}, r = {coarse_channels}"


def two_level(filters, kernel_size, kernel_initializer, **kwargs):
    """Return a two-level group convolution, initialised for a network.

    `kernel_initializer` is a `keras.initializers.Initializer` for G and R. A
    random one always gives the same values to the same shape, so R gets a
    clone.
    """
    return TwoLevelGroupConv2D(
        filters,
        kernel_size,
        kernel_initializer=kernel_initializer,
        restriction_initializer=kernel_initializer.clone(),
        coarse_initializer=coarse_initializer("two_level"),
        **kwargs,
    )


def balanced(filters, kernel_size, kernel_initializer, **kwargs):
    """Return a balanced group convolution, initialised for a network."""
    return BalancedGroupConv2D(
        filters,
        kernel_size,
        kernel_initializer=kernel_initializer,
        balance_initializer=kernel_initializer.clone(),
        **kwargs,
    )


def low_rank(filters, kernel_size, **kwargs):
    """Return a low-rank convolution, initialised for a network."""
    return LowRankConv2D(
        filters,
        kernel_size,
        coarse_initializer=coarse_initializer("low_rank"),
        **kwargs,
    )


def coarse_initializer(conv):
    """Return the initializer of C in a network of two levels or low rank.

    With two levels, C starts as He et al. (2015) propose for the backward pass
    (fan-out). C has few inputs, one from each group, so if it started as they
    propose for the forward pass, C R would outweigh G.

    In a low-rank convolution C R is all there is, and its outputs are to have
    the variance of a dense convolution that starts as He et al. propose, which
    is twice the mean square of its inputs. The coarse channels have this
    variance already, since R starts in the same way. No ReLU stands between R
    and C, so C has to keep the variance: its own is one over its inputs.
    """
    scale, mode = {"two_level": (2.0, "fan_out"), "low_rank": (1.0, "fan_in")}[
        conv
    ]
    return keras.initializers.VarianceScaling(
        scale, mode=mode, distribution="untruncated_normal"
    )


CONVOLUTIONS: dict[str, Kind] = {
    "standard": Kind(keras.layers.Conv2D, (), "SC"),
    "group": Kind(GroupConv2D, ("groups",), "GC"),
    "shuffle": Kind(ShuffleGroupConv2D, ("groups",), "Shuffle"),
    "learnable": Kind(LearnableGroupConv2D, ("groups",), "FLGC"),
    "two_level": Kind(two_level, ("groups", "coarse_channels"), "GC-2L"),
    "balanced": Kind(balanced, ("groups",), "BGC"),
    "low_rank": Kind(low_rank, ("groups", "coarse_channels"), "Low rank"),
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
        ValueError: if the kind is unknown, an option is not a positive integer,
            or an option that the kind does not take is not 1.
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
    return functools.partial(kind.make, **kind.taken(**options))


def pair(convs: Iterable[str], groups: Iterable[int]) -> list[tuple[str, int]]:
    """Pair every kind with every number of groups, or with 1 if it has none.

    Args:
        convs: strings, keys of `CONVOLUTIONS`.
        groups: integers.

    Returns:
        A list of pairs: kinds without groups first, then number by number.

    Raises:
        ValueError: if a kind is unknown or a number is not a positive integer.
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
