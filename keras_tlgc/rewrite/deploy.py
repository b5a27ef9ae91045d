"""Models of plain Keras layers, for inference without this package."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_tlgc.graphs import is_graph
from keras_tlgc.layers import DepthwiseConv2D
from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.layers.plain import Form, PlainConv
from keras_tlgc.rewrite.converter import Converter
from keras_tlgc.rewrite.copying import (
    config_of,
    copied,
    copy_layer,
    copy_state,
)
from keras_tlgc.rewrite.folding import fold_batch_norm
from keras_tlgc.rewrite.rules import Choice, Rules
from keras_tlgc.timing import times_in_turns
from keras_tlgc.types import Node

# The cost of a convolution in multiply-adds, for each position of its outputs.
# Fitted to onnxruntime on one thread: see `docs/export.md`.
COST_OF_A_VALUE = 25  # Each value that is written.
FEWEST_FILTERS = 16  # A group of fewer costs as much: they share a register.


def deploy(model: keras.Model, measure: bool = False) -> keras.Model:
    """Turn a model into one of plain Keras layers, as fast as it can be.

    For inference only. Batch normalisation is folded into the convolutions
    (`fold_batch_norm`) and LoRA is merged. Then each layer of this package is
    written as convolutions of Keras: a two-level group convolution as a grouped
    convolution (G), a grouped one (R) and a 1x1 convolution (C) with an `Add`,
    or as one dense convolution of the kernel `dense_kernel()` where that costs
    less. A `Dense` layer in groups becomes one `Dense` of the dense kernel or,
    if its rank is low, two. So no layer is slower than the standard convolution
    in its place. The result needs this package neither to load nor to run, and
    `export` makes lean graphs of it.

    A layer that one convolution replaces keeps its name; where several do,
    these are in a functional model of its name. All other layers keep their
    names and weights. Layers within nested models, `TimeDistributed` and
    composite layers are replaced as in `convert`.

    By default the forms are compared by what they cost at each position: for
    each convolution, its multiply-adds, with at least 16 filters a group, and
    25 for each value that it writes. This is a fit to onnxruntime.

    Args:
        model: functional or Sequential `keras.Model`, built. It is left as it
            is. The result shares no weights with it, only your own functions.
        measure: bool, whether to time the forms of each layer instead, on the
            backend at hand, with one input of the size that the layer gets:
            for use in Keras or as a SavedModel. Each group as a convolution by
            itself is tried then too.

    Returns:
        A `keras.Model`, not compiled, with the same inputs, outputs and name.

    Raises:
        ValueError: if the model is not functional or Sequential or is not
            built, a layer cannot be copied or has no plain form, or `measure`
            meets inputs of unknown sizes.

    Example:

    >>> from keras_tlgc.applications import WideResNet
    >>> model = WideResNet(10, 1, conv="two_level", groups=4)
    >>> plain = keras_tlgc.deploy(model)
    >>> {type(layer).__module__.split(".")[0] for layer in plain.layers}
    {'keras'}
    """
    if not is_graph(model):
        raise ValueError(
            "The model must be functional or Sequential, and built. Received: "
            f"'{getattr(model, 'name', model)}', {type(model).__name__}, "
            f"built={getattr(model, 'built', None)}. Call it on data first."
        )
    merged = _Replacer(_without_lora).model(model)
    choose = _measured() if measure else _cheapest
    plain = functools.partial(_plain, choose)
    return _Replacer(plain).model(fold_batch_norm(merged))


class _Ours(Rules):
    """Rules that select the layers of this package."""

    def choose(self, layer: keras.layers.Layer, path: str) -> Choice | str:
        if not isinstance(layer, (BaseGroupConv, DepthwiseConv2D)):
            return "it is plain"
        return Choice("two_level", 2, 1)  # Which one, nothing asks.


class _Replacer(Converter):
    """Copies a model with all layers of this package replaced."""

    def __init__(self, replacement: Callable[..., Any]) -> None:
        super().__init__(
            _Ours.make(2, "two_level", 1, None), lambda steps: steps
        )
        self.replacement = replacement
        self.activations: list[keras.layers.Layer] = []

    def model(self, model: keras.Model, path: str = "") -> keras.Model:
        new = super().model(model, path)
        for layer in [*self.plain, *self.activations]:
            copy_state(self.copies[id(layer)][1], layer)
        return new

    def replace(
        self,
        layer: keras.layers.Layer,
        path: str,
        nodes: list[Node],
        choice: Choice,
    ) -> keras.layers.Layer:
        return self.replacement(self, layer, nodes)

    def activation(self, layer: keras.layers.Layer) -> Any:
        """Return the activation of a layer, or its copy if it is a layer."""
        if not isinstance(layer.activation, layers.Layer):
            return layer.activation
        self.activations.append(layer.activation)
        return copied(layer.activation, self.copies)


def deployed(
    layer: keras.layers.Layer, sizes: tuple[int | None, ...]
) -> keras.layers.Layer:
    """Return what `deploy` makes of a layer of this package, not activated.

    Args:
        layer: a `BaseGroupConv`, built.
        sizes: see `plain_forms`.
    """
    form = _cheapest(layer, layer.plain_forms(sizes), sizes)
    return _built(layer, form, "linear")


def _without_lora(
    replacer: _Replacer, layer: keras.layers.Layer, nodes: list[Node]
) -> keras.layers.Layer:
    """Return a copy of a layer, with LoRA merged into its kernels."""
    if not getattr(layer, "lora_enabled", False):
        return replacer.same(layer)
    replacer.activation(layer)
    new = copy_layer(layer, replacer.copies, lora_rank=None, lora_alpha=None)
    new.build_from_config(layer.get_build_config())
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    new.load_own_variables(
        {k: keras.ops.convert_to_numpy(v) for k, v in store.items()}
    )
    return new


def _plain(
    choose: Callable[..., Form],
    replacer: _Replacer,
    layer: keras.layers.Layer,
    nodes: list[Node],
) -> keras.layers.Layer:
    """Return plain layers for one layer, in the form that `choose` returns."""
    if isinstance(layer, DepthwiseConv2D):
        replacer.plain.append(layer)  # Its weights are copied with the others.
        config = config_of(layer, replacer.copies)
        return layers.DepthwiseConv2D.from_config(config)
    sizes = _sizes(layer, nodes)
    forms = layer.plain_forms(sizes)
    if not forms:
        raise ValueError(
            "Each layer must know how to be written as plain convolutions. "
            f"Received: the layer '{layer.name}', {type(layer).__name__}. "
            "Define `plain_forms` in its class."
        )
    form = choose(layer, forms, sizes)
    return _built(layer, form, replacer.activation(layer))


def _sizes(
    layer: keras.layers.Layer, nodes: list[Node]
) -> tuple[int | None, ...]:
    """Return the spatial sizes that a layer is called on, `None` if unknown.

    Of a `Dense` layer these are all axes between batch and features.
    """
    shapes = [node.input_tensors[0].shape for node in nodes]
    first = layer.data_format == "channels_first"
    end = None if first else -1
    start = -layer.rank - (not first) if layer.rank else 1
    found = {tuple(shape[start:end]) for shape in shapes}
    return found.pop() if len(found) == 1 else (None,) * layer.rank


def _built(layer: keras.layers.Layer, form: Form, activation: Any) -> Any:
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
    shape: list[int | None] = [None] * (layer.rank + 2)
    shape[layer.channel_axis] = layer.input_spec.axes[layer.channel_axis]
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
    shape: list[int | None] = [None] * (layer.rank + 2)
    shape[layer.channel_axis] = channels * conv.groups
    new.build(tuple(shape))
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


def _cheapest(layer: keras.layers.Layer, forms: list[Form], sizes: Any) -> Form:
    """Return the form of the least cost."""
    return min(
        forms, key=lambda form: sum(_cost(c) for chain in form for c in chain)
    )


def _cost(conv: PlainConv) -> int:
    """Return what a convolution costs at each position of its outputs."""
    *window, channels, filters = map(int, conv.kernel.shape)
    of_group = max(filters // conv.groups, FEWEST_FILTERS)
    multiply_adds = math.prod(window) * channels * conv.groups * of_group
    return multiply_adds + COST_OF_A_VALUE * filters


def _measured() -> Callable[..., Form]:
    """Return a function that chooses the form that runs fastest here."""
    chosen: dict[Any, int] = {}

    def choose(
        layer: keras.layers.Layer, forms: list[Form], sizes: Any
    ) -> Form:
        if None in sizes:
            raise ValueError(
                "`measure=True` needs inputs of known sizes. Received: the "
                f"layer '{layer.name}', called on sizes {sizes}. Give the "
                "model's input fixed sizes, or leave `measure` out."
            )
        forms = [*forms, *_with_groups_apart(forms)]
        shapes = [
            (*conv.kernel.shape, conv.groups, *conv.window.values())
            for form in forms
            for chain in form
            for conv in chain
        ]
        key = str((layer.data_format, layer.compute_dtype, sizes, shapes))
        if key not in chosen:
            chosen[key] = int(np.argmin(_times(layer, forms, sizes)))
        return forms[chosen[key]]

    return choose


def _with_groups_apart(forms: list[Form]) -> list[Form]:
    """Return the forms that have groups, with a convolution for each group.

    TensorFlow and JAX compute one convolution in groups on a CPU by XLA, in up
    to the time of the dense one.
    """
    return [
        [[conv._replace(apart=conv.groups > 1) for conv in c] for c in form]
        for form in forms
        if any(conv.groups > 1 for chain in form for conv in chain)
    ]


def _times(
    layer: keras.layers.Layer, forms: list[Form], sizes: Any
) -> list[float]:
    """Return the median time of one input in each form, timed in turns."""
    shape = [*sizes]
    channels = layer.input_spec.axes[layer.channel_axis]
    shape.insert(len(shape) if layer.channel_axis == -1 else 0, channels)
    inputs = keras.Input(shape, dtype=layer.compute_dtype)
    models = [
        keras.Model(inputs, _built(layer, form, "linear")(inputs))
        for form in forms
    ]
    return times_in_turns([in_keras(model) for model in models])


def in_keras(model: keras.Model) -> Callable[[], object]:
    """Return a function that runs a model on one input, by its `predict`."""
    x = np.ones((1, *model.input_shape[1:]), "float32")
    return functools.partial(model.predict_on_batch, x)
