"""What folding and conversion share: models as graphs of layers."""

import keras


def is_graph(layer: keras.layers.Layer) -> bool:
    """Return whether a layer is a functional or Sequential model, built."""
    return (
        isinstance(layer, keras.Model)
        and layer.built
        and hasattr(layer, "inputs")
    )


def graph_nodes(model: keras.Model) -> list:
    """Return the calls that a model consists of, from its inputs on."""
    graph = getattr(model, "_functional", model)
    by_depth = sorted(graph._nodes_by_depth.items(), reverse=True)
    return [node for _, nodes in by_depth for node in nodes]


def copy_weights(target: keras.layers.Layer, source: keras.layers.Layer):
    """Set the weights of a layer to those of another of the same config."""
    # Part by part: unlike `set_weights`, loading tells a layer such as
    # `Normalization` to bring what it derives from its weights up to date.
    parts = zip(target._flatten_layers(), source._flatten_layers(), strict=True)
    for new, old in parts:
        store: dict[str, object] = {}
        old.save_own_variables(store)
        new.load_own_variables(
            {k: keras.ops.convert_to_numpy(v) for k, v in store.items()}
        )
