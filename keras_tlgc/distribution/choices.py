"""Which axis of a variable is split over the devices, and why."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from keras import layers

from keras_tlgc.layers.answers import (
    CONVOLUTIONS,
    DEPTHWISE,
    SEPARABLE,
    TRANSPOSED,
    Answers,
)
from keras_tlgc.text import aligned
from keras_tlgc.variables import layouts

# What lies along the axis that is split. `CHANNELS` are split where they are
# split in the inputs, and so are `INPUTS`, of which each device then computes
# a part of every output. `FILTERS` need all inputs on every device, and
# `GROUPS` only their own. `OUTPUTS` are the filters of a layer whose inputs are
# whole.
CHANNELS, FILTERS, GROUPS = "channels", "filters", "groups"
INPUTS, OUTPUTS = "inputs", "outputs"
REASONS = {
    CHANNELS: "the channels before it are split",
    FILTERS: "each device computes its own filters, from all inputs",
    GROUPS: "each device holds whole groups",
    INPUTS: "the channels before it are split; outputs are added up",
    OUTPUTS: "its inputs are whole: nothing moves",
}

NORMALISATIONS = tuple(
    getattr(layers, name)
    for name in dir(layers)
    if name.endswith("Normalization")
    and name not in ("Normalization", "SpectralNormalization")
)

# For the layers of Keras: the axis and what lies along it, by variable.
BY_CLASS: dict[tuple[type, ...], dict[str, tuple[int, str]]] = {
    CONVOLUTIONS: {"kernel": (-1, FILTERS), "bias": (-1, FILTERS)},
    TRANSPOSED: {"kernel": (-2, FILTERS), "bias": (-1, FILTERS)},
    DEPTHWISE: {"kernel": (-2, CHANNELS), "bias": (-1, CHANNELS)},
    SEPARABLE: {
        "depthwise_kernel": (-2, CHANNELS),
        "pointwise_kernel": (-1, FILTERS),
        "bias": (-1, FILTERS),
    },
    NORMALISATIONS: dict.fromkeys(
        ["gamma", "beta", "scale", "moving_mean", "moving_variance"],
        (-1, CHANNELS),
    ),
    (layers.PReLU,): {"alpha": (-1, CHANNELS)},
    (layers.Dense,): {"kernel": (0, INPUTS)},
}


class Choice(NamedTuple):
    """How a variable is split.

    Attributes:
        shape: tuple of integers, the variable's shape.
        axes: tuple, the axis of the mesh that splits each of its axes, or
            `None` for an axis that is not split.
        why: string, the reason.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    why: str

    @property
    def is_split(self) -> bool:
        """Whether each device holds only a part of the variable."""
        return any(self.axes)


class Choices(dict[str, Choice]):
    """How variables are split, by their paths. `print` shows a table."""

    @property
    def whole(self) -> dict[str, str]:
        """Why each variable that every device holds whole is not split."""
        return {path: c.why for path, c in self.items() if not c.is_split}

    def __str__(self):
        # What a layer treats alike, such as gamma and beta, is one line.
        alike: dict[tuple, list[str]] = {}
        for path, choice in self.items():
            layer, _, name = path.rpartition("/")
            alike.setdefault((layer, choice), []).append(name)
        lines = [("layer", "variables", "shape", "split over", "why")]
        lines += [
            (layer, ", ".join(names), str(c.shape), _place(c.axes), c.why)
            for (layer, c), names in alike.items()
        ]
        return aligned(lines)


def _place(axes: Iterable[str | None]) -> str:
    places = [f"{axis} (axis {i})" for i, axis in enumerate(axes) if axis]
    return ", ".join(places) or "whole"


def candidate(maker, name: str, shape) -> tuple[int | None, str]:
    """Return the axis along which a variable may be split, from its layer.

    Args:
        maker: the layer that the variable belongs to, or something else.
        name: string, the name of the variable.
        shape: tuple of integers, its shape.

    Returns:
        The axis and what lies along it, one of `CHANNELS`, `FILTERS`, `GROUPS`
        and `INPUTS`; or `None` and why there is no such axis.
    """
    if isinstance(maker, Answers):
        for pattern, axes in layouts("model").items():
            if re.fullmatch(pattern, name) and len(axes) == len(shape):
                return -1, GROUPS
        return None, "its groups are not of one size, or not fixed"
    if not isinstance(maker, layers.Layer):
        return None, "it belongs to no layer"
    for classes, axes_by_name in BY_CLASS.items():
        if isinstance(maker, classes) and name in axes_by_name:
            if getattr(maker, "groups", 1) > 1 and classes is CONVOLUTIONS:
                return None, "XLA cannot split a grouped convolution of Keras"
            axis, what = axes_by_name[name]
            if classes is NORMALISATIONS and len(shape) > 1:
                return None, "it normalises more than channels"
            return axis, what
    if isinstance(maker, layers.Dense) and name == "bias":
        return None, "it is added to the sums of all devices"
    return None, f"nothing is known about {name!r} of {type(maker).__name__}"


def chosen(shape, axis, what, devices: int, model_axis: str) -> Choice:
    """Return the choice to split a variable, or not if it is uneven.

    Args:
        shape: tuple of integers, the variable's shape.
        axis: int, the axis to split.
        what: string, what lies along it.
        devices: int, the number of devices along the model axis.
        model_axis: string, the name of that axis of the mesh.
    """
    if shape[axis] % devices:
        return whole(
            shape, f"{devices} devices do not divide {shape[axis]} {what}"
        )
    axis %= len(shape)
    axes: list[str | None] = [None] * len(shape)
    axes[axis] = model_axis
    return Choice(shape, tuple(axes), REASONS[what])


def whole(shape, why: str) -> Choice:
    """Return the choice to keep a variable whole on every device."""
    return Choice(shape, (None,) * len(shape), why)
