"""What the layers compute: their definition, by hand, and gradients."""

import keras
import numpy as np
import pytest
from cases import (
    BALANCED,
    FORMATS,
    GROUP,
    LAYERS,
    ONE_FORMAT,
    TWO_LEVEL,
    assert_near,
    built,
    group_case,
    low_rank_case,
    oracle,
    plain,
    two_level_case,
)
from grids import (
    ALL_CASES,
    BALANCED_CASES,
    CASES,
    LOW_RANK_CASES,
    LOWERING_CASES,
)
from helpers import float64, gradients, outputs, random, squared_sum, to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import two_level_group_conv

from keras_tlgc import layers

# Values


@ALL_CASES
@pytest.mark.parametrize("data_format", FORMATS)
def test_two_level_equals_its_definition(case, data_format):
    layer, x = two_level_case(case, data_format)
    y = outputs(layer, x)
    assert_near(y, oracle(layer, x))
    assert y.shape == layer.compute_output_shape(x.shape)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("case", LOWERING_CASES)
def test_every_lowering(case, data_format):
    lowerings = ["native", "slices", "taps", "dense"]
    kwargs = CASES[case][1]
    if {kwargs["kernel_size"], kwargs.get("coarse_kernel_size", 1)} == {1}:
        lowerings.append("matmul")
    for lowering in lowerings:
        layer, x = two_level_case(case, data_format, lowering=lowering)
        assert_near(outputs(layer, x), oracle(layer, x))


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("case", LOW_RANK_CASES)
def test_low_rank_equals_its_definition(case, data_format):
    layer, x = low_rank_case(case, data_format)
    y = outputs(layer, x)
    assert_near(y, oracle(layer, x))
    assert y.shape == layer.compute_output_shape(x.shape)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("case", BALANCED_CASES)
def test_balanced_equals_its_definition(case, data_format):
    layer, x = group_case(case, data_format, BALANCED)
    y = outputs(layer, x)
    assert_near(y, oracle(layer, x))
    assert y.shape == layer.compute_output_shape(x.shape)


def test_low_rank_equals_a_dense_convolution():
    layer, x = low_rank_case("2d_stride", lowering="dense")
    assert_near(outputs(layer, x), oracle(layer, x))
    conv = keras.layers.Conv2D(
        3, 3, strides=2, padding="same", kernel_initializer="zeros"
    )
    conv.build(x.shape)
    conv.set_weights([to_numpy(layer.dense_kernel()), to_numpy(layer.bias)])
    assert_near(outputs(layer, x), to_numpy(conv(x)))


def test_two_level_by_hand():
    layer = layers.TwoLevelGroupConv1D(2, 2, groups=2)
    layer.build((1, 3, 2))
    group = [[[1, 2]], [[3, 4]]]  # y1 = 1 x1[t] + 3 x1[t+1]; y2 = 2 x2 + 4 x2.
    bias = [100, 200]
    restriction = [[[1, 1]], [[0, -1]]]  # r1 = x1[t]; r2 = x2[t] - x2[t+1].
    coarse = [[10, 20], [30, 40]]  # y1 += 10 r1 + 30 r2; y2 += 20 r1 + 40 r2.
    layer.set_weights([np.array(w) for w in [group, bias, restriction, coarse]])
    x = np.array([[[1, 2], [3, 5], [4, 9]]], "float32")
    expected = [
        [10 + 10 - 90 + 100, 24 + 20 - 120 + 200],
        [15 + 30 - 120 + 100, 46 + 60 - 160 + 200],
    ]
    assert to_numpy(layer(x)).tolist() == [expected]


def test_activation_follows_the_bias():
    layer, x = two_level_case("2d", activation="relu")
    y = to_numpy(layer(x))
    assert_near(y, np.maximum(oracle(layer, x), 0))
    assert (y == 0).any() and (y > 0).any()


@pytest.mark.parametrize("cls", [c for c in LAYERS if c.rank == 2])
def test_empty_batch(cls):
    layer = plain(cls)
    x = np.zeros((0, 5, 5, 4), "float32")
    assert layer.compute_output_shape(x.shape) == (0, 3, 3, 4)
    built(layer, x.shape)
    assert tuple(layer(x).shape) == (0, 3, 3, 4)


