"""`Dense` layers in groups: convolutions whose kernels have no window."""

import keras
import numpy as np
import pytest
from cases import assert_near, built
from helpers import gradients, once, outputs, random, to_numpy
from meshes import ON_JAX, compiled, is_split, model_parallel
from oracle import low_rank_conv, two_level_group_conv

from keras_tlgc.audit import audit
from keras_tlgc.costs import model_costs
from keras_tlgc.layers import GroupDense, LowRankDense, TwoLevelGroupDense
from keras_tlgc.ops import grouped_conv
from keras_tlgc.rewrite import deploy, fold_batch_norm

N, CHANNELS, UNITS = 4, 8, 12
CASES = {
    "group": (GroupDense, {}),
    "two_level": (TwoLevelGroupDense, {"coarse_channels": 2}),
    "low_rank": (LowRankDense, {"coarse_channels": 3}),
}
SIZES = {"group": 24, "two_level": 24 + 16 + 96, "low_rank": 24 + 144}
every_kind = pytest.mark.parametrize("kind", CASES)


def dense(kind, units=UNITS, **more):
    cls, options = CASES[kind]
    return cls(units, groups=N, **options | more)


def network(kind, **more):
    """Return a small feed-forward part, as transformers have, and a head."""
    return keras.Sequential(
        [
            keras.Input((5, CHANNELS)),
            dense(kind, 16, activation="relu", **more),
            dense(kind, CHANNELS, name="second"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(3, name="head"),
        ]
    )


def randomised(kind):
    model = network(kind)
    for i, variable in enumerate(model.variables):
        variable.assign(np.abs(random(*variable.shape, seed=i)) + 0.1)
    return model


@every_kind
@pytest.mark.parametrize("shape", [(3, 8), once((2, 5, 8)), (2, 3, 4, 8)])
def test_values(kind, shape):
    layer, x = built(dense(kind), shape), random(*shape)
    named = {v.name.removesuffix("_0d"): to_numpy(v) for v in layer.weights}
    bias = named.pop("group_bias")
    flat = x.reshape(-1, CHANNELS)
    if kind == "low_rank":
        expected = low_rank_conv(
            flat,
            *(named["restriction_kernel"], named["coarse_kernel"], bias),
            groups=N,
        )
    else:
        expected = two_level_group_conv(
            flat, *(named.pop("group_kernel"), bias), **named, groups=N
        )
    expected = expected.reshape(*shape[:-1], UNITS)
    assert_near(outputs(layer, x), expected)
    assert_near(x @ to_numpy(layer.dense_kernel()) + bias, expected)
    assert layer.compute_output_shape(shape) == expected.shape


@every_kind
def test_gradients_are_those_of_dense(kind):
    layer, x = built(dense(kind), (3, 5, CHANNELS)), random(3, 5, CHANNELS)
    plain = built(keras.layers.Dense(UNITS), x.shape)
    plain.set_weights([to_numpy(layer.dense_kernel()), to_numpy(layer.bias)])
    [own, *_], [expected, *_] = (gradients(one, x) for one in (layer, plain))
    assert_near(own, expected)


@pytest.mark.parametrize("kind", ["two_level", once("group"), once("low_rank")])
def test_saved_and_trained(kind, tmp_path):
    model, x = network(kind, lora_rank=1), random(4, 5, CHANNELS)
    model.compile("sgd", "mse")
    model.fit(x, np.ones((4, 3)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_near(outputs(loaded, x), outputs(model, x))


@pytest.mark.once
@every_kind
def test_config(kind):
    options = {
        "activation": "gelu",
        "use_bias": False,
        "kernel_initializer": "he_normal",
        "kernel_regularizer": "l2",
        "lora_rank": 2,
        "name": "unusual",
    }
    layer = dense(kind, **options)
    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config
    assert (config["units"], config["groups"]) == (UNITS, N)
    assert not {"filters", "kernel_size", "lowering"} & {*config}


@pytest.mark.once
@every_kind
def test_counted(kind):
    costs = model_costs(
        lambda: keras.Sequential([keras.Input((5, 8)), dense(kind)])
    )
    assert costs.params == SIZES[kind] + UNITS
    assert costs.multiply_adds == 5 * SIZES[kind]
    coarse = {"group": 0, "two_level": 2 * N, "low_rank": 3 * N}[kind]
    assert costs.activation_bytes == 4 * 5 * (UNITS + coarse)


@every_kind
def test_folded_and_deployed(kind):
    model, x = randomised(kind), random(2, 5, CHANNELS)
    folded = fold_batch_norm(model)
    assert "norm" not in [layer.name for layer in folded.layers]
    assert_near(outputs(folded, x), outputs(model, x), atol=1e-4)
    plain = deploy(model)
    modules = {type(layer).__module__.split(".")[0] for layer in plain.layers}
    assert modules == {"keras"}
    assert_near(outputs(plain, x), outputs(model, x), atol=1e-4)


@ON_JAX
@every_kind
def test_laid_out_and_audited(kind):
    model_parallel(2, 2)
    model = compiled(network(kind))
    layer = model.layers[0]
    for variable in layer.weights:
        assert is_split(variable), variable.path
    result = audit(model, 8)
    assert result.ok, str(result)
    gathered = sum(
        4 * 4 * 5 * one.gathered_channels // 2 for one in model.layers[:2]
    )
    assert result.formula["all-gather"] == gathered


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 0}, "`units` must be a positive integer.*units=0"),
        ({"units": 6}, "`units` must be divisible by `groups`.*units=6"),
        ({"kernel_size": 3}, "has no window.*kernel_size.*`units`"),
        ({"lowering": "native"}, "one lowering.*lowering. Leave that out"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        GroupDense(**{"units": 12, "groups": N} | options)


@pytest.mark.once
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8,), r"2 to 8 dimensions.*input_shape=\(8,\). Reshape"),
        ((2, None), "last is known.*fixed last dimension"),
        ((2, 6), "`input features` must be divisible by.*=6, groups=4"),
    ],
)
def test_bad_inputs(shape, message):
    with pytest.raises(ValueError, match=message):
        GroupDense(12, groups=N).build(shape)


def test_symbolic_kernel():
    x, kernel = keras.Input((5, 8)), random(2, 12)
    assert grouped_conv(x, kernel, 4).shape == (None, 5, 12)
