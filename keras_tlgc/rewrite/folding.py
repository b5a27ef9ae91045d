"""Folding batch normalisation into convolutions, for inference."""

import collections
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_tlgc._keras import functional_of
from keras_tlgc.graphs import calls_by_id, graph_nodes, is_graph
from keras_tlgc.layers.answers import about
from keras_tlgc.rewrite.copying import (
    Copies,
    common_options,
    copied,
    copy_layer,
    copy_state,
)
from keras_tlgc.types import Node, Tensor
from keras_tlgc.variables import UNKNOWN, role_of


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Fold a model's batch normalisation into its convolutions, for inference.

    In inference, batch normalisation scales and shifts each channel by
    constants. If nothing else reads the output of the convolution before it,
    the weights of the convolution can do this instead. In a two-level group
    convolution these are G, C and the bias, while R stays.

    A normalisation is folded if it follows a convolution of Keras (depthwise
    ones included) or of this package, if that convolution has no activation of
    its own, and if the model calls both once only. Functional and Sequential
    models within the model are folded too, each by itself. Everything else
    stays as it is, such as a normalisation after a transposed or separable
    convolution. It also stays after a `RaggedGroupConv2D`, so fold before you
    call `LearnableGroupConv2D.to_group_conv()`.

    Args:
        model: functional or Sequential `keras.Model`, built. It is left as it
            is. The result shares no weights with it, only your own functions,
            initializers, regularizers and constraints.

    Returns:
        A functional `keras.Model`, not compiled, with the same names. Train
        `model` itself: the result no longer normalises by the batch.

    Raises:
        ValueError: if the model is not functional or Sequential, is not built,
            or a layer cannot be copied.

    Example:

    >>> from keras_tlgc.applications import WideResNet
    >>> from keras_tlgc.rewrite.folding import fold_batch_norm
    >>> model = WideResNet(10, 1, conv="two_level", groups=4)
    >>> folded = fold_batch_norm(model)  # One in each of the 3 blocks.
    >>> len(model.layers) - len(folded.layers)
    3
    """
    if not is_graph(model):
        raise ValueError(
            "The model must be functional or Sequential, and built, so that it "
            "is known which layers read the output of a convolution. "
            f"Received: '{model.name}', {type(model).__name__}, "
            f"built={model.built}. "
            "Build it, or fold the functional models within it."
        )
    # The graph is cloned and not the model, whose clone would be compiled.
    # Also, Keras takes no `call_function` for a Sequential model.
    graph = functional_of(model)
    graph = keras.Model(graph.input, graph.output, name=model.name)
    calls = calls_by_id(graph)
    norms = _foldable(graph, calls)
    folded = {norm.name: id(norm) for norm in norms.values()}
    copies: Copies = {}

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        if not _is_training(calls[id(layer)]):
            if is_graph(layer):
                return fold_batch_norm(layer)
            if type(layer) is layers.TimeDistributed and is_graph(layer.layer):
                inner = fold_batch_norm(layer.layer)
                return layers.TimeDistributed(inner, **common_options(layer))
        if id(layer) not in norms:
            return copied(layer, copies)
        new = copy_layer(layer, copies, use_bias=True)
        copies[id(layer)] = layer, new
        return new

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if layer.name in folded:
            return keras.tree.flatten([args, kwargs])[0]
        return layer(*args, **kwargs)

    result = keras.models.clone_model(
        graph, clone_function=copy, call_function=call
    )
    for layer, new in copies.values():
        if id(layer) in norms:
            _set_folded(new, layer, norms[id(layer)])
        elif isinstance(layer, layers.Layer) and (
            id(layer) not in folded.values()
        ):
            copy_state(new, layer)
    if not model.trainable:
        result.trainable = False
    return result


def _is_training(nodes: list[Node]) -> bool:
    """Return whether one of the calls always passes `training=True`."""
    return any(node.arguments.kwargs.get("training") for node in nodes)


def _foldable(
    graph: keras.Model, calls: dict[int, list[Node]]
) -> dict[int, layers.BatchNormalization]:
    """Map ids of convolutions to the normalisation that folds into them."""
    nodes = graph_nodes(graph)
    reads = collections.Counter(id(x) for n in nodes for x in n.input_tensors)
    made_by = {id(x): n.operation for n in nodes for x in n.output_tensors}
    outputs = {id(tensor) for tensor in graph.outputs}
    found = {}
    for norm in graph.layers:
        if type(norm) is not layers.BatchNormalization:
            continue
        tensor, *masks = calls[id(norm)][0].input_tensors
        conv = made_by[id(tensor)]
        if (
            len(calls[id(norm)]) == len(calls[id(conv)]) == 1
            and not masks
            and not _is_training(calls[id(norm)])
            and about(conv).foldable
            and all(role_of(v) is not UNKNOWN for v in conv.weights)
            and conv.activation is keras.activations.linear
            and reads[id(tensor)] == 1
            and id(tensor) not in outputs
            and norm.axis % len(tensor.shape) == _channel_axis(conv, tensor)
            and norm.compute_dtype == conv.compute_dtype
            and not getattr(conv, "lora_enabled", False)
        ):
            found[id(conv)] = norm
    return found


def _channel_axis(conv: keras.layers.Layer, tensor: Tensor) -> int:
    first = conv.data_format == "channels_first"
    return 1 if first else len(tensor.shape) - 1


def _set_folded(
    new: keras.layers.Layer,
    conv: keras.layers.Layer,
    norm: layers.BatchNormalization,
) -> None:
    """Set the weights of `new` to those of `conv` with `norm` behind it."""
    values, (scale, offset) = _values(conv), scale_and_offset(norm)
    # A new bias starts at zero.
    before = {v.name: values.get(v.name, np.zeros(())) for v in new.weights}
    after = about(conv).folded(before, scale, offset)
    for variable in new.weights:
        variable.assign(after[variable.name])


def scale_and_offset(norm: layers.BatchNormalization) -> tuple[Any, Any]:
    """Return what a normalisation multiplies channels by, and then adds."""
    values = _values(norm)
    variance = values["moving_variance"] + norm.epsilon
    scale = values.get("gamma", 1.0) / np.sqrt(variance)
    return scale, values.get("beta", 0.0) - values["moving_mean"] * scale


def _values(layer: keras.layers.Layer) -> dict[str, Any]:
    return {
        v.name: keras.ops.convert_to_numpy(v).astype("float64")
        for v in layer.weights
    }
