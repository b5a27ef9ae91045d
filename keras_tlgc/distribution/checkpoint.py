"""Saving a model whose weights no single process holds."""

import contextlib
import functools
import math
import os
from pathlib import Path

import keras

from keras_tlgc.distribution.guard import state_of
from keras_tlgc.files import reserve, write_whole
from keras_tlgc.validation import one_of

SUFFIXES = (".keras", ".weights.h5")


def save(model: keras.Model, path: str | os.PathLike) -> None:
    """Save a model or its weights, whichever devices and processes hold them.

    The file holds whole weights, so that it loads under another mesh or none
    and on every backend, by `keras.saving.load_model` or `model.load_weights`.
    With several processes, all must call this: the weights are gathered, and
    the first process writes, which Keras' own savers cannot do where the model
    axis spans processes. The file is written under another name and then
    renamed, so that it is whole at every moment, also after a kill.

    Args:
        model: built `keras.Model`.
        path: path of the file: `.keras` for the model with its optimizer's
            state, `.weights.h5` for weights and optimizer's state alone.

    Raises:
        ValueError: if the path has another suffix, or the model is not built.

    Example:

    ```python
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: save(model, "model.keras")
    )
    ```
    """
    path = Path(path)
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), path.suffix)
    one_of("the suffix of `path`", suffix, SUFFIXES)
    if not model.built:
        raise ValueError(
            "`save` needs a model that has weights. "
            f"Received: the model '{model.name}', not built yet. "
            "Call it on data first, or call `build(input_shape)`."
        )
    write = model.save
    if suffix == ".weights.h5":
        write = functools.partial(_save_weights, model)
    if not _spans_processes(model):
        write_whole(path, write)
        return
    import jax
    from jax.experimental import multihost_utils

    with _gathered(model):
        if jax.process_index() == 0:
            write_whole(path, write)
    # Nobody reads, or goes on and ends the run, before the file is there.
    multihost_utils.sync_global_devices(f"saved {path.name}")


def _save_weights(model, path):
    sizes = [math.prod(variable.shape) for variable in state_of(model)]
    # 4 KiB for what HDF5 adds to each variable.
    reserve(path, sum(4 * size + 4096 for size in sizes))
    model.save_weights(path)


def _spans_processes(model):
    return keras.backend.backend() == "jax" and any(
        not variable.value.is_fully_addressable for variable in state_of(model)
    )


@contextlib.contextmanager
def _gathered(model):
    """Put whole values, on every process, into the variables of `model`."""
    import jax
    from jax.experimental.multihost_utils import process_allgather

    kept = [(v, v._value) for v in state_of(model)]
    distribution = keras.distribution.distribution()
    try:
        # Keras makes variables while it saves, in one process here.
        keras.distribution.set_distribution(None)
        for variable, value in kept:
            # On the host: the whole model need not fit into one device.
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                variable._value = jax.numpy.asarray(
                    process_allgather(value, tiled=True)
                )
        yield
    finally:
        keras.distribution.set_distribution(distribution)
        for variable, value in kept:
            variable._value = value
