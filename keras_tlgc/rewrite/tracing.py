"""Composite layers, written out as functional models."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_tlgc._keras import added_losses, children_of, has_mask, parts_of
from keras_tlgc.graphs import graph_nodes
from keras_tlgc.rewrite.copying import one_line
from keras_tlgc.types import Node, Tensor

IGNORED = "ignored"  # The `training` of a layer that takes none.


class OpaqueLayerError(Exception):
    """A layer whose call cannot be written out. The message says why."""


def trace(layer: keras.layers.Layer, inputs: Any) -> keras.Model:
    """Return a functional model that computes what a composite layer does.

    The `call` of the layer is followed on symbolic tensors, for training and
    for inference. The layers that it calls, not copies of them, become the
    layers of the model.

    Args:
        layer: layer that calls other layers, built.
        inputs: its first argument, a structure of `keras.KerasTensor`.

    Returns:
        A functional `keras.Model` of the layer's name and weights.

    Raises:
        OpaqueLayerError: if the `call` of the layer cannot be followed, or if
            the model might compute something else: if the layer is a wrapper,
            has weights of its own, uses the weights of a layer without calling
            it, calls layers that it does not hold, calls other layers in
            training than in inference, chooses the `training` of a layer
            itself, adds losses or regularises its activity.
    """
    with following():
        return _trace(layer, inputs)


@contextlib.contextmanager
def following() -> Iterator[None]:
    """Turn whatever a call raises into an `OpaqueLayerError`."""
    try:
        yield
    except OpaqueLayerError:
        raise
    except Exception as error:  # Whatever a foreign layer raises.
        raise OpaqueLayerError(
            f"its call cannot be followed: {one_line(error)}"
        ) from error


def _trace(layer: keras.layers.Layer, inputs: Any) -> keras.Model:
    if isinstance(layer, keras.layers.Wrapper):
        raise OpaqueLayerError("wrappers may change what they wrap")
    parts = {id(v) for part in children_of(layer) for v in part.weights}
    if any(id(v) not in parts for v in layer.weights):
        raise OpaqueLayerError("it has weights of its own")
    if layer.activity_regularizer is not None:
        raise OpaqueLayerError("it regularises its activity")
    models = [
        keras.Model(inputs, _follow(layer, inputs, training), name=layer.name)
        for training in (_default_training(layer), True, False)
    ]
    _check_same(layer, models)
    own = {id(variable) for variable in layer.weights}
    if any(id(variable) not in own for variable in models[0].weights):
        raise OpaqueLayerError("it calls layers that it does not hold")
    if any(added_losses(part) for part in parts_of(layer)):
        raise OpaqueLayerError("it adds losses in its call")
    if not layer.trainable:
        models[0].trainable = False
    return models[0]


class _Around(keras.layers.Layer):
    """Runs a function in the place where Keras runs the `call` of a layer.

    There Keras casts the inputs to the layer's type, and hands `training` on to
    whatever the function calls without a `training` of its own.
    """

    def __init__(
        self, function: Callable[[Any, bool | None], None], **options: Any
    ) -> None:
        super().__init__(**options)
        self.function = function

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        raise NotImplementedError("Inputs are symbolic.")

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None
    ) -> keras.KerasTensor:
        self.function(inputs, training)
        # What is returned here gets this layer as its origin. The outputs of
        # the function must keep theirs, so they are not returned.
        return keras.KerasTensor(())


def _follow(
    layer: keras.layers.Layer, inputs: Any, training: bool | None
) -> Any:
    """Return what a layer's `call` makes of symbolic inputs."""
    takes_training = "training" in inspect.signature(layer.call).parameters
    outputs, errors = [], []

    def follow(arguments: Any, training: bool | None) -> None:
        options = {"training": training} if takes_training else {}
        try:
            outputs.append(layer.call(arguments, **options))
        except Exception as error:  # Keras would change the message.
            errors.append(error)

    around = _Around(follow, dtype=layer.dtype_policy, autocast=layer.autocast)
    around(inputs, training=training)
    for error in errors:
        raise error
    return outputs[0]


def _default_training(layer: keras.layers.Layer) -> bool | None:
    """Return the `training` of a layer that is called without it."""
    parameters = inspect.signature(layer.call).parameters
    default = getattr(parameters.get("training"), "default", None)
    return None if default is inspect.Parameter.empty else default


def symbolic_inputs(nodes: list[Node]) -> Any:
    """Return new inputs that fit all calls of a layer, its nodes.

    Raises:
        OpaqueLayerError: if there is no call, or if one has a mask, passes the
            inputs by keyword, or passes more than the first argument.
    """
    firsts = []
    for node in nodes:
        # Keras records the default of `training` too. The copy of a call keeps
        # it, so it does not count as another argument.
        options = [
            value
            for name, value in node.arguments.kwargs.items()
            if name != "training"
        ]
        given: list[Any] = [*node.arguments.args, *options]
        first, *rest = given
        if any(has_mask(x) for x in node.input_tensors):
            raise OpaqueLayerError("it is called with a mask")
        if any(x is not None for x in keras.tree.flatten(rest)):
            raise OpaqueLayerError("it is called with several arguments")
        if not node.arguments.args:
            # A functional model has no argument of that name.
            raise OpaqueLayerError("it is called by keyword")
        firsts.append(first)
    if not firsts:
        raise OpaqueLayerError("no functional model calls it")
    return keras.tree.map_structure(_input, *firsts)


def _input(tensor: Tensor, *others: Tensor) -> keras.KerasTensor:
    """Return an input that fits all tensors, with `None` where sizes differ."""
    shape = [
        sizes[0] if len(set(sizes)) == 1 else None
        for sizes in zip(*(t.shape for t in (tensor, *others)), strict=True)
    ]
    return keras.Input(batch_shape=shape, dtype=tensor.dtype)


def _check_same(layer: keras.layers.Layer, models: list[keras.Model]) -> None:
    """Raise unless the layer hands its `training` on to all layers within.

    A functional model hands its own `training` on to all its layers, whatever
    the original call passed. A layer that always got `True` would no longer get
    it.
    """
    held = {id(part) for part in parts_of(layer)}
    graphs = [_calls(model, held) for model in models]
    for calls in zip(*graphs, strict=False):
        operations, modes = zip(*calls, strict=True)
        if len(set(operations)) > 1:
            raise OpaqueLayerError("it calls other layers in training")
        if modes[1:] not in [(True, False), (IGNORED, IGNORED)]:
            raise OpaqueLayerError("it decides itself whether it is training")
    if len({len(calls) for calls in graphs}) > 1:
        raise OpaqueLayerError("it calls other layers in training")


def _calls(model: keras.Model, held: set[int]) -> list[tuple[Any, Any]]:
    """List what the model calls, and with which `training`.

    Layers that are not held are made anew in each call, so they are compared by
    their class.
    """
    calls = []
    for node in graph_nodes(model):
        arguments = node.arguments.args, node.arguments.kwargs
        for value in keras.tree.flatten(arguments):
            if isinstance(value, keras.Variable) or keras.ops.is_tensor(value):
                raise OpaqueLayerError("it uses weights or tensors of its own")
        is_held = id(node.operation) in held
        identity = id(node.operation) if is_held else type(node.operation)
        training = node.arguments.kwargs.get("training", IGNORED)
        calls.append((identity, training))
    return calls
