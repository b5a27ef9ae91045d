"""A small network, trained on a mesh or on one device."""

import functools

import keras
import numpy as np
from meshes import compiled, images

from keras_tlgc import layers


def network(conv, groups=4):
    """Return a small network around one grouped convolution of a kind."""
    layer = {
        "group": layers.GroupConv2D,
        "two_level": layers.TwoLevelGroupConv2D,
        "balanced": layers.BalancedGroupConv2D,
        "low_rank": functools.partial(layers.LowRankConv2D, coarse_channels=3),
    }[conv]
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, use_bias=False, name="stem_conv"),
            keras.layers.BatchNormalization(),
            layer(16, 3, groups=groups, activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation="softmax", name="predictions"),
        ]
    )


def history(
    build,
    epochs=2,
    batch_size=8,
    count=24,
    seed=3,
    optimizer=None,
    class_weight=None,
):
    """Train from the same start; return losses and predictions."""
    keras.utils.set_random_seed(seed)
    model = compiled(build(), optimizer and optimizer())
    x, y = images(count)
    fitted = model.fit(
        x,
        y,
        class_weight=class_weight,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        validation_data=(x, y),
        validation_batch_size=batch_size,
    )
    return fitted.history, model.predict(x[:8], verbose=0)


def assert_same(one, other, atol=1e-5):
    for name in one[0]:
        np.testing.assert_allclose(one[0][name], other[0][name], atol=atol)
    np.testing.assert_allclose(one[1], other[1], atol=10 * atol)
