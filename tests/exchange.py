"""A model that each backend saves and the others load."""

import keras
import numpy as np
from cases import BACKEND, assert_near
from helpers import random

from keras_tlgc import layers


def exchange_model():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6, 7, 4)),
            layers.TwoLevelGroupConv2D(
                12,
                3,
                strides=2,
                padding="same",
                groups=2,
                activation="relu",
                bias_initializer="random_normal",
                coarse_channels=2,
                coarse_kernel_size=5,
            ),
            layers.GroupConv2D(8, 1, groups=4),
            keras.layers.Reshape((12, 8)),
            layers.TwoLevelGroupConv1D(
                8, 3, padding="causal", groups=8, coarse_kernel_size=4
            ),
            keras.layers.Reshape((8, 4, 3)),
            layers.TwoLevelGroupConv2D(
                4,
                2,
                padding="same",
                data_format="channels_first",
                groups=4,
                use_bias=False,
            ),
        ]
    )


def exchange_save(folder):
    model = exchange_model()
    x = random(2, 6, 7, 4)
    model.save(folder / f"{BACKEND}.keras")
    model.save_weights(folder / f"{BACKEND}.weights.h5")
    np.savez(folder / f"{BACKEND}.npz", x=x, y=model.predict(x, verbose=0))


def exchange_load(folder, backend):
    """Compare the outputs here with those that `backend` saved."""
    with np.load(folder / f"{backend}.npz") as saved:
        x, y = saved["x"], saved["y"]
    assert np.abs(y).max() > 0.01
    loaded = keras.saving.load_model(folder / f"{backend}.keras")
    assert_near(loaded.predict(x, verbose=0), y)
    model = exchange_model()
    for v in model.weights:
        v.assign(np.zeros(v.shape))
    model.load_weights(folder / f"{backend}.weights.h5")
    assert_near(model.predict(x, verbose=0), y)