def test_data_format_defaults_to_the_image_data_format():
    keras.config.set_image_data_format("channels_first")
    layer = layers.TwoLevelGroupConv2D(6, 3, groups=2)
    assert layer.data_format == "channels_first"
    assert layer.compute_output_shape((2, 4, 5, 7)) == (2, 6, 3, 5)


# The two levels, and the convolution they equal


@ALL_CASES
def test_zero_coarse_kernel_gives_the_group_convolution(case):
    two_level, x = two_level_case(case)
    group, _ = group_case(case)
    two_level.coarse_kernel.assign(0 * two_level.get_weights()[-1])
    np.testing.assert_array_equal(outputs(two_level, x), outputs(group, x))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("cls", [GROUP[2], TWO_LEVEL[2]])
def test_weights_of_a_keras_convolution_load(cls, use_bias):
    conv = keras.layers.Conv2D(
        6,
        3,
        groups=2,
        use_bias=use_bias,
        bias_initializer="random_normal",
    )
    layer = cls(6, 3, groups=2, use_bias=use_bias)
    x = random(2, 5, 5, 4)
    conv.build(x.shape)
    layer.build(x.shape)
    restriction = [to_numpy(v) for v in layer.weights if "restr" in v.name]
    layer.set_weights(conv.get_weights())
    assert_near(to_numpy(layer(x)), to_numpy(conv(x)))
    for v in layer.weights:
        if v.name == "coarse_kernel":
            assert not to_numpy(v).any()
        if v.name.startswith(
            "restriction_kernel"
        ):  # Kept, so that it can train.
            np.testing.assert_array_equal(to_numpy(v), restriction[0])
            assert to_numpy(v).any()


def test_own_weights_load():
    layer, x = two_level_case("2d")
    y = to_numpy(layer(x))
    weights = layer.get_weights()
    layer.set_weights([0 * w for w in weights])
    assert not to_numpy(layer(x)).any()
    layer.set_weights(weights)
    np.testing.assert_array_equal(to_numpy(layer(x)), y)


# One bias has its own shape: a list of one array is no group convolution.
@pytest.mark.once
@pytest.mark.parametrize("keep", [[], [0], [0, 1, 2], [1, 0], [0, 1, 2, 3, 3]])
def test_weights_of_wrong_number_or_shape_raise(keep):
    layer, _ = two_level_case("2d")
    before = layer.get_weights()
    with pytest.raises(ValueError, match="weight"):
        layer.set_weights([before[i] for i in keep])


@pytest.mark.once
def test_weights_before_build_raise():
    layer, _ = two_level_case("2d")
    fresh = layers.TwoLevelGroupConv2D(6, 3, groups=2)
    with pytest.raises(ValueError, match="weight"):
        fresh.set_weights(layer.get_weights()[:2])


@st.composite
def configurations(draw):
    """Draw the arguments of a two-level layer, and an input shape."""
    rank = draw(st.integers(1, 2))
    groups = draw(st.sampled_from([1, 2, 3]))

    def per_axis(least, most):
        return draw(st.tuples(*[st.integers(least, most)] * rank))

    kernel_size = per_axis(1, 4)
    strided = draw(st.booleans())
    kwargs = dict(
        filters=groups * draw(st.integers(1, 2)),
        kernel_size=kernel_size,
        strides=per_axis(1, 3) if strided else 1,
        dilation_rate=1 if strided else per_axis(1, 2),
        padding=draw(st.sampled_from(["valid", "same", "causal"][: 4 - rank])),
        groups=groups,
        coarse_channels=draw(st.integers(1, 2)),
        coarse_kernel_size=per_axis(1, 5),
    )
    spatial = per_axis(7, 9)  # The widest dilated window covers 7.
    return kwargs, (2, *spatial, groups * draw(st.integers(1, 2)))


@settings(max_examples=8)
@given(configurations())
def test_dense_kernel_of_any_coarse_window(configuration):
    kwargs, shape = configuration
    layer = built(TWO_LEVEL[len(shape) - 2](**kwargs), shape)
    x = random(*shape)
    y = to_numpy(layer(x))
    dense = to_numpy(layer.dense_kernel())
    larger = map(max, layer.kernel_size, layer.coarse_kernel_size)
    assert dense.shape == (*larger, shape[-1], layer.filters)
    # The window of the dense kernel, laid over inputs that zeros surround.
    pads = [dense_pads(layer, axis, size) for axis, size in enumerate(x.shape)]
    expected = two_level_group_conv(
        np.pad(x, pads),
        dense,
        to_numpy(layer.bias),
        strides=layer.strides,
        dilation_rate=layer.dilation_rate,
    )
    assert_near(y, expected)


