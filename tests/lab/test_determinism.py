"""What a seed decides, and that a long run needs no more than a short one."""

import gc
import sys

import keras
import numpy as np
import pytest
from tiny import (
    assert_same_run,
    model_weights,
    settings,
    tiny_run,  # noqa: F401  A fixture.
)

from keras_tlgc.lab import train

pytestmark = pytest.mark.usefixtures("tiny_run")
BACKEND = keras.backend.backend()


@pytest.mark.real_network
@pytest.mark.parametrize(
    "conv",
    [
        pytest.param(
            "two_level",
            marks=pytest.mark.backends(
                "torch", "jax", reason="test_training.py resumes it to the bit"
            ),
        ),
        "learnable",
    ],
)
def test_a_seed_decides_all(tmp_path, conv):
    """Weights, order and augmentation of real networks, to the last bit."""
    run = settings(conv=conv, groups=2, epochs=2, augmentation="shifts")
    for name in ("one", "two"):
        train(run, tmp_path / name, verbose=0)
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"augmentation": "shifts"}], ids=str
)
def test_other_settings_another_run(tmp_path, changes):
    train(settings(), tmp_path / "one", verbose=0)
    train(settings(**changes), tmp_path / "other", verbose=0)
    kernel, other, *_ = (
        model_weights(tmp_path / name)[0] for name in ("one", "other")
    )
    assert np.abs(kernel - other).max() > 1e-3
    histories = [
        (tmp_path / name / "history.csv").read_text()
        for name in ("one", "other")
    ]
    assert histories[0] != histories[1]


class Memory(keras.callbacks.Callback):
    """Count what is alive after each epoch: objects and arrays."""

    def __init__(self):
        super().__init__()
        self.objects, self.arrays = [], []

    def on_epoch_end(self, epoch, logs=None):
        gc.collect()
        objects = gc.get_objects()
        self.objects.append(len(objects))
        if BACKEND == "jax":
            self.arrays.append(len(sys.modules["jax"].live_arrays()))
        else:
            backend = sys.modules[BACKEND]
            self.arrays.append(
                sum(issubclass(type(o), backend.Tensor) for o in objects)
            )


@pytest.mark.every_backend
def test_memory_does_not_grow_over_epochs(tmp_path):
    memory = Memory()
    train(settings(epochs=10), tmp_path / "run", verbose=0, callbacks=[memory])
    # The first epochs trace and compile. An epoch's numbers are kept: history.
    assert memory.objects[-1] - memory.objects[4] < 10 * 5, memory.objects
    assert memory.arrays[-1] <= memory.arrays[4], memory.arrays
