"""What a model costs, read from its shapes."""

import threading
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
    result = {}

    def count():
        # The scope defers initialisation to the next scope's end. Keras keeps
        # what it deferred per thread, so here it ends with the thread instead.
        try:
            with keras.StatelessScope(initialize_variables=False):
                result["count"] = sum(
                    _size(v.shape) for v in build().trainable_variables
                )
        except Exception as error:
            result["error"] = error

    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
    if "error" in result:
        raise result["error"]
    return result["count"]


def _size(shape) -> int:
    size = 1
    for dimension in shape:
        size *= dimension
    return size
