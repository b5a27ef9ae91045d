"""The progress of a conversion, shown as Keras shows that of training."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import keras

from keras_tlgc.graphs import graph_nodes, is_graph
from keras_tlgc.validation import one_of

# A function of the steps of a phase, which returns an iterable of them.
Track: TypeAlias = Callable[[list[Any]], Iterable[Any]]

# The parts of a conversion that take long: JAX compiles the initialisation of
# each new layer, and each kernel is decomposed.
PHASES = ("Copying layers", "Setting weights", "Fitting layers")
BUDGETED = ("Measuring layers", *PHASES)
PRICED = ("Counting what layers cost", *BUDGETED)
# Models below both limits are converted in a few seconds.
MANY_LAYERS = 50
MANY_PARAMETERS = 10**7


def bars(
    verbose: str | int,
    model: keras.Model,
    phases: Iterable[str] = PHASES,
) -> Track:
    """Return a function that shows a bar for each phase, one after the other.

    Args:
        verbose: `"auto"`, 0, 1 or 2: see `convert`.
        model: the model to be converted.
        phases: what is printed before each of them.

    Returns:
        A function that takes the list of the next phase's steps and returns an
        iterator over them.

    Raises:
        ValueError: if `verbose` is something else.
    """
    if one_of("verbose", verbose, ["auto", 0, 1, 2]) == "auto":
        verbose = _chosen(model)
    if not verbose:
        return iter
    names = iter(phases)

    def track(steps: list[Any]) -> Iterator[Any]:
        print(next(names), flush=True)
        bar = keras.utils.Progbar(
            len(steps), verbose=verbose, unit_name="layer"
        )
        for done, step in enumerate(steps, 1):
            yield step
            bar.update(done)

    return track


def _chosen(model: keras.Model) -> int:
    """Return the `verbose` that fits the model and where it is printed."""
    is_small = (
        len(list(layers_of(model))) <= MANY_LAYERS
        and model.count_params() <= MANY_PARAMETERS
    )
    if is_small or not keras.config.is_interactive_logging_enabled():
        return 0
    # Elsewhere a bar would print a line for each step.
    return 1 if sys.stdout.isatty() or "ipykernel" in sys.modules else 2


def layers_of(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield what a graph and the graphs within it call, except inputs."""
    for node in graph_nodes(model):
        if is_graph(node.operation):
            yield from layers_of(node.operation)
        elif not isinstance(node.operation, keras.layers.InputLayer):
            yield node.operation
