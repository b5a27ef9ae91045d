"""What convolutions cost in the unit of a budget, as they are or replaced."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np

from keras_tlgc.layers.answers import Answers, about
from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.precision import bytes_of
from keras_tlgc.rewrite.converter import Converter
from keras_tlgc.rewrite.copying import config_of, copy_layer
from keras_tlgc.rewrite.deploy import deployed
from keras_tlgc.rewrite.forms import in_keras
from keras_tlgc.rewrite.progress import Track
from keras_tlgc.rewrite.rows import changed
from keras_tlgc.rewrite.rules import Choice
from keras_tlgc.timing import times_in_turns
from keras_tlgc.types import Node
from keras_tlgc.validation import one_of, positive_ints
from keras_tlgc.valueless import without_values

# Attributes of `Row`; with `new_` before them they are what it costs then.
OF_ROWS = ("multiply_adds", "params")
COSTS = (*OF_ROWS, "bytes", "time", "exchange")

GROUPS = (1, 2, 4, 8, 16)
ALIGNED = 8  # Filters a group, of which runtimes like multiples,
FEWEST = 4  # unless fewer ranks than these are such.
TRIED = 16  # Ranks for each form and number of groups, at most,
TIMED = 5  # or fewer, if each is timed.
GAIN = 0.05  # The share of a layer's time that a form has to save, or is noise.

Shape: TypeAlias = tuple[Any, ...]  # With the axis of the batch, of size 1.
# Returns a function that runs a model once, on one input.
Runtime: TypeAlias = Callable[[keras.Model], Callable[[], object]]


class Unit(NamedTuple):
    """What a budget is a share of: arguments of `convert`, checked.

    Attributes:
        of: string, one of `COSTS`.
        devices: integer, the devices of the mesh's model axis, which divide the
            groups.
        runtime: function that returns what is timed.
    """

    of: str = COSTS[0]
    devices: int = 1
    runtime: Runtime = in_keras

    @classmethod
    def make(cls, of: str | None, mesh: Any, runtime: Any) -> "Unit":
        """Check the arguments. Raises a `ValueError` for what is wrong."""
        of = one_of("of", COSTS[0] if of is None else of, COSTS)
        if of == "exchange" and mesh is None:
            raise ValueError(
                "`of='exchange'` needs a `mesh`, over which groups exchange "
                "coarse channels. Received: mesh=None. Pass its sizes, such as "
                "mesh=(1, 4)."
            )
        if runtime is not None and of != "time":
            raise ValueError(
                "`runtime` is what of='time' measures in. Received: "
                f"of={of!r}. Leave out `runtime`, or pass of='time'."
            )
        if runtime is not None and not callable(runtime):
            raise ValueError(
                "`runtime` must be a function of a Keras model that returns a "
                f"function without arguments. Received: runtime={runtime!r}. "
                "Pass `keras_tlgc.lab.exported.in_onnxruntime`, or your own."
            )
        return cls(of, _devices(mesh), runtime or in_keras)

    def candidates(self, layer: keras.layers.Layer) -> list[Choice]:
        """Return all that a standard convolution can become."""
        numbers = [self.devices * n for n in GROUPS]
        most = max(GROUPS[-1], self.devices)
        tried = [
            Choice(conv, groups, rank)
            for conv in ("low_rank", "two_level", "group")
            for groups in numbers
            if groups <= most and (conv == "low_rank" or groups > 1)
            for rank in self.ranks(layer, conv, groups)
        ]
        return [choice for choice in tried if not choice.why_not(layer)]

    def ranks(
        self, layer: keras.layers.Layer, conv: str, groups: int
    ) -> list[int]:
        """Return numbers of coarse channels that make a layer smaller."""
        if conv == "group":
            return [1]
        one, two = (Choice(conv, groups, r).kernel_size(layer) for r in (1, 2))
        most = (math.prod(layer.kernel.shape) - 1 - one) // (two - one) + 1
        step = ALIGNED
        while step > 1 and most // step < FEWEST:
            step //= 2
        if most < step:
            return []
        count = TIMED if self.of == "time" else TRIED
        steps = np.geomspace(1, most // step, count)
        return sorted({step * round(x) for x in steps})

    def first_choice(self, layer: keras.layers.Layer) -> Choice | str:
        """Return something that a layer can become, or why nothing can be."""
        found = self.candidates(layer)
        if found:
            return found[0]
        return Choice("low_rank", self.devices, 1).why_not(layer)


def _devices(mesh: Any) -> int:
    """Return the devices along the model axis, the last one of a mesh."""
    if mesh is None:
        return 1
    sizes = getattr(mesh, "shape", mesh)
    return positive_ints("mesh", sizes, 2)[-1]


class Prices(NamedTuple):
    """What convolutions cost.

    Attributes:
        total: float, what all of them cost in the original.
        fixed: float, what those of the new model cost that nothing can replace.
        layers: dict from the `id` of each other layer to what it costs, by what
            it becomes: a `Choice`, or `None` if it is kept.
    """

    total: float
    fixed: float
    layers: dict[int, dict[Choice | None, float]]


def prices(survey: Converter, unit: Unit, track: Track) -> Prices:
    """Return what convolutions cost.

    Args:
        survey: a converter that has replaced whatever can be.
        unit: what is counted.
        track: see `convert`.

    Raises:
        ValueError: if the cost of a layer is not known.
    """
    if unit.of in OF_ROWS:
        return _of_rows(survey, unit)
    replaced = {id(layer) for _, layer in survey.replaced}
    found: dict[int, dict[Choice | None, float]] = {}
    fixed, known = 0.0, _Known(unit)
    for index, layer, nodes in track(survey.called):
        choices = []
        if id(layer) in replaced:
            choices = unit.candidates(layer)
        cost = known.cost(layer, nodes, choices, survey.rows[index].name)
        if choices:
            found[id(layer)] = cost
        else:
            fixed += cost[None]
    total = fixed + sum(cost[None] for cost in found.values())
    return Prices(total, fixed, found)


def _of_rows(survey: Converter, unit: Unit) -> Prices:
    """Return costs that the rows of a report tell."""
    of, replaced = unit.of, {i for i, _ in survey.replaced}
    fixed = [r for i, r in enumerate(survey.rows) if i not in replaced]
    found: dict[int, dict[Choice | None, float]] = {}
    for index, layer in survey.replaced:
        row = survey.rows[index]
        if getattr(row, of) is None:
            raise _unknown_size(of, row.name)
        cost = found[id(layer)] = {None: getattr(row, of)}
        for choice in unit.candidates(layer):
            cost[choice] = getattr(changed(row, layer, choice), f"new_{of}")
    return Prices(
        sum(getattr(row, of) or 0 for row in survey.rows),
        sum(getattr(row, f"new_{of}") or 0 for row in fixed),
        found,
    )


def _unknown_size(of: str, name: str) -> ValueError:
    return ValueError(
        f"A budget of {of} needs a model whose inputs have a known size. "
        f"Received: the layer '{name}' in a model of unknown sizes. Pass "
        "of='params', or build the model for one size."
    )


class _Known:
    """Costs of layers, each found once for all layers that are alike."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.found: dict[str, list[float]] = {}

    def cost(
        self,
        layer: keras.layers.Layer,
        nodes: list[Node],
        choices: list[Choice],
        name: str,
    ) -> dict[Choice | None, float]:
        """Return what a layer costs in all its calls, by what it becomes."""
        of = self.unit.of
        calls = [
            [
                (1, *some[0].shape[1:])
                for some in (n.input_tensors, n.output_tensors)
            ]
            for n in nodes
        ]
        if of == "bytes":  # They are kept once, whatever calls there are.
            shape = layer.get_build_config()["input_shape"]
            calls = [[(1, *shape[1:]), ()]]
        elif not calls or any(None in (*a, *b) for a, b in calls):
            raise _unknown_size(of, name)
        each = [self.once(layer, a, b, choices) for a, b in calls]
        costs = [float(sum(some)) for some in zip(*each, strict=True)]
        found = dict(zip([None, *choices], costs, strict=True))
        if of != "time":
            return found
        fastest = (1 - GAIN) * found[None]
        return {
            choice: cost
            for choice, cost in found.items()
            if choice is None or cost < fastest
        }

    def once(
        self,
        layer: keras.layers.Layer,
        shape: Shape,
        outputs: Shape,
        choices: list[Choice],
    ) -> list[float]:
        """Return what one call costs if the layer is kept, or becomes each."""
        weights = [(tuple(w.shape), w.dtype) for w in layer.weights]
        names = ("strides", "padding", "dilation_rate", "data_format", "groups")
        window = [getattr(layer, name, None) for name in names]
        key = str((type(layer), layer.dtype, weights, window, shape, choices))
        if key not in self.found:
            self.found[key] = self.measure(layer, shape, outputs, choices)
        return self.found[key]

    def measure(
        self,
        layer: keras.layers.Layer,
        shape: Shape,
        outputs: Shape,
        choices: list[Choice],
    ) -> list[float]:
        if self.unit.of == "exchange":
            devices = self.unit.devices
            return _exchanged(devices, layer, shape, outputs, choices)
        if self.unit.of == "bytes":
            return _bytes(layer, shape, choices)
        return _times(self.unit.runtime, layer, shape, choices)


