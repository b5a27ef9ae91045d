import contextlib
import importlib.util
import inspect
import json
import os
import pathlib

import keras
import numpy as np
import pytest
from helpers import gradients, random, run_python, squared_sum, to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import two_level_group_conv

from keras_tlgc import layers

BACKEND = keras.backend.backend()
OTHER_BACKENDS = sorted({"jax", "tensorflow", "torch"} - {BACKEND})
FORMATS = ["channels_last", "channels_first"]

GROUP = {
    1: layers.GroupConv1D,
    2: layers.GroupConv2D,
    3: layers.GroupConv3D,
}
TWO_LEVEL = {
    1: layers.TwoLevelGroupConv1D,
    2: layers.TwoLevelGroupConv2D,
    3: layers.TwoLevelGroupConv3D,
}
SHUFFLE = {
    1: layers.ShuffleGroupConv1D,
    2: layers.ShuffleGroupConv2D,
    3: layers.ShuffleGroupConv3D,
}
LEARNABLE = layers.LearnableGroupConv2D
RAGGED = layers.RaggedGroupConv2D
CONV = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
LAYERS = [
    *GROUP.values(),
    *TWO_LEVEL.values(),
    *SHUFFLE.values(),
    LEARNABLE,
    RAGGED,
]
# Arguments of the others that a layer does not take.
LACKS = {LEARNABLE: ("lowering",), RAGGED: ("groups", "lowering")}

