import pathlib
from itertools import combinations

import keras
import numpy as np
import pytest
from helpers import gradients, random, to_numpy
from networks import EVERY_NETWORK, EVERY_PAIR, OPTIONS, layers_of, small

from keras_tlgc import costs
from keras_tlgc.applications import (
    WideResNet,
    WideResNet28x10,
    WideResNet34x2,
    WideResNetImageNet,
)
from keras_tlgc.applications.convolutions import CONVOLUTIONS, convolution, pair

pytestmark = pytest.mark.usefixtures("few_stages")

IMAGES = random(3, 8, 8, 3)  # Of 2 values, BN leaves the signs alone.
LABELS = np.array([0, 1, 2])


# Every kind of convolution in every network


@EVERY_PAIR
def test_every_variable_gets_a_finite_gradient(build, conv):
    model = small(build, conv)
    dx, dw = gradients(model, IMAGES)
    assert dx.shape == IMAGES.shape
    for v, gradient in zip(model.trainable_variables, dw, strict=True):
        assert np.isfinite(gradient).all(), v.path
        assert gradient.any(), v.path


@EVERY_PAIR
def test_fit_in_mixed_precision(build, conv):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = small(build, conv)
    assert model.output.dtype == "bfloat16"
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = [to_numpy(v) for v in model.trainable_variables]
    model.fit(IMAGES, LABELS, verbose=0)
    for v, old in zip(model.trainable_variables, before, strict=True):
        assert np.isfinite(to_numpy(v)).all(), v.path
        assert (to_numpy(v) != old).any(), v.path


@EVERY_PAIR
def test_save_and_load(build, conv, tmp_path):
    model = small(build, conv)
    y = model.predict(IMAGES, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), y)


@EVERY_PAIR
def test_channels_first_equals_channels_last(build, conv):
    last = small(build, conv)
    keras.config.set_image_data_format("channels_first")
    first = small(build, conv)
    first.set_weights(last.get_weights())
    np.testing.assert_allclose(
        first.predict(np.moveaxis(IMAGES, -1, 1), verbose=0),
        last.predict(IMAGES, verbose=0),
        atol=1e-5,
    )


@pytest.mark.once
@EVERY_PAIR
def test_layers_and_their_parameters(build, conv):
    plain, model = layers_of(small(build)), layers_of(small(build, conv))
    assert list(plain)[1:] == list(model)[1:]
    chosen = type(convolution(conv)(1, 1, kernel_initializer=zeros()))
    seen = set()
    for name, layer in list(model.items())[1:]:
        if type(plain[name]) is not keras.layers.Conv2D or "stem" in name:
            assert type(layer) is type(plain[name])
            assert layer.count_params() == plain[name].count_params()
            continue
        last_one_level = (name, conv) == ("head_conv", "two_level")
        kind = "group" if last_one_level else conv
        assert (type(layer) is chosen) == (not last_one_level)
        assert layer.count_params() == parameters(plain[name], kind)
        seen.add(name)
    assert len(seen) >= 5


def parameters(conv, kind):
    """Return the formula of the kind for the size of a convolution."""
    *window, m, n = conv.kernel.shape
    k2, groups = np.prod(window), OPTIONS["groups"]
    r = OPTIONS["coarse_channels"]
    return {
        "standard": k2 * m * n,
        "group": k2 * m * n // groups,
        "shuffle": k2 * m * n // groups,
        "learnable": k2 * m * n + groups * (m + n),
        "two_level": k2 * m * n // groups + k2 * m * r + groups * r * n,
        "balanced": 2 * k2 * m * n // groups,
        "low_rank": k2 * m * r + groups * r * n,
    }[kind]


def zeros():
    return keras.initializers.Zeros()


@pytest.mark.parametrize("conv", ["two_level", "learnable"])
def test_kernels_of_one_shape_start_differently(conv):
    options = {"coarse_channels": 4} if conv == "two_level" else {}
    layer = convolution(conv, groups=4, **options)(
        16, 1, use_bias=False, kernel_initializer=he()
    )
    layer.build((None, 4, 4, 16))
    values = [to_numpy(v) for v in layer.weights]
    pairs = [(a, b) for a, b in combinations(values, 2) if a.shape == b.shape]
    assert len(pairs) == 1  # G and R, or S and T.
    assert (pairs[0][0] != pairs[0][1]).any()


@pytest.mark.once
def test_coarse_level_starts_small_in_networks():
    layer = convolution("two_level", groups=2)(
        200, 3, padding="same", kernel_initializer=he()
    )
    layer.build((None, 4, 4, 200))
    assert 0.8 < np.std(to_numpy(layer.coarse_kernel)) / 0.1 < 1.2
    x = random(4, 4, 4, 200)
    both = np.var(to_numpy(layer(x)))
    layer.coarse_kernel.assign(np.zeros((2, 200)))
    assert np.var(to_numpy(layer(x))) < both < 1.2 * np.var(to_numpy(layer(x)))


@pytest.mark.once
@pytest.mark.parametrize("groups", [1, 4])
def test_low_rank_starts_with_the_variance_of_a_dense_convolution(groups):
    x = random(4, 6, 6, 64)
    variances = []
    for make in (
        convolution("low_rank", groups=groups, coarse_channels=64),
        convolution("standard"),
    ):
        layer = make(64, 3, kernel_initializer=he())
        variances.append(np.var(to_numpy(layer(x))))
    assert 0.9 < variances[0] / variances[1] < 1.1


def he():
    return keras.initializers.HeNormal()


# What every network does, whatever its convolutions


