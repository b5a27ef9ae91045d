"""Runs that take a moment: three classes of tiny pictures, a tiny network."""

import keras
import numpy as np
import pytest

from keras_tlgc.lab import Comparison, Settings, evaluation, plots, run
from keras_tlgc.lab.data import sets

IMAGES = 120
# Commands that take a moment.
TINY = ["--data", "tiny", "--model", "plain-1-8", "--conv", "group"]
TINY += ["--groups", "1", "--batch-size", "8", "--epochs", "3"]
TRAIN = ["train", *TINY, "--output"]
COMPARE = ["compare", *TINY, "--seeds", "0,1", "--output"]


def tiny_digits(directory=None):
    """Noisy 8x8 pictures of three classes, as a data set stores them."""
    rng = np.random.default_rng(0)
    y = np.arange(IMAGES) % 3
    x = rng.uniform(0, 100, (IMAGES, 8, 8, 1))
    x[np.arange(IMAGES), :, 2 * y, 0] += 150
    return sets._stratified_split(x, y)


def tiny_network(input_tensor, classes, **options):
    """A network that compiles in a moment, with all that a run must keep."""
    x = keras.layers.Flatten()(input_tensor)
    x = keras.layers.Dense(8, activation="relu")(x)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.Dense(classes, activation="softmax")(x)
    return keras.Model(keras.utils.get_source_inputs(input_tensor)[0], x)


@pytest.fixture
def tiny_run(monkeypatch, request):
    monkeypatch.setitem(sets.DATASETS, "tiny", tiny_digits)
    if "real_network" not in request.keywords:
        monkeypatch.setattr(run, "network_builder", lambda name: tiny_network)


@pytest.fixture(name="figures")
def drawn_figures(monkeypatch):
    """Return a list to which every figure that is drawn is added."""
    figures = []
    real = plots.Figure

    def figure(*args, **kwargs):
        figures.append(real(*args, **kwargs))
        return figures[-1]

    for module in (plots, evaluation):
        monkeypatch.setattr(module, "Figure", figure)
    return figures


def settings(**changes):
    small = {"data": "tiny", "model": "wrn-10-1"}
    return Settings(**{**small, "epochs": 3, "batch_size": 16, **changes})


# The recipe of a small comparison.
RECIPE = {"data": "tiny", "model": "wrn-10-1", "epochs": 2, "batch_size": 16}


def small(**changes):
    """Return a comparison of four runs."""
    lists = dict(convs=["group", "standard"], groups=[2], seeds=[0, 1])
    changes["recipe"] = RECIPE | changes.get("recipe", {})
    return Comparison(**lists | changes)


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