# name: (input shape, channels last; arguments of the two-level layer).
CASES = {
    "1d": ((2, 9, 4), dict(kernel_size=3, groups=2)),
    "1d_causal": ((2, 7, 4), dict(kernel_size=3, padding="causal", groups=2)),
    "1d_causal_stride": (
        (2, 8, 4),
        dict(kernel_size=3, strides=2, padding="causal", groups=2),
    ),
    "1d_causal_small_coarse": (
        (2, 7, 4),
        dict(kernel_size=4, padding="causal", groups=2, coarse_kernel_size=1),
    ),
    "1d_causal_large_coarse": (
        (2, 7, 4),
        dict(
            kernel_size=2,
            padding="causal",
            dilation_rate=2,
            groups=2,
            coarse_kernel_size=4,
        ),
    ),
    "1d_causal_large_coarse_stride": (
        (2, 8, 4),
        dict(
            kernel_size=2,
            strides=3,
            padding="causal",
            groups=2,
            coarse_kernel_size=3,
        ),
    ),
    "1d_same_even": ((2, 7, 4), dict(kernel_size=4, padding="same", groups=2)),
    "2d": ((2, 5, 6, 4), dict(kernel_size=3, groups=2)),
    "2d_same": ((2, 5, 6, 4), dict(kernel_size=3, padding="same", groups=2)),
    "2d_oblong": (
        (2, 6, 5, 4),
        dict(kernel_size=(3, 2), strides=(1, 2), padding="same", groups=2),
    ),
    "2d_stride_odd": (
        (2, 7, 7, 4),
        dict(kernel_size=3, strides=2, padding="same", groups=2),
    ),
    "2d_stride_even": (
        (2, 6, 6, 4),
        dict(kernel_size=3, strides=2, padding="same", groups=2),
    ),
    "2d_stride_valid": (
        (2, 7, 6, 4),
        dict(kernel_size=2, strides=2, groups=2),
    ),
    "2d_stride_beyond_kernel": (
        (2, 8, 7, 4),
        dict(kernel_size=2, strides=3, padding="same", groups=2),
    ),
    "2d_dilation": (
        (2, 7, 6, 4),
        dict(kernel_size=3, dilation_rate=2, groups=2),
    ),
    "2d_dilation_same": (
        (2, 6, 5, 4),
        dict(kernel_size=2, dilation_rate=(2, 3), padding="same", groups=2),
    ),
    "2d_coarse_channels": (
        (2, 5, 5, 4),
        dict(kernel_size=3, padding="same", groups=2, coarse_channels=3),
    ),
    "2d_small_coarse": (
        (2, 6, 6, 4),
        dict(kernel_size=3, padding="same", groups=2, coarse_kernel_size=1),
    ),
    "2d_small_coarse_even": (
        (2, 6, 7, 4),
        dict(kernel_size=4, strides=2, groups=2, coarse_kernel_size=(1, 3)),
    ),
    "2d_large_coarse": (
        (2, 5, 6, 4),
        dict(kernel_size=3, padding="same", groups=2, coarse_kernel_size=5),
    ),
    "2d_large_coarse_even": (
        (2, 5, 6, 4),
        dict(kernel_size=3, groups=2, coarse_kernel_size=(4, 6)),
    ),
    "2d_large_coarse_stride": (
        (2, 6, 7, 4),
        dict(
            kernel_size=3,
            strides=2,
            padding="same",
            groups=2,
            coarse_kernel_size=5,
        ),
    ),
    "2d_large_coarse_dilation": (
        (2, 6, 7, 4),
        dict(
            kernel_size=2,
            dilation_rate=2,
            padding="same",
            groups=2,
            coarse_kernel_size=3,
        ),
    ),
    "2d_mixed_coarse": (
        (2, 6, 7, 4),
        dict(
            kernel_size=(3, 1),
            padding="same",
            groups=2,
            coarse_kernel_size=(1, 4),
        ),
    ),
    "2d_1x1": ((2, 5, 4, 4), dict(kernel_size=1, groups=2)),
    "2d_1x1_stride": (
        (2, 5, 6, 4),
        dict(kernel_size=1, strides=2, padding="same", groups=2),
    ),
    "2d_1x1_stride_large_coarse": (
        (2, 6, 5, 4),
        dict(
            kernel_size=1,
            strides=2,
            padding="same",
            groups=2,
            coarse_kernel_size=3,
        ),
    ),
    "2d_one_group": ((2, 5, 5, 4), dict(kernel_size=3, groups=1)),
    "2d_depthwise": (
        (2, 5, 5, 4),
        dict(kernel_size=3, padding="same", groups=4),
    ),
    "2d_slice_per_group": (
        (1, 3, 3, 48),
        dict(filters=6, kernel_size=2, groups=3, coarse_kernel_size=3),
    ),
    "2d_shared_slices": (
        (2, 3, 3, 34),
        dict(filters=34, kernel_size=2, groups=17),
    ),
    "2d_even_shared_slices": (
        (2, 3, 3, 32),
        dict(filters=64, kernel_size=1, strides=2, groups=32),
    ),
    "2d_no_bias": (
        (2, 4, 4, 4),
        dict(kernel_size=2, groups=2, use_bias=False),
    ),
    "3d": ((2, 3, 4, 3, 4), dict(kernel_size=2, groups=2)),
    "3d_same_stride": (
        (2, 3, 4, 5, 4),
        dict(kernel_size=3, strides=2, padding="same", groups=2),
    ),
    "3d_large_coarse": (
        (1, 3, 3, 3, 4),
        dict(
            kernel_size=(1, 2, 2),
            padding="same",
            groups=2,
            coarse_kernel_size=(3, 2, 1),
        ),
    ),
}
ALL_CASES = pytest.mark.parametrize("case", CASES)
# All that differs between lowerings: window, padding, slices, 1x1, rank.
LOWERING_CASES = [
    "1d_causal_large_coarse",
    "2d_stride_even",
    "2d_dilation_same",
    "2d_large_coarse_stride",
    "2d_1x1",
    "2d_1x1_stride",
    "2d_slice_per_group",
    "2d_shared_slices",
    "2d_even_shared_slices",
    "3d_same_stride",
]
TWO_LEVEL_ONLY = ("coarse_channels", "coarse_kernel_size")
WINDOW = ("groups", "strides", "padding", "dilation_rate")


def two_level_case(case, data_format="channels_last", **more):
    """Return the case's layer, built, and an input for it."""
    shape, kwargs = CASES[case]
    kwargs = default_filters(kwargs) | kwargs | more
    layer = TWO_LEVEL[len(shape) - 2](**kwargs, data_format=data_format)
    shape = in_format(shape, data_format)
    return built(layer, shape), random(*shape)


def group_case(case, data_format="channels_last"):
    """Return the case's group convolution, built."""
    shape, kwargs = CASES[case]
    kwargs = default_filters(kwargs) | without(kwargs, TWO_LEVEL_ONLY)
    layer = GROUP[len(shape) - 2](**kwargs, data_format=data_format)
    return built(layer, in_format(shape, data_format))


def default_filters(kwargs):
    return {"filters": 8 if kwargs["groups"] == 4 else 6}