def dense_pads(layer, axis, size):
    if axis in (0, layer.rank + 1):
        return 0, 0
    k = layer.kernel_size[axis - 1]
    beyond = max(layer.coarse_kernel_size[axis - 1] - k, 0)
    stride = layer.strides[axis - 1]
    dilation = layer.dilation_rate[axis - 1]
    before = beyond if layer.padding == "causal" else (beyond + 1) // 2
    low = high = 0
    if layer.padding == "same":
        outputs = len(range(0, size, stride))
        total = (outputs - 1) * stride + dilation * (k - 1) + 1 - size
        low = max(total, 0) // 2
        high = max(total, 0) - low
    if layer.padding == "causal":
        low = dilation * (k - 1)
    return low + dilation * before, high + dilation * (beyond - before)


def test_dense_kernel_with_same_padding_and_a_larger_coarse_window():
    layer, x = two_level_case("2d_large_coarse")
    y = to_numpy(layer(x))
    conv = keras.layers.Conv2D(6, 5, padding="same", kernel_initializer="zeros")
    conv.build(x.shape)
    conv.set_weights([to_numpy(layer.dense_kernel()), to_numpy(layer.bias)])
    assert_near(y, to_numpy(conv(x)))


def test_dense_kernel_of_a_group_convolution():
    (layer, _), (shape, _) = group_case("2d"), CASES["2d"]
    x = random(*shape)
    conv = keras.layers.Conv2D(6, 3, kernel_initializer="zeros")
    conv.build(shape)
    conv.set_weights([to_numpy(layer.dense_kernel()), to_numpy(layer.bias)])
    assert_near(to_numpy(layer(x)), to_numpy(conv(x)))


@pytest.mark.once
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("use_bias", [True, False])
def test_number_of_parameters(rank, use_bias):
    m, n, k, k0, groups, r = 12, 20, 3, 2, 4, 5
    kwargs = dict(groups=groups, use_bias=use_bias)
    group = GROUP[rank](n, k, **kwargs)
    two_level = TWO_LEVEL[rank](
        n, k, coarse_channels=r, coarse_kernel_size=k0, **kwargs
    )
    for layer in (group, two_level):
        built(layer, (None, *[4] * rank, m))
    fine = k**rank * m * n // groups + n * use_bias
    coarse = k0**rank * m * r + groups * r * n
    assert group.count_params() == fine
    assert two_level.count_params() == fine + coarse


# Gradients


@pytest.mark.parametrize("data_format", ONE_FORMAT)
@pytest.mark.parametrize("lowering", ["native", "slices"])
@pytest.mark.parametrize(
    "case", ["1d_causal_large_coarse", "2d_large_coarse_stride"]
)
def test_float64(case, lowering, data_format):
    with float64():
        layer, x = two_level_case(
            case, data_format, dtype="float64", lowering=lowering
        )
        x = x.astype("float64")
        y = to_numpy(layer(x))
        assert y.dtype == "float64"
        np.testing.assert_allclose(y, oracle(layer, x), atol=1e-12)


@pytest.mark.parametrize("data_format", ONE_FORMAT)
@pytest.mark.parametrize("lowering", ["native", "slices", "taps", "dense"])
@pytest.mark.parametrize(
    "case", ["1d_causal_large_coarse", "2d_large_coarse_stride"]
)
def test_gradients_equal_finite_differences(case, lowering, data_format):
    step = 1e-5
    with float64():
        layer, x = two_level_case(
            case, data_format, dtype="float64", lowering=lowering
        )
        values = [x.astype("float64"), *layer.get_weights()]
        dx, dw = gradients(layer, values[0])
        assert len(dw) == 4

        def loss(values):
            layer.set_weights(values[1:])
            return to_numpy(squared_sum(layer(values[0])))

        for i, gradient in enumerate([dx, *dw]):
            direction = random(*values[i].shape, seed=9, dtype="float64")
            ahead, behind = list(values), list(values)
            ahead[i] = values[i] + step * direction
            behind[i] = values[i] - step * direction
            slope = (loss(ahead) - loss(behind)) / (2 * step)
            assert abs(slope) > 1e-3
            np.testing.assert_allclose(
                np.sum(gradient * direction), slope, rtol=1e-6
            )
