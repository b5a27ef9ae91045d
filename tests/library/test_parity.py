"""Group convolutions beside Keras' own: the cases that Keras tests its with.

The rows are those of Keras' tests of `Conv1D`, `2D` and `3D`, all in both data
formats and with more for what groups add. The two-level layers take part with
a coarse kernel of zero: then they are group convolutions.
"""

import keras
import numpy as np
import pytest
from cases import (
    CONV,
    FORMATS,
    GROUP,
    LEARNABLE,
    RAGGED,
    SHUFFLE,
    TWO_LEVEL,
    groups_of,
    in_format,
)
from helpers import gradients, once, outputs, random, to_numpy

KINDS = {"group": GROUP, "two_level": TWO_LEVEL}

# Sizes of the input, and the arguments: filters 5 or 6, of 4 channels.
ROWS = {
    "1d": ((5,), dict(kernel_size=2)),
    "1d same dilated": (
        (8,),
        dict(kernel_size=2, padding="same", dilation_rate=(2,), groups=2),
    ),
    "1d causal dilated": (
        (8,),
        dict(kernel_size=2, padding="causal", dilation_rate=(2,), groups=2),
    ),
    "1d strided": ((5,), dict(kernel_size=(2,), strides=(2,), groups=2)),
    "2d": ((5, 5), dict(kernel_size=2)),
    "2d same strided": (
        (8, 8),
        dict(kernel_size=3, strides=2, padding="same", groups=2),
    ),
    "2d same dilated": (
        (4, 4),
        dict(kernel_size=2, padding="same", dilation_rate=(2, 2), groups=2),
    ),
    "2d same dilated unevenly": (
        (8, 8),
        dict(kernel_size=2, padding="same", dilation_rate=(2, 3), groups=2),
    ),
    "2d strided unevenly": (
        (8, 9),
        dict(kernel_size=(4, 3), strides=(2, 1), groups=2),
    ),
    "2d depthwise": (
        (5, 5),
        dict(filters=8, kernel_size=(2, 2), strides=(2, 1), groups=4),
    ),
    "3d": ((5, 5, 5), dict(kernel_size=2)),
    "3d same dilated": (
        (4, 4, 4),
        dict(kernel_size=2, padding="same", dilation_rate=2, groups=2),
    ),
    "3d same dilated unevenly": (
        (5, 4, 7),
        dict(kernel_size=2, padding="same", dilation_rate=(2, 3, 4), groups=2),
    ),
    "3d strided unevenly": (
        (5, 5, 5),
        dict(kernel_size=(2, 2, 3), strides=(2, 1, 2), groups=2),
    ),
}


def arguments(row):
    kwargs = ROWS[row][1]
    return {"filters": 6 if "groups" in kwargs else 5, **kwargs}


def both(row, kind, data_format, **more):
    """Return Keras' layer and ours of the same weights, and an input."""
    sizes = ROWS[row][0]
    options = {"data_format": data_format, **arguments(row), **more}
    conv, layer = (
        cls[len(sizes)](kernel_initializer="zeros", **options)
        for cls in (CONV, KINDS[kind])
    )
    x = random(*in_format((3, *sizes, 4), data_format))
    conv.build(x.shape)
    layer.build(x.shape)
    conv.set_weights(
        [random(*v.shape, seed=1 + i) for i, v in enumerate(conv.weights)]
    )
    layer.set_weights(conv.get_weights())
    return conv, layer, x


def assert_near(actual, expected):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


# All that Keras computes with other code, here or on a device.
OTHER_BACKENDS = (
    "1d causal dilated",
    "2d same strided",
    "2d same dilated unevenly",
    "2d depthwise",
    "3d strided unevenly",
)
every_row = pytest.mark.parametrize(
    "row", [row if row in OTHER_BACKENDS else once(row) for row in ROWS]
)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_format = pytest.mark.parametrize("data_format", FORMATS)


@every_row
@every_format
def test_outputs(row, data_format):
    conv, group, x = both(row, "group", data_format)
    two_level = both(row, "two_level", data_format)[1]
    expected = outputs(conv, x)
    for layer in (group, two_level):
        assert_near(outputs(layer, x), expected)


@every_row
def test_gradients(row):
    # One format, in turns: to compile gradients takes JAX a second.
    data_format = FORMATS[list(ROWS).index(row) % 2]
    conv, layer, x = both(row, "group", data_format)
    dx, dw = gradients(layer, x)
    expected_dx, expected_dw = gradients(conv, x)
    assert_near(dx, expected_dx)
    for gradient, expected in zip(dw, expected_dw, strict=True):
        assert_near(gradient, expected)


