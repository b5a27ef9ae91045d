"""Where the channels of a network are split, read from its graph."""

import math

import keras
from keras import layers

from keras_tlgc._keras import functional_of, layout_map_of, parts_of
from keras_tlgc.distribution.choices import (
    CHANNELS,
    FILTERS,
    GROUPS,
    INPUTS,
    OUTPUTS,
    Choices,
    candidate,
    chosen,
    whole,
)
from keras_tlgc.distribution.layout_map import GroupLayoutMap
from keras_tlgc.graphs import graph_nodes, is_graph
from keras_tlgc.layers.answers import CONVOLUTIONS, is_convolution
from keras_tlgc.types import Node, Tensor
from keras_tlgc.variables import role_of


def plan(
    model: keras.Model,
    distribution: keras.distribution.ModelParallel | None = None,
) -> Choices:
    """Choose how to split each variable of a model, from the model's graph.

    A variable is made before the layers that come after its own, so
    `GroupParallel` has to guess what these need. This looks at a model that is
    there, made under any distribution or none, and sees, for instance:

    - which convolution is the last one: its filters are needed together, so it
      is split by its inputs, and its outputs are added up;
    - where a `Dense` layer has whole inputs, as the second one of a
      squeeze-and-excitation block: it is split by its outputs;
    - which channels a concatenation puts together. They stay split, at the
      price that XLA exchanges some of them.

    `print(plan(model))` shows what it chose and why. To train by it, make the
    model anew under `distribution.follow(model)`.

    Args:
        model: functional or Sequential `keras.Model`, built.
        distribution: a `GroupParallel`, or a `ModelParallel` with a
            `GroupLayoutMap`, whose rules count before all else. By default, the
            one that is set.

    Returns:
        A dict from the paths of variables to `Choice`, which `print` shows as a
        table.

    Raises:
        ValueError: if the model has no graph, there is no such distribution, or
            a rule of yours does not fit a variable.

    Example:

    >>> distribution = keras_tlgc.distribution.GroupParallel()
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> choices = keras_tlgc.distribution.plan(model, distribution)
    >>> choices[model.layers[0].kernel.path].why
    'its inputs and outputs are whole'
    """
    if not is_graph(model):
        raise ValueError(
            "A plan follows the graph of a functional or Sequential model that "
            f"is built. Received: '{model.name}', a {type(model).__name__}. "
            "Build it, or plan the functional models within it."
        )
    if distribution is None:
        distribution = keras.distribution.distribution()
    layout_map = layout_map_of(distribution)
    if not isinstance(layout_map, GroupLayoutMap):
        raise ValueError(
            "A plan is one for a `GroupParallel`. "
            f"Received: distribution={distribution}. Pass one, or set it."
        )
    walk = _Walk(layout_map)
    walk.follow(model, is_last=True)
    return walk.choices


