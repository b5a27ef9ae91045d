"""Models around one layer, for the tests of the audit."""

from collections import Counter

import keras
from meshes import compiled

from keras_tlgc import layers

SPARSE = keras.losses.SparseCategoricalCrossentropy(name="ce")


def model_around(middle):
    """Return a model around a layer; `stem_conv` and head have known names."""
    return compiled(
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.Conv2D(16, 3, use_bias=False, name="stem_conv"),
                keras.layers.BatchNormalization(name="stem_bn"),
                middle,
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(
                    10, activation="softmax", name="predictions"
                ),
            ]
        )
    )


def two_level(**options):
    return layers.TwoLevelGroupConv2D(
        16, 3, groups=4, use_bias=False, name="conv", **options
    )


def on_model(result):
    return Counter(row.kind for row in result.rows if row.axes == ("model",))
