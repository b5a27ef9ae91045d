"""Virtual CPU devices in meshes, for the tests of `keras_tlgc.distribution`."""

import keras
import numpy as np
import pytest
from keras.distribution import DeviceMesh

from keras_tlgc.distribution import GroupParallel

ON_JAX = pytest.mark.backends(
    "jax", reason="Keras 3.15 splits models over devices on JAX only"
)


def device_mesh(batch, model):
    devices = keras.distribution.list_devices("cpu")[: batch * model]
    return DeviceMesh((batch, model), ("batch", "model"), devices)


def model_parallel(batch, model, rules=None):
    """Set the package's model parallelism, with more rules; return it."""
    distribution = GroupParallel(device_mesh(batch, model))
    for rule, axes in (rules or {}).items():
        distribution.layout_map[rule] = axes
    keras.distribution.set_distribution(distribution)
    return distribution


def data_parallel(count):
    distribution = keras.distribution.DataParallel(
        devices=keras.distribution.list_devices("cpu")[:count]
    )
    keras.distribution.set_distribution(distribution)
    return distribution


def compiled(model, optimizer=None):
    model.compile(
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def images(count, shape=(8, 8, 3), classes=10):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, *shape)).astype("float32")
    return x, rng.integers(0, classes, count)


def is_split(variable, axis=-1, over="model"):
    """Tell whether an axis of a variable is split over an axis of the mesh."""
    spec = variable.value.sharding.spec
    spec = [*spec, *[None] * (len(variable.shape) - len(spec))]
    return spec[axis] == over and spec.count(over) == 1
