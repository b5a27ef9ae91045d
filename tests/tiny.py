"""Runs that take a moment: three classes of tiny pictures, a tiny network."""

import keras
import numpy as np
import pytest

from keras_tlgc.training import Settings, data, run

IMAGES = 120


def tiny_digits(directory=None):
    """Noisy 8x8 pictures of three classes, as a data set stores them."""
    rng = np.random.default_rng(0)
    y = np.arange(IMAGES) % 3
    x = rng.uniform(0, 100, (IMAGES, 8, 8, 1))
    x[np.arange(IMAGES), :, 2 * y, 0] += 150
    return data._stratified_split(x, y)


def tiny_network(input_shape, classes, **options):
    """A network that compiles in a moment, with all that a run must keep."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )


@pytest.fixture
def tiny_run(monkeypatch, request):
    monkeypatch.setitem(data.DATASETS, "tiny", tiny_digits)
    if "real_network" not in request.keywords:
        monkeypatch.setattr(run, "network_builder", lambda name: tiny_network)


def settings(**changes):
    small = {"data": "tiny", "model": "wrn-10-1"}
    return Settings(**{**small, "epochs": 3, "batch_size": 16, **changes})


class Interrupt(keras.callbacks.Callback):
    """Stop the run dead at one moment of one epoch."""

    class Kill(BaseException):
        pass

    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise self.Kill

    def on_epoch_end(self, epoch, logs=None):
        if (epoch, None) == self.at:
            raise self.Kill


def model_weights(path):
    model = keras.saving.load_model(path / "model.keras")
    values = model.get_weights()
    return [*values, np.asarray(model.optimizer.iterations)]


def assert_same_run(one, other):
    for a, b in zip(model_weights(one), model_weights(other), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("history.csv", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def contents(folder):
    """Return the bytes of all files below a folder, by their paths."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
