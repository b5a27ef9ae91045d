"""What a budget is a share of: bytes, time, or what a mesh exchanges."""

import math

import keras
import numpy as np
import pytest
from converting import conv
from helpers import random
from keras import layers

import keras_tlgc
from keras_tlgc.layers.answers import about
from keras_tlgc.rewrite import pricing
from keras_tlgc.rewrite.forms import in_keras
from keras_tlgc.rewrite.pricing import Unit
from keras_tlgc.rewrite.rules import Choice

pytestmark = pytest.mark.once


def images(*shape):
    mix = random(4, 16, seed=9)
    return random(60, *(shape or (8, 8)), 4) @ mix


def network(**options):
    return keras.Sequential(
        [
            keras.Input((8, 8, 16)),
            conv(32, name="a", activation="relu"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, name="stays"),
            conv(32, 1, name="b", **options),
            conv(32, name="c", strides=2),
        ]
    )


def convs(model):
    """Return the convolutions of a model, those within models too."""
    return [
        part
        for part in model._flatten_layers()
        if isinstance(part, layers.Conv2D)
    ]


def weights_of(model):
    """Return the bytes of the convolutions of a model, as it is deployed."""
    return sum(
        math.prod(w.shape) * np.dtype(w.dtype).itemsize
        for part in convs(model)
        for w in part.weights
    )


def test_bytes_are_those_that_are_deployed():
    model, x = network(), images()
    new, report = keras_tlgc.convert(model, budget=0.5, of="bytes", data=x)
    more = 4 * 32  # The bias of a normalisation that was folded.
    left = weights_of(keras_tlgc.deploy(new, smallest=True)) - more
    assert left <= 0.5 * weights_of(model)
    assert "of the original's bytes, of a budget of 0.5" in str(report)
    # It counts in the smallest form, whatever would be faster.
    [_, layer, _] = convs(network())
    choice = Choice("two_level", 2, 1)
    assert choice.kernel_size(layer) < math.prod(layer.kernel.shape)
    before, after = pricing._bytes(layer, (1, 8, 8, 32), [choice])
    assert before == 4 * layer.count_params()
    bias = layer.count_params() - math.prod(layer.kernel.shape)
    assert after == 4 * (choice.kernel_size(layer) + bias)
    # A layer of half precision has half the bytes.
    layer = conv(32, dtype="float16")
    layer.build((1, 8, 8, 16))
    assert pricing._bytes(layer, (1, 8, 8, 16), []) == [
        2 * layer.count_params()
    ]


def clock(monkeypatch, cost):
    """Let the time of a model be a function of its convolutions."""

    def times(runs, of):
        assert of is min
        return [run() for run in runs]

    monkeypatch.setattr(pricing, "times_in_turns", times)
    seen = []

    def runtime(model):
        seen.append(model)
        return lambda: 1.0 + sum(map(cost, convs(model)))

    return runtime, seen


def size(layer):
    return float(math.prod(layer.kernel.shape))


def test_a_budget_of_time_is_kept(monkeypatch):
    runtime, seen = clock(monkeypatch, size)
    model = network()
    _, report = keras_tlgc.convert(
        model, budget=0.5, of="time", runtime=runtime, data=images()
    )
    # The time of a call, 1 ms, counts for no layer.
    total = sum(map(size, convs(model)))
    left = total - sum(row.params - row.new_params for row in report.rows)
    assert 0.4 * total < left <= 0.5 * total
    assert f"of the original's time ({total:.2f} ms), of a" in str(report)
    # Each is bare, and models are timed once for layers that are alike.
    assert all(part.bias is None for one in seen for part in convs(one))
    count = len(seen)
    twice = keras.Sequential(
        [keras.Input((8, 8, 32)), *(conv(32, 1, name=n) for n in "abc")]
    )
    runtime, seen = clock(monkeypatch, size)
    x = random(60, 8, 8, 32)
    keras_tlgc.convert(twice, budget=0.6, of="time", runtime=runtime, data=x)
    assert 2 < len(seen) < count


