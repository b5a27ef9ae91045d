"""Folding batch normalisation into convolutions, for inference."""

import keras
import numpy as np
from keras import layers

from keras_tlgc.graphs import copy_weights, is_graph
from keras_tlgc.layers import (
    GroupConv1D,
    GroupConv2D,
    GroupConv3D,
    LearnableGroupConv2D,
    ShuffleGroupConv1D,
    ShuffleGroupConv2D,
    ShuffleGroupConv3D,
    TwoLevelGroupConv1D,
    TwoLevelGroupConv2D,
    TwoLevelGroupConv3D,
)

DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
SHUFFLED = (ShuffleGroupConv1D, ShuffleGroupConv2D, ShuffleGroupConv3D)
FOLDABLE = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    *DEPTHWISE,
    GroupConv1D,
    GroupConv2D,
    GroupConv3D,
    *SHUFFLED,
    LearnableGroupConv2D,
    TwoLevelGroupConv1D,
    TwoLevelGroupConv2D,
    TwoLevelGroupConv3D,
)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Return a model for inference without the normalisation it can do without.

    In inference, batch normalisation scales and shifts each channel by
    constants. Where it alone reads the output of a convolution, the weights of
    the convolution can do that: of a two-level group convolution G, C and the
    bias, while R stays.

    Folded is what follows a convolution of Keras, depthwise ones included, or
    of this package that has no activation of its own, where both are called
    once. Functional and Sequential models within the model are folded too, each
    for itself. All else stays as it is, as what follows a transposed or
    separable convolution, or a `RaggedGroupConv2D`: fold before you call
    `LearnableGroupConv2D.to_group_conv()`.

    Args:
        model: functional or Sequential `keras.Model`, built. It is left as it
            is, and shares no weights with the result.

    Returns:
        A functional `keras.Model`, not compiled, of the same names. To train,
        take `model`: what is folded no longer normalises by the batch.

    Raises:
        ValueError: if the model is not functional or Sequential, or not built.

    Example:

    >>> from keras_tlgc.applications import WideResNet
    >>> from keras_tlgc.folding import fold_batch_norm
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
    # Not the model itself: its clone would be compiled, and Keras takes no
    # `call_function` for a Sequential one.
    graph = getattr(model, "_functional", model)
    graph = keras.Model(graph.input, graph.output, name=model.name)
    norms = _foldable(graph)
    folded = {norm.name for norm in norms.values()}
    copies = []

    def copy(layer):
        if is_graph(layer) and not _is_training(layer):
            return fold_batch_norm(layer)
        config = layer.get_config()
        if layer.name in norms:
            config["use_bias"] = True
        copies.append((layer, type(layer).from_config(config)))
        return copies[-1][1]

    def call(layer, *args, **kwargs):
        if layer.name in folded:
            return keras.tree.flatten([args, kwargs])[0]
        return layer(*args, **kwargs)

    result = keras.models.clone_model(
        graph, clone_function=copy, call_function=call
    )
    for layer, new in copies:
        if layer.name in norms:
            _set_folded(new, layer, norms[layer.name])
        elif isinstance(layer, layers.Layer) and layer.name not in folded:
            copy_weights(new, layer)
    return result


def _is_training(layer):
    """Return whether a call of the layer asks for training, always."""
    return any(
        node.arguments.kwargs.get("training") for node in layer._inbound_nodes
    )


def _foldable(graph):
    """Map names of convolutions to the normalisation that folds into them."""
    outputs = {id(tensor) for tensor in graph.outputs}
    found = {}
    for norm in graph.layers:
        if type(norm) is not layers.BatchNormalization:
            continue
        tensor, *masks = norm._inbound_nodes[0].input_tensors
        conv = tensor._keras_history.operation
        if (
            len(norm._inbound_nodes) == 1
            and not masks
            and not _is_training(norm)
            and type(conv) in FOLDABLE
            and conv.activation is keras.activations.linear
            and len(conv._inbound_nodes) == len(conv._outbound_nodes) == 1
            and id(tensor) not in outputs
            and norm.axis % len(tensor.shape) == _channel_axis(conv, tensor)
            and norm.compute_dtype == conv.compute_dtype
            and not getattr(conv, "lora_enabled", False)
        ):
            found[conv.name] = norm
    return found


def _channel_axis(conv, tensor):
    first = conv.data_format == "channels_first"
    return 1 if first else len(tensor.shape) - 1


def _set_folded(new, conv, norm):
    """Set the weights of `new` to those of `conv` with `norm` behind it."""
    values = {
        v.name: keras.ops.convert_to_numpy(v).astype("float64")
        for v in [*conv.weights, *norm.weights]
    }
    variance = values["moving_variance"] + norm.epsilon
    scale = values.get("gamma", 1.0) / np.sqrt(variance)
    offset = values.get("beta", 0.0) - values["moving_mean"] * scale
    if type(conv) in SHUFFLED:
        scale, offset = (
            v.reshape(-1, conv.groups).T.ravel() for v in (scale, offset)
        )
    for variable in new.weights:
        value = values.get(variable.name, 0.0)  # A new bias starts at zero.
        if "bias" in variable.name:
            value = value * scale + offset
        elif type(conv) in DEPTHWISE:
            value = value * scale.reshape(value.shape[-2:])
        elif _gives_outputs(variable.name):
            value = value * scale
        variable.assign(value)


def _gives_outputs(name):
    # Not R, which gives coarse channels, and not the scores of learned groups.
    return "kernel" in name and not name.startswith("restriction")
