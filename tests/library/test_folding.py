"""Folding batch normalisation into convolutions."""

import keras
import numpy as np
import pytest
from cases import ONE_FORMAT
from helpers import once, random, to_numpy
from keras import layers
from networks import options_for_inference

from keras_tlgc.applications import MobileNetV2, WideResNet
from keras_tlgc.applications.convolutions import CONVOLUTIONS
from keras_tlgc.layers import (
    GroupConv1D,
    GroupConv2D,
    GroupConv3D,
    LearnableGroupConv2D,
    RaggedGroupConv2D,
    ShuffleGroupConv1D,
    ShuffleGroupConv2D,
    ShuffleGroupConv3D,
    TwoLevelGroupConv1D,
    TwoLevelGroupConv2D,
    TwoLevelGroupConv3D,
)
from keras_tlgc.rewrite import fold_batch_norm


def randomise(model):
    """Give all that is constant at first values that show."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "moving_mean") or (
            "bias" in variable.name
        ):
            variable.assign(rng.normal(size=variable.shape))


def norms(model):
    return [
        layer.name
        for layer in model._flatten_layers()
        if isinstance(layer, layers.BatchNormalization)
    ]


def assert_same(y, expected):
    pairs = zip(
        keras.tree.flatten(y), keras.tree.flatten(expected), strict=True
    )
    for one, other in pairs:
        # Relative to the largest: rounding alone, in either of the models,
        # moves outputs of 6 after 52 normalisations by up to 3e-4.
        atol = 1e-4 * max(1, np.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=atol)
        assert np.std(other) > 1e-2  # There is something to compare.


def assert_folds(model, left=()):
    """Check outputs, and the names of the normalisations that stay."""
    randomise(model)
    x = random(2, *model.inputs[0].shape[1:])
    before = model.get_weights()
    expected = model.predict(x, verbose=0)
    folded = fold_batch_norm(model)
    assert norms(folded) == list(left)
    assert not folded.compiled and folded.name == model.name
    assert_same(folded.predict(x, verbose=0), expected)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert norms(fold_batch_norm(model)) == list(left)  # No calls were added.
    return folded


def conv_and_norm(conv, shape=(6, 6, 4), **options):
    return keras.Sequential(
        [
            keras.Input(shape),
            conv,
            layers.BatchNormalization(name="norm", **options),
        ]
    )


SHAPES = {1: (9, 4), 2: (5, 6, 4), 3: (4, 5, 4, 4)}
SINGLE = [
    (layers.Conv1D, 1, dict(filters=8)),
    (layers.Conv2D, 2, dict(filters=8)),
    (layers.Conv3D, 3, dict(filters=8)),
    (layers.DepthwiseConv1D, 1, dict(depth_multiplier=2)),
    (layers.DepthwiseConv2D, 2, dict(depth_multiplier=2)),
    (GroupConv1D, 1, dict(filters=8, groups=2)),
    (GroupConv2D, 2, dict(filters=8, groups=2)),
    (GroupConv3D, 3, dict(filters=8, groups=2)),
    (ShuffleGroupConv1D, 1, dict(filters=8, groups=2)),
    (ShuffleGroupConv2D, 2, dict(filters=8, groups=2)),
    (ShuffleGroupConv3D, 3, dict(filters=8, groups=2)),
    (LearnableGroupConv2D, 2, dict(filters=8, groups=2)),
    (
        RaggedGroupConv2D,
        2,
        dict(
            filters=4,
            input_groups=[[0, 2], [1, 3], []],
            output_groups=[[3], [0, 2], [1]],
        ),
    ),
    (TwoLevelGroupConv1D, 1, dict(filters=8, groups=2)),
    (
        TwoLevelGroupConv2D,
        2,
        dict(filters=8, groups=2, coarse_channels=2, coarse_kernel_size=1),
    ),
    (TwoLevelGroupConv3D, 3, dict(filters=8, groups=2)),
]


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize(
    "kind, rank, options", SINGLE, ids=[kind.__name__ for kind, *_ in SINGLE]
)
def test_each_convolution(kind, rank, options, use_bias):
    conv = kind(kernel_size=2, use_bias=use_bias, **options)
    folded = assert_folds(conv_and_norm(conv, SHAPES[rank]))
    assert folded.layers[-1].use_bias
    assert folded.layers[-1].name == conv.name


@pytest.mark.once
@pytest.mark.parametrize(
    "options", [dict(scale=False), dict(center=False), dict(epsilon=0.5)]
)
def test_options_of_the_normalisation(options):
    conv = TwoLevelGroupConv2D(8, 3, groups=2)
    assert_folds(conv_and_norm(conv, **options))


@pytest.mark.usefixtures("few_stages")
@pytest.mark.parametrize("data_format", ONE_FORMAT)
@pytest.mark.parametrize(
    "conv",
    [conv if conv == "two_level" else once(conv) for conv in CONVOLUTIONS],
)
def test_networks(conv, data_format):
    keras.config.set_image_data_format(data_format)
    options = options_for_inference(conv, data_format)
    model = WideResNet(10, 1, **options)
    # Blocks normalise what they read, and what their first convolution gives.
    stay = [name for name in norms(model) if not name.endswith("_bn2")]
    assert len(stay) == len(norms(model)) - 2
    assert_folds(model, stay)
    assert_folds(MobileNetV2(**options))


@pytest.mark.once
def test_whole_mobilenet_saves_and_loads(tmp_path):
    model = MobileNetV2(
        0.35,
        "two_level",
        groups=8,
        input_shape=(32, 32, 3),
        classifier_activation=None,
    )
    folded = assert_folds(model)
    folded.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    x = random(2, 32, 32, 3)
    assert_same(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.once
def test_learned_groups_are_taken_apart_after_folding():
    model = conv_and_norm(LearnableGroupConv2D(8, 3, groups=2, use_bias=False))
    fast = keras.models.clone_model(
        assert_folds(model),
        clone_function=lambda layer: layer.to_group_conv(),
    )
    assert type(fast.layers[-1]) is RaggedGroupConv2D
    x = random(2, 6, 6, 4)
    assert_same(fast.predict(x, verbose=0), model.predict(x, verbose=0))


def block(between=lambda x: x, outputs=lambda x, y: y, training=None, **norm):
    """Return a model of a convolution and a normalisation named `norm`."""
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(6, 1, name="conv")(inputs)
    normalise = layers.BatchNormalization(name="norm", **norm)
    y = normalise(between(x), training=training)
    return keras.Model(inputs, outputs(x, y))


@pytest.mark.once
@pytest.mark.parametrize(
    "differs",
    [
        dict(between=keras.ops.relu),
        dict(axis=1),
        dict(axis=-2),
        dict(outputs=lambda x, y: layers.Add()([x, y])),
        dict(outputs=lambda x, y: [x, y]),
        dict(training=True),
        dict(dtype="mixed_bfloat16"),
    ],
    ids=[
        "activation between",
        "height",
        "width",
        "residual",
        "output",
        "training",
        "dtype",
    ],
)
def test_what_is_not_folded(differs):
    if "training" in differs:  # It changes the model's statistics.
        assert norms(fold_batch_norm(block(**differs))) == ["norm"]
    else:
        assert_folds(block(**differs), ["norm"])


@pytest.mark.once
@pytest.mark.parametrize(
    "conv",
    [
        layers.Conv2D(4, 1, activation="relu"),
        layers.Conv2DTranspose(4, 1),
        layers.SeparableConv2D(4, 1),
    ],
    ids=lambda conv: conv.name,
)
def test_convolutions_that_are_not_folded(conv):
    assert_folds(conv_and_norm(conv), ["norm"])


@pytest.mark.once
def test_an_adapted_convolution_is_not_folded():
    model = conv_and_norm(layers.Conv2D(4, 1))
    model.layers[0].enable_lora(2)
    assert_folds(model, ["norm"])


@pytest.mark.once
def test_shared_layers_are_not_folded():
    inputs = keras.Input((6, 6, 4))
    conv = layers.Conv2D(4, 1)
    x = layers.BatchNormalization(name="norm")(conv(conv(inputs)))
    assert_folds(keras.Model(inputs, x), ["norm"])
    norm = layers.BatchNormalization(name="shared")
    x = norm(layers.Conv2D(4, 1)(norm(inputs)))
    assert_folds(keras.Model(inputs, x), ["shared"])


@pytest.mark.once
def test_only_calls_in_the_model_count():
    whole = keras.Sequential()
    whole.add(keras.Input((6, 6, 4)))
    for part in [
        layers.Conv2D(6, 1),
        layers.BatchNormalization(),
        layers.Conv2D(6, 3, use_bias=False),
        layers.BatchNormalization(name="last"),
        layers.ReLU(),
    ]:
        whole.add(part)  # Keras calls all layers before it again.
    assert_folds(whole)
    assert_folds(keras.Sequential([whole.inputs[0], *whole.layers[:-2]]))
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(4, 1)(inputs)
    norm = layers.BatchNormalization(name="norm")
    y = norm(x)
    both = keras.Model(inputs, layers.Add()([x, y]))
    norm(x, training=True)
    assert_folds(keras.Model(inputs, y))
    assert_folds(both, ["norm"])


@pytest.mark.once
def test_what_is_frozen_stays_so():
    model = conv_and_norm(layers.Conv2D(4, 1))
    model.trainable = False
    assert not assert_folds(model).trainable


@pytest.mark.once
@pytest.mark.parametrize("training, left", [(False, []), (True, ["norm"])])
def test_nested_models(training, left):
    inner = conv_and_norm(layers.Conv2D(4, 1, name="conv"))
    wrapped = layers.TimeDistributed(block())
    inputs = keras.Input((6, 6, 4))
    x = inner(inner(inputs, training=training))
    x = layers.Conv2D(4, 1, name="conv")(x)
    x = layers.BatchNormalization()(x)
    x = wrapped(keras.ops.expand_dims(x, 1))
    model = keras.Model(inputs, x)
    if not training:
        assert_folds(model, left)
    randomise(model)
    folded = fold_batch_norm(model)
    assert norms(folded) == left
    if training:
        kept = folded.get_layer(inner.name).get_weights()
        for one, other in zip(kept, inner.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.once
def test_all_else_is_kept():
    inputs = {
        "a": keras.Input((6, 6, 4), name="a"),
        "b": keras.Input((6,), name="b"),
    }
    normalise = layers.Normalization()
    normalise.adapt(random(50, 4) * 5 + 3)
    x = layers.Conv2D(6, 1, use_bias=False)(normalise(inputs["a"]))
    x = layers.BatchNormalization()(inputs=x)
    y = keras.ops.mean(x, axis=[1, 2]) * inputs["b"]
    model = keras.Model(inputs, {"map": x, "vector": y})
    randomise(model)
    model.compile("sgd", "mse")
    folded = fold_batch_norm(model)
    assert norms(folded) == [] and not folded.compiled
    x = {"a": random(2, 6, 6, 4), "b": random(2, 6)}
    y, expected = folded.predict(x), model.predict(x)
    assert y.keys() == expected.keys()
    assert_same(y, expected)
    # Training one leaves the other.
    weights = [to_numpy(v) + 0 for v in folded.weights]
    model.fit(x, expected | {"vector": expected["vector"] + 1}, verbose=0)
    for one, other in zip(weights, folded.weights, strict=True):
        np.testing.assert_array_equal(one, to_numpy(other))


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = conv_and_norm(TwoLevelGroupConv2D(8, 3, groups=2))
    randomise(model)
    folded = fold_batch_norm(model)
    assert norms(folded) == []
    assert folded.layers[-1].dtype_policy.name == "mixed_bfloat16"
    x = random(2, 6, 6, 4)
    np.testing.assert_allclose(
        to_numpy(folded(x)), to_numpy(model(x, training=False)), atol=0.1
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(4, 1)

    def call(self, x):
        return self.conv(x)


@pytest.mark.once
def test_errors():
    rule = "The model must be functional or Sequential, and built, .*Received"
    model = Subclassed()
    model(random(1, 4, 4, 2))
    with pytest.raises(ValueError, match=f"{rule}.*Subclassed, built=True"):
        fold_batch_norm(model)
    with pytest.raises(ValueError, match=rf"{rule}.*built=False\. Build it"):
        fold_batch_norm(keras.Sequential([layers.Conv2D(4, 1)]))
