"""What folding, conversion and costs share: models as graphs of layers."""

import keras

from keras_tlgc._keras import functional_of, nodes_by_depth
from keras_tlgc.types import Node


def is_graph(layer: keras.layers.Layer) -> bool:
    """Return whether a layer is a functional or Sequential model, built."""
    return (
        isinstance(layer, keras.Model)
        and layer.built
        and hasattr(layer, "inputs")
    )


def graph_nodes(model: keras.Model) -> list[Node]:
    """Return the calls that a model consists of, from its inputs on."""
    by_depth = sorted(
        nodes_by_depth(functional_of(model)).items(), reverse=True
    )
    return [node for _, nodes in by_depth for node in nodes]


def calls_by_id(model: keras.Model) -> dict[int, list[Node]]:
    """Map the `id` of each layer or operation to its calls in this model."""
    calls: dict[int, list[Node]] = {}
    for node in graph_nodes(model):
        calls.setdefault(id(node.operation), []).append(node)
    return calls
