"""Layers and networks on a mesh: what is split, and that results are equal."""

import keras
import numpy as np
import pytest
from cases import TWO_LEVEL
from helpers import gradients, to_numpy
from mesh_networks import assert_same, history, network
from meshes import ON_JAX, compiled, data_parallel, images, model_parallel
from networks import small

from keras_tlgc import layers
from keras_tlgc.applications import MobileNetV2, WideResNet

pytestmark = ON_JAX


# --- results


@pytest.mark.parametrize(
    ("conv", "groups", "mesh"),
    [
        ("two_level", 4, (1, 4)),
        ("two_level", 8, (2, 4)),  # Two groups on each device.
        ("two_level", 4, (2, 1)),
        ("group", 4, (2, 2)),
        ("low_rank", 4, (2, 2)),
        ("balanced", 8, (2, 4)),
    ],
)
def test_same_as_one_device(conv, groups, mesh):
    one = history(lambda: network(conv, groups))
    model_parallel(*mesh)
    assert_same(history(lambda: network(conv, groups)), one)


@pytest.mark.parametrize(
    ("build", "conv", "options"),
    [
        (WideResNet, "two_level", {"groups": 4, "coarse_channels": 1}),
        (MobileNetV2, "two_level", {"groups": 4, "coarse_channels": 2}),
    ],
)
def test_networks_same_as_one_device(few_stages, build, conv, options):
    def make():
        return small(build, conv, **options)

    one = history(make, epochs=1)
    model_parallel(2, 2)
    assert_same(history(make, epochs=1), one, atol=2e-5)


def test_mixed_precision_same_as_one_device():
    keras.config.set_dtype_policy("mixed_bfloat16")
    one = history(lambda: network("two_level"), epochs=1)
    model_parallel(2, 2)
    assert_same(history(lambda: network("two_level"), epochs=1), one, 2e-2)


@pytest.mark.parametrize("conv", ["group", "two_level", "low_rank"])
def test_data_parallel_same_as_one_device(conv):
    one = history(lambda: network(conv))
    data_parallel(4)
    assert_same(history(lambda: network(conv)), one)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"clipnorm": 0.1}),
        # A norm over what all devices hold.
        ("SGD", {"global_clipnorm": 0.1}),
        ("SGD", {"gradient_accumulation_steps": 3}),
        ("SGD", {"use_ema": True, "ema_overwrite_frequency": 2}),
        ("Adafactor", {}),  # Slots with one axis less than their variable.
    ],
    ids=str,
)
def test_optimizers_same_as_one_device(name, options):
    def train():
        return history(
            lambda: network("two_level"),
            optimizer=lambda: getattr(keras.optimizers, name)(0.1, **options),
            class_weight=dict.fromkeys(range(10), 1.0) | {1: 3.0, 2: 0.0},
        )

    one = train()
    model_parallel(2, 2)
    assert_same(train(), one)


def test_recomputed_same_as_one_device():
    def build():
        # Batch normalisation of Keras 3.15 fails under it, on JAX.
        with keras.RematScope(mode="full"):
            return keras.Sequential(
                [
                    keras.Input((8, 8, 3)),
                    keras.layers.Conv2D(8, 3, name="stem_conv"),
                    layers.TwoLevelGroupConv2D(16, 3, groups=4),
                    layers.TwoLevelGroupConv2D(16, 3, groups=4),
                    keras.layers.GlobalAveragePooling2D(),
                    keras.layers.Dense(10, "softmax", name="predictions"),
                ]
            )

    one = history(build)
    model_parallel(2, 2)
    assert_same(history(build), one)


