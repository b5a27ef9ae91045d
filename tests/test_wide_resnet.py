import contextlib
import json
import pathlib

import keras
import numpy as np
import pytest
from helpers import gradients, random, run_python, to_numpy

from keras_tlgc.applications import WideResNet
from keras_tlgc.applications.convolutions import CONVOLUTIONS, convolution
from keras_tlgc.costs import count_params

STANDARD = dict(conv="standard")


def group(groups):
    return dict(conv="group", groups=groups)


def two_level(groups):
    return dict(conv="two_level", groups=groups)


# Millions of parameters of WideResNet-28, as Tables 1 and 2 print them:
# (width, arguments, number, decimals).
PAPER = [
    (10, STANDARD, 36.48, 2),
    (10, group(2), 18.25, 2),
    (10, group(4), 9.14, 2),
    (10, group(8), 4.58, 2),
    (10, group(16), 2.30, 2),
    (10, two_level(2), 18.35, 2),
    (10, two_level(4), 9.25, 2),
    (10, two_level(8), 4.74, 2),
    (10, two_level(16), 2.54, 2),
    (40, STANDARD, 583.1, 1),
    (40, two_level(2), 292.0, 1),
    (40, two_level(4), 146.3, 1),
    (60, STANDARD, 1311.7, 1),
    (60, two_level(2), 656.5, 1),
    (60, two_level(4), 328.7, 1),
    (80, STANDARD, 2331.8, 1),
    (80, two_level(2), 1166.8, 1),
    (80, two_level(4), 584.0, 1),
]

# Options that differ from 1, for every kind that takes them.
OPTIONS = {"groups": 2, "coarse_channels": 3}
EVERY_KIND = pytest.mark.parametrize("conv", CONVOLUTIONS)


def options_of(conv):
    return {name: OPTIONS[name] for name in CONVOLUTIONS[conv].options}


def small(conv="standard", **kwargs):
    """Return the smallest network of the kind."""
    defaults = dict(input_shape=(8, 8, 3), **options_of(conv))
    return WideResNet(10, 1, conv=conv, **defaults | kwargs)


# Counting parameters


@pytest.mark.parametrize("width, kwargs, millions, decimals", PAPER)
def test_parameters_of_the_paper(width, kwargs, millions, decimals):
    count = count_params(lambda: WideResNet(28, width, **kwargs))
    assert round(count / 1e6, decimals) == millions


@EVERY_KIND
def test_count_params_equals_the_model(conv):
    model = small(conv)
    expected = sum(
        int(np.prod(v.shape, dtype=int)) for v in model.trainable_variables
    )
    count = count_params(lambda: small(conv))
    assert type(count) is int
    assert count == expected < model.count_params()


def test_count_params_of_a_layer():
    layer = keras.layers.Dense(3)

    def build():
        layer.build((None, 4))
        return layer

    assert count_params(build) == 15


def test_count_params_propagates_errors():
    with pytest.raises(ValueError, match="`depth` must be 6 b"):
        count_params(lambda: WideResNet(11))
    with pytest.raises(ZeroDivisionError):
        count_params(lambda: 1 / 0)


def test_count_params_leaves_nothing_behind():
    keras.utils.clear_session(free_memory=False)
    assert keras.layers.Dense(1).name == "dense"

    def build():
        for _ in range(3):
            keras.layers.Dense(1)
        return small()

    count_params(build)
    with contextlib.suppress(ZeroDivisionError):
        count_params(lambda: [small(), 1 / 0])
    assert keras.layers.Dense(1).name == "dense_1"
    # Variables have values again.
    model = small()
    model.compile("sgd", "sparse_categorical_crossentropy")
    history = model.fit(random(2, 8, 8, 3), np.array([0, 1]), verbose=0)
    assert np.isfinite(history.history["loss"]).all()


COUNT_LARGE = """
import json, resource
import keras
from keras_tlgc.applications import WideResNet
from keras_tlgc.costs import count_params

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

count_params(lambda: WideResNet(10, 1))  # What a backend loads lazily.
before = peak()
count = count_params(lambda: WideResNet(28, 80))
print(json.dumps([count, peak() - before]))
"""


def test_count_params_allocates_nothing():
    count, megabytes = json.loads(run_python(COUNT_LARGE).splitlines()[-1])
    assert count > 2.3e9  # 9.3 GB in float32.
    assert megabytes < 300


# Every kind of convolution


@EVERY_KIND
def test_every_variable_gets_a_finite_gradient(conv):
    model = small(conv)
    dx, dw = gradients(model, random(2, 8, 8, 3))
    assert dx.shape == (2, 8, 8, 3)
    for v, gradient in zip(model.trainable_variables, dw, strict=True):
        assert np.isfinite(gradient).all(), v.path
        assert gradient.any(), v.path