@pytest.mark.once
@EVERY_NETWORK
@pytest.mark.parametrize("path_type", [str, pathlib.Path])
def test_weights(build, path_type, tmp_path):
    path = path_type(tmp_path / "model.weights.h5")
    model = small(build, "two_level")
    model.save_weights(path)
    other = small(build, "two_level", weights=path)
    assert len(model.weights) == len(other.weights)
    for saved, loaded in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(saved), to_numpy(loaded))


@pytest.mark.once
@EVERY_NETWORK
def test_weights_of_another_architecture(build, tmp_path):
    path = tmp_path / "model.weights.h5"
    small(build, "group", groups=4).save_weights(path)
    for other in (
        dict(conv="group", groups=2),
        dict(conv="shuffle", groups=4),
        dict(conv="two_level", groups=4),
        dict(conv="standard"),
    ):
        with pytest.raises(
            ValueError,
            match=r"`weights` must be a file of weights of the same network.*"
            r"model.weights.h5.*does not fit '\w+.*Build the network with",
        ):
            small(build, weights=path, **other)
    path.write_text("no weights")
    with pytest.raises(ValueError, match=r"`weights` must be a file of weig"):
        small(build, "group", weights=path)


@pytest.mark.once
@EVERY_NETWORK
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_default_input_shape(build, data_format):
    size = 32 if build is WideResNet else 224
    keras.config.set_image_data_format(data_format)
    shape = small(build, input_shape=None).input_shape
    if data_format == "channels_last":
        assert shape == (None, size, size, 3)
    else:
        assert shape == (None, 3, size, size)


@EVERY_NETWORK
def test_unknown_image_size(build):
    model = small(build, input_shape=(None, None, 3))
    assert model.output_shape[1:] in [(10,), (1000,)]
    assert len(model.predict(random(1, 9, 7, 3), verbose=0)) == 1


@pytest.mark.once
@EVERY_NETWORK
def test_without_top(build):
    kwargs = dict(include_top=False)
    features = small(build, **kwargs)
    y = features.predict(IMAGES, verbose=0)
    assert y.shape == (3, *features.output_shape[1:])
    for pooling, reduce in {"avg": np.mean, "max": np.max}.items():
        model = small(build, pooling=pooling, **kwargs)
        model.set_weights(features.get_weights())
        np.testing.assert_allclose(
            model.predict(IMAGES, verbose=0),
            reduce(y, axis=(1, 2)),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.once
@EVERY_NETWORK
def test_classes_and_logits(build):
    probabilities = small(build, classes=7)
    logits = small(build, classes=7, classifier_activation=None)
    logits.set_weights(probabilities.get_weights())
    p, z = (m.predict(IMAGES, verbose=0) for m in (probabilities, logits))
    assert p.shape == z.shape == (3, 7)
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-5)
    softmax = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(p, softmax, rtol=1e-4)


@pytest.mark.once
@EVERY_NETWORK
def test_input_tensor(build):
    images = keras.Input((8, 8, 3))
    model = small(build, input_tensor=keras.layers.Rescaling(1 / 255)(images))
    assert model.input is images  # And no list, which an export would take.
    assert len(model.inputs) == 1
    assert model.inputs[0] is images
    plain = small(build, input_tensor=keras.Input((8, 8, 3)))
    plain.set_weights(model.get_weights())
    np.testing.assert_allclose(
        model.predict(255 * IMAGES, verbose=0),
        plain.predict(IMAGES, verbose=0),
        rtol=1e-4,
    )


@pytest.mark.once
@EVERY_NETWORK
def test_settings_of_the_papers_networks(build):
    batch_norms = 0
    for name, layer in layers_of(small(build, "two_level")).items():
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
            batch_norms += 1
        elif hasattr(layer, "use_bias"):
            assert layer.use_bias == (name == "predictions")
        if max(getattr(layer, "strides", (1,))) > 1 and "shortcut" not in name:
            assert layer.padding == "valid"
            assert isinstance(
                layer.input._keras_history.operation,
                keras.layers.ZeroPadding2D,
            )
    assert batch_norms >= 5


@pytest.mark.once
@EVERY_NETWORK
def test_name(build):
    assert small(build, name="other").name == "other"
    assert small(build).name.startswith(("wide_resnet_", "mobilenet_v2_"))


@pytest.mark.once
@pytest.mark.parametrize(
    "preset, build, numbers",
    [
        (WideResNet28x10, WideResNet, dict(depth=28, width=10)),
        (WideResNet34x2, WideResNetImageNet, dict(depth=34, width=2)),
    ],
)
def test_presets(preset, build, numbers, monkeypatch):
    monkeypatch.undo()  # The whole tables.
    kwargs = dict(conv="two_level", groups=8, coarse_channels=2, classes=5)
    assert costs.model_costs(lambda: preset(**kwargs)) == costs.model_costs(
        lambda: build(**numbers, **kwargs)
    )


# The registry


@pytest.mark.once
def test_pairs_of_kinds_and_groups():
    assert pair(["group", "standard", "two_level"], [4, 2]) == [
        ("standard", 1),
        ("group", 4),
        ("two_level", 4),
        ("group", 2),
        ("two_level", 2),
    ]


@pytest.mark.once
def test_pairs_errors():
    with pytest.raises(ValueError, match=r"`conv` must be one of.*'dense'"):
        pair(["group", "dense"], [2])
    with pytest.raises(ValueError, match=r"`groups` must be a positive.*=0"):
        pair(["group"], [0])


@pytest.mark.once
def test_one_entry_adds_a_kind(monkeypatch):
    sixth = CONVOLUTIONS["group"]._replace(label="sixth")
    monkeypatch.setitem(CONVOLUTIONS, "sixth", sixth)
    model = small(WideResNet, "sixth")
    assert layers_of(model)["stage1_block1_conv1"].groups == 2
