"""What folding and conversion take over of the layers that they copy."""

import functools

import keras
import numpy as np
import pytest
from exact import make_exact
from helpers import random, to_numpy
from keras import layers, ops

import keras_tlgc
from keras_tlgc.rewrite import fold_batch_norm

IMAGE = (6, 6, 4)

# What is copied is objects, not numbers.
pytestmark = pytest.mark.once


def convert(model, **options):
    return keras_tlgc.convert(model, 2, **options).model


REWRITES = pytest.mark.parametrize("rewrite", [convert, fold_batch_norm])


def sequence(*parts):
    """Return a model of layers, and of a convolution to convert and fold."""
    x = y = keras.Input(IMAGE)
    y = layers.Conv2D(4, 3, padding="same", name="c")(y)
    y = layers.BatchNormalization(name="norm")(y)
    for part in parts:
        y = part(y)
    model = keras.Model(x, y)
    make_exact(model, 2)
    return model


def assert_same_outputs(new, model):
    x = random(2, *IMAGE)
    expected = to_numpy(model(x, training=False))
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(
        to_numpy(new(x, training=False)), expected, rtol=1e-4, atol=1e-4
    )


# Nothing of this is registered, so Keras could not load it.


def relu(x):
    return ops.clip(2 * x, 0, 0.5)


def ones(shape, dtype=None):
    return ops.ones(shape, dtype)


def untraceable(shape, dtype=None):
    return ops.full(shape, float(ops.ones(())), dtype)


class Scaled(keras.regularizers.Regularizer):
    def __init__(self):
        self.factor = keras.Variable(1.0)

    def __call__(self, x):
        return self.factor * ops.sum(x**2)


class Halves(keras.constraints.Constraint):
    def __call__(self, w):
        return w / 2