@pytest.mark.parametrize(
    "row", ["1d causal dilated", "2d strided unevenly", "3d strided unevenly"]
)
def test_gradients_of_two_levels(row):
    """Nothing reaches R through C = 0, but C can leave zero."""
    conv, layer, x = both(row, "two_level", "channels_last")
    dx, (*dw, restriction, coarse) = gradients(layer, x)
    expected_dx, expected_dw = gradients(conv, x)
    assert_near(dx, expected_dx)
    for gradient, expected in zip(dw, expected_dw, strict=True):
        assert_near(gradient, expected)
    assert not restriction.any() and coarse.any()


@every_kind
def test_a_bias_as_long_as_the_last_axis(kind):
    """On TensorFlow, Keras 3.15 adds that one to the axis, not the channels."""
    _, layer, x = both("2d same dilated", kind, "channels_first", filters=4)
    conv, _, _ = both("2d same dilated", kind, "channels_last", filters=4)
    assert layer.compute_output_shape(x.shape) == (3, 4, 4, 4)
    y = outputs(conv, np.moveaxis(x, 1, -1))
    assert np.ptp(to_numpy(conv.bias)) > 0.1
    assert_near(outputs(layer, x), np.moveaxis(y, -1, 1))


@pytest.mark.once
@every_row
@every_kind
@every_format
def test_shapes_without_data(row, kind, data_format):
    conv, layer, x = both(row, kind, data_format)
    axis = layer.channel_axis
    sizes = [None] * x.ndim
    sizes[axis] = x.shape[axis]
    for shape in (x.shape, (None, *x.shape[1:]), tuple(sizes)):
        inputs = keras.KerasTensor(shape)
        expected = conv(inputs).shape
        assert layer(inputs).shape == expected
        assert layer.compute_output_shape(shape) == expected
    assert layer.count_params() >= conv.count_params()
    assert len(layer.trainable_variables) == (2 if kind == "group" else 4)
    assert not layer.non_trainable_variables and not layer.losses
    assert not layer.supports_masking


@pytest.mark.once
@every_row
@every_kind
def test_configs(row, kind):
    rank = len(ROWS[row][0])
    more = dict(
        activation="relu",
        kernel_regularizer="l2",
        bias_constraint="non_neg",
        name="conv",
        dtype="mixed_bfloat16",
        lora_rank=2,
        lora_alpha=3,
    )
    kwargs = {**arguments(row), **more}
    conv = CONV[rank](**kwargs).get_config()
    cls = KINDS[kind][rank]
    layer = cls(**kwargs)
    config = layer.get_config()
    shared = {name: value for name, value in config.items() if name in conv}
    assert shared == conv
    # And from Keras' layer to ours: what `convert` does.
    assert cls.from_config(conv).get_config() == config