def built(layer, shape):
    """Build the layer with random weights, none of them zero."""
    # Drawn here, since JAX compiles for seconds for initializers.
    for name in ("kernel", "bias", "restriction", "coarse", "selection"):
        if hasattr(layer, f"{name}_initializer"):
            setattr(layer, f"{name}_initializer", keras.initializers.Zeros())
    layer.build(shape)
    layer.set_weights(
        [random(*v.shape, seed=i) / 2 for i, v in enumerate(layer.weights)]
    )
    return layer


def in_format(shape, data_format):
    batch, *spatial, channels = shape
    if data_format == "channels_last":
        return shape
    return (batch, channels, *spatial)


def without(kwargs, names):
    return {k: v for k, v in kwargs.items() if k not in names}


def oracle(layer, x):
    """Return the outputs that the layer's weights define."""
    rank = f"_{layer.rank}d"
    weights = {v.name.removesuffix(rank): to_numpy(v) for v in layer.weights}
    return two_level_group_conv(
        x,
        weights["group_kernel"],
        weights.get("group_bias"),
        weights.get("restriction_kernel"),
        weights.get("coarse_kernel"),
        data_format=layer.data_format,
        **{name: getattr(layer, name) for name in WINDOW},
    )


def assert_near(actual, expected, atol=1e-5):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=atol)


# Values


@ALL_CASES
@pytest.mark.parametrize("data_format", FORMATS)
def test_two_level_equals_its_definition(case, data_format):
    layer, x = two_level_case(case, data_format)
    y = to_numpy(layer(x))
    assert_near(y, oracle(layer, x))
    assert y.shape == layer.compute_output_shape(x.shape)


@ALL_CASES
def test_group_equals_its_definition(case):
    # The other data format is compared with Keras, below.
    layer = group_case(case, "channels_first")
    x = random(*in_format(CASES[case][0], "channels_first"))
    y = to_numpy(layer(x))
    assert_near(y, oracle(layer, x))
    assert y.shape == layer.compute_output_shape(x.shape)


@ALL_CASES
def test_group_equals_keras(case):
    layer = group_case(case)
    shape, kwargs = CASES[case]
    x = random(*shape)
    conv = CONV[layer.rank](
        **{"filters": layer.filters} | without(kwargs, TWO_LEVEL_ONLY),
        kernel_initializer="zeros",
    )
    expected_shape = conv.compute_output_shape(x.shape)
    assert layer.compute_output_shape(x.shape) == expected_shape
    conv.build(x.shape)
    conv.set_weights(layer.get_weights())
    assert_near(to_numpy(layer(x)), to_numpy(conv(x)))
    unknown = (None,) * (layer.rank + 1) + x.shape[-1:]
    assert layer.compute_output_shape(unknown) == conv.compute_output_shape(
        unknown
    )


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("case", LOWERING_CASES)
def test_lowerings_agree(case, data_format):
    layer, x = two_level_case(case, data_format)
    expected = to_numpy(layer(x))
    lowerings = ["native", "slices"]
    if set(layer.kernel_size) == {1} == set(layer.coarse_kernel_size):
        lowerings.append("matmul")
    for lowering in lowerings:
        other, _ = two_level_case(case, data_format, lowering=lowering)
        assert_near(to_numpy(other(x)), expected)


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
    # TensorFlow's own convolution of nothing has the shape of its input.
    if BACKEND != "tensorflow":
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
    group = group_case(case)
    two_level.coarse_kernel.assign(0 * two_level.get_weights()[-1])
    np.testing.assert_array_equal(to_numpy(two_level(x)), to_numpy(group(x)))


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
@pytest.mark.parametrize("keep", [[], [0], [0, 1, 2], [1, 0], [0, 1, 2, 3, 3]])
def test_weights_of_wrong_number_or_shape_raise(keep):
    layer, _ = two_level_case("2d")
    before = layer.get_weights()
    with pytest.raises(ValueError, match="weight"):
        layer.set_weights([before[i] for i in keep])


def test_weights_before_build_raise():
    layer, _ = two_level_case("2d")
    fresh = layers.TwoLevelGroupConv2D(6, 3, groups=2)
    with pytest.raises(ValueError, match="weight"):
        fresh.set_weights(layer.get_weights()[:2])


