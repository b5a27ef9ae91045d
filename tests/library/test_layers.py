"""What every layer must do, whatever its rank and kind."""

import inspect
import json

import keras
import numpy as np
import pytest
from cases import (
    BALANCED,
    CONV,
    FORMATS,
    LACKS,
    LEARNABLE,
    LOW_RANK,
    RAGGED,
    TWO_LEVEL,
    assert_near,
    built,
    every_layer,
    make,
    make_model,
    plain,
    two_level_case,
    unusual,
)
from helpers import gradients, random, to_numpy

from keras_tlgc import layers


@pytest.mark.once
@every_layer
def test_config_round_trip(cls):
    layer = unusual(cls)
    config = layer.get_config()
    assert cls.from_config(config).get_config() == config
    text = json.dumps(keras.saving.serialize_keras_object(layer))
    loaded = keras.saving.deserialize_keras_object(json.loads(text))
    assert type(loaded) is cls
    # JSON has no tuples.
    assert json.dumps(loaded.get_config()) == json.dumps(config)


@pytest.mark.once
@every_layer
def test_config_holds_every_argument(cls):
    config = unusual(cls).get_config()
    default = plain(cls, kernel_size=1).get_config()
    names = [n for n in inspect.signature(cls).parameters if n != "kwargs"]
    assert {*names} <= {*config}
    # Keras' own part of the config comes first.
    base = keras.Layer(activity_regularizer="l2").get_config()
    own = [n for n in names if n not in base]
    assert [n for n in config if n in own] == own
    for name in {*names, "name", "dtype", "trainable"} - {"dilation_rate"}:
        assert config[name] != default.get(name), name
    dilated = plain(cls, dilation_rate=3).get_config()
    assert dilated["dilation_rate"] == (3,) * cls.rank


@pytest.mark.once
@every_layer
def test_arguments_are_those_of_keras_in_order(cls):
    def names_and_defaults(cls):
        return [
            (p.name, 1 if p.default in [(1, 1), (1, 1, 1)] else p.default)
            for p in inspect.signature(cls).parameters.values()
            if p.name not in (*lacks, "kwargs")
        ]

    lacks = LACKS.get(cls, ())
    expected = names_and_defaults(CONV[cls.rank])
    assert len(expected) == 16 - ("groups" in lacks)
    assert names_and_defaults(cls)[: len(expected)] == expected


@every_layer
@pytest.mark.parametrize("data_format", FORMATS)
def test_unknown_sizes(cls, data_format):
    layer, x = make(cls, data_format=data_format)
    axis = -1 if data_format == "channels_last" else 1
    shape = [None] * x.ndim
    shape[axis] = x.shape[axis]
    inputs = keras.Input(batch_shape=shape)
    outputs = layer(inputs)
    shape[axis] = 4
    assert outputs.shape == tuple(shape)
    assert layer.compute_output_shape(inputs.shape) == tuple(shape)
    y = to_numpy(layer(x))
    assert y.shape == layer.compute_output_shape(x.shape)
    model = keras.Model(inputs, outputs)
    assert_near(model.predict(x, verbose=0), y)


@every_layer
def test_fit_changes_every_variable(cls):
    model, layer, x = make_model(cls)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = layer.get_weights()
    history = model.fit(x, random(len(x), 2, seed=1), verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert len(before) == len(layer.trainable_variables) >= 2
    for old, new in zip(before, layer.get_weights(), strict=True):
        assert np.isfinite(new).all()
        assert (old != new).any()


@pytest.mark.parametrize("groups", [20, 32])
def test_slices_of_several_groups_train(groups):
    """Other ways to put zeros between these groups crash XLA on CPUs."""
    x = random(16, 16, 16, 320)
    layer = layers.TwoLevelGroupConv2D(
        320, 3, padding="same", groups=groups, lowering="slices"
    )
    layer.build(x.shape)
    native = layers.TwoLevelGroupConv2D(
        320, 3, padding="same", groups=groups, lowering="native"
    )
    native.build(x.shape)
    native.set_weights(layer.get_weights())
    np.testing.assert_allclose(
        to_numpy(layer(x)), to_numpy(native(x)), atol=1e-4
    )
    for gradient in gradients(layer, x)[1]:
        assert np.isfinite(gradient).all()


@pytest.mark.once
@every_layer
def test_every_variable_gets_a_finite_gradient(cls):
    layer, x = make(cls)
    dx, dw = gradients(layer, x)
    for gradient, array in zip(
        [dx, *dw], [x, *layer.get_weights()], strict=True
    ):
        assert gradient.shape == array.shape
        assert np.isfinite(gradient).all()
        assert gradient.any()


@every_layer
@pytest.mark.parametrize(
    "policy, compute, variable",
    [
        ("mixed_bfloat16", "bfloat16", "float32"),
        ("mixed_float16", "float16", "float32"),
        ("float16", "float16", "float16"),
    ],
)
def test_low_precision(cls, policy, compute, variable):
    layer, x = make(cls, dtype=policy)
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == compute
    assert {v.dtype for v in layer.weights} == {variable}
    reference, _ = make(cls)
    tolerance = {"bfloat16": 0.1, "float16": 0.01}[compute]
    np.testing.assert_allclose(
        to_numpy(y), to_numpy(reference(x)), atol=tolerance
    )


@every_layer
def test_fit_in_mixed_precision(cls):
    model, layer, x = make_model(cls, dtype="mixed_bfloat16")
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = layer.get_weights()
    model.fit(x, random(len(x), 2, seed=1), verbose=0)
    for old, new in zip(before, layer.get_weights(), strict=True):
        assert np.isfinite(new).all()
        assert (old != new).any()


@every_layer
def test_save_and_load(cls, tmp_path):
    model, layer, x = make_model(cls)
    y = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is cls
    assert loaded.layers[0].get_config() == layer.get_config()
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), y)

    model.save_weights(tmp_path / "model.weights.h5")
    other, _, _ = make_model(cls)
    other.set_weights([0 * w for w in other.get_weights()])
    assert (other.predict(x, verbose=0) != y).any()
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.predict(x, verbose=0), y)