@EVERY_KIND
def test_fit(conv):
    model = small(conv)
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = [to_numpy(v) for v in model.trainable_variables]
    model.fit(random(2, 8, 8, 3), np.array([0, 1]), verbose=0)
    for v, old in zip(model.trainable_variables, before, strict=True):
        assert np.isfinite(to_numpy(v)).all(), v.path
        assert (to_numpy(v) != old).any(), v.path


@EVERY_KIND
def test_save_and_load(conv, tmp_path):
    model = small(conv)
    x = random(2, 8, 8, 3)
    y = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), y)


@EVERY_KIND
@pytest.mark.parametrize("path_type", [str, pathlib.Path])
def test_weights(conv, path_type, tmp_path):
    path = path_type(tmp_path / "model.weights.h5")
    model = small(conv)
    model.save_weights(path)
    other = small(conv, weights=path)
    assert len(model.weights) == len(other.weights)
    for saved, loaded in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(saved), to_numpy(loaded))


@EVERY_KIND
def test_mixed_precision(conv):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = small(conv)
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    assert model.output.dtype == "bfloat16"
    y = model.predict(random(2, 8, 8, 3), verbose=0).astype("float32")
    np.testing.assert_allclose(y.sum(axis=-1), 1, atol=0.05)


@EVERY_KIND
def test_layers_of_each_kind(conv):
    model = small(conv)
    layers = {layer.name: layer for layer in model.layers}
    assert type(layers["stem_conv"]) is keras.layers.Conv2D
    kind = type(CONVOLUTIONS[conv].make(1, 1, **init()))
    names = ["stage1_block1_conv1", "stage2_block1_shortcut"]
    assert {type(layers[name]) for name in names} == {kind}
    for name in CONVOLUTIONS[conv].options:
        assert getattr(layers[names[0]], name) == OPTIONS[name]


def init():
    return {"kernel_initializer": keras.initializers.HeNormal()}


def test_kernels_of_both_levels_start_differently():
    make = convolution("two_level", groups=4, coarse_channels=4)
    layer = make(16, 1, **init())
    layer.build((None, 4, 4, 16))
    shapes = [v.shape for v in layer.weights if "bias" not in v.name]
    assert len(shapes) == 3
    fine, restriction = (
        to_numpy(layer.kernel),
        to_numpy(layer.restriction_kernel),
    )
    assert fine.shape == restriction.shape
    assert (fine != restriction).any()


# The network


def test_names_and_shapes_of_layers():
    model = WideResNet(16, 2, input_shape=(9, 8, 3))
    shapes = {
        layer.name: tuple(layer.output.shape[1:]) for layer in model.layers
    }
    expected = {"stem_conv": (9, 8, 16), "predictions": (10,)}
    sizes = {1: (9, 8, 32), 2: (5, 4, 64), 3: (3, 2, 128)}
    inputs = {1: (9, 8, 16), 2: (9, 8, 32), 3: (5, 4, 64)}
    for stage, size in sizes.items():
        for block in (1, 2):
            name = f"stage{stage}_block{block}"
            expected[f"{name}_bn1"] = inputs[stage] if block == 1 else size
            for layer in ("conv1", "bn2", "conv2"):
                expected[f"{name}_{layer}"] = size
        expected[f"stage{stage}_block1_shortcut"] = size
    expected["head_bn"] = sizes[3]
    weighted = {layer.name for layer in model.layers if layer.weights}
    assert weighted == set(expected)
    assert {name: shapes[name] for name in expected} == expected
    assert model.name == "wide_resnet_16_2"
    assert small(name="other").name == "other"


def test_strided_convolutions_pad_by_one_on_every_side():
    model = small()
    layers = {layer.name: layer for layer in model.layers}
    assert layers["stage2_block1_pad"].padding == ((1, 1), (1, 1))
    assert layers["stage2_block1_conv1"].padding == "valid"
    assert layers["stage2_block1_conv1"].strides == (2, 2)


def test_shortcut_reads_the_preactivated_input():
    model = small()
    layers = {layer.name: layer for layer in model.layers}
    shortcut, relu = (
        layers["stage2_block1_shortcut"],
        layers["stage2_block1_bn1_relu"],
    )
    assert shortcut.input is relu.output
    assert "stage1_block1_shortcut" not in layers  # 16 channels, stride 1.


def test_settings_of_the_papers_networks():
    for layer in small("two_level").layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
        if layer.name.endswith(("conv", "conv1", "conv2", "shortcut")):
            assert not layer.use_bias


