"""What holds for any layer, network, conversion and layout, drawn at random."""

import math

import keras
import numpy as np
import pytest
from cases import (
    BACKEND,
    FORMATS,
    GROUP,
    SHUFFLE,
    TWO_LEVEL,
    built,
    in_format,
    oracle,
)
from helpers import float64, outputs, random, to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st

# Layers

KINDS = {"group": GROUP, "shuffle": SHUFFLE, "two_level": TWO_LEVEL}
# Of what the outputs come to, for outputs of about 1 to 10.
TOLERANCES = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 0.3}


@st.composite
def cases(draw, kinds=tuple(KINDS), ranks=(1, 2, 3), dtypes=("float32",)):
    """Draw a layer's class, its arguments, and a channels-last shape."""
    rank = draw(st.sampled_from(ranks))
    kind = draw(st.sampled_from(kinds))
    data_format = draw(st.sampled_from(FORMATS))
    dtype = draw(st.sampled_from(dtypes))
    if (BACKEND, data_format) == ("tensorflow", "channels_first"):
        dtype = "float32"  # TensorFlow's CPU lacks other dense convolutions.
    groups = draw(st.integers(1, 4))

    def per_axis(most):
        return tuple(draw(st.integers(1, most)) for _ in range(rank))

    kernel_size = per_axis({1: 4, 2: 3, 3: 2}[rank])
    strided = draw(st.booleans())
    kwargs = dict(
        filters=groups * draw(st.integers(1, 3)),
        kernel_size=kernel_size,
        strides=per_axis(3) if strided else 1,
        dilation_rate=1 if strided else per_axis(2),
        padding=draw(
            st.sampled_from(["valid", "same"] + ["causal"] * (rank == 1))
        ),
        data_format=data_format,
        groups=groups,
        use_bias=draw(st.booleans()),
        dtype={"bfloat16": "mixed_bfloat16"}.get(dtype, dtype),
    )
    if kind == "two_level":
        kwargs["coarse_channels"] = draw(st.integers(1, 3))
        kwargs["coarse_kernel_size"] = draw(
            st.sampled_from([None, kernel_size, per_axis(4)])
        )
    reach = 2 * max(kernel_size) - 1
    sizes = [draw(st.integers(reach, reach + 2)) for _ in range(rank)]
    channels = groups * draw(st.integers(1, 3))
    shape = (draw(st.sampled_from([1, 3])), *sizes, channels)
    return KINDS[kind][rank], kwargs, shape


def make(cls, kwargs, shape):
    """Return the layer, built, and an input of its dtype and data format."""
    shape = in_format(shape, kwargs["data_format"])
    layer = built(cls(**kwargs), shape)
    if hasattr(layer, "coarse_channels"):
        # The entries of its kernels multiply: keep the outputs near 1.
        layer.coarse_kernel.assign(0.3 * to_numpy(layer.coarse_kernel))
    return layer, random(*shape, dtype=layer.variable_dtype)


def expected_outputs(layer, x):
    y = oracle(layer, x)
    if type(layer) in SHUFFLE.values():
        axis = layer.channel_axis % y.ndim
        y = np.moveaxis(y, axis, -1)
        y = y.reshape(*y.shape[:-1], layer.groups, -1).swapaxes(-1, -2)
        y = np.moveaxis(y.reshape(*y.shape[:-2], -1), -1, axis)
    return y


def assert_near(actual, expected, tolerance=1e-4):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=25)
@given(case=cases(dtypes=tuple(TOLERANCES)))
def test_any_layer_is_what_its_definition_says(case):
    dtype = case[1]["dtype"].removeprefix("mixed_")
    with float64():
        layer, x = make(*case)
        y = outputs(layer, x)
        symbolic = layer(keras.KerasTensor((None, *x.shape[1:]), dtype=dtype))
    assert y.shape == layer.compute_output_shape(x.shape)
    assert symbolic.shape == (None, *y.shape[1:])
    assert symbolic.dtype == dtype == layer.compute_dtype
    assert_near(y, expected_outputs(layer, x), TOLERANCES[dtype])


@settings(max_examples=8)
@given(case=cases(("group", "two_level")), group=st.integers(0, 3))
def test_only_the_coarse_level_reaches_other_groups(case, group):
    cls, kwargs, shape = case
    layer, x = make(cls, kwargs, shape)
    axis, group = layer.channel_axis, group % layer.groups

    def split(array):
        return np.split(array, layer.groups, axis)

    changed = split(x)
    changed[group] = changed[group] + 1
    y, z = outputs(layer, x), outputs(layer, np.concatenate(changed, axis))
    changes = [
        np.abs(a - b).max() for a, b in zip(split(y), split(z), strict=True)
    ]
    reached = {group}
    if cls is TWO_LEVEL[cls.rank]:
        reached = set(range(layer.groups))
    assert {i for i, change in enumerate(changes) if change > 1e-5} == reached
    assert {i for i, change in enumerate(changes) if change > 0} == reached


@pytest.mark.once
@settings(max_examples=30)
@given(case=cases(("two_level",)))
def test_rank_of_the_coarse_level(case):
    """C R is of rank r from each group and N r in all, where there is room."""
    layer, _ = make(*case)
    layer.kernel.assign(0 * to_numpy(layer.kernel))
    dense = to_numpy(layer.dense_kernel())
    m, n = dense.shape[-2:]
    groups, r = layer.groups, layer.coarse_channels
    entries = math.prod(layer.coarse_kernel_size) * m // groups

    def rank(block):
        return np.linalg.matrix_rank(block.reshape(-1, n), rtol=1e-5)

    for block in np.split(dense, groups, axis=-2):
        assert rank(block) == min(r, entries, n)
    assert rank(dense) == min(groups * min(r, entries), n)
