"""What runs on several devices on TensorFlow and PyTorch.

Their own tools for data parallelism do: `tf.distribute` under `fit`, and
DistributedDataParallel around a model in a loop. `keras.distribution`, with
which a layer's groups are split over devices, is for JAX alone.
"""

import keras
import numpy as np
import pytest
from helpers import run_python

import keras_tlgc

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="tf.distribute is TensorFlow's",
)
on_torch = pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="DistributedDataParallel is PyTorch's",
)
accepts_and_ignores = pytest.mark.skipif(
    keras.backend.backend() == "jax"
    or tuple(map(int, keras.__version__.split(".")[:2])) > (3, 15),
    reason="JAX has keras.distribution; from Keras 3.16 on PyTorch has some",
)

# The processes of one test build the same network and data from these lines.
COMMON = """
import sys
import numpy as np
import keras
from keras_tlgc.applications import WideResNet
from keras_tlgc.layers import GroupConv2D, TwoLevelGroupConv2D

BATCH = 8


def network(kind):
    keras.utils.set_random_seed(0)
    if kind == "wide_resnet":
        return WideResNet(
            10,
            1,
            conv="two_level",
            groups=4,
            input_shape=(8, 8, 3),
            classes=3,
            classifier_activation=None,
        )
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            GroupConv2D(64, 3, groups=4, activation="relu"),
            TwoLevelGroupConv2D(64, 3, groups=4, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )


def images(count):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, 8, 8, 3)).astype("float32")
    return x, rng.integers(0, 3, count)


def twice(x):
    # Both devices get the same half of every batch.
    halves = x.reshape(-1, BATCH // 2, *x.shape[1:])
    return np.repeat(halves, 2, axis=0).reshape(-1, *x.shape[1:])
"""

MIRRORED = (
    COMMON
    + """
import contextlib
import pathlib
import tensorflow as tf

[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
kind, count, data, folder = sys.argv[1:]
x, y = images(int(count))
if data == "twice":
    x, y = twice(x), twice(y)


def train(scope, name, sample_weight=None):
    with scope:
        model = network(kind)
        model.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    history = model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=3,
        shuffle=False,
        sample_weight=sample_weight,
        verbose=0,
    ).history
    path = pathlib.Path(folder, f"{name}.keras")
    model.save(path)
    np.savez(
        path.with_suffix(".npz"),
        history=np.array([history["loss"], history["accuracy"]]),
        evaluate=model.evaluate(x, y, batch_size=BATCH, verbose=0),
        predict=model.predict(x, batch_size=BATCH, verbose=0),
        reloaded=keras.saving.load_model(path).predict(x, verbose=0),
        weights=np.concatenate([w.ravel() for w in model.get_weights()]),
    )


# A device's mean counts as much as the other's, of however few images.
tail = len(x) % BATCH
share = -(-tail // 2)
image_weight = np.ones(len(x))
if tail % 2:
    image_weight[-tail:] = tail / 2 / (tail - share)
    image_weight[-tail:][:share] = tail / 2 / share
train(contextlib.nullcontext(), "one", image_weight)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
train(strategy.scope(), "two")
"""
)


def mirrored(folder, kind, count, data="once"):
    """Train on one device and on two; return what each run gave.

    In a process of its own: devices are split before TensorFlow starts, and
    strategies in one process get in each other's way.
    """
    run_python(MIRRORED, kind, count, data, folder)
    return [dict(np.load(folder / f"{name}.npz")) for name in ("one", "two")]


def assert_close(one, two, names):
    for name in names:
        np.testing.assert_allclose(
            two[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name
        )


@on_tensorflow
def test_mirrored_strategy_trains_as_one_device(tmp_path):
    # The last batch has 6 images, 3 for each device. Fewer images than devices
    # fail, as with Conv2D: TensorFlow's convolution of no image has a wrong
    # shape. So do `jit_compile=True` and `steps_per_execution=2`.
    one, two = mirrored(tmp_path, "convolutions", count=22)
    assert_close(one, two, one)
    assert one["history"][0, -1] < one["history"][0, 0] - 0.01


@on_tensorflow
def test_mirrored_strategy_on_a_last_batch_of_odd_size(tmp_path):
    # 5 images are shared as 3 and 2, which count as much as the 3.
    one, two = mirrored(tmp_path, "convolutions", count=21)
    assert_close(one, two, ["weights", "evaluate", "predict", "reloaded"])


@on_tensorflow
def test_mirrored_strategy_with_batch_normalization(tmp_path):
    # Each device normalises by the statistics of its own images, so that a
    # network with BatchNormalization trains another way on two devices; ...
    one, two = mirrored(tmp_path, "wide_resnet", count=24)
    assert np.isfinite(two["history"]).all()
    assert np.abs(one["weights"] - two["weights"]).max() > 1e-3
    assert_close({"predict": two["reloaded"]}, two, ["predict"])


@on_tensorflow
def test_mirrored_strategy_with_equal_statistics(tmp_path):
    # ... that this is all that differs shows where the images are the same.
    one, two = mirrored(tmp_path, "wide_resnet", count=12, data="twice")
    assert_close(one, two, one)
