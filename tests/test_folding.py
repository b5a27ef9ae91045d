"""Folding batch normalisation into convolutions."""

import keras
import numpy as np
import pytest
from helpers import random
from keras import layers
from networks import few_stages  # noqa: F401

from keras_tlgc.applications import MobileNetV2, WideResNet
from keras_tlgc.applications.convolutions import CONVOLUTIONS
from keras_tlgc.folding import fold_batch_norm
from keras_tlgc.layers import (
    GroupConv1D,
    GroupConv2D,
    TwoLevelGroupConv1D,
    TwoLevelGroupConv2D,
    TwoLevelGroupConv3D,
)


def randomise(model):
    """Give every weight a value that shows, also those of normalisation."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if "seed" in variable.name:
            continue
        value = rng.normal(0, 0.2, size=variable.shape)
        if variable.name in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, size=variable.shape)
        variable.assign(value)


def norms(model):
    return [
        layer.name
        for layer in model.layers
        if isinstance(layer, layers.BatchNormalization)
    ]


def assert_folds(model, left=(), tolerance=1e-4):
    """Check outputs, and the names of the normalisations that stay."""
    randomise(model)
    x = random(2, *model.inputs[0].shape[1:])
    before = model.get_weights()
    folded = fold_batch_norm(model)
    assert norms(folded) == list(left)
    y, expected = folded.predict(x, verbose=0), model.predict(x, verbose=0)
    for one, other in zip(
        keras.tree.flatten(y), keras.tree.flatten(expected), strict=True
    ):
        scale = max(np.abs(other).max(), 1.0)
        np.testing.assert_allclose(one, other, atol=tolerance * scale)
        assert np.std(other) > 1e-4  # The outputs can differ at all.
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    return folded


SINGLE = {
    "Conv1D": ((9, 4), lambda **kw: layers.Conv1D(8, 3, **kw)),
    "Conv2D": ((5, 6, 4), lambda **kw: layers.Conv2D(8, 3, groups=2, **kw)),
    "Conv3D": ((4, 5, 4, 4), lambda **kw: layers.Conv3D(6, 2, **kw)),
    "DepthwiseConv1D": (
        (9, 4),
        lambda **kw: layers.DepthwiseConv1D(3, depth_multiplier=2, **kw),
    ),
    "DepthwiseConv2D": (
        (5, 6, 4),
        lambda **kw: layers.DepthwiseConv2D(3, depth_multiplier=2, **kw),
    ),
    "GroupConv1D": ((9, 4), lambda **kw: GroupConv1D(8, 3, groups=2, **kw)),
    "GroupConv2D": (
        (5, 6, 4),
        lambda **kw: GroupConv2D(8, 3, groups=2, **kw),
    ),
    "TwoLevelGroupConv1D": (
        (9, 4),
        lambda **kw: TwoLevelGroupConv1D(8, 3, groups=2, **kw),
    ),
    "TwoLevelGroupConv2D": (
        (5, 6, 4),
        lambda **kw: TwoLevelGroupConv2D(
            8, 3, groups=2, coarse_channels=2, coarse_kernel_size=1, **kw
        ),
    ),
    "TwoLevelGroupConv3D": (
        (4, 5, 4, 4),
        lambda **kw: TwoLevelGroupConv3D(6, 2, groups=2, **kw),
    ),
}


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("name", SINGLE)
def test_each_convolution(name, use_bias):
    shape, make = SINGLE[name]
    model = keras.Sequential(
        [
            keras.Input(shape),
            make(use_bias=use_bias),
            layers.BatchNormalization(),
        ]
    )
    assert_folds(model)


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}])
def test_norms_without_scale_or_offset(options):
    model = keras.Sequential(
        [
            keras.Input((5, 5, 4)),
            TwoLevelGroupConv2D(8, 3, groups=2),
            layers.BatchNormalization(epsilon=0.1, **options),
            layers.ReLU(),
        ]
    )
    assert_folds(model)


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="TensorFlow has no channels_first convolution on CPUs",
)
def test_channels_first():
    inputs = keras.Input((4, 5, 5))
    kwargs = {"data_format": "channels_first"}
    x = TwoLevelGroupConv2D(8, 3, groups=2, **kwargs)(inputs)
    x = layers.BatchNormalization(axis=1)(x)
    x = layers.DepthwiseConv2D(2, **kwargs)(x)
    x = layers.BatchNormalization(axis=1)(x)
    assert_folds(keras.Model(inputs, x))


@pytest.mark.usefixtures("few_stages")
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_networks(conv):
    options = {"groups": 2} if conv != "standard" else {}
    folds = conv not in ("shuffle", "learnable")
    model = WideResNet(10, 1, conv=conv, input_shape=(8, 8, 3), **options)
    # Blocks normalise what they read, and what their first convolution gives.
    stays = [n for n in norms(model) if not (folds and n.endswith("_bn2"))]
    assert_folds(model, stays)
    model = MobileNetV2(0.35, conv, input_shape=(32, 32, 3), **options)
    left = [] if folds else [n for n in norms(model) if "bn" in n]
    if not folds:
        left = [n for n in left if "depthwise" not in n and n != "stem_bn"]
    assert_folds(model, left)


def block(between=lambda x: x, axis=-1, outputs=lambda x, y: y):
    """Return a model of a convolution and a normalisation named `norm`."""
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(6, 1, name="conv")(inputs)
    y = layers.BatchNormalization(axis=axis, name="norm")(between(x))
    return keras.Model(inputs, outputs(x, y))


KEPT = {
    "an activation between": dict(between=layers.ReLU()),
    "another axis": dict(axis=1),
    "also a residual": dict(outputs=lambda x, y: layers.Add()([x, y])),
    "also an output": dict(outputs=lambda x, y: [x, y]),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_is_not_folded(case):
    assert_folds(block(**KEPT[case]), ["norm"])


def test_an_activation_of_the_convolution_stays():
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(4, 1, activation="relu")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    assert_folds(keras.Model(inputs, x), ["norm"])


def test_shared_layers_stay():
    inputs = keras.Input((6, 6, 4))
    conv = layers.Conv2D(4, 1)
    x = conv(conv(inputs))
    x = layers.BatchNormalization(name="norm")(x)
    assert_folds(keras.Model(inputs, x), ["norm"])
    norm = layers.BatchNormalization(name="shared")
    x = norm(layers.Conv2D(4, 1)(norm(inputs)))
    assert_folds(keras.Model(inputs, x), ["shared"])


def test_nested_models_stay():
    inner = block()
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(4, 1)(inputs)
    x = layers.BatchNormalization()(x)
    folded = assert_folds(keras.Model(inputs, inner(x)))
    assert norms(folded.get_layer(inner.name)) == ["norm"]


def test_folded_models_load(tmp_path):
    model = MobileNetV2(
        0.35, "two_level", groups=4, input_shape=(32, 32, 3), classes=4
    )
    folded = assert_folds(model)
    folded.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    x = random(2, 32, 32, 3)
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), folded.predict(x, verbose=0), atol=1e-6
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(4, 1)

    def call(self, x):
        return self.conv(x)


def test_errors():
    rule = "The model must be functional or Sequential, and built, .*Received"
    model = Subclassed()
    model(random(1, 4, 4, 2))
    with pytest.raises(ValueError, match=f"{rule}.*Subclassed, built=True"):
        fold_batch_norm(model)
    with pytest.raises(ValueError, match=rf"{rule}.*built=False\. Build it"):
        fold_batch_norm(keras.Sequential([layers.Conv2D(4, 1)]))