class Applies(layers.Layer):
    """A layer that takes a function, and says so in some way."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    def call(self, x):
        return self.function(x)

    def get_config(self):
        return {**super().get_config(), "function": self.function}


class Names(Applies):
    def get_config(self):
        return {**super().get_config(), "function": self.function.__name__}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "function": globals()[config["function"]]})


def over_time(part):
    def call(x):
        return layers.TimeDistributed(part)(x[:, None])[:, 0]

    return call


def inner_model():
    x = keras.Input(IMAGE)
    model = keras.Model(x, layers.Lambda(lambda x: 3 * x)(relu_conv()(x)))
    model.compile("sgd", lambda y, t: ops.mean(y - t))
    return model


def relu_conv():
    return layers.Conv2D(4, 1, activation=relu, name="relu")


def cells(x):
    x = layers.Reshape((36, 4))(x)
    parts = [layers.SimpleRNNCell(3), layers.GRUCell(4, activation=relu)]
    return layers.RNN(parts)(x)


PASSED_ON = {
    "name of a function of Keras": relu_conv,
    "another function of Keras": lambda: layers.Activation(ops.gelu),
    "lambda": lambda: layers.Dense(4, activation=lambda x: 2 * x),
    "partial": lambda: layers.Activation(
        functools.partial(ops.leaky_relu, negative_slope=0.7)
    ),
    "Lambda": lambda: layers.Lambda(
        lambda x, by: by * x + ops.std(x), arguments={"by": 3}
    ),
    "operation": lambda: functools.partial(ops.map, lambda x: 2 * x),
    "initializers": lambda: layers.Conv2D(
        4, 1, kernel_initializer=np.ones((1, 1, 4, 4)), bias_initializer=ones
    ),
    "cells": lambda: cells,
    "model": lambda: over_time(inner_model()),
    "function in a config": lambda: Applies(lambda x: 2 * x),
    "name in a config": lambda: Names(relu),
}


@REWRITES
@pytest.mark.parametrize("kind", PASSED_ON)
def test_what_keras_cannot_load_is_passed_on(kind, rewrite):
    model = sequence(PASSED_ON[kind]())
    assert_same_outputs(rewrite(model), model)


@pytest.mark.parametrize("where", ["^c$", "^plain$"], ids=["kept", "converted"])
def test_objects_of_unregistered_classes_are_passed_on(where):
    plain = layers.Conv2D(
        4,
        3,
        name="plain",
        activation=lambda x: x,
        kernel_regularizer=Scaled(),
        activity_regularizer=Scaled(),
        bias_constraint=Halves(),
    )
    model = sequence(plain)
    plain.kernel_regularizer.factor.assign(0.5)
    new = convert(model, where=where).get_layer("plain")
    assert new.kernel_regularizer is plain.kernel_regularizer
    assert new.activity_regularizer is plain.activity_regularizer
    assert new.bias_constraint is plain.bias_constraint
    assert new.bias.constraint is plain.bias_constraint
    assert new.activation is plain.activation


def prelu(**options):
    return layers.PReLU(
        shared_axes=[1, 2], alpha_initializer="uniform", **options
    )


@REWRITES
def test_state_below_layers_is_kept(rewrite):
    shared, own = prelu(), prelu(dtype="mixed_bfloat16", name="own")
    model = sequence(
        layers.Conv2D(8, 1, activation=shared, name="one"),
        layers.Conv2D(8, 1, activation=shared, name="two"),
        layers.Conv2D(4, 1, activation=own, name="three"),
        layers.GaussianDropout(0.5, seed=3, name="drop"),
    )
    model(random(2, *IMAGE), training=True)  # It builds, and draws.
    rng = np.random.default_rng(0)
    for activation in (shared, own):
        [alpha] = activation.weights
        alpha.assign(rng.normal(size=alpha.shape))
    own.trainable = False
    model.get_layer("one").bias.trainable = False
    model.get_layer("two").kernel.trainable = False

    new = rewrite(model)
    one, two, three = (new.get_layer(n) for n in ("one", "two", "three"))
    assert_same_outputs(new, model)
    assert one.activation is two.activation is not shared
    assert three.activation.dtype_policy.name == "mixed_bfloat16"
    assert not three.activation.trainable and three.trainable
    frozen = [v.name for v in one.weights if not v.trainable]
    assert len(frozen) == 1 and "bias" in frozen[0]
    trained = [v.name for v in two.trainable_variables]
    assert len(trained) == 2 and "kernel" not in "".join(trained)
    np.testing.assert_array_equal(
        *(
            to_numpy(m.get_layer("drop").seed_generator.state)
            for m in (new, model)
        )
    )


def test_training_one_model_leaves_the_other():
    # On JAX, training donates the arrays of its variables.
    model = sequence(layers.Conv2D(4, 1, name="d"))
    new = convert(model)
    before = model.get_weights()
    new.compile("sgd", "mse", jit_compile=keras.backend.backend() == "jax")
    new.fit(random(2, *IMAGE), random(2, *IMAGE, seed=1), verbose=0)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def marked(mark):
    """Return a convolution that holds a layer, not named in its config."""
    conv = layers.Conv2D(4, 3, name="conv")
    conv.mark = mark
    mark.build((None, 4))
    return conv


@keras.saving.register_keras_serializable("tests")
class Marks(layers.Layer):
    """A layer whose convolution holds more than it calls."""

    def __init__(self, **options):
        super().__init__(**options)
        self.conv = marked(layers.Dense(2, name="mark"))

    def build(self, input_shape):
        self.conv.build(input_shape)

    def call(self, x):
        return self.conv(x)


def test_a_convolution_that_holds_more_is_kept():
    model = sequence(Marks(name="marks"))
    new, report = keras_tlgc.convert(model, 2)
    [row] = report.kept
    assert row.name == "marks/conv"
    assert row.reason == (
        "it holds more than kernel, bias and activation: mark/kernel, mark/bias"
    )
    np.testing.assert_array_equal(
        *(to_numpy(m.get_layer("marks").conv.mark.kernel) for m in (new, model))
    )


class Halved(layers.Dense):
    """A layer whose constructor does not know all keys of its config."""

    def __init__(self, filters, share=0.5, **kwargs):
        super().__init__(filters, **kwargs)
        self.share = share

    def call(self, x):
        return self.share * super().call(x)


@REWRITES
def test_layers_of_wrong_configs_are_made_from_their_arguments(rewrite):
    layer = Halved(3, share=0.25, name="halved", trainable=False)
    model = sequence(layer)
    with pytest.warns(UserWarning, match=r"'halved' is copied by its const"):
        new = rewrite(model)
    assert_same_outputs(new, model)
    assert not new.get_layer("halved").trainable
    layer = Halved(3, kernel_initializer=ones)  # A function is not kept.
    with pytest.raises(ValueError, match=r"config makes again.*Halved"):
        rewrite(sequence(layer))


@REWRITES
def test_what_a_copy_cannot_hold(rewrite):
    conv = marked(layers.Dense(2))
    rule = "again. Received: 'conv', Conv2D, which holds what its copy lacks"
    with pytest.raises(ValueError, match=rule):
        rewrite(sequence(conv))


@pytest.mark.parametrize("conv", ["two_level", "group"])
@pytest.mark.parametrize("weights", ["project", "random"])
def test_initializers_of_one_shape(conv, weights):
    values = np.random.default_rng(0).normal(size=(3, 3, 4, 4))
    first = layers.Conv2D(
        4, 3, kernel_initializer=keras.initializers.Constant(values), name="a"
    )
    second = layers.Conv2D(4, 3, kernel_initializer=values, name="b")
    third = layers.Conv2D(4, 3, kernel_initializer=ones, name="d")
    fourth = layers.Conv2D(4, 3, kernel_initializer=untraceable, name="e")
    x = keras.Input((9, 9, 4))
    model = keras.Model(x, fourth(third(second(first(x)))))
    new, report = keras_tlgc.convert(model, 2, conv=conv, weights=weights)
    assert [note.split()[0] for note in report.notes] == ["'a'", "'b'"]
    assert "has kernels of the initializer glorot_uniform" in report.notes[0]
    for name in ("a", "b"):
        made = new.get_layer(name)
        assert type(made.kernel_initializer) is keras.initializers.GlorotUniform
        error = keras_tlgc.rewrite.project_kernel(
            values, 2, int(conv == "two_level")
        ).error
        if weights == "project":
            rows = {row.name: row for row in report.rows}
            assert rows[name].error == pytest.approx(error, rel=1e-3)
        else:
            assert np.std(to_numpy(made.kernel)) > 1e-2
    for name, own in {"d": ones, "e": untraceable}.items():
        made = new.get_layer(name)
        assert made.kernel_initializer is own
        if conv == "two_level":
            assert made.restriction_initializer is own