def test_nothing_slower_is_chosen(monkeypatch):
    # Here groups save nothing, so that only a low rank does.
    runtime, _ = clock(monkeypatch, lambda part: size(part) * part.groups)
    _, report = keras_tlgc.convert(
        network(), budget=0.6, of="time", runtime=runtime, data=images()
    )
    assert {row.form for row in report.converted} == {"low_rank"}
    # Here nothing is faster than one convolution, so that all are kept.
    runtime, _ = clock(monkeypatch, lambda part: 1.0)
    with pytest.raises(ValueError, match=r"must be at least 1\.000, the least"):
        keras_tlgc.convert(
            network(), budget=0.9, of="time", runtime=runtime, data=images()
        )
    # Less than a twentieth is no gain.
    runtime, _ = clock(
        monkeypatch, lambda part: 1.0 if part.groups == 1 else 0.96
    )
    layer = conv(32)
    layer.build((1, 8, 8, 32))
    x = keras.Input((8, 8, 32))
    keras.Model(x, layer(x))
    known = pricing._Known(Unit("time", runtime=runtime))
    choices = [Choice("group", 4, 1)]
    assert known.cost(layer, layer._inbound_nodes, choices, "") == {None: 1.0}


def test_keras_is_timed_by_default():
    layer = conv(64, name="a")
    layer.build((1, 16, 16, 64))
    choices = [Choice("low_rank", 1, 8), Choice("two_level", 4, 1)]
    before = len(layer._inbound_nodes)
    found = pricing._times(in_keras, layer, (1, 16, 16, 64), choices)
    assert len(found) == 3 and all(ms >= 0 for ms in found) and max(found) > 0
    assert len(layer._inbound_nodes) == before


@pytest.mark.parametrize("devices", [3, 4])
def test_devices_divide_the_groups(devices):
    layer = conv(48)
    layer.build((1, 8, 8, 48))
    found = Unit.make(None, (2, devices), None).candidates(layer)
    allowed = {3: {3, 6, 12}, 4: {4, 8, 16}}[devices]
    assert {choice.groups for choice in found} == allowed
    assert {choice.conv for choice in found} == {
        "low_rank",
        "two_level",
        "group",
    }


def test_a_budget_of_exchange_is_kept():
    model = network()

    def exchanged(model):
        return sum(
            need.entries * need.times
            for part in model.layers
            for need in about(part).exchanges(
                -1,
                (1, *part.input.shape[1:]),
                (1, *part.output.shape[1:]),
                4,
            )
        )

    new, report = keras_tlgc.convert(
        model, budget=0.3, of="exchange", mesh=(1, 4), data=images()
    )
    assert 0.2 * exchanged(model) < exchanged(new) <= 0.3 * exchanged(model)
    assert all(row.groups % 4 == 0 for row in report.converted)
    # A layer of N groups gathers its N r coarse channels.
    found = Unit.make("exchange", 4, None)
    choice = Choice("two_level", 8, 2)
    [_, layer, _] = convs(model)
    [_, one] = pricing._exchanged(
        found.devices, layer, (1, 8, 8, 32), (1, 8, 8, 32), [choice]
    )
    assert one == 64 * 16 + 64 * 16 // 4  # And their gradient.
    # Channels that devices do not divide are whole on each of them.
    assert pricing._exchanged(3, layer, (1, 8, 8, 32), (1, 8, 8, 32), []) == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "exchange"}, "`of='exchange'` needs a `mesh`"),
        ({"mesh": (1, 0)}, "`mesh` must be a positive integer or 2 of them"),
        ({"runtime": in_keras}, "`runtime` is what of='time' measures in"),
        ({"of": "time", "runtime": "torch"}, "`runtime` must be a function of"),
        ({"budget": None, "groups": 2, "mesh": 2}, "`mesh` must come with"),
        ({"mesh": 5}, "5 groups do not divide 16 channels"),
    ],
)
def test_bad_input(options, message):
    options = {"budget": 0.5, "data": images(), **options}
    with pytest.raises(ValueError, match=message):
        keras_tlgc.convert(network(), **options)


@pytest.mark.parametrize(
    "options", [{"of": "time"}, {"of": "exchange", "mesh": 4}]
)
def test_sizes_have_to_be_known(options):
    model = keras.Sequential([keras.Input((None, None, 16)), conv(128)])
    with pytest.raises(ValueError, match="whose inputs have a known size"):
        keras_tlgc.convert(model, budget=0.5, data=images(), **options)
    _, report = keras_tlgc.convert(model, budget=0.5, of="bytes", data=images())
    assert len(report.converted) == 1


@pytest.mark.once
@pytest.mark.parametrize("of", ["bytes", "exchange", "time"])
def test_dense_layers_have_a_price(of):
    model = keras.Sequential(
        [keras.Input((6, 32)), keras.layers.Dense(64, activation="relu")]
    )
    layer = model.layers[0]
    choice = Choice("two_level", 4, 1)
    found = pricing._Known(Unit.make(of, 2, None)).measure(
        layer, (1, 6, 32), (1, 6, 64), [choice]
    )
    assert len(found) == 2 and min(found) >= 0