class _Walk:
    """A walk along the calls of a model, from its inputs on."""

    def __init__(self, layout_map):
        self.choices = Choices()
        self._rules = layout_map
        # The `id` of each tensor whose channels are split.
        self._split: set[int] = set()

    def follow(self, model, is_last):
        """Choose for all layers of a graph.

        Args:
            model: functional or Sequential model; what is known of its inputs
                is in `self._split`.
            is_last: bool, whether its outputs are those of the whole model.
        """
        nodes = graph_nodes(model)
        outputs = functional_of(model).outputs if is_last else []
        last = _last_tensors(nodes, outputs)
        for node in nodes:
            tensors = node.output_tensors
            is_last = all(id(tensor) in last for tensor in tensors)
            if node.input_tensors and self._call(node, is_last):
                self._split.update(map(id, tensors))

    def _call(self, node, is_last) -> bool:
        """Choose for a layer; return whether its outputs are split."""
        operation, inputs = node.operation, node.input_tensors
        if is_graph(operation):
            inner = functional_of(operation)
            self._copy(inputs, inner.inputs)
            self.follow(operation, is_last)
            return any(id(tensor) in self._split for tensor in inner.outputs)
        is_split = any(id(tensor) in self._split for tensor in inputs)
        if not isinstance(operation, layers.Layer):
            return is_split and self._passes(node)
        if len(parts_of(operation)) > 1:
            # It has layers within, which choose for themselves when built.
            return any(map(is_convolution, parts_of(operation)))
        kinds = self._layer(operation, is_split, is_last)
        if _has_kernel(operation):
            return bool(kinds & {GROUPS, FILTERS, OUTPUTS, CHANNELS})
        return is_split and self._passes(node)

    def _layer(self, layer, is_split, is_last):
        """Choose for the variables of a layer; return what is split."""
        kinds = set()
        for variable in layer.weights:
            path, shape = variable.path, tuple(variable.shape)
            axis, what = candidate(layer, variable.name, shape)
            choice = self._rules.by_rule(path, shape)
            if choice is None:
                choice, what = self._variable(
                    layer, shape, axis, what, is_split, is_last
                )
            self.choices.setdefault(path, choice)
            if choice.is_split:
                kinds.add(what)
        return kinds

    def _variable(self, layer, shape, axis, what, is_split, is_last):
        """Return the choice for a variable, and what lies along its axis.

        Args:
            layer, shape: the layer and the shape of the variable.
            axis, what: the candidate.
            is_split: bool, whether the layer's inputs are split.
            is_last: bool, whether its outputs are those of the model.
        """
        devices = self._rules.devices
        if what == INPUTS or isinstance(layer, layers.Dense):
            if is_last and not is_split:
                return whole(shape, "its inputs and outputs are whole"), what
            if not is_split:
                axis, what = -1, OUTPUTS
        elif what == CHANNELS and not is_split:
            return whole(shape, "the channels before it are whole"), what
        elif what == GROUPS:
            for name in ("groups", "filters"):
                if (count := getattr(layer, name)) % devices:
                    why = f"{devices} devices do not divide {count} {name}"
                    return whole(shape, why), what
        elif what == FILTERS and (is_last or shape[axis] % devices):
            # The outputs of the last convolution are few, and needed together.
            is_kernel = isinstance(layer, CONVOLUTIONS) and len(shape) > 1
            if is_kernel and is_split and shape[-2] % devices == 0:
                axis, what = -2, INPUTS
            elif is_last:
                return whole(shape, "the model's outputs are whole"), what
        elif what == FILTERS and not is_split:
            what = OUTPUTS
        if axis is None:
            return whole(shape, what), what
        model_axis = self._rules.model_axis
        return chosen(shape, axis, what, devices, model_axis), what

    def _passes(self, node: Node) -> bool:
        """Return whether outputs have the split channels of the inputs."""
        [output, *_] = node.output_tensors
        operation = node.operation
        name = type(operation).__name__
        if name == "Concatenate":
            return True
        if name in ("Flatten", "Reshape"):
            [inputs] = node.input_tensors
            return _channels(inputs) == math.prod(inputs.shape[1:])
        return any(
            id(tensor) in self._split and _channels(tensor) == _channels(output)
            for tensor in node.input_tensors
        )

    def _copy(self, tensors, others):
        for tensor, other in zip(tensors, others, strict=True):
            if id(tensor) in self._split:
                self._split.add(id(other))


def _channels(tensor: Tensor) -> int | None:
    first = keras.config.image_data_format() == "channels_first"
    return tensor.shape[1 if first else -1]


def _last_tensors(nodes, outputs):
    """Return the `id` of tensors that no kernel meets before the outputs."""
    consumers: dict[int, list[Node]] = {}
    for node in nodes:
        for tensor in node.input_tensors:
            consumers.setdefault(id(tensor), []).append(node)
    ends, last = {id(tensor) for tensor in outputs}, set()
    for node in reversed(nodes):
        for tensor in node.output_tensors:
            after = consumers.get(id(tensor), [])
            if (after or id(tensor) in ends) and all(
                not _has_kernel(one.operation)
                and all(id(t) in last for t in one.output_tensors)
                for one in after
            ):
                last.add(id(tensor))
    return last


def _has_kernel(operation):
    return isinstance(operation, layers.Layer) and any(
        role_of(variable).is_kernel for variable in operation.weights
    )