def _exchanged(
    devices: int,
    layer: keras.layers.Layer,
    shape: Shape,
    outputs: Shape,
    choices: list[Choice],
) -> list[float]:
    """Return the entries that one image's train step exchanges."""
    found: list[Any] = without_values(
        lambda: [_replacement(layer, choice, shape) for choice in choices]
    )
    if (
        not shape[_channel_axis(layer, shape)] % devices
    ):  # Else each device has all of its inputs.
        found = [layer, *found]
    costs = [
        sum(
            need.entries * need.times
            for need in about(one).exchanges(-1, shape, outputs, devices)
        )
        for one in found
    ]
    return [0.0] * (1 + len(choices) - len(costs)) + costs


def _bytes(
    layer: keras.layers.Layer, shape: Shape, choices: list[Choice]
) -> list[float]:
    """Return the bytes of the weights, in the smallest form to deploy."""
    return [
        sum(math.prod(w.shape) * bytes_of(w.dtype) for w in one.weights)
        for one in _deployed(layer, shape, choices, smallest=True)
    ]


def _times(
    runtime: Runtime,
    layer: keras.layers.Layer,
    shape: Shape,
    choices: list[Choice],
) -> list[float]:
    """Return the milliseconds of one input, in the form that is deployed."""
    if choices:
        # Runtimes fuse both into whatever convolution comes before them.
        bare = {"activation": None, "use_bias": False}
        layer = copy_layer(layer, {}, **bare, kernel_initializer="zeros")
        layer.build(shape)
    inputs = keras.Input(shape[1:], dtype=layer.compute_dtype)
    nothing = keras.layers.Identity(dtype=layer.dtype_policy)
    models = [
        keras.Model(inputs, one(inputs))
        for one in [nothing, *_deployed(layer, shape, choices)]
    ]
    # What it takes to call any model is no part of a layer's time.
    runs = [runtime(model) for model in models]
    call, *times = times_in_turns(runs, of=min)
    return [max(ms - call, 0.0) for ms in times]


