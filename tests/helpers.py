"""What several test modules need: cases, gradients, processes of their own."""

import contextlib
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops


def once(*values):
    """Return the values of a case that needs to run only on PyTorch."""
    return pytest.param(*values, marks=pytest.mark.once)


def squared_sum(outputs):
    return ops.sum(ops.square(ops.cast(outputs, _accurate(outputs.dtype))))


def gradients(layer, x):
    """Return the gradients of the outputs' sum of squares, as NumPy arrays.

    Returns:
        The gradient with respect to `x`, and a list with those with respect
        to the layer's trainable variables.
    """
    compute = {
        "jax": _jax_gradients,
        "tensorflow": _tensorflow_gradients,
        "torch": _torch_gradients,
    }[keras.backend.backend()]
    dx, *dw = compute(layer, ops.convert_to_tensor(x))
    return to_numpy(dx), [to_numpy(d) for d in dw]


def outputs(layer, x):
    """Return the layer's output for `x`, as a NumPy array.

    JAX compiles it as a whole: op by op takes several times as long.
    """
    x = ops.convert_to_tensor(x)
    if keras.backend.backend() != "jax":
        return to_numpy(layer(x))
    import jax

    def compute(trainable, fixed, x):
        return layer.stateless_call(trainable, fixed, x)[0]

    # Compiled once, and stored where Keras does not track it as a part.
    compiled = layer.__dict__.setdefault("_compute", jax.jit(compute))
    trainable = [v.value for v in layer.trainable_variables]
    fixed = [v.value for v in layer.non_trainable_variables]
    return to_numpy(compiled(trainable, fixed, x))


def to_numpy(tensor):
    """Return `tensor` as an array, of float32 where NumPy lacks the type."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype == "bfloat16":
        tensor = ops.cast(tensor, "float32")
    return ops.convert_to_numpy(tensor)


def users_environment(**more):
    """Return the environment without what `conftest.py` has set for speed."""
    ours = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "NPROC", "PYTEST_")
    theirs = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return {**theirs, "KERAS_BACKEND": keras.backend.backend(), **more}


def run_python(code, *arguments, **environment):
    """Return what a new Python process prints; raise if it fails."""
    finished = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={
            **os.environ,
            "KERAS_BACKEND": keras.backend.backend(),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


@contextlib.contextmanager
def float64():
    """Allow float64 where the backend does not by default."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


def _accurate(dtype):
    dtype = keras.backend.standardize_dtype(dtype)
    return dtype if dtype == "float64" else "float32"


def _jax_gradients(layer, x):
    import jax

    def loss(x, trainable, fixed):
        return squared_sum(layer.stateless_call(trainable, fixed, x)[0])

    trainable = [v.value for v in layer.trainable_variables]
    fixed = [v.value for v in layer.non_trainable_variables]
    dx, dw = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, trainable, fixed)
    return dx, *dw


def _tensorflow_gradients(layer, x):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = squared_sum(layer(x))
    weights = [v.value for v in layer.trainable_variables]
    return tape.gradient(loss, [x, *weights])


def _torch_gradients(layer, x):
    import torch

    x = x.detach().requires_grad_()
    weights = [v.value for v in layer.trainable_variables]
    return torch.autograd.grad(squared_sum(layer(x)), [x, *weights])


def random(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)
