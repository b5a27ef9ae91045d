"""Which plain form of a layer is the fastest, by its cost or its time."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_tlgc.layers.plain import Form, PlainConv
from keras_tlgc.rewrite.plain import built
from keras_tlgc.timing import times_in_turns

# The cost of a convolution in multiply-adds, for each position of its outputs.
# Fitted to onnxruntime on one thread: see `docs/export.md`.
COST_OF_A_VALUE = 100  # Each value that is written.
BLOCK = 16  # Channels that are computed together: an AVX-512 register.


def of_least(weights: bool) -> Callable[..., Form]:
    """Return a function that chooses the form of the least cost, or weights."""
    count: Callable[[PlainConv], float] = _weights if weights else _cost

    def total(form: Form) -> float:
        return sum(count(conv) for chain in form for conv in chain)

    return lambda layer, forms, sizes: min(forms, key=total)


def _weights(conv: PlainConv) -> int:
    return math.prod(map(int, conv.kernel.shape))


def _cost(conv: PlainConv) -> float:
    """Return what a convolution costs at each position of its outputs."""
    *window, channels, filters = map(int, conv.kernel.shape)
    of_group = filters // conv.groups
    blocks = math.ceil(of_group / BLOCK)
    cost: float = math.prod(window) * channels * conv.groups * blocks * BLOCK
    if blocks == 1:  # An input is read for no other block.
        cost *= 3 / 2
    if conv.groups > 1 and (channels % BLOCK or of_group % BLOCK):
        cost *= 2  # Such groups are no blocks: their patches are copied.
    return cost + COST_OF_A_VALUE * filters


def measured() -> Callable[..., Form]:
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
        forms = [*forms, *with_groups_apart(forms)]
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


def with_groups_apart(forms: list[Form]) -> list[Form]:
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
        keras.Model(inputs, built(layer, form, "linear")(inputs))
        for form in forms
    ]
    return times_in_turns([in_keras(model) for model in models])


def in_keras(model: keras.Model) -> Callable[[], object]:
    """Return a function that runs a model on one input, by its `predict`."""
    x = np.ones((1, *model.input_shape[1:]), "float32")
    return functools.partial(model.predict_on_batch, x)