def _deployed(
    layer: keras.layers.Layer,
    shape: Shape,
    choices: list[Choice],
    smallest: bool = False,
) -> list[keras.layers.Layer]:
    """Return plain layers for a layer that is kept, or becomes each choice."""
    axis = _channel_axis(layer, shape)
    sizes = shape[1:axis] + shape[axis + 1 :]
    found: list[BaseGroupConv | Any] = [layer]
    found += [_replacement(layer, choice, shape) for choice in choices]
    return [
        deployed(one, sizes, smallest)
        if isinstance(one, Answers) and one.plain_forms(sizes)
        else _kept(one, shape)
        for one in found
    ]


def _channel_axis(layer: keras.layers.Layer, shape: Shape) -> int:
    is_first = getattr(layer, "data_format", None) == "channels_first"
    return 1 if is_first else len(shape) - 1


def _kept(layer: keras.layers.Layer, shape: Shape) -> keras.layers.Layer:
    """Return a copy of a layer, which may be called without a trace in it."""
    new = copy_layer(layer, {})
    if not new.built:
        _build(new, shape)
    return new


def _build(layer: Any, shape: Shape) -> None:
    layer.build(shape)  # Keras gives it no types.


def _replacement(
    layer: keras.layers.Layer, choice: Choice, shape: Shape
) -> BaseGroupConv:
    """Return a layer that replaces another one, with kernels of zeros."""
    zeros = {"kernel_initializer": "zeros", "kernel_regularizer": None}
    bare = {"activation": None, "name": layer.name}
    new = choice.replacement(layer, {**config_of(layer, {}), **zeros, **bare})
    _build(new, shape)
    return new