@st.composite
def configurations(draw, larger_coarse=False):
    """Draw the arguments of a two-level layer, and an input shape."""
    rank = draw(st.integers(1, 2))
    groups = draw(st.sampled_from([1, 2, 3]))

    def per_axis(least, most):
        return draw(st.tuples(*[st.integers(least, most)] * rank))

    kernel_size = per_axis(1, 4)
    coarse = per_axis(1, 5)
    if not larger_coarse:
        coarse = tuple(map(min, coarse, kernel_size))
    strided = draw(st.booleans())
    kwargs = dict(
        filters=groups * draw(st.integers(1, 2)),
        kernel_size=kernel_size,
        strides=per_axis(1, 3) if strided else 1,
        dilation_rate=1 if strided else per_axis(1, 2),
        padding=draw(st.sampled_from(["valid", "same", "causal"][: 4 - rank])),
        groups=groups,
        coarse_channels=draw(st.integers(1, 2)),
        coarse_kernel_size=coarse,
    )
    spatial = per_axis(7, 9)  # The widest dilated window covers 7.
    return kwargs, (2, *spatial, groups * draw(st.integers(1, 2)))


@settings(max_examples=8)
@given(configurations())
def test_equals_the_convolution_with_the_dense_kernel(configuration):
    kwargs, shape = configuration
    layer = built(TWO_LEVEL[len(shape) - 2](**kwargs), shape)
    x = random(*shape)
    y = to_numpy(layer(x))
    dense = to_numpy(layer.dense_kernel())
    assert dense.shape == (*layer.kernel_size, shape[-1], layer.filters)
    conv = CONV[layer.rank](
        **without(kwargs, ("groups", *TWO_LEVEL_ONLY)),
        kernel_initializer="zeros",
    )
    conv.build(shape)
    conv.set_weights([dense, to_numpy(layer.bias)])
    assert_near(y, to_numpy(conv(x)))


@settings(max_examples=8)
@given(configurations(larger_coarse=True))
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
    layer, (shape, _) = group_case("2d"), CASES["2d"]
    x = random(*shape)
    conv = keras.layers.Conv2D(6, 3, kernel_initializer="zeros")
    conv.build(shape)
    conv.set_weights([to_numpy(layer.dense_kernel()), to_numpy(layer.bias)])
    assert_near(to_numpy(layer(x)), to_numpy(conv(x)))


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


def test_permuting_groups_permutes_outputs():
    groups, order = 3, [2, 0, 1]
    x = random(2, 5, 5, 9)
    layer, other = (
        built(
            layers.TwoLevelGroupConv2D(6, 3, groups=groups, coarse_channels=2),
            x.shape,
        )
        for _ in range(2)
    )
    y = to_numpy(layer(x))

    def permute(array, axis=-1):
        blocks = np.split(np.asarray(array), groups, axis)
        return np.concatenate([blocks[i] for i in order], axis)

    kernel, bias, restriction, coarse = layer.get_weights()
    other.set_weights(
        [
            permute(kernel),
            permute(bias),
            permute(restriction),
            permute(permute(coarse), axis=0),
        ]
    )
    assert_near(to_numpy(other(permute(x))), permute(y))


def test_causal_output_ignores_the_future():
    for coarse_kernel_size in (1, 2, 5):
        x = random(1, 8, 4)
        layer = layers.TwoLevelGroupConv1D(
            4,
            3,
            padding="causal",
            groups=2,
            coarse_kernel_size=coarse_kernel_size,
        )
        built(layer, x.shape)
        changed = x.copy()
        changed[:, 5:] += 1
        y, z = to_numpy(layer(x)), to_numpy(layer(changed))
        assert_near(y[:, :5], z[:, :5])
        assert (y[:, 5:] != z[:, 5:]).any(axis=-1).all()


# Gradients


def skip_what_tensorflow_lacks(lowering, data_format):
    if (BACKEND, lowering, data_format) == (
        "tensorflow",
        "slices",
        "channels_first",
    ):
        pytest.skip("TensorFlow's CPU convolves no float64 channels_first")


@contextlib.contextmanager
def float64():
    """Allow float64 where the backend does not by default."""
    if BACKEND != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("lowering", ["native", "slices"])