@every_kind
@every_format
def test_training(kind, data_format):
    """Regularised, constrained and without bias: the same losses."""
    histories = []
    for layer in both(
        "2d same strided",
        kind,
        data_format,
        use_bias=False,
        activation="tanh",
        kernel_regularizer=keras.regularizers.L2(0.01),
        activity_regularizer="l1",
        kernel_constraint=keras.constraints.MaxNorm(1.0, axis=(0, 1, 2)),
    )[:2]:
        for variable in layer.weights[1:]:  # The coarse level stays zero.
            variable.trainable = False
        x = random(*in_format((8, 8, 8, 4), data_format))
        y = random(*layer.compute_output_shape(x.shape), seed=1)
        model = keras.Sequential([keras.Input(x.shape[1:]), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        fitted = model.fit(x, y, epochs=3, shuffle=False, verbose=0)
        histories.append(fitted.history["loss"])
    np.testing.assert_allclose(*histories, rtol=1e-4)
    assert histories[0][-1] < histories[0][0]


# What Keras refuses, we refuse.

REFUSED = {
    "no filters": dict(filters=0),
    "negative filters": dict(filters=-2),
    "no window": dict(kernel_size=0),
    "a window of nothing": dict(kernel_size=(1, 0)),
    "a window of too many axes": dict(kernel_size=(1,) * 4),
    "no stride": dict(strides=(1, 0)),
    "no dilation": dict(dilation_rate=(1, 0)),
    "strides and dilation": dict(strides=2, dilation_rate=(2, 1)),
    "no groups": dict(groups=0),
    "negative groups": dict(groups=-1),
    "filters of no whole group": dict(filters=5, groups=2),
    "unknown padding": dict(padding="half"),
    "causal padding of pictures": dict(padding="causal"),
    "unknown data format": dict(data_format="channels"),
    "unknown activation": dict(activation="no_such"),
    "unknown initializer": dict(kernel_initializer="no_such"),
    "unknown regularizer": dict(bias_regularizer="no_such"),
    "unknown constraint": dict(kernel_constraint="no_such"),
    "an unknown argument": dict(lora=2),
}


@pytest.mark.once
@pytest.mark.parametrize("case", REFUSED)
def test_refused_arguments(case):
    kwargs = {"filters": 2, "kernel_size": (2, 2), **REFUSED[case]}
    for cls in (CONV[2], GROUP[2], TWO_LEVEL[2]):
        with pytest.raises(ValueError):
            cls(**kwargs)


@pytest.mark.once
@pytest.mark.parametrize("rank", CONV)
@pytest.mark.parametrize(
    "kwargs, size, channels",
    [
        (dict(kernel_size=2, dilation_rate=10), 10, 4),
        (dict(kernel_size=5), 4, 4),
        (dict(kernel_size=3, groups=2), 4, 5),
    ],
    ids=["a wide window", "a large window", "channels of no whole group"],
)
def test_refused_inputs(rank, kwargs, size, channels):
    shape = (3, *[size] * rank, channels)
    # Keras itself refuses all of these since 3.14.
    for cls in (GROUP[rank], TWO_LEVEL[rank]):
        layer = cls(filters=2, **kwargs)
        with pytest.raises(ValueError):
            layer(keras.KerasTensor(shape))
        with pytest.raises(ValueError):
            layer(random(*shape))
        assert not layer.weights


@pytest.mark.once
def test_constraints_are_those_of_the_variables():
    for cls in (CONV[2], GROUP[2], TWO_LEVEL[2]):
        layer = cls(
            4, 3, kernel_constraint="non_neg", bias_constraint="non_neg"
        )
        layer.build((None, 5, 5, 3))
        for variable in (layer.kernel, layer.bias):
            assert isinstance(variable.constraint, keras.constraints.NonNeg)


# Wrappers that look for a kernel


def test_spectral_normalization_of_groups():
    """What it makes of `Conv2D(groups=N)`: its bound for all groups at once."""
    x = random(2, 5, 5, 4)
    kernels = []
    for cls in (CONV[2], GROUP[2], SHUFFLE[2]):
        wrapper = keras.layers.SpectralNormalization(
            cls(6, 3, groups=2), power_iterations=10
        )
        wrapper.build(x.shape)
        wrapper.layer.kernel.assign(random(3, 3, 2, 6))
        wrapper.vector_u.assign(random(1, 6))
        wrapper(x, training=True)
        kernels.append(to_numpy(wrapper.layer.kernel))
        if cls is not CONV[2]:
            assert 0.5 < spectral_norm(wrapper.layer.dense_kernel()) < 1.001
    for kernel in kernels[1:]:
        np.testing.assert_allclose(kernel, kernels[0], rtol=1e-4, atol=1e-5)


def spectral_norm(kernel):
    return np.linalg.norm(to_numpy(kernel).reshape(-1, kernel.shape[-1]), 2)


def test_spectral_normalization_of_learnt_groups():
    """It bounds the kernel before some weights are masked, so what is kept."""
    x = random(2, 5, 5, 4)
    wrapper = keras.layers.SpectralNormalization(
        LEARNABLE(6, 3, groups=2), power_iterations=20
    )
    wrapper.build(x.shape)
    wrapper(x, training=True)
    layer = wrapper.layer
    for kernel, low in ((layer.kernel, 0.99), (layer.dense_kernel(), 0.1)):
        assert low < spectral_norm(kernel) < 1.01


class ReadsTheKernel(keras.layers.Wrapper):
    def call(self, x):
        return self.layer(x) / keras.ops.norm(self.layer.kernel)


@pytest.mark.once
@pytest.mark.parametrize(
    "wrap", [keras.layers.SpectralNormalization, ReadsTheKernel]
)
@pytest.mark.parametrize("is_built", [False, True])
def test_wrappers_that_mean_the_whole_kernel_are_refused(wrap, is_built):
    """G alone, normalised, left a dense kernel of norm 1442."""
    x = random(2, 5, 5, 4)
    layer = TWO_LEVEL[2](6, 3, groups=2, name="conv")
    if is_built:
        layer.build(x.shape)
    before = layer.get_weights()
    with pytest.raises(
        ValueError,
        match=rf"{wrap.__name__} wants the kernel of the whole layer.*"
        "Received: the layer 'conv', TwoLevelGroupConv2D.*"
        "`kernel_constraint`, `restriction_constraint` and `coarse_constraint`",
    ):
        wrap(layer)(x)
    for old, new in zip(before, layer.get_weights(), strict=False):
        np.testing.assert_array_equal(old, new)
    # Whoever else asks gets G.
    assert layer.kernel is layer.weights[0]


@pytest.mark.once
def test_spectral_normalization_of_ragged_groups_is_refused():
    layer = RAGGED(4, 3, **groups_of(4, 4))
    with pytest.raises(ValueError, match="no attribute 'kernel'"):
        keras.layers.SpectralNormalization(layer)(random(2, 5, 5, 4))
