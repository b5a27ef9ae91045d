"""Models whose variables have shapes and no values."""

import concurrent.futures
import contextlib
import random
from collections.abc import Callable

import keras


def without_values(compute: Callable, scope=contextlib.nullcontext):
    """Return what `compute()` returns, without giving variables values.

    `compute` is called in a thread of its own, within the context `scope()`.
    Layers made there draw seeds from the state that
    `keras.utils.set_random_seed` sets. That state is put back, so that the next
    model starts as it would have without this.
    """
    seeds = random.getstate()
    policy = keras.config.dtype_policy()  # Each thread has its own.

    def in_thread():
        keras.config.set_dtype_policy(policy)
        # The scope defers initialisation to the end of the next scope. Keras
        # keeps a list of what is deferred for each thread, so here the list
        # ends with the thread.
        with scope(), keras.StatelessScope(initialize_variables=False):
            return compute()

    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        try:
            return thread.submit(in_thread).result()
        finally:
            random.setstate(seeds)