@pytest.mark.parametrize(
    "case", ["1d_causal_large_coarse", "2d_large_coarse_stride"]
)
def test_float64(case, lowering, data_format):
    skip_what_tensorflow_lacks(lowering, data_format)
    with float64():
        layer, x = two_level_case(
            case, data_format, dtype="float64", lowering=lowering
        )
        x = x.astype("float64")
        y = to_numpy(layer(x))
        assert y.dtype == "float64"
        np.testing.assert_allclose(y, oracle(layer, x), atol=1e-12)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("lowering", ["native", "slices"])
@pytest.mark.parametrize(
    "case", ["1d_causal_large_coarse", "2d_large_coarse_stride"]
)
def test_gradients_equal_finite_differences(case, lowering, data_format):
    skip_what_tensorflow_lacks(lowering, data_format)
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


# What every layer must do, whatever its rank


def every_layer(test):
    return pytest.mark.parametrize("cls", LAYERS)(test)


def make(cls, **kwargs):
    """Return a small layer of the class, built, and an input for it."""
    defaults = dict(
        filters=4,
        kernel_size=2,
        strides=2,
        padding="same",
        groups=2,
        activation="tanh",
    )
    if cls in TWO_LEVEL.values():
        defaults["coarse_kernel_size"] = 3
    if cls is RAGGED:
        defaults |= groups_of(4, 4)
    layer = cls(**without(defaults | kwargs, LACKS.get(cls, ())))
    shape = in_format((3, *[5, 4, 3][: cls.rank], 4), layer.data_format)
    return built(layer, shape), random(*shape)


def groups_of(channels, filters):
    """Return groups of 3 channels and 1 filter, and of all others."""
    return dict(
        input_groups=[
            [3, 0, 1],
            [i for i in range(channels) if i not in (0, 1, 3)],
        ],
        output_groups=[[2], [i for i in range(filters) if i != 2]],
    )


def make_model(cls, **kwargs):
    layer, x = make(cls, **kwargs)
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            layer,
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    return model, layer, x


# Arguments that differ from all defaults.
UNUSUAL = dict(
    filters=6,
    kernel_size=2,
    strides=2,
    padding="same",
    data_format="channels_first",
    groups=2,
    activation="gelu",
    use_bias=False,
    kernel_initializer="he_normal",
    bias_initializer=keras.initializers.Constant(0.5),
    kernel_regularizer=keras.regularizers.L2(0.1),
    bias_regularizer="l1",
    activity_regularizer=keras.regularizers.L1(0.2),
    kernel_constraint=keras.constraints.MaxNorm(3.0),
    bias_constraint="non_neg",
    lowering="native",
    name="unusual",
    dtype="mixed_bfloat16",
    trainable=False,
)
UNUSUAL_TWO_LEVEL = UNUSUAL | dict(
    coarse_channels=3,
    coarse_kernel_size=3,
    restriction_initializer="he_uniform",
    coarse_initializer="zeros",
    restriction_regularizer=keras.regularizers.L1(0.3),
    coarse_regularizer="l2",
    restriction_constraint=keras.constraints.UnitNorm(axis=0),
    coarse_constraint="non_neg",
)


def unusual(cls):
    more = {}
    if cls in TWO_LEVEL.values():
        return cls(**UNUSUAL_TWO_LEVEL)
    if cls is LEARNABLE:
        more = dict(selection_initializer="zeros")
    if cls is RAGGED:
        more = groups_of(5, UNUSUAL["filters"])
    return cls(**without(UNUSUAL | more, LACKS.get(cls, ())))


def plain(cls, **kwargs):
    """Return a layer of 4 filters, 3 wide, where `kwargs` say nothing else."""
    if cls is RAGGED and kwargs.get("filters", 4) == 4:
        kwargs = groups_of(4, 4) | kwargs
    return cls(**{"filters": 4, "kernel_size": 3} | kwargs)


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
        assert config[name] != default[name], name
    dilated = plain(cls, dilation_rate=3).get_config()
    assert dilated["dilation_rate"] == (3,) * cls.rank


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


@every_layer
def test_summary(cls):
    model, layer, _ = make_model(cls)
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert layer.name in "\n".join(lines)
    assert f"{layer.count_params()}" in "\n".join(lines)


