"""Folding batch normalisation into convolutions, for inference."""

from collections.abc import Iterator

import keras
import numpy as np
from keras import layers

from keras_tlgc.layers import (
    GroupConv1D,
    GroupConv2D,
    GroupConv3D,
    TwoLevelGroupConv1D,
    TwoLevelGroupConv2D,
    TwoLevelGroupConv3D,
)

DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
CONVOLUTIONS = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    *DEPTHWISE,
    GroupConv1D,
    GroupConv2D,
    GroupConv3D,
    TwoLevelGroupConv1D,
    TwoLevelGroupConv2D,
    TwoLevelGroupConv3D,
)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Return a model for inference that gives the same outputs in less time.

    In inference, batch normalisation scales and shifts each channel by
    constants. Where it alone reads the output of a convolution, the weights of
    the convolution can do that: of a two-level group convolution G, C and the
    bias, while R stays.

    Folded are Keras' convolutions, depthwise ones included, and the group and
    two-level ones of this package, without an activation of their own and
    called once. `Identity` layers take the place of what is folded away. All
    else stays as it is, also nested models with all that they hold.

    Args:
        model: functional or Sequential `keras.Model`, built. It is left as it
            is.

    Returns:
        A `keras.Model`, not compiled. To train, take the original: what is
        folded no longer normalises.

    Raises:
        ValueError: if the model is not functional or Sequential, or not built.

    Example:

    >>> model = keras_tlgc.applications.MobileNetV2(
    ...     conv="two_level", groups=8, input_shape=(32, 32, 3)
    ... )
    >>> folded = keras_tlgc.folding.fold_batch_norm(model)
    >>> model.count_params() - folded.count_params()
    51168
    """
    if not model.built or not hasattr(model, "inputs"):
        raise ValueError(
            "The model must be functional or Sequential, and built, so that "
            "what a layer's output goes to is known. "
            f"Received: '{model.name}', {type(model).__name__}, "
            f"built={model.built}. Build it, or fold the models within it."
        )
    norms = {conv.name: norm for conv, norm in _foldable(model)}
    folded = {norm.name for norm in norms.values()}

    def clone(layer):
        config = layer.get_config()
        if layer.name in folded:
            return layers.Identity(name=layer.name, dtype=config["dtype"])
        if layer.name in norms:
            config["use_bias"] = True
        return type(layer).from_config(config)

    def call(layer, *args, **kwargs):
        if layer.name in folded:
            return layer(args[0])  # Without the arguments of what it replaces.
        return layer(*args, **kwargs)

    # Keras takes `call_function` for functional models alone.
    is_sequential = isinstance(model, keras.Sequential)
    result = keras.models.clone_model(
        model,
        clone_function=clone,
        call_function=None if is_sequential else call,
    )
    for layer in model.layers:
        if layer.name in norms:
            _set_folded(result.get_layer(layer.name), layer, norms[layer.name])
        elif layer.weights and layer.name not in folded:
            result.get_layer(layer.name).set_weights(layer.get_weights())
    return result


def _foldable(model) -> Iterator[tuple[keras.layers.Layer, ...]]:
    """Find each convolution that only a batch normalisation reads."""
    outputs = {id(tensor) for tensor in keras.tree.flatten(model.outputs)}
    for norm in model.layers:
        is_norm = type(norm) is layers.BatchNormalization
        if not is_norm or len(norm._inbound_nodes) != 1:
            continue
        [tensor] = norm._inbound_nodes[0].input_tensors
        conv = tensor._keras_history.operation
        if (
            type(conv) in CONVOLUTIONS
            and conv.activation is keras.activations.linear
            and len(conv._inbound_nodes) == len(conv._outbound_nodes) == 1
            and id(tensor) not in outputs
            and norm.axis % len(tensor.shape) == _channel_axis(conv, tensor)
        ):
            yield conv, norm


def _channel_axis(conv, tensor):
    first = conv.data_format == "channels_first"
    return 1 if first else len(tensor.shape) - 1


def _set_folded(layer, original, norm):
    """Set the weights of a convolution to those of it and `norm` behind it."""
    values = {
        v.name: keras.ops.convert_to_numpy(v).astype("float64")
        for v in [*original.weights, *norm.weights]
    }
    variance = values["moving_variance"] + norm.epsilon
    scale = values.get("gamma", 1.0) / np.sqrt(variance)
    shift = values.get("beta", 0.0) - values["moving_mean"] * scale
    for variable in layer.weights:
        value = values.get(variable.name, 0.0)  # Without a bias: zero.
        if "bias" in variable.name:
            value = value * scale + shift
        elif type(layer) in DEPTHWISE:
            value = value * scale.reshape(value.shape[-2:])
        elif not variable.name.startswith("restriction"):
            value = value * scale
        variable.assign(value)
