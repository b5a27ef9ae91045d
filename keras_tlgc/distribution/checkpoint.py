"""Saving a model whose weights no single process holds."""

import contextlib
import functools
import math
import os
from pathlib import Path

import keras

from keras_tlgc._keras import store_value, stored_value
from keras_tlgc.distribution.guard import state_of
from keras_tlgc.distribution.processes import process_index
from keras_tlgc.files import reserve, write_whole
from keras_tlgc.precision import bytes_of
from keras_tlgc.validation import one_of

SUFFIXES = (".keras", ".weights.h5")


def save(model: keras.Model, path: str | os.PathLike) -> None:
    """Save a model or its weights, whichever devices and processes hold them.

    The file holds whole weights. So `keras.saving.load_model` or
    `model.load_weights` loads it under any mesh or without one, on every
    backend. With several processes, all must call this: the weights are
    gathered, and the first process writes them. Keras' own savers cannot do
    this where the model axis spans processes. The file is written under another
    name and then renamed, so that it is whole at every moment, even if the
    process is killed.

    Args:
        model: built `keras.Model`.
        path: path of the file: `.keras` for the model with its optimizer's
            state, `.weights.h5` for the weights and the optimizer's state
            alone.

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
    with _gathered(model):
        if process_index() == 0:
            write_whole(path, write)
    # No process may read the file, or end the run, before it is there.
    _wait_for_all(f"saved {path.name}")


def _save_weights(model, path):
    # 4 KiB for what HDF5 adds to each variable.
    reserve(path, sum(_bytes(v) + 4096 for v in state_of(model)))
    model.save_weights(path)


def _bytes(variable):
    return math.ceil(math.prod(variable.shape) * bytes_of(variable.dtype))


def _spans_processes(model):
    values = map(stored_value, state_of(model))
    if keras.backend.backend() == "torch":
        return any(hasattr(value, "full_tensor") for value in values)
    return keras.backend.backend() == "jax" and any(
        not value.is_fully_addressable for value in values
    )


def _wait_for_all(name):
    if keras.backend.backend() == "torch":
        import torch

        torch.distributed.barrier()
        return
    from jax.experimental.multihost_utils import sync_global_devices

    sync_global_devices(name)


@contextlib.contextmanager
def _gathered(model):
    """Put whole values, on every process, into the variables of `model`."""
    kept = [(v, stored_value(v)) for v in state_of(model)]
    distribution = keras.distribution.distribution()
    gather = {"jax": _on_host_of_jax, "torch": _on_host_of_torch}
    try:
        # Keras makes variables while it saves. Only one process does so here,
        # so they must not be distributed.
        keras.distribution.set_distribution(None)
        for variable, value in kept:
            # The values go to the host, as the whole model may not fit into one
            # device.
            store_value(variable, gather[keras.backend.backend()](value))
        yield
    finally:
        keras.distribution.set_distribution(distribution)
        for variable, value in kept:
            store_value(variable, value)


def _on_host_of_jax(value):
    import jax
    from jax.experimental.multihost_utils import process_allgather

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return jax.numpy.asarray(process_allgather(value, tiled=True))


def _on_host_of_torch(value):
    import torch

    whole = value.detach()
    if hasattr(whole, "full_tensor"):
        whole = whole.full_tensor()
    return torch.nn.Parameter(whole.cpu(), requires_grad=False)