@every_layer
def test_names_of_variables(cls):
    layer, _ = make(cls)
    rank = "" if layer.rank == 2 else f"_{layer.rank}d"  # For layout maps.
    names = [f"group_kernel{rank}", "group_bias"]
    if cls in TWO_LEVEL.values():
        names += [f"restriction_kernel{rank}", "coarse_kernel"]
    if cls is LEARNABLE:
        names = ["masked_kernel", "input_selection", "output_selection"]
        names += ["group_bias"]
    if cls is RAGGED:
        names = ["group_kernel0", "group_kernel1", "group_bias"]
    assert [v.name for v in layer.weights] == names
    assert [v.path for v in layer.weights] == [
        f"{layer.name}/{name}" for name in names
    ]


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


@pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="only TensorFlow traces functions for sizes it does not know",
)
@pytest.mark.parametrize("lowering", ["native", "slices", "matmul"])
@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(kernel_size=3, strides=2, padding="same", coarse_kernel_size=5),
        dict(kernel_size=3, strides=3, padding="same", coarse_kernel_size=4),
        dict(kernel_size=2, padding="causal", coarse_kernel_size=4),
        dict(kernel_size=4, padding="causal", coarse_kernel_size=1),
        dict(kernel_size=1, strides=2, padding="same"),
    ],
    ids=["same", "same_even", "causal", "causal_small", "1x1"],
)
def test_tensorflow_function_of_unknown_sizes(kwargs, data_format, lowering):
    import tensorflow as tf

    if (lowering == "matmul") != (kwargs["kernel_size"] == 1):
        lowering = "auto"
    for rank in [1] if kwargs.get("padding") == "causal" else [1, 2, 3]:
        layer = TWO_LEVEL[rank](
            4, groups=2, data_format=data_format, lowering=lowering, **kwargs
        )
        shape = [None] * (rank + 2)
        shape[-1 if data_format == "channels_last" else 1] = 4
        layer.build(shape)
        function = tf.function(layer, input_signature=[tf.TensorSpec(shape)])
        for size in (5, 8):
            x = random(*in_format((2, *[size] * rank, 4), data_format))
            assert_near(to_numpy(function(x)), oracle(layer, x))


# Initializers, regularizers and constraints


EVERY_KERNEL = pytest.mark.parametrize(
    "prefix, weight",
    [("kernel", 0), ("bias", 1), ("restriction", 2), ("coarse", 3)],
)


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
    layer, x = two_level_case(
        "2d", activity_regularizer=keras.regularizers.L1(1.0)
    )
    y = to_numpy(layer(x))
    [loss] = layer.losses
    np.testing.assert_allclose(
        to_numpy(loss), np.abs(y).sum() / len(x), rtol=1e-5
    )


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


# Errors: the rule, what was received, and a remedy


BAD_ARGUMENTS = [
    (dict(filters=0), "`filters` must be a positive integer.*filters=0"),
    (dict(filters=4.0), "`filters` must be a positive integer.*filters=4.0"),
    (dict(filters=True), "`filters` must be a positive integer.*=True"),
    (dict(filters=None), "`filters` must be a positive integer.*=None"),
    (dict(groups=0), "`groups` must be a positive integer.*groups=0"),
    (dict(groups=-2), "`groups` must be a positive integer.*groups=-2"),
    (dict(groups=2.0), "`groups` must be a positive integer.*groups=2.0"),
    (dict(groups=True), "`groups` must be a positive integer.*groups=True"),
    (dict(groups="2"), "`groups` must be a positive integer.*groups='2'"),
    (
        dict(filters=6, groups=4),
        r"`filters` must be divisible by `groups`.*filters=6, groups=4.*"
        r"\[1, 2, 3, 6\]",
    ),
    (
        dict(filters=10**18, groups=3),
        r"`filters` must be divisible by.*\[1, 2, 4, .*50{17}, 10{18}\]",
    ),
    (dict(kernel_size=0), "`kernel_size` must be a positive.*kernel_size=0"),
    (dict(kernel_size=True), "`kernel_size` must be a positive.*=True"),
    (dict(kernel_size=2.5), "`kernel_size` must be a positive.*=2.5"),
    (dict(kernel_size=(3,) * 4), "`kernel_size` must be a positive.*3, 3, 3"),
    (dict(kernel_size=None), "`kernel_size` must be a positive.*=None"),
    (dict(kernel_size="3"), "`kernel_size` must be a positive.*='3'"),
    (dict(strides=0), "`strides` must be a positive integer.*strides=0"),
    (dict(strides=(1,) * 4), "`strides` must be a positive integer or"),
    (dict(dilation_rate=0), "`dilation_rate` must be a positive.*rate=0"),
    (dict(dilation_rate=(1, False)), "`dilation_rate` must be.*False"),
    (
        dict(strides=2, dilation_rate=2),
        "`strides` above 1 cannot be combined with `dilation_rate`.*"
        r"strides=\(2.*dilation_rate=\(2.*Set one of them to 1",
    ),
    (dict(padding="full"), "`padding` must be one of.*padding='full'"),
    (dict(padding=None), "`padding` must be one of.*padding=None"),
    (dict(padding=1), "`padding` must be one of.*padding=1"),
    (
        dict(data_format="NHWC"),
        "`data_format` must be one of.*channels_first.*data_format='NHWC'",
    ),
    (dict(lowering="fast"), "`lowering` must be one of.*lowering='fast'"),
    (
        dict(lowering="matmul"),
        r"`lowering='matmul'` computes kernels of size 1 only.*size \(3",
    ),
]


