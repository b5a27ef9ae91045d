"""Steps that can be timed on every backend, and the memory they take."""

import contextlib
import ctypes
import gc
import math
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_tlgc.lab.benchmark.rows import Step
from keras_tlgc.ops.lowerings import device_of
from keras_tlgc.precision import bytes_of
from keras_tlgc.timing import times_in_turns
from keras_tlgc.tuning.steps import layer_step


def device() -> str:
    """Return the kind of device that computes: `"cpu"`, `"gpu"`, `"cuda"`."""
    return device_of(ops.zeros(()))


def step_of_layer(
    layer: keras.layers.Layer, x: np.ndarray, training: bool, jit_compile
) -> Step:
    """Return `keras_tlgc.tuning.steps.layer_step`, with its memory."""
    run, planned_bytes = layer_step(layer, x, training, jit_compile)
    return Step(run, planned_bytes or (lambda: peak_bytes(run)))


def peak_bytes(run: Callable[[], object]) -> float:
    """Return the most bytes that `run()` takes, NaN where that is unknown."""
    backend, kind = keras.backend.backend(), device()
    if kind == "cpu":
        # TensorFlow keeps what it frees, so the process does not grow again.
        return math.nan if backend == "tensorflow" else _resident_peak(run)
    if backend == "torch" and kind == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.reset_memory_stats("GPU:0")
        before = tf.config.experimental.get_memory_info("GPU:0")["current"]
        run()
        info = tf.config.experimental.get_memory_info("GPU:0")
        return info["peak"] - before
    return math.nan


def _resident_peak(run):
    """Measure how much the process grows, which Linux reports."""
    process = Path("/proc/self")
    gc.collect()
    try:
        # Memory that the process freed but kept would hide what is taken.
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        (process / "clear_refs").write_text("5")  # This resets the peak.
        before = _kilobytes(process, "VmRSS")
        run()
        return 1024 * (_kilobytes(process, "VmHWM") - before)
    except OSError:
        return math.nan


def _kilobytes(process, name):
    lines = (process / "status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(name))


def attained(dtype: str) -> tuple[float, float]:
    """Return the operations and the bytes a second that this machine attains.

    Both are measured now, with a large matrix product and with a large sum.
    """
    size = 2048 if device() == "cpu" else 8192
    entries = 2**25 if device() == "cpu" else 2**29
    square = np.ones((size, size), "float32")
    long = np.ones(entries, "float32")
    product = _seconds(_layer_of(lambda x: ops.matmul(x, x), dtype), square)
    total = _seconds(_layer_of(lambda x: x + 1, dtype), long)
    return 2 * size**3 / product, 2 * bytes_of(dtype) * entries / total


def _layer_of(function, dtype):
    layer = keras.layers.Lambda(function, lambda shape: shape, dtype=dtype)
    layer.build(())
    return layer


def _seconds(layer, x):
    step = layer_step(layer, x, False, "auto")
    [ms] = times_in_turns([step.run], 5)
    return ms / 1000
