"""What a model costs, read from its shapes."""

import concurrent.futures
import math
from collections.abc import Callable

import keras


def count_params(build: Callable[[], keras.layers.Layer]) -> int:
    """Count the trainable parameters of a model without allocating them.

    Args:
        build: function without arguments that returns a built model or layer.
            Its variables get no values; it is called once, in a thread.

    Returns:
        The number of trainable parameters, an integer.

    Raises:
        Whatever `build` raises.

    Example:

    >>> from keras_tlgc.applications import WideResNet
    >>> keras_tlgc.costs.count_params(lambda: WideResNet(28, 10))
    36479194
    """

    def count():
        # The scope defers initialisation to the end of the next scope. Keras
        # keeps what it deferred per thread, so here it ends with the thread.
        with keras.StatelessScope(initialize_variables=False):
            return trainable_params(build())

    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(count).result()


def trainable_params(model: keras.layers.Layer) -> int:
    """Return the number of trainable parameters of a built model or layer."""
    return sum(math.prod(v.shape) for v in model.trainable_variables)
