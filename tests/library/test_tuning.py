"""`tune` takes what is fastest by a clock."""

import keras
import numpy as np
import pytest
from clocks import FAST, clock, network, tune_module
from helpers import random
from keras import layers

import keras_tlgc
from keras_tlgc.layers import DepthwiseConv2D, GroupConv2D, GroupDense
from keras_tlgc.ops import tuned


def chosen(model):
    return {
        part.name: part.lowering
        for part in model.layers
        if hasattr(part, "lowering")
    }


def test_the_fastest_is_taken(monkeypatch):
    clock(monkeypatch, FAST)
    model, x = network(), random(2, 8, 8, 8)
    model.get_layer("a").lowering = "taps"  # It is chosen anew.
    model.compile("sgd", "mse")
    before = model.predict(x, verbose=0)
    assert model.predict_function is not None
    report = keras_tlgc.tune(model, 2)
    assert chosen(model) == dict.fromkeys("abc", "slices")
    assert model.predict_function is model.train_function is None
    np.testing.assert_allclose(
        model.predict(x, verbose=0), before, rtol=1e-5, atol=1e-5
    )
    # Layers that do the same are one row.
    assert [row.names for row in report.rows] == [
        ("all/a", "all/b"),
        ("all/c",),
    ]
    assert [row.gain for row in report.rows] == [0.5, 0.5]
    assert report.step == 0.5 and report.is_applied
    assert "all/a and 1 more  3x3, 8 -> 8 at 8x8, N = 2" in str(report)
    assert str(report).endswith(
        "Whole train step at batch 2: 1 -> 0.50. Layers with a new lowering: 3."
    )
    # One that takes windows of size 1 only is tried on those only.
    assert "matmul" not in report.rows[0].to_auto
    assert report.rows[1].to_auto["matmul"] == 2.0


@pytest.mark.once
def test_noise_chooses_nothing(monkeypatch):
    # Neither a small gain does, nor one that a third of the rounds lack.
    assert tune_module._is_faster([0.9] * 8 + [2.0] * 2, [1.0] * 10)
    assert not tune_module._is_faster([0.5] * 7 + [2.0] * 3, [1.0] * 10)
    clock(monkeypatch, {"auto": 1.0, "slices": 0.96})
    model = network()
    report = keras_tlgc.tune(model, 2, training=False)
    assert chosen(model) == dict.fromkeys("abc", "auto")
    assert report.step == 1.0
    assert report.summary.endswith("at batch 2. Nothing was changed.")


@pytest.mark.once
def test_a_slower_step_keeps_auto(monkeypatch, tmp_path):
    clock(monkeypatch, FAST, whole=3.0)
    model, path = network(), tmp_path / "tuned.json"
    report = keras_tlgc.tune(model, 2, path=path)
    assert chosen(model) == dict.fromkeys("abc", "auto")
    assert not report.is_applied
    assert "It got slower, although layers" in report.summary
    assert {row.lowering for row in tuned.read(path)} == {"auto"}


@pytest.mark.once
def test_what_is_not_timed_has_a_reason(monkeypatch):
    clock(monkeypatch, FAST)
    model = network(
        DepthwiseConv2D(3, name="depthwise", data_format="channels_last"),
        GroupConv2D(8, 1, name="one", data_format="channels_last"),
        GroupDense(8, groups=2, name="dense"),
    )
    *_, depthwise, one, dense = keras_tlgc.tune(model, 2).cells
    assert (depthwise[0], depthwise[-1]) == (
        "all/depthwise",
        "takes no `lowering`",
    )
    assert (one[0], one[-1]) == ("all/one", "has one group")
    assert (dense[0], dense[-1]) == ("all/dense", "has one lowering")


class Both(keras.Model):
    """A model that is no graph, and does not call one of its layers."""

    def __init__(self):
        super().__init__()
        conv = {"groups": 2, "data_format": "channels_last"}
        self.called = GroupConv2D(8, 1, **conv, name="called")
        self.other = GroupConv2D(8, 1, **conv, name="other")

    def build(self, input_shape):
        self.called.build(input_shape)
        self.other.build(input_shape)

    def call(self, x):
        return self.called(x)


@pytest.mark.once
def test_models_that_are_no_graphs(monkeypatch):
    clock(monkeypatch, FAST)
    model = Both()
    model.build((None, 4, 4, 8))
    with pytest.raises(ValueError, match="with inputs of shapes unknown"):
        keras_tlgc.tune(model, 2)
    timed, never = keras_tlgc.tune(model, 2, input_shape=(4, 4, 8)).rows
    assert (timed.names, timed.lowering) == (("both/called",), "slices")
    assert (never.names, never.reason) == (
        ("both/other",),
        "never asked for a lowering",
    )
    assert chosen(model) == {"called": "slices", "other": "auto"}


@pytest.mark.once
def test_a_lowering_that_fails_is_named(monkeypatch):
    clock(monkeypatch, FAST)
    step = tune_module._step

    def failing(call, layer, lowering, timing):
        if lowering == "dense":
            raise RuntimeError("out of memory")
        return step(call, layer, lowering, timing)

    monkeypatch.setattr(tune_module, "_step", failing)
    rows = keras_tlgc.tune(network(), 2).rows
    assert rows[0].reason == "dense failed: RuntimeError: out of memory"
    assert "dense" not in rows[0].to_auto


@pytest.mark.once
def test_an_interrupt_changes_nothing(monkeypatch):
    clock(monkeypatch, FAST)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune_module, "in_turns", interrupt)
    model = network()
    model.get_layer("b").lowering = "native"
    with pytest.raises(KeyboardInterrupt):
        keras_tlgc.tune(model, 2)
    assert chosen(model) == {"a": "auto", "b": "native", "c": "auto"}


def test_steps_are_really_timed():
    model = keras.Sequential(
        [
            keras.Input((None, None, 8)),
            layers.BatchNormalization(axis=-1),
            GroupConv2D(8, 3, groups=2, data_format="channels_last", name="a"),
        ]
    )
    weights = model.get_weights()
    model.compile("sgd", "mse")
    report = keras_tlgc.tune(model, 2, input_shape=(6, 6, 8), rounds=2)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    [row] = report.rows
    assert row.call.size == (6, 6) and not row.reason
    assert row.to_auto["auto"] == 1.0
    assert len(row.to_auto) > 1 and min(row.to_auto.values()) > 0
    assert 0 < report.step
    model.fit(random(4, 6, 6, 8), random(4, 4, 4, 8), verbose=0)


@pytest.mark.once
@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"rounds": 0}, "`rounds` must be a positive integer"),
        ({"path": "/nowhere/tuned.json"}, "`path` must be a file in a folder"),
        ({"input_shape": (6, 6, 8)}, "sizes of all inputs must be known"),
        ({"input_shape": (8, 8)}, "`input_shape` must be a positive integer"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        keras_tlgc.tune(network(), **{"batch_size": 2, **options})


@pytest.mark.once
def test_bad_models():
    conv = GroupConv2D(8, 3, groups=2)
    unknown = keras.Sequential([keras.Input((None, None, 8)), conv])
    with pytest.raises(ValueError, match="sizes of all inputs must be known"):
        keras_tlgc.tune(unknown, 2)
    with pytest.raises(ValueError, match="must have weights"):
        keras_tlgc.tune(keras.Sequential([GroupConv2D(8, 3, groups=2)]), 2)
    plain = keras.Sequential([keras.Input((8,)), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"with several lowerings.*has none"):
        keras_tlgc.tune(plain, 2)
