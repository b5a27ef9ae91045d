"""One backend per process: the one that Keras chooses, by KERAS_BACKEND."""

import os

if os.environ.get("KERAS_BACKEND") == "torch":
    import torch  # noqa: F401  First: after some other imports it crashes.
if os.environ.get("KERAS_BACKEND") == "jax":
    # LLVM's optimiser takes seconds for each shape of random weights, and
    # changes no result that a tolerance would show.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0"
    # With fewer threads than two a device they can wait for each other forever.
    os.environ |= {"JAX_NUM_CPU_DEVICES": "8", "NPROC": "16"}

import keras
import pytest
from hypothesis import settings

# Compiling takes far longer than a deadline allows, and a failure has to
# come back in the next run.
settings.register_profile(
    "keras_tlgc", deadline=None, derandomize=True, database=None
)
settings.load_profile("keras_tlgc")


def pytest_configure():
    """Switch TF32 off: it has 10 bits, our tolerances need 23."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")
    elif backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(False)
    elif backend == "torch":
        import torch

        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def _same_start():
    """Seed each test, and undo what it did to Keras' global settings."""
    policy = keras.config.dtype_policy()
    data_format = keras.config.image_data_format()
    keras.utils.set_random_seed(0)
    yield
    keras.distribution.set_distribution(None)
    keras.config.set_dtype_policy(policy)
    keras.config.set_image_data_format(data_format)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Free what JAX compiled for a module: gigabytes, over all of them."""
    yield
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()