@pytest.mark.once
@every_layer
def test_summary(cls):
    model, layer, _ = make_model(cls)
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert layer.name in "\n".join(lines)
    assert f"{layer.count_params()}" in "\n".join(lines)


@pytest.mark.once
@every_layer
def test_names_of_variables(cls):
    layer, _ = make(cls)
    rank = "" if layer.rank == 2 else f"_{layer.rank}d"  # For layout maps.
    names = [f"group_kernel{rank}", "group_bias"]
    if cls in TWO_LEVEL.values():
        names += [f"restriction_kernel{rank}", "coarse_kernel"]
    if cls in LOW_RANK.values():
        names = [f"restriction_kernel{rank}", "coarse_kernel", "group_bias"]
    if cls in BALANCED.values():
        names.append(f"balance_kernel{rank}")
    if cls is LEARNABLE:
        names = ["masked_kernel", "input_selection", "output_selection"]
        names += ["group_bias"]
    if cls is RAGGED:
        names = ["group_kernel0", "group_kernel1", "group_bias"]
    assert [v.name for v in layer.weights] == names
    assert [v.path for v in layer.weights] == [
        f"{layer.name}/{name}" for name in names
    ]


@pytest.mark.once
@every_layer
def test_shared_layer(cls):
    layer, x = make(cls)
    first, second = keras.Input(x.shape[1:]), keras.Input(x.shape[1:])
    model = keras.Model([first, second], [layer(first), layer(second)])
    y = [to_numpy(layer(x)), to_numpy(layer(2 * x))]
    assert model.count_params() == layer.count_params()
    for output, expected in zip(
        model.predict([x, 2 * x], verbose=0), y, strict=True
    ):
        assert_near(output, expected)


@pytest.mark.once
@every_layer
def test_frozen_layer(cls):
    model, layer, x = make_model(cls, trainable=False)
    assert layer.trainable_variables == []
    before = layer.get_weights()
    dense = model.layers[-1].get_weights()[0]
    model.compile("sgd", "mse")
    model.fit(x, random(len(x), 2), verbose=0)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert (model.layers[-1].get_weights()[0] != dense).any()


# Initializers, regularizers and constraints


EVERY_KERNEL = pytest.mark.parametrize(
    "prefix, weight",
    [("kernel", 0), ("bias", 1), ("restriction", 2), ("coarse", 3)],
)


@pytest.mark.once
def test_initializers_of_both_levels():
    layer = layers.TwoLevelGroupConv2D(
        4,
        3,
        groups=2,
        kernel_initializer=keras.initializers.Constant(1.0),
        bias_initializer=keras.initializers.Constant(2.0),
        restriction_initializer=keras.initializers.Constant(3.0),
        coarse_initializer=keras.initializers.Constant(4.0),
    )
    layer.build((None, 5, 5, 4))
    assert [np.unique(w).tolist() for w in layer.get_weights()] == [
        [1.0],
        [2.0],
        [3.0],
        [4.0],
    ]


@EVERY_KERNEL
def test_regularizers_of_both_levels(prefix, weight):
    layer = layers.TwoLevelGroupConv2D(
        4,
        3,
        groups=2,
        **{f"{prefix}_regularizer": keras.regularizers.L2(0.5)},
    )
    built(layer, (None, 5, 5, 4))
    [loss] = layer.losses
    expected = 0.5 * np.sum(layer.get_weights()[weight] ** 2)
    np.testing.assert_allclose(to_numpy(loss), expected, rtol=1e-5)


def test_activity_regularizer():
    l1 = keras.regularizers.L1(1.0)
    layer, x = two_level_case("2d", activity_regularizer=l1)
    # Keras divides the loss by the size of the batch since 3.14.
    plain = keras.layers.Activation("linear", activity_regularizer=l1)
    plain(layer(x))
    losses = to_numpy(layer.losses[0]), to_numpy(plain.losses[0])
    assert len(layer.losses) == 1 and losses[1] > 1
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.once
@EVERY_KERNEL
def test_constraints_of_both_levels(prefix, weight):
    model, layer, x = make_model(
        layers.TwoLevelGroupConv2D,
        **{f"{prefix}_constraint": "non_neg"},
    )
    assert all((w < 0).any() for w in layer.get_weights())
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    model.fit(x, random(len(x), 2, seed=1), verbose=0)
    for i, w in enumerate(layer.get_weights()):
        assert (w < 0).any() == (i != weight)
