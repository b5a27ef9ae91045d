"""Models of plain Keras layers, for inference without this package."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from keras_tlgc.graphs import is_graph
from keras_tlgc.layers import DepthwiseConv2D
from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.layers.plain import Form
from keras_tlgc.rewrite.converter import Converter
from keras_tlgc.rewrite.copying import (
    config_of,
    copied,
    copy_layer,
    copy_state,
)
from keras_tlgc.rewrite.folding import fold_batch_norm
from keras_tlgc.rewrite.forms import measured, of_least
from keras_tlgc.rewrite.plain import built, written_out
from keras_tlgc.rewrite.rules import Choice, Rules
from keras_tlgc.types import Node


def deploy(
    model: keras.Model, measure: bool = False, smallest: bool = False
) -> keras.Model:
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
    these are in a functional model of its name. A normalisation that could not
    be folded is a depthwise convolution in such a model, which runtimes are
    faster with, unless `measure` is set. All other layers keep their names and
    weights. Layers within nested models, `TimeDistributed` and
    composite layers are replaced as in `convert`.

    By default the forms are compared by what they cost at each position: for
    each convolution, its multiply-adds, with the filters of a group rounded up
    to blocks of 16, and 100 for each value that it writes. The multiply-adds
    count half as much again where a group has a single block of filters, and
    twice where groups are not whole blocks. This is a fit to onnxruntime.

    Args:
        model: functional or Sequential `keras.Model`, built. It is left as it
            is. The result shares no weights with it, only your own functions.
        measure: bool, whether to time the forms of each layer instead, on the
            backend at hand, with one input of the size that the layer gets:
            for use in Keras or as a SavedModel. Each group as a convolution by
            itself is tried then too.
        smallest: bool, whether to take the form of the fewest weights instead,
            for files that are to be small. With few channels it is slower than
            the standard convolution.

    Returns:
        A `keras.Model`, not compiled, with the same inputs, outputs and name.

    Raises:
        ValueError: if the model is not functional or Sequential or is not
            built, a layer cannot be copied or has no plain form, `measure`
            meets inputs of unknown sizes, or comes with `smallest`.

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
    if measure and smallest:
        raise ValueError(
            "`measure` is for the fastest forms, `smallest` for others. "
            "Received: measure=True, smallest=True. Leave one out."
        )
    merged = _Replacer(_without_lora).model(model)
    choose = measured() if measure else of_least(smallest)
    plain = functools.partial(_plain, choose)
    replacer = _Replacer if measure else _ReplacerForRuntimes
    return replacer(plain).model(fold_batch_norm(merged))


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


class _ReplacerForRuntimes(_Replacer):
    """Replaces normalisations that could not be folded, too.

    Runtimes keep channels in blocks from one convolution to the next. What
    Keras writes for a normalisation ends that.
    """

    def new(
        self, layer: keras.layers.Layer, path: str, nodes: list[Node]
    ) -> keras.layers.Layer:
        is_norm = nodes and type(layer) is layers.BatchNormalization
        if is_norm and all(
            len(node.input_tensors) == 1  # No mask.
            and len(node.input_tensors[0].shape) == 4
            and layer.axis in (-1, 3)
            and not node.arguments.kwargs.get("training")
            for node in nodes
        ):
            return written_out(layer)
        return super().new(layer, path, nodes)


def deployed(
    layer: keras.layers.Layer, sizes: tuple[int | None, ...], smallest: bool
) -> keras.layers.Layer:
    """Return what `deploy` makes of a layer of this package, not activated.

    Args:
        layer: a `BaseGroupConv`, built.
        sizes: see `plain_forms`.
        smallest: see `deploy`.
    """
    form = of_least(smallest)(layer, layer.plain_forms(sizes), sizes)
    return built(layer, form, "linear")


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
    return built(layer, form, replacer.activation(layer))


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
