"""Networks to tune, and a clock that says which lowering is fast."""

import importlib

import keras
from keras import layers

import keras_tlgc
from keras_tlgc.layers import GroupConv2D, TwoLevelGroupConv2D
from keras_tlgc.tuning.steps import Step

# The package has a function of that name.
tune_module = importlib.import_module("keras_tlgc.tuning.tune")
FAST = {"auto": 1.0, "slices": 0.5}


def network(*more):
    conv = {"padding": "same", "groups": 2, "data_format": "channels_last"}
    return keras.Sequential(
        [
            keras.Input((8, 8, 8)),
            TwoLevelGroupConv2D(8, 3, name="a", **conv),
            layers.BatchNormalization(axis=-1),
            TwoLevelGroupConv2D(8, 3, name="b", **conv),
            GroupConv2D(16, 1, name="c", **conv),
            *more,
        ],
        name="all",
    )


def clock(monkeypatch, times, whole=None):
    """Let a lowering take the times given, or 2, and a step their sum."""

    def time(lowering):
        return times.get(lowering, 2.0)

    def model_step(model, x, training, jit_compile):
        model(x)
        ours = [part for part in model.layers if hasattr(part, "lowering")]
        return Step(lambda: whole or sum(time(p.lowering) for p in ours))

    def step(call, layer, lowering, timing):
        return Step(lambda: time(lowering))

    monkeypatch.setattr(tune_module, "model_step", model_step)
    monkeypatch.setattr(tune_module, "_step", step)
    monkeypatch.setattr(
        tune_module,
        "in_turns",
        lambda runs, rounds, warm_up=0: [[run()] * rounds for run in runs],
    )


def written(monkeypatch, path, model, batch_size, lowering="slices"):
    with monkeypatch.context() as patch:
        clock(patch, {"auto": 1.0, lowering: 0.5})
        keras_tlgc.tune(model, batch_size, path=path)
