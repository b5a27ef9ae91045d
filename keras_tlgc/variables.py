"""What each variable of a layer is: the one table that all else is read from.

A new kind of layer adds a row for each of its variables that has a new name.
The variables of the layers here have names that no layer of Keras uses, so that
a layout map, which sees only names, finds them whatever the layer is called.
"""

import math
import re
from typing import NamedTuple

# What lies along an axis of a variable. `WINDOW` stands for all spatial axes of
# the convolution, and `GROUPS` is split over the devices of a mesh, each of
# which holds whole groups.
WINDOW, GROUPS, INPUTS = "window", "groups", "inputs"

# A layout map needs the rank of a variable with a window, so names tell it. The
# kernel of a `Dense` layer is one whose window has no axes.
SUFFIXES = {0: "_0d", 1: "_1d", 2: "", 3: "_3d"}


class Role(NamedTuple):
    """What a variable is.

    Attributes:
        axes: tuple of strings, what lies along each of its axes. It is empty
            for variables that no rule of this package splits.
        is_kernel: bool, whether each of its entries is multiplied once at each
            position of the outputs.
        is_coarse: bool, whether it belongs to a coarse level.
        is_bias: bool, whether it is added to the outputs.
        scales_outputs: bool, whether each output channel is linear in those
            entries that have its index on the last axis.
    """

    axes: tuple[str, ...] = ()
    is_kernel: bool = False
    is_coarse: bool = False
    is_bias: bool = False
    scales_outputs: bool = False

    def layout(self, rank: int, mesh_axis: str) -> tuple[str | None, ...]:
        """Return for each axis the mesh's axis that splits it, or `None`."""
        whole = [
            axis
            for name in self.axes
            for axis in [name] * (rank if name == WINDOW else 1)
        ]
        return tuple(mesh_axis if x == GROUPS else None for x in whole)


UNKNOWN = Role()

# The keys are regular expressions of names without suffix. The last row that
# matches counts.
ROLES: dict[str, Role] = {
    # Keras' own layers, and whatever a user's layer calls a kernel.
    r"\w*kernel\w*": Role(is_kernel=True, scales_outputs=True),
    "bias": Role(is_bias=True),
    "gamma|beta|moving_mean|moving_variance": Role((GROUPS,)),
    # G, R and C, and the bias of all layers here.
    "group_kernel": Role(
        (WINDOW, INPUTS, GROUPS), is_kernel=True, scales_outputs=True
    ),
    "restriction_kernel": Role(
        (WINDOW, INPUTS, GROUPS), is_kernel=True, is_coarse=True
    ),
    "coarse_kernel": Role(
        (INPUTS, GROUPS), is_kernel=True, is_coarse=True, scales_outputs=True
    ),
    # B of a balanced group convolution.
    "balance_kernel": Role(
        (WINDOW, INPUTS, GROUPS),
        is_kernel=True,
        is_coarse=True,
        scales_outputs=True,
    ),
    "group_bias": Role((GROUPS,), is_bias=True),
    # Layers whose groups differ in size stay whole.
    "masked_kernel": Role(is_kernel=True, scales_outputs=True),
    r"group_kernel\d+": Role(is_kernel=True),
    "(input|output)_selection": Role(),
    # Factors of LoRA are merged into the kernel that they adapt.
    r"lora_\w+": Role(),
}


def role_of(variable) -> Role:
    """Return the role of a variable or of a name, or `UNKNOWN`."""
    name = getattr(variable, "name", variable)
    name = re.sub(r"_[013]d$", "", name)
    for pattern, role in reversed(ROLES.items()):
        if re.fullmatch(pattern, name):
            return role
    return UNKNOWN


def with_rank(name: str, rank: int) -> str:
    """Return `name` with the suffix for a window of that rank."""
    return name + SUFFIXES[rank]


def layouts(mesh_axis: str) -> dict[str, tuple[str | None, ...]]:
    """Return how variables are split, by regular expressions of their names.

    LoRA's factors are split as their kernel is: the last axis of A holds a few
    columns for each group, and the last axis of B is that of the kernel.

    Args:
        mesh_axis: name of the axis of a mesh that groups are split over.
    """
    found = {}
    for name, role in ROLES.items():
        ranks = SUFFIXES if WINDOW in role.axes else {0: ""}
        for rank, suffix in ranks.items():
            axes = role.layout(rank, mesh_axis)
            if not any(axes):
                continue
            found[f"({name}){suffix}"] = axes
            if role.is_kernel:
                factor = f"lora_({name}){suffix}"
                found[f"{factor}_a"] = axes
                found[f"{factor}_b"] = (None, mesh_axis)
    return found


def kernel_size(layer, coarse: bool = True) -> int:
    """Return the number of entries of a layer's kernels.

    Args:
        layer: the layer.
        coarse: bool, whether to count those of a coarse level.
    """
    roles = [(v, role_of(v)) for v in layer.weights]
    return sum(
        size(v)
        for v, role in roles
        if role.is_kernel and (coarse or not role.is_coarse)
    )


def size(variable) -> int:
    """Return the number of entries of a variable."""
    return math.prod(variable.shape)
