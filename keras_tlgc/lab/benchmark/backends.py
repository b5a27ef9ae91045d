"""Steps that can be timed on every backend, and the memory they take."""

import contextlib
import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_tlgc.lab.benchmark.rows import Step
from keras_tlgc.ops.lowerings import device_of
from keras_tlgc.precision import bytes_of


def device() -> str:
    """Return the kind of device that computes: `"cpu"`, `"gpu"`, `"cuda"`."""
    return device_of(ops.zeros(()))


def layer_step(
    layer: keras.layers.Layer, x: np.ndarray, training: bool, jit_compile
) -> Step:
    """Return a step of a built layer, run once.

    With `training` it computes all gradients beside the output. `jit_compile`
    is that of `keras.Model.compile`.
    """
    x = ops.convert_to_tensor(x, dtype=layer.compute_dtype)
    shape = layer.compute_output_shape(x.shape)
    gradient = np.random.default_rng(1).normal(size=shape)
    gradient = ops.convert_to_tensor(gradient, dtype=layer.compute_dtype)
    makers = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
    make = makers[keras.backend.backend()]
    return make(layer, x, gradient if training else None, jit_compile)


def _jax(layer, x, gradient, jit_compile):
    import jax

    del jit_compile  # A step that is not compiled is of no use to anyone.
    variables = layer.trainable_variables

    def forward(weights, x):
        # Unlike `stateless_call`, this casts as the layer's policy says.
        mapping = list(zip(variables, weights, strict=True))
        with keras.StatelessScope(mapping):
            return layer(x)

    def training(weights, x, gradient):
        y, backward = jax.vjp(forward, weights, x)
        return y, backward(gradient)

    arguments = [[v.value for v in variables], x]
    step = forward
    if gradient is not None:
        step, arguments = training, [*arguments, gradient]
    compiled = jax.jit(step).lower(*arguments).compile()

    def peak_bytes():
        memory = compiled.memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    def run():
        return jax.block_until_ready(compiled(*arguments))

    run()
    return Step(run, peak_bytes)


def _tensorflow(layer, x, gradient, jit_compile):
    import tensorflow as tf

    @tf.function(jit_compile=jit_compile in (True, "auto"))  # As in `fit`.
    def step(x):
        if gradient is None:
            return layer(x)
        weights = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return y, tape.gradient(y, [x, *weights], gradient)

    step = step.get_concrete_function(x)

    def run():
        outputs = step(x)
        tf.test.experimental.sync_devices()
        return outputs

    run()
    return Step(run, lambda: peak_bytes(run))


def _torch(layer, x, gradient, jit_compile):
    import torch

    call = torch.compile(layer) if jit_compile is True else layer
    weights = [v.value for v in layer.trainable_variables]
    x = x.clone().requires_grad_(gradient is not None)

    def run():
        if gradient is None:
            with torch.no_grad():
                outputs = call(x)
        else:
            y = call(x)
            outputs = y, torch.autograd.grad(y, [x, *weights], gradient)
        if x.is_cuda:
            torch.cuda.synchronize()
        return outputs

    run()
    return Step(run, lambda: peak_bytes(run))


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
    step, times = layer_step(layer, x, False, "auto"), []
    for _ in range(5):
        begin = time.perf_counter()
        step.run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
