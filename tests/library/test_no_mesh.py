"""Where `keras.distribution` splits nothing: on TensorFlow and PyTorch."""

import keras
import numpy as np
import pytest

import keras_tlgc

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "jax"
    or keras.__version__.split(".")[:2] != ["3", "15"],
    reason="JAX has keras.distribution; elsewhere Keras before 3.15 refuses "
    "it, and from 3.16 on PyTorch has some",
)


def _fit(distribution):
    """Train a network under a distribution; return losses and weights."""
    keras.utils.set_random_seed(0)
    keras.distribution.set_distribution(distribution)
    try:
        model = keras.Sequential(
            [
                keras.Input((6, 6, 8)),
                keras_tlgc.layers.TwoLevelGroupConv2D(16, 3, groups=4),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(1),
            ]
        )
        model.compile("sgd", "mse")
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(20, 6, 6, 8)), rng.normal(size=(20, 1))
        history = model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    finally:
        keras.distribution.set_distribution(None)
    return [np.array(history.history["loss"]), *model.get_weights()]


@pytest.mark.parametrize("kind", ["data", "model"])
def test_keras_distribution_changes_nothing(kind):
    # Not even with devices that the machine does not have, 3 of them for
    # batches of 8 and 16 filters: nothing asks for the layouts.
    devices = ["cpu:0", "cpu:1", "cpu:2"]
    if kind == "data":
        distribution = keras.distribution.DataParallel(devices=devices)
    else:
        mesh = keras.distribution.DeviceMesh(
            (1, 3), ("batch", "model"), devices
        )
        layout_map = keras.distribution.LayoutMap(mesh)
        layout_map[".*/group_kernel"] = (None, None, None, "model")
        distribution = keras.distribution.ModelParallel(layout_map=layout_map)
    for plain, distributed in zip(_fit(None), _fit(distribution), strict=True):
        np.testing.assert_array_equal(plain, distributed)


def test_keras_distribution_finds_no_devices():
    # On PyTorch Keras 3.15 has no devices to list, on TensorFlow one device
    # of this machine, and neither starts several processes.
    if keras.backend.backend() == "torch":
        with pytest.raises(AttributeError, match="'NoneType' object"):
            keras.distribution.list_devices()
        with pytest.raises(AttributeError, match="'NoneType' object"):
            keras.distribution.DataParallel()
    with pytest.raises(AttributeError, match="no attribute 'initialize'"):
        keras.distribution.initialize("127.0.0.1:1", 1, 0)