@every_layer
@pytest.mark.parametrize("kwargs, message", BAD_ARGUMENTS)
def test_bad_arguments(cls, kwargs, message):
    if set(kwargs) & set(LACKS.get(cls, ())):
        pytest.skip("an argument that the layer does not take")
    if "divisible" in message and not cls.equal_groups:
        pytest.skip("groups need not divide the filters")
    with pytest.raises(ValueError, match=message):
        plain(cls, **kwargs)


BAD_COARSE_ARGUMENTS = [
    (dict(coarse_channels=0), "`coarse_channels` must be a positive.*=0"),
    (dict(coarse_channels=1.5), "`coarse_channels` must be a positive.*=1.5"),
    (dict(coarse_channels=True), "`coarse_channels` must be a pos.*=True"),
    (dict(coarse_channels=None), "`coarse_channels` must be a pos.*=None"),
    (dict(coarse_kernel_size=0), "`coarse_kernel_size` must be a pos.*=0"),
    (dict(coarse_kernel_size=1.0), "`coarse_kernel_size` must be a.*=1.0"),
    (dict(coarse_kernel_size=True), "`coarse_kernel_size` must be.*=True"),
    (dict(coarse_kernel_size=(1,) * 4), "`coarse_kernel_size` must be.*1, 1"),
    (
        dict(kernel_size=1, coarse_kernel_size=3, lowering="matmul"),
        r"`lowering='matmul'` computes kernels of size 1 only.*size \(3",
    ),
]


