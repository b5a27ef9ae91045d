"""Which layers can become layers in groups, with how many groups."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras

from keras_tlgc import layers
from keras_tlgc._keras import children_of, functional_of
from keras_tlgc.applications.convolutions import coarse_initializer
from keras_tlgc.graphs import graph_nodes, is_graph
from keras_tlgc.layers.answers import (
    CONVOLUTIONS,
    SEPARABLE,
    TRANSPOSED,
    Answers,
    is_convolution,
)
from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.rewrite.constraints import (
    coarse_constraint,
    coarse_regularizer,
    why_not,
)
from keras_tlgc.rewrite.copying import other_state
from keras_tlgc.types import Tensor
from keras_tlgc.validation import divisors, one_of, positive_int


class Kind(NamedTuple):
    """A kind of layer that can replace a standard convolution or a `Dense`.

    Attributes:
        prefix: string, what precedes `Conv2D` or `Dense` in its layers' names.
        kernels: string, which of the kernels G, R, C and B it has.
        form: string, what `project_kernel` calls it.
    """

    prefix: str
    kernels: str
    form: str


KINDS = {
    "group": Kind("Group", "G", "two_level"),
    "two_level": Kind("TwoLevelGroup", "GRC", "two_level"),
    "low_rank": Kind("LowRank", "RC", "low_rank"),
    "balanced": Kind("BalancedGroup", "GB", "balanced"),
}


def largest_divisor(
    limit: int, multiple_of: int = 1
) -> Callable[[int, int], int]:
    """Return a rule for `groups`: the most groups that divide, up to a limit.

    Args:
        limit: integer, the most groups that a layer gets.
        multiple_of: integer that divides the number of groups: the devices
            along the model axis of a mesh, each of which holds whole groups.

    Returns:
        A function of two integers, the input channels and the filters. It
        returns the largest multiple of `multiple_of` that divides both and is
        at most `limit`; if there is none it returns 1, which keeps the layer.

    Raises:
        ValueError: if a number is not a positive integer, or `limit` is less
            than `multiple_of`.

    Example:

    >>> rule = keras_tlgc.rewrite.largest_divisor(8)
    >>> rule(24, 144), rule(18, 36), rule(3, 32)
    (8, 6, 1)
    >>> rule = keras_tlgc.rewrite.largest_divisor(8, multiple_of=4)
    >>> rule(24, 144), rule(18, 36), rule(3, 32)
    (8, 1, 1)
    """
    positive_int("limit", limit)
    if limit < positive_int("multiple_of", multiple_of):
        raise ValueError(
            "`limit` must be at least `multiple_of`, or no number of groups "
            f"is left. Received: limit={limit}, multiple_of={multiple_of}. "
            "Use a higher limit."
        )

    def rule(channels: int, filters: int) -> int:
        numbers = divisors(math.gcd(channels, filters))
        allowed = [n for n in numbers if n <= limit and n % multiple_of == 0]
        return max(allowed, default=1)

    return rule


class Choice(NamedTuple):
    """What one layer is to become.

    Attributes:
        conv: string, a key of `KINDS`.
        groups: integer N.
        coarse_channels: integer r, the coarse channels of each group.
    """

    conv: str
    groups: int
    coarse_channels: int

    @property
    def kind(self) -> Kind:
        """The row of `KINDS` for the new layer."""
        return KINDS[self.conv]

    def why_not(self, layer: keras.layers.Layer) -> str:
        """Return why a convolution or `Dense` cannot become this, or ""."""
        channels, filters = layer.kernel.shape[-2:]
        groups = self.groups
        if not hasattr(layers, self.class_name(layer)):
            return f"there is no {self.class_name(layer)}"
        divides_filters = "G" not in self.kind.kernels or not filters % groups
        if channels % groups or not divides_filters:
            return (
                f"{groups} groups do not divide {channels} channels, "
                f"{filters} filters"
            )
        if self.kernel_size(layer) >= math.prod(layer.kernel.shape):
            many = "group" if groups == 1 else "groups"
            return f"with {groups} {many} it would have no fewer parameters"
        return why_not(layer, self.kernel_shapes(layer))

    def kernel_size(self, layer: keras.layers.Layer) -> int:
        """Return how many entries the kernels have that replace the layer's."""
        return sum(map(math.prod, self.kernel_shapes(layer)))

    def kernel_shapes(self, layer: keras.layers.Layer) -> list[tuple[int, ...]]:
        """Return the shapes of the new kernels, C's with its 1x1 window."""
        *window, channels, filters = layer.kernel.shape
        coarse = self.groups * self.coarse_channels
        shapes = {
            "G": (*window, channels // self.groups, filters),
            "R": (*window, channels // self.groups, coarse),
            "C": (*[1] * len(window), coarse, filters),
            "B": (*window, channels // self.groups, filters),
        }
        return [shapes[kernel] for kernel in self.kind.kernels]

    def can_initialize(
        self,
        layer: keras.layers.Layer,
        initializer: keras.initializers.Initializer,
    ) -> bool:
        """Return whether an initializer can make the kernels but C.

        C has an initializer of its own.
        """
        shapes = self.kernel_shapes(layer)
        if "C" in self.kind.kernels:
            shapes.pop()
        return all(
            _Initialized(initializer, shape, layer.kernel.dtype).succeeds()
            for shape in shapes
        )

    def replacement(
        self, layer: keras.layers.Layer, config: dict[str, Any]
    ) -> BaseGroupConv:
        """Return a new layer that replaces a standard convolution or a `Dense`.

        The regularizer and the constraint of its kernel apply to all of its
        kernels.
        """
        config = dict(config)
        config.pop("quantization_config", None)  # `Dense` has one, unused here.
        config["groups"] = self.groups
        config["kernel_constraint"] = layer.kernel_constraint
        if "C" in self.kind.kernels:
            config |= {
                "coarse_channels": self.coarse_channels,
                "coarse_initializer": coarse_initializer(self.conv),
                "coarse_regularizer": coarse_regularizer(layer),
                "coarse_constraint": coarse_constraint(layer),
            }
        if self.kind.kernels == "GRC":
            config |= {
                "restriction_initializer": config["kernel_initializer"],
                "restriction_regularizer": config["kernel_regularizer"],
                "restriction_constraint": layer.kernel_constraint,
            }
        if "B" in self.kind.kernels:
            config |= {
                "balance_initializer": config["kernel_initializer"],
                "balance_regularizer": config["kernel_regularizer"],
                "balance_constraint": layer.kernel_constraint,
            }
        return getattr(layers, self.class_name(layer)).from_config(config)

    def class_name(self, layer: keras.layers.Layer) -> str:
        """Return the name of the class that replaces a layer."""
        rank = len(layer.kernel.shape) - 2
        return self.kind.prefix + (f"Conv{rank}D" if rank else "Dense")


class _Initialized(keras.Operation):
    """The first values of a kernel.

    Args:
        initializer: function of a shape, and of a dtype as a keyword.
        shape: tuple of integers.
        dtype: string.
    """

    def __init__(
        self,
        initializer: keras.initializers.Initializer,
        shape: tuple[int, ...],
        dtype: str,
    ) -> None:
        super().__init__()
        self.initializer, self.shape, self.dtype = initializer, shape, dtype

    def call(self) -> Tensor:
        return self.initializer(self.shape, dtype=self.dtype)

    def succeeds(self) -> bool:
        """Return whether the values can be made, and have the shape."""
        # JAX compiles for a second how the numbers of each shape are drawn. So
        # they are drawn only if a user's function cannot be traced.
        for make in (self.compute_output_spec, self.call):
            with contextlib.suppress(Exception):  # It may raise anything.
                return tuple(make().shape) == self.shape
        return False


class Rules(NamedTuple):
    """What to convert, and to what: the arguments of `convert`, checked.

    Attributes:
        choice: function of a standard convolution or `Dense` that returns the
            `Choice` for it, or a string that says why it is kept.
        where: function of a layer and its path, whether it is selected.
        dense: bool, whether `Dense` layers are converted too.
        heads: set of the `id` of each layer that stays since it makes the
            model's outputs.
    """

    choice: Callable[[keras.layers.Layer], Choice | str]
    where: Callable[[keras.layers.Layer, str], bool]
    dense: bool = False
    heads: frozenset[int] = frozenset()

    @classmethod
    def make(
        cls,
        groups: int | Callable[[int, int], int] | None,
        conv: str,
        coarse_channels: int,
        where: str | Callable[[keras.layers.Layer], bool] | None,
    ) -> "Rules":
        """Check the arguments. Raises a `ValueError` for what is wrong."""
        one_of("conv", conv, KINDS)
        positive_int("coarse_channels", coarse_channels)
        if "C" not in KINDS[conv].kernels and coarse_channels != 1:
            raise ValueError(
                f"`coarse_channels` must be 1 for conv={conv!r}. Received: "
                f"coarse_channels={coarse_channels}. Leave it out, or choose "
                "conv='two_level'."
            )
        selected = selector(where)
        if callable(groups):

            def choice(layer: keras.layers.Layer) -> Choice | str:
                channels, filters = layer.kernel.shape[-2:]
                count = positive_int("groups", groups(channels, filters))
                if count == 1:
                    return f"1 group for {channels} channels, {filters} filters"
                return Choice(conv, count, coarse_channels)

            return cls(choice, selected)
        count = positive_int("groups", groups)
        if count == 1 and conv != "low_rank":
            raise ValueError(
                "`groups` must be at least 2 to convert anything. "
                "Received: groups=1. Pass a larger number, or choose "
                "conv='low_rank', whose layers may have one group."
            )
        same = Choice(conv, count, coarse_channels)
        return cls(lambda layer: same, selected)

    def choose(self, layer: keras.layers.Layer, path: str) -> Choice | str:
        """Return what a layer becomes, or why it is kept."""
        choice = self.kept(layer, path) or self.choice(layer)
        if isinstance(choice, str):
            return choice
        return choice.why_not(layer) or choice

    def kept(self, layer: keras.layers.Layer, path: str) -> str:
        """Return why a layer is kept, whatever its choice would be, or ""."""
        if isinstance(layer, Answers):
            return "it is a group convolution already"
        if isinstance(layer, SEPARABLE):
            return "it is separable: split it to convert its pointwise half"
        if isinstance(layer, TRANSPOSED):
            return "it is transposed, and no layer in groups is"
        if type(layer) not in (*CONVOLUTIONS, keras.layers.Dense):
            is_dense = isinstance(layer, keras.layers.Dense)
            kind = "plain Dense layer" if is_dense else "standard convolution"
            return f"it is not a {kind}"
        if not layer.built:
            return "it has no weights yet"
        if id(layer) in self.heads:
            return "it makes the model's outputs: select it by `where`"
        if getattr(layer, "groups", 1) != 1:
            return f"it has {layer.groups} groups already"
        if layer.lora_enabled:
            return "it has LoRA weights: merge them first"
        if more := other_state(layer):
            names = ", ".join(variable.path for variable in more)
            return f"it holds more than kernel, bias and activation: {names}"
        return "" if self.where(layer, path) else "`where` does not select it"

    def concern(self, layer: keras.layers.Layer) -> bool:
        """Return whether a layer gets a row: a convolution or a `Dense`."""
        is_dense = isinstance(layer, keras.layers.Dense)
        return (self.dense and is_dense) or is_convolution(layer)

    def within(
        self, layer: keras.layers.Layer, path: str = ""
    ) -> list[tuple[keras.layers.Layer, str]]:
        """List what these rules concern in a layer, with paths, each once."""
        parts = _parts(layer, path, {id(layer)})
        return [(part, name) for part, name in parts if self.concern(part)]


def selector(
    where: str | Callable[[keras.layers.Layer], bool] | None,
) -> Callable[[keras.layers.Layer, str], bool]:
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


def heads_of(model: keras.Model) -> frozenset[int]:
    """Return the `id` of each layer with weights that makes a model's outputs.

    Between it and an output, each layer has no weights and one input, such as a
    softmax. A sum has two: what is added last to a residual stream is no head.
    """
    made_by = {
        id(tensor): node
        for node in graph_nodes(model)
        for tensor in node.output_tensors
    }
    found: set[int] = set()
    for tensor in functional_of(model).outputs:
        node = made_by[id(tensor)]
        while len(node.input_tensors) == 1:
            layer = node.operation
            if is_graph(layer):
                found |= heads_of(layer)
            if getattr(layer, "weights", []):
                found.add(id(getattr(layer, "layer", layer)))  # Of a wrapper.
                break
            node = made_by[id(node.input_tensors[0])]
    return frozenset(found)


def _parts(
    layer: keras.layers.Layer, path: str, seen: set[int]
) -> Iterator[tuple[keras.layers.Layer, str]]:
    for part in children_of(layer):
        if id(part) not in seen:
            seen.add(id(part))
            name = f"{path}/{part.name}" if path else part.name
            yield part, name
            yield from _parts(part, name, seen)
