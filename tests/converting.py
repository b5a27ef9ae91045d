"""Models to convert, and what compares them with the new ones."""

import keras
import numpy as np
from exact import make_exact
from helpers import random, to_numpy
from keras import layers

import keras_tlgc

IMAGE = (8, 8, 8)


def conv(filters=8, size=3, **options):
    return layers.Conv2D(filters, size, padding="same", **options)


def outputs_of(model, *more, training=False):
    x = [
        random(2, *(size or 8 for size in x.shape[1:]), seed=i)
        for i, x in enumerate(model.inputs)
    ]
    x = x if len(x) > 1 else x[0]
    return [
        to_numpy(y)
        for y in keras.tree.flatten(model(x, *more, training=training))
    ]


def assert_same_outputs(new, model, tolerance=1e-4):
    for one, other in zip(outputs_of(new), outputs_of(model), strict=True):
        assert np.std(other) > 1e-3  # There is something to compare.
        atol = tolerance * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=atol)


def assert_converts(model, converted, groups=2, tolerance=1e-4, **options):
    """Convert a model that loses nothing by it, and compare all of it."""
    make_exact(model, groups)
    randomise_statistics(model)
    before = outputs_of(model)
    weights = [to_numpy(v) for v in model.weights]
    parts = model._flatten_layers()
    nodes = [len(part._inbound_nodes) for part in parts]

    new, report = keras_tlgc.convert(model, groups, **options)

    assert [row.name for row in report.converted] == converted
    assert all(row.error < 1e-6 for row in report.converted)
    assert report.params == model.count_params()
    assert report.new_params == new.count_params()
    assert_same_outputs(new, model, tolerance)
    # And the original is as it was.
    assert model._flatten_layers() == parts
    assert [len(part._inbound_nodes) for part in parts] == nodes
    for value, old in zip(model.weights, weights, strict=True):
        np.testing.assert_array_equal(to_numpy(value), old)
    for one, other in zip(outputs_of(model), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not {id(v) for v in model.variables} & {id(v) for v in new.variables}
    return new, report


def randomise_statistics(model):
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name == "moving_variance":
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(rng.normal(size=variable.shape))


def reasons(report):
    return {row.name: row.reason for row in report.kept}


def two():
    return keras.Sequential(
        [
            keras.Input((8, 8, 16)),
            conv(16, name="first"),
            layers.BatchNormalization(),
            layers.ReLU(),
            conv(8, 1, name="second"),
        ]
    )
