"""Layers of Keras in place of one of ours."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from keras_tlgc.layers.plain import Form, PlainConv
from keras_tlgc.rewrite.copying import free_shape
from keras_tlgc.rewrite.folding import scale_and_offset


def built(layer: keras.layers.Layer, form: Form, activation: Any) -> Any:
    """Return a layer, or a functional model, that computes a form."""
    bias = layer.plain_bias()
    [first, *others] = form
    is_one = not others and len(first) == 1
    if is_one and not _pads(first[0]) and not first[0].apart:
        return _conv(layer, first[0], layer.name, bias, activation=activation)
    if layer.rank == 0:
        *some, last = first
        parts = [_conv(layer, c, f"{layer.name}_{c.name}", None) for c in some]
        name = f"{layer.name}_{last.name}"
        parts.append(_conv(layer, last, name, bias, activation=activation))
        return keras.Sequential(parts, name=layer.name)
    shape = free_shape(layer, layer.input_spec.axes[layer.channel_axis])
    inputs = keras.Input(batch_shape=shape, dtype=layer.compute_dtype)
    outputs = []
    for chain in form:
        x = inputs
        for conv in chain:
            name = f"{layer.name}_{conv.name}"
            if pads := _pads(conv):
                kind = getattr(layers, f"ZeroPadding{layer.rank}D")
                x = kind(
                    pads[0] if layer.rank == 1 else pads,
                    data_format=layer.data_format,
                    name=f"{name}_pad",
                    dtype=layer.dtype_policy,
                )(x)
            is_last = conv is chain[-1] and chain is first
            convolve = _apart if conv.apart else _conv
            x = convolve(layer, conv, name, bias if is_last else None)(x)
        outputs.append(x)
    x = outputs[0]
    if others:
        name, dtype = f"{layer.name}_add", layer.dtype_policy
        x = layers.Add(name=name, dtype=dtype)(outputs)
    if isinstance(activation, layers.Layer):
        x = activation(x)
    elif activation not in ("linear", keras.activations.linear):
        name = f"{layer.name}_activation"
        dtype = layer.dtype_policy
        x = layers.Activation(activation, name=name, dtype=dtype)(x)
    return keras.Model(inputs, x, name=layer.name)


def _pads(conv: PlainConv) -> Any:
    padding = conv.window.get("padding", "valid")
    return None if isinstance(padding, str) else tuple(padding)


def _conv(
    layer: keras.layers.Layer,
    conv: PlainConv,
    name: str,
    bias: Any,
    **options: Any,
) -> keras.layers.Layer:
    """Return a convolution or `Dense` of Keras, built, with its weights."""
    *window, channels, filters = map(int, conv.kernel.shape)
    kind = layers.Dense
    if layer.rank:
        kind = getattr(layers, f"Conv{layer.rank}D")
        options |= conv.window | ({"padding": "valid"} if _pads(conv) else {})
        options |= {
            "kernel_size": tuple(window),
            "groups": conv.groups,
            "data_format": layer.data_format,
        }
    new = kind(
        filters,
        use_bias=bias is not None,
        kernel_initializer="zeros",  # The weights follow.
        name=name,
        dtype=layer.dtype_policy,
        **options,
    )
    new.build(free_shape(layer, channels * conv.groups))
    weights = [conv.kernel] if bias is None else [conv.kernel, bias]
    new.set_weights([keras.ops.convert_to_numpy(value) for value in weights])
    return new


def _apart(
    layer: keras.layers.Layer, conv: PlainConv, name: str, bias: Any
) -> Callable[..., Any]:
    """Return a function that convolves each group by itself."""
    axis, n = layer.channel_axis, conv.groups
    kernels = keras.ops.split(conv.kernel, n, -1)
    biases = [None] * n if bias is None else keras.ops.split(bias, n)
    convs = [
        _conv(layer, PlainConv("", kernel, 1, conv.window), f"{name}_{i}", one)
        for i, (kernel, one) in enumerate(zip(kernels, biases, strict=True))
    ]
    join = layers.Concatenate(
        axis, name=f"{name}_all", dtype=layer.dtype_policy
    )
    return lambda x: join(
        [
            convolve(part)
            for convolve, part in zip(
                convs, keras.ops.split(x, n, axis), strict=True
            )
        ]
    )


def written_out(norm: layers.BatchNormalization) -> keras.Model:
    """Return a depthwise convolution for a normalisation of the last axis."""
    scale, offset = scale_and_offset(norm)
    shape = (None, None, None, len(scale))
    inputs = keras.Input(batch_shape=shape, dtype=norm.compute_dtype)
    conv = layers.DepthwiseConv2D(
        1,
        data_format="channels_last",
        depthwise_initializer="zeros",  # The weights follow.
        name=f"{norm.name}_scale",
        dtype=norm.dtype_policy,
    )
    outputs = conv(inputs)
    conv.set_weights([scale[None, None, :, None], offset])
    # Unlike the convolution, a model may be called with a mask.
    return keras.Model(inputs, outputs, name=norm.name)