def test_channels_first_equals_channels_last():
    last = small("two_level")
    keras.config.set_image_data_format("channels_first")
    first = small("two_level", input_shape=(3, 8, 8))
    assert first.get_layer("stage3_block1_conv1").output.shape[1] == 64
    first.set_weights(last.get_weights())
    x = random(2, 8, 8, 3)
    np.testing.assert_allclose(
        first.predict(np.moveaxis(x, -1, 1), verbose=0),
        last.predict(x, verbose=0),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "data_format, shape",
    [("channels_last", (32, 32, 3)), ("channels_first", (3, 32, 32))],
)
def test_default_input_shape(data_format, shape):
    keras.config.set_image_data_format(data_format)
    assert WideResNet(10, 1).input_shape == (None, *shape)


def test_unknown_image_size():
    model = small(input_shape=(None, None, 3), pooling="avg")
    assert model.predict(random(1, 7, 6, 3), verbose=0).shape == (1, 10)


def test_without_top():
    x = random(2, 8, 8, 3)
    kwargs = dict(include_top=False)
    features = small(**kwargs)
    model = {
        pooling: small(pooling=pooling, **kwargs) for pooling in ("avg", "max")
    }
    y = features.predict(x, verbose=0)
    assert y.shape == (2, 2, 2, 64)
    for pooling, reduce in {"avg": np.mean, "max": np.max}.items():
        model[pooling].set_weights(features.get_weights())
        np.testing.assert_allclose(
            model[pooling].predict(x, verbose=0),
            reduce(y, axis=(1, 2)),
            rtol=1e-4,
            atol=1e-5,
        )


def test_classes_and_logits():
    probabilities = small(classes=7)
    logits = small(classes=7, classifier_activation=None)
    logits.set_weights(probabilities.get_weights())
    x = random(2, 8, 8, 3)
    p, z = (m.predict(x, verbose=0) for m in (probabilities, logits))
    assert p.shape == z.shape == (2, 7)
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-5)
    softmax = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(p, softmax, rtol=1e-4)


def test_input_tensor():
    images = keras.Input((8, 8, 3))
    model = small(input_tensor=keras.layers.Rescaling(1 / 255)(images))
    assert len(model.inputs) == 1
    assert model.inputs[0] is images
    plain = small(input_tensor=keras.Input((8, 8, 3)))
    plain.set_weights(model.get_weights())
    x = random(2, 8, 8, 3)
    np.testing.assert_allclose(
        model.predict(255 * x, verbose=0),
        plain.predict(x, verbose=0),
        rtol=1e-4,
    )


def test_dropout():
    def rates(model):
        return {
            layer.name: layer.rate
            for layer in model.layers
            if isinstance(layer, keras.layers.Dropout)
        }

    assert rates(small()) == {}
    model = small(dropout=0.3)
    names = [f"stage{stage}_block1_dropout" for stage in (1, 2, 3)]
    assert rates(model) == dict.fromkeys(names, 0.3)
    conv2 = model.get_layer("stage1_block1_conv2")
    assert conv2.input is model.get_layer(names[0]).output


# Errors


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(depth=11), "`depth` must be 6 b .*depth=11.*Try 10, 16"),
        (dict(depth=4), "`depth` must be 6 b .*depth=4"),
        (dict(depth=28.0), "`depth` must be a positive integer.*depth=28.0"),
        (dict(width=0), "`width` must be a positive integer.*width=0"),
        (dict(width=1.5), "`width` must be a positive integer.*width=1.5"),
        (dict(groups=0), "`groups` must be a positive integer.*groups=0"),
        (
            dict(conv="group", groups=3),
            "`groups` must divide the channels of every.*groups=3.*"
            r"'stage1_block1_conv1' has 16.*\[1, 2, 4, 8, 16\]",
        ),
        (dict(conv="group", groups=32), "`groups` must divide.*groups=32"),
        (dict(conv="dense"), "`conv` must be one of .*two_level.*'dense'"),
        (
            dict(groups=2),
            "`groups` must be 1 for conv='standard'.*groups=2.*Leave it out",
        ),
        (
            dict(conv="group", coarse_channels=2),
            "`coarse_channels` must be 1 for conv='group'.*channels=2",
        ),
        (
            dict(conv="two_level", coarse_channels=0),
            "`coarse_channels` must be a positive integer.*channels=0",
        ),
        (
            dict(include_top=False, pooling="min"),
            "`pooling` must be one of.*pooling='min'",
        ),
        (
            dict(input_shape=(32, 32)),
            r"`input_shape` must have 3 entries.*\(32, 32\).*Leave the batch",
        ),
        (
            dict(input_shape=(None, 32, 32, 3)),
            "`input_shape` must have 3 entries.*None, 32, 32, 3",
        ),
        (dict(classes=0), "`classes` must be a positive integer.*classes=0"),
        (dict(classes=2.0), "`classes` must be a positive integer.*=2.0"),
        (
            dict(weights="nowhere.weights.h5"),
            "`weights` must be None or the path.*'nowhere.weights.h5'.*"
            "Check the path",
        ),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        WideResNet(**{"depth": 10, "width": 1} | kwargs)
