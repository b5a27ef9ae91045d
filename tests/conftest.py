"""One backend per process: the one that Keras chooses, by KERAS_BACKEND."""

import os
import pathlib
from importlib.metadata import version

if os.environ.get("KERAS_BACKEND") == "torch":
    import torch  # noqa: F401  First: after some other imports it crashes.
if os.environ.get("KERAS_BACKEND") == "jax":
    # LLVM's optimiser and the emitters of fused loops take most of the time of
    # compiling, and change no result that a tolerance would show. JAX 0.12 ends
    # at a flag that it no longer has.
    flags = [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
    ]
    if [*map(int, version("jaxlib").split(".")[:2])] < [0, 11]:
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)
    # With fewer than two threads for each device, these can wait for each other
    # forever.
    os.environ |= {"JAX_NUM_CPU_DEVICES": "8", "NPROC": "16"}

import keras
import pytest
from hypothesis import settings
from networks import few_stages  # noqa: F401  A fixture.

# Compiling takes far longer than a deadline allows, and a failure has to
# come back in the next run.
settings.register_profile(
    "keras_tlgc", deadline=None, derandomize=True, database=None
)
settings.load_profile("keras_tlgc")


BACKEND = keras.backend.backend()
TESTS = pathlib.Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption(
        "--everything",
        action="store_true",
        help="run on JAX and TensorFlow also what PyTorch is enough for",
    )


def runs_once(item):
    """Tell whether it is enough that a test passes on PyTorch.

    It is for tests that are marked `once`, and for those of the laboratory and
    the pages, except tests that are marked `every_backend` or `backends`.
    """
    if item.get_closest_marker("once"):
        return True
    if item.path.relative_to(TESTS).parts[0] == "library":
        return False
    return not (
        item.get_closest_marker("every_backend")
        or item.get_closest_marker("backends")
    )


def pytest_collection_modifyitems(config, items):
    """Skip what is for other backends; leave to PyTorch what runs once."""
    for item in items:
        mark = item.get_closest_marker("backends")
        if mark and BACKEND not in mark.args:
            item.add_marker(pytest.mark.skip(**mark.kwargs))
    if config.option.everything or BACKEND == "torch":
        return
    left = [item for item in items if runs_once(item)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if not runs_once(item)]


def pytest_terminal_summary(terminalreporter, config):
    if not (config.option.everything or BACKEND == "torch"):
        terminalreporter.line(
            "What PyTorch is enough for did not run: pytest --everything does."
        )


def pytest_configure():
    """Switch TF32 off: it has 10 bits, our tolerances need 23."""
    if BACKEND == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(False)
    elif BACKEND == "torch":
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
    """Free what JAX compiled for a module, which adds up to gigabytes."""
    yield
    if BACKEND == "jax":
        import jax

        jax.clear_caches()
