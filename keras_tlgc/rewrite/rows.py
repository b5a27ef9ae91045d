"""What the rows of a report say that a layer costs."""

import math

import keras

from keras_tlgc.layers.answers import about, positions
from keras_tlgc.rewrite.report import Row
from keras_tlgc.rewrite.rules import Choice
from keras_tlgc.types import Node


def row_of(
    layer: keras.layers.Layer, path: str, nodes: list[Node], reason: str
) -> Row:
    """Return the row of a layer that is kept, called by some nodes."""
    params = layer.count_params() if layer.built else 0
    adds = _multiply_adds(layer, nodes)
    return Row(
        path, type(layer).__name__, 1, reason, params, params, adds, adds
    )


def changed(row: Row, layer: keras.layers.Layer, choice: Choice) -> Row:
    """Return the row of a layer that is to be replaced."""
    size, old_size = choice.kernel_size(layer), math.prod(layer.kernel.shape)
    adds = row.multiply_adds
    return row._replace(
        groups=choice.groups,
        form=choice.conv,
        coarse_channels=choice.coarse_channels,
        new_params=row.params - old_size + size,
        new_multiply_adds=adds and adds // old_size * size,
    )


def _multiply_adds(layer: keras.layers.Layer, nodes: list[Node]) -> int | None:
    """Count multiplications: the kernel's entries times the positions."""
    total = 0
    for node in nodes:
        [inputs], [outputs] = node.input_tensors, node.output_tensors
        shapes = inputs.shape[1:], outputs.shape[1:]
        if None in (*shapes[0], *shapes[1]):
            return None
        total += positions(layer, *shapes) * (about(layer).multiply_adds() or 0)
    return total or None