def test_named_inputs_and_outputs_same_as_one_device():
    def train():
        keras.utils.set_random_seed(0)
        image = keras.Input((8, 8, 3), name="image")
        extra = keras.Input((3,), name="extra")
        x = layers.TwoLevelGroupConv2D(16, 3, groups=4)(
            keras.layers.Conv2D(16, 3, name="stem_conv")(image)
        )
        x = keras.layers.GlobalAveragePooling2D()(x)
        x = keras.layers.Concatenate()([x, extra])
        outputs = {
            "label": keras.layers.Dense(10, "softmax", name="label")(x),
            "size": keras.layers.Dense(1, name="size")(x),
        }
        model = keras.Model({"image": image, "extra": extra}, outputs)
        model.compile(
            "sgd", {"label": "sparse_categorical_crossentropy", "size": "mse"}
        )
        x, label = images(24)
        extra = x[:, 0, 0]
        inputs = {"image": x, "extra": extra}
        targets = {"label": label, "size": extra[:, :1]}
        fitted = model.fit(inputs, targets, batch_size=8, verbose=0)
        return fitted.history, model.predict(inputs, verbose=0)["label"]

    one = train()
    model_parallel(2, 2)
    assert_same(train(), one)


@pytest.mark.parametrize(
    ("rank", "window", "data_format"),
    [
        *((rank, {}, "channels_last") for rank in (1, 2, 3)),
        (2, {}, "channels_first"),
        (1, {"coarse_kernel_size": 5}, "channels_first"),
        (2, {"coarse_kernel_size": 5}, "channels_last"),
    ],
)
def test_layers_same_as_one_device(rank, window, data_format):
    cls = TWO_LEVEL[rank]
    shape = (4, *[6] * rank, 8)
    if data_format == "channels_first":
        shape = (4, 8, *[6] * rank)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")

    def results():
        keras.utils.set_random_seed(1)
        layer = cls(
            16,
            3,
            strides=2,
            padding="same",
            groups=4,
            coarse_channels=2,
            data_format=data_format,
            **window,
        )
        layer.build(x.shape)
        dx, dw = gradients(layer, x)
        return [to_numpy(layer(x)), dx, *dw]

    one = results()
    model_parallel(2, 2)
    for a, b in zip(results(), one, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


# --- where the plain path runs


def test_batches_of_any_size_when_called():
    plain = layers.TwoLevelGroupConv2D(8, 3, groups=4)
    x, _ = images(3, (6, 6, 8))
    expected = to_numpy(plain(x))
    model_parallel(2, 2)
    layer = layers.TwoLevelGroupConv2D(8, 3, groups=4)
    layer.build(x.shape)
    layer.set_weights(plain.get_weights())
    np.testing.assert_allclose(to_numpy(layer(x)), expected, atol=1e-5)
    assert layer(keras.KerasTensor((None, 6, 6, 8))).shape == (None, 4, 4, 8)
    data_parallel(2)
    layer = layers.TwoLevelGroupConv2D(8, 3, groups=4)
    layer.build(x.shape)
    layer.set_weights(plain.get_weights())
    np.testing.assert_allclose(to_numpy(layer(x)), expected, atol=1e-5)


def test_layer_kept_whole():
    """Neither are its groups counted against the mesh, nor is it split."""
    one = history(lambda: network("two_level", groups=2))
    whole = {
        "(.*/)?conv/(group|restriction)_kernel": (None,) * 4,
        "(.*/)?conv/coarse_kernel": (None, None),
    }
    model_parallel(1, 4, whole)
    assert_same(history(lambda: network("two_level", groups=2)), one)


def test_subclassed_model():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = layers.TwoLevelGroupConv2D(8, 3, groups=4)
            self.pool = keras.layers.GlobalAveragePooling2D()
            self.predictions = keras.layers.Dense(10, activation="softmax")

        def call(self, x):
            return self.predictions(self.pool(self.conv(x)))

    x, y = images(8, (6, 6, 8))

    def loss():
        keras.utils.set_random_seed(0)
        return compiled(Net()).fit(x, y, batch_size=4, verbose=0).history

    one = loss()
    model_parallel(2, 2)
    np.testing.assert_allclose(loss()["loss"], one["loss"], atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.ShuffleGroupConv2D(16, 3, groups=4),
        lambda: layers.LearnableGroupConv2D(16, 3, groups=4),
    ],
)
def test_rivals_same_as_one_device(make):
    """They exchange all channels, which XLA sees to."""

    def build():
        model = network("group")
        return keras.Sequential([*model.layers[:2], make(), *model.layers[-2:]])

    one = history(build, epochs=1)
    model_parallel(2, 2)
    assert_same(history(build, epochs=1), one)