@pytest.mark.parametrize("cls", TWO_LEVEL.values())
@pytest.mark.parametrize("kwargs, message", BAD_COARSE_ARGUMENTS)
def test_bad_coarse_arguments(cls, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cls(**{"filters": 4, "kernel_size": 3} | kwargs)


@pytest.mark.parametrize("cls", LAYERS)
def test_causal_padding_is_for_1d(cls):
    if cls.rank == 1:
        assert plain(cls, padding="CAUSAL").padding == "causal"
        return
    with pytest.raises(
        ValueError, match=r"`padding` must be one of.*padding='causal'"
    ):
        plain(cls, padding="causal")


BAD_INPUTS = [
    (
        dict(groups=4),
        lambda rank: (None, *[8] * rank, 6),
        r"`input channels` must be divisible by `groups`.*input channels=6, "
        r"groups=4.*Allowed groups for 6 channels: \[1, 2, 3, 6\]",
    ),
    (
        dict(),
        lambda rank: (None, *[8] * rank, None),
        "The number of input channels must be known.*None.*fixed channel",
    ),
    (
        dict(data_format="channels_first"),
        lambda rank: (None, None, *[8] * rank),
        r"The number of input channels must be known.*\(batch, channels, ",
    ),
    (
        dict(),
        lambda rank: (None, *[8] * rank, 8, 4),
        r"The input must have \d dimensions, \(batch, \*spatial, channels\)",
    ),
    (
        dict(),
        lambda rank: (8, 4),
        r"The input must have \d dimensions.*input_shape=\(8, 4\).*Reshape it",
    ),
    (
        dict(),
        lambda rank: (None, *[2] * rank, 4),
        r"The window must fit into the input.*input_shape=\(None, 2.*"
        r"kernel_size=\(3.*padding='valid'.*Use a smaller window",
    ),
    (
        dict(dilation_rate=2),
        lambda rank: (None, *[4] * rank, 4),
        r"The window must fit into the input.*dilation_rate=\(2",
    ),
]


@every_layer
@pytest.mark.parametrize("kwargs, shape, message", BAD_INPUTS)
def test_bad_inputs(cls, kwargs, shape, message):
    if "divisible" in message and not cls.equal_groups:
        pytest.skip("groups need not divide the channels")
    layer = plain(cls, **kwargs)
    with pytest.raises(ValueError, match=message):
        layer.compute_output_shape(shape(cls.rank))
    with pytest.raises(ValueError, match=message):
        layer.build(shape(cls.rank))
    assert len(layer.weights) == 0  # A second `build` starts afresh.
    assert not layer.built
    built(layer, in_format((1, *[8] * cls.rank, 4), layer.data_format))
    assert len(layer.weights) >= 2


@every_layer
def test_other_channels_after_build(cls):
    layer, x = make(cls)
    with pytest.raises(ValueError, match="incompatible with the layer"):
        layer(np.concatenate([x, x], axis=-1))


@every_layer
def test_dense_kernel_before_build(cls):
    layer = plain(cls)
    with pytest.raises(
        ValueError,
        match="`dense_kernel` needs a layer that has weights.*"
        rf"'{layer.name}'.*Call it on data first",
    ):
        layer.dense_kernel()


# From one backend to another


def exchange_model():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6, 7, 4)),
            layers.TwoLevelGroupConv2D(
                12,
                3,
                strides=2,
                padding="same",
                groups=2,
                activation="relu",
                bias_initializer="random_normal",
                coarse_channels=2,
                coarse_kernel_size=5,
            ),
            layers.GroupConv2D(8, 1, groups=4),
            keras.layers.Reshape((12, 8)),
            layers.TwoLevelGroupConv1D(
                8, 3, padding="causal", groups=8, coarse_kernel_size=4
            ),
            keras.layers.Reshape((8, 4, 3)),
            layers.TwoLevelGroupConv2D(
                4,
                2,
                padding="same",
                data_format="channels_first",
                groups=4,
                use_bias=False,
            ),
        ]
    )


def exchange_save(folder):
    model = exchange_model()
    x = random(2, 6, 7, 4)
    model.save(folder / f"{BACKEND}.keras")
    model.save_weights(folder / f"{BACKEND}.weights.h5")
    np.savez(folder / f"{BACKEND}.npz", x=x, y=model.predict(x, verbose=0))


def exchange_load(folder, backend):
    """Compare the outputs here with those that `backend` saved."""
    with np.load(folder / f"{backend}.npz") as saved:
        x, y = saved["x"], saved["y"]
    assert np.abs(y).max() > 0.01
    loaded = keras.saving.load_model(folder / f"{backend}.keras")
    assert_near(loaded.predict(x, verbose=0), y)
    model = exchange_model()
    for v in model.weights:
        v.assign(np.zeros(v.shape))
    model.load_weights(folder / f"{backend}.weights.h5")
    assert_near(model.predict(x, verbose=0), y)


LOAD_ELSEWHERE = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
if sys.argv[4] == "torch":
    import torch  # Before keras, as conftest.py does.
import test_layers
assert test_layers.BACKEND == sys.argv[4] != sys.argv[3]
test_layers.exchange_load(pathlib.Path(sys.argv[2]), sys.argv[3])
print("loaded")
"""


@pytest.mark.parametrize("other", OTHER_BACKENDS)
def test_models_load_on_another_backend(other, tmp_path):
    if importlib.util.find_spec(other) is None:
        pytest.skip(f"{other} is not installed beside {BACKEND}")
    exchange_save(tmp_path)
    printed = run_python(
        LOAD_ELSEWHERE,
        pathlib.Path(__file__).parent,
        tmp_path,
        BACKEND,
        other,
        KERAS_BACKEND=other,
    )
    assert printed.split()[-1] == "loaded"


@pytest.mark.skipif(
    "KERAS_TLGC_EXCHANGE" not in os.environ,
    reason="KERAS_TLGC_EXCHANGE names no folder that backends share",
)
def test_models_load_from_other_backends():
    folder = pathlib.Path(os.environ["KERAS_TLGC_EXCHANGE"])
    folder.mkdir(parents=True, exist_ok=True)
    exchange_save(folder)
    for saved in folder.glob("*.npz"):
        exchange_load(folder, saved.stem)
