"""`convert(dense=True)`: what becomes of `Dense` layers."""

import keras
import numpy as np
import pytest
from helpers import outputs, random
from keras import layers

import keras_tlgc
from keras_tlgc.layers import GroupDense, LowRankDense, TwoLevelGroupDense

HEAD = "it makes the model's outputs: select it by `where`"


def feed_forward(x, name):
    y = layers.LayerNormalization()(x)
    y = layers.Dense(32, activation="gelu", name=f"{name}_expand")(y)
    y = layers.Dense(x.shape[-1], name=f"{name}_project")(y)
    return layers.Add()([x, y])


def transformer():
    x = inputs = keras.Input((6, 16))
    for name in "ab":
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(2, 8)(y, y)
        x = feed_forward(layers.Add()([x, y]), name)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(3, name="head")(x)
    return keras.Model(inputs, layers.Softmax()(x))


def alike(count=200):
    """Return tokens whose features are correlated, as those of networks."""
    return random(count, 6, 4, seed=1) @ random(4, 16, seed=2)


def reasons(report):
    return {row.name: row.reason for row in report.rows}


def test_asked_for_by_name_only():
    model = transformer()
    new, report = keras_tlgc.convert(model, 4, dense=True)
    assert reasons(report) == {
        "a_expand": "",
        "a_project": "",
        "b_expand": "",
        "b_project": "",
        "head": HEAD,
    }
    assert type(new.get_layer("a_expand")) is TwoLevelGroupDense
    assert report.new_params == new.count_params() < model.count_params()
    assert "4 of 5 layers converted" in report.summary
    with pytest.raises(ValueError, match="0 convolutions, none of which"):
        keras_tlgc.convert(model, 4)


@pytest.mark.once
def test_a_head_is_converted_if_selected():
    model = keras.Sequential([keras.Input((16,)), layers.Dense(8, name="head")])
    new, _ = keras_tlgc.convert(model, 4, "group", dense=True, where="head")
    assert type(new.get_layer("head")) is GroupDense
    with pytest.raises(ValueError, match=f"can be converted: {HEAD}"):
        keras_tlgc.convert(model, 4, dense=True)


@pytest.mark.once
@pytest.mark.parametrize(
    "wrap",
    [
        lambda head: head,
        lambda head: keras.Sequential([layers.Dense(16), head]),
        layers.TimeDistributed,
    ],
    ids=["plain", "nested", "distributed"],
)
def test_heads_are_found(wrap):
    x = inputs = keras.Input((6, 16))
    x = layers.Dense(16, name="inner")(x)
    x = wrap(layers.Dense(16, name="head"))(x)
    model = keras.Model(inputs, layers.Activation("sigmoid")(x))
    _, report = keras_tlgc.convert(model, 4, dense=True)
    [kept] = report.kept
    assert kept.name.endswith("head")
    assert kept.reason == HEAD


def test_fitted_on_data():
    model, x = transformer(), alike()
    expected = outputs(model, x)
    errors = []
    for options in ({}, {"data": x}):
        new, report = keras_tlgc.convert(model, 4, dense=True, **options)
        errors.append(np.mean((outputs(new, x) - expected) ** 2))
    assert errors[1] < errors[0] / 4
    assert all(row.output_error < row.error for row in report.converted)


@pytest.mark.once
def test_what_the_inputs_need_comes_back():
    # Features that are alike in all groups need one of them only.
    x = np.tile(random(200, 6, 4), 4)
    model = keras.Sequential(
        [keras.Input((6, 16)), layers.Dense(32, name="only")]
    )
    new, report = keras_tlgc.convert(
        model, 4, "group", dense=True, where="only", data=x
    )
    [row] = report.rows
    assert row.error > 0.5
    assert row.output_error < 1e-3
    assert np.abs(outputs(new, x) - outputs(model, x)).max() < 0.1


@pytest.mark.once
def test_a_budget_chooses():
    model, x = transformer(), alike()
    new, report = keras_tlgc.convert(model, budget=0.5, data=x, dense=True)
    costs = np.array(
        [(r.multiply_adds, r.new_multiply_adds) for r in report.rows]
    )
    before, after = costs.sum(0)
    assert after <= before / 2
    assert LowRankDense in {type(layer) for layer in new.layers}
    plain = keras_tlgc.deploy(new)
    modules = {type(layer).__module__.split(".")[0] for layer in plain.layers}
    assert modules == {"keras"}
    np.testing.assert_allclose(
        outputs(plain, x), outputs(new, x), rtol=1e-4, atol=1e-5
    )


class Block(layers.Layer):
    """A composite layer, as those of KerasHub."""

    def __init__(self, **options):
        super().__init__(**options)
        self.expand = layers.Dense(
            32, kernel_constraint=keras.constraints.MaxNorm(3.0)
        )
        self.project = layers.Dense(16, kernel_regularizer="l2")

    def call(self, inputs):
        return inputs + self.project(self.expand(inputs))


@pytest.mark.once
def test_within_layers_and_saved(tmp_path):
    shared = layers.Dense(16, name="shared")
    x = inputs = keras.Input((6, 16))
    x = Block(name="block")(x)
    x = layers.TimeDistributed(layers.Dense(16, name="each"), name="all")(x)
    model = keras.Model(inputs, layers.Add()([shared(x), shared(inputs)]))
    new, report = keras_tlgc.convert(
        model, 2, "low_rank", 3, dense=True, data=alike(50)
    )
    names = [row.name.rpartition("/")[0] for row in report.converted]
    assert sorted(names) == ["", "all", "block", "block"]
    new.save(tmp_path / "new.keras")
    loaded = keras.saving.load_model(tmp_path / "new.keras")
    x = alike(4)
    np.testing.assert_allclose(outputs(loaded, x), outputs(new, x), atol=1e-6)


@pytest.mark.once
def test_others_are_kept():
    class Mine(layers.Dense):
        """A `Dense` of another class."""

    inputs = keras.Input((6, 16))
    x = layers.Dense(16, name="six")(layers.Dense(6, name="few")(inputs))
    x = Mine(16, name="mine")(layers.Dense(16, name="yes")(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    _, report = keras_tlgc.convert(model, 4, dense=True)
    found = reasons(report)
    assert found["few"] == "4 groups do not divide 16 channels, 6 filters"
    assert found["mine"] == "it is not a plain Dense layer"
    assert found["yes"] == ""
