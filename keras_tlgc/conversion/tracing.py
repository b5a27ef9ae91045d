"""Composite layers, written out as functional models."""

import contextlib
import inspect
import itertools

import keras

from keras_tlgc.graphs import graph_nodes


class OpaqueLayerError(Exception):
    """A layer whose call cannot be written out. The message says why."""


def trace(layer: keras.layers.Layer, inputs) -> keras.Model:
    """Return a functional model that computes what a composite layer does.

    The `call` of the layer is followed on symbolic tensors, for training and
    for inference: what it calls become the layers of the model, as they are.

    Args:
        layer: layer that calls other layers, built.
        inputs: its first argument, a structure of `keras.KerasTensor`.

    Returns:
        A functional `keras.Model` of the layer's name and weights.

    Raises:
        OpaqueLayerError: if the model might not be the same: the layer is a
            wrapper, has weights of its own, uses those of a layer without
            calling it, calls layers that it does not hold or others in
            training than in inference, adds losses or regularises its activity;
            or if its `call` cannot be followed.
    """
    with following():
        return _trace(layer, inputs)


@contextlib.contextmanager
def following():
    """Turn whatever a call raises into an `OpaqueLayerError`."""
    try:
        yield
    except OpaqueLayerError:
        raise
    except Exception as error:  # Whatever a foreign layer raises.
        raise OpaqueLayerError(
            f"its call cannot be followed: {one_line(error)}"
        ) from error


def one_line(error: Exception) -> str:
    """Return the type and the first line of an error, 200 characters of it."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"


def _trace(layer, inputs):
    if isinstance(layer, keras.layers.Wrapper):
        raise OpaqueLayerError("wrappers may change what they wrap")
    parts = {id(v) for part in layer._layers for v in part.weights}
    if any(id(v) not in parts for v in layer.weights):
        raise OpaqueLayerError("it has weights of its own")
    if layer.activity_regularizer is not None:
        raise OpaqueLayerError("it regularises its activity")
    modes = [{}]
    if "training" in inspect.signature(layer.call).parameters:
        modes = [{"training": mode} for mode in (None, True, False)]
    arguments = keras.tree.map_structure(_cast_for(layer), inputs)
    models = [
        keras.Model(inputs, layer.call(arguments, **mode), name=layer.name)
        for mode in modes
    ]
    _check_same(models)
    own = {id(variable) for variable in layer.weights}
    if any(id(variable) not in own for variable in models[0].weights):
        raise OpaqueLayerError("it calls layers that it does not hold")
    if any(part._losses for part in layer._flatten_layers()):
        raise OpaqueLayerError("it adds losses in its call")
    if not layer.trainable:
        models[0].trainable = False
    return models[0]


def symbolic_inputs(nodes):
    """Return new inputs for a layer that is called as in some nodes.

    Raises:
        OpaqueLayerError: if there is no call, or one with a mask, by
            keyword, or with arguments other than the first.
    """
    firsts = []
    for node in nodes:
        arguments = node.arguments.args, node.arguments.kwargs.values()
        first, *rest = itertools.chain(*arguments)
        if any(hasattr(x, "_keras_mask") for x in node.input_tensors):
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


def _input(tensor, *others):
    """Return an input for all tensors, with `None` where sizes differ."""
    shape = [
        sizes[0] if len(set(sizes)) == 1 else None
        for sizes in zip(*(t.shape for t in (tensor, *others)), strict=True)
    ]
    return keras.Input(batch_shape=shape, dtype=tensor.dtype)


def _cast_for(layer):
    """Return what casts an input as calling the layer does."""

    def cast(tensor):
        is_float = keras.backend.is_float_dtype(tensor.dtype)
        if layer.autocast and is_float and tensor.dtype != layer.compute_dtype:
            return keras.ops.cast(tensor, layer.compute_dtype)
        return tensor

    return cast


def _check_same(models):
    """Raise unless training reaches the layers within as an argument only."""
    graphs = [_calls(model) for model in models]
    for calls in zip(*graphs, strict=False):
        operations, modes = zip(*calls, strict=True)
        if len(set(operations)) > 1:
            raise OpaqueLayerError("it calls other layers in training")
        if modes[0] is not None and len(set(modes)) > 1:
            raise OpaqueLayerError("it decides itself whether it is training")
    if len({len(calls) for calls in graphs}) > 1:
        raise OpaqueLayerError("it calls other layers in training")


def _calls(model):
    """List what the model calls, and with which `training`."""
    calls = []
    for node in graph_nodes(model):
        arguments = node.arguments.args, node.arguments.kwargs
        for value in keras.tree.flatten(arguments):
            if isinstance(value, keras.Variable) or keras.ops.is_tensor(value):
                raise OpaqueLayerError("it uses weights or tensors of its own")
        is_layer = isinstance(node.operation, keras.layers.Layer)
        is_layer &= not isinstance(node.operation, keras.layers.InputLayer)
        identity = id(node.operation) if is_layer else type(node.operation)
        calls.append((identity, node.arguments.kwargs.get("training")))
    return calls
