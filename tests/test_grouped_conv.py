import itertools

import keras
import numpy as np
import pytest
from helpers import random, to_numpy
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from oracle import two_level_group_conv

from keras_tlgc.ops import (
    LOWERINGS,
    block_diagonal,
    choose_lowering,
    grouped_conv,
)
from keras_tlgc.ops.geometry import margins, output_size, same_padding
from keras_tlgc.ops.grouped_conv import grouped_convs

FORMATS = ["channels_last", "channels_first"]

# (backend, device, kernel size): lowering.
CHOICES = {
    ("jax", "cpu", (3, 3)): "slices",
    ("jax", "cpu", (1, 3)): "slices",
    ("jax", "cpu", (1, 1)): "matmul",
    ("jax", "cpu", (1,)): "matmul",
    ("tensorflow", "cpu", (3, 3)): "slices",
    ("tensorflow", "cpu", (1, 1, 1)): "slices",
    ("torch", "cpu", (3, 3)): "native",
    ("torch", "cpu", (1,)): "native",
}

# name: (input shape, channels last; kernel shape; groups; other arguments).
CASES = {
    "1d": ((2, 7, 6), (3, 2, 6), 3, dict(strides=2, padding="same")),
    "2d": ((2, 6, 5, 4), (2, 3, 2, 6), 2, dict(strides=(2, 1))),
    "2d_dilation": ((2, 6, 6, 4), (2, 2, 2, 4), 2, dict(dilation_rate=2)),
    "2d_1x1": ((2, 5, 6, 6), (1, 1, 2, 3), 3, dict(strides=(2, 3))),
    "2d_one_group": ((2, 4, 4, 3), (2, 2, 3, 4), 1, dict()),
    "2d_16_groups": ((1, 3, 3, 16), (2, 2, 1, 16), 16, dict()),
    "2d_18_groups": ((1, 3, 3, 36), (2, 2, 2, 18), 18, dict()),
    # Slices of one group each, of many, and of several where groups abound.
    "2d_wide": ((1, 3, 3, 48), (2, 2, 16, 6), 3, dict(strides=2)),
    "2d_wide_16_groups": ((1, 2, 2, 256), (2, 2, 16, 16), 16, dict()),
    "2d_wide_18_groups": ((1, 2, 2, 288), (2, 2, 16, 36), 18, dict()),
    "3d": ((2, 3, 4, 3, 4), (2, 2, 2, 2, 4), 2, dict(padding="same")),
    "3d_1x1x1": ((1, 3, 4, 3, 4), (1, 1, 1, 2, 4), 2, dict(strides=2)),
}


def legal(lowering, kernel_shape):
    return lowering != "matmul" or set(kernel_shape[:-2]) == {1}


ROWS = [
    (case, lowering)
    for case, lowering in itertools.product(CASES, LOWERINGS)
    if legal(lowering, CASES[case][1])
]


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("case, lowering", ROWS)
def test_grouped_conv(case, lowering, data_format):
    shape, kernel_shape, groups, window = CASES[case]
    x, kernel = random(*shape), random(*kernel_shape, seed=1)
    if data_format == "channels_first":
        x = np.moveaxis(x, -1, 1)
    y = grouped_conv(
        ops.convert_to_tensor(x),
        ops.convert_to_tensor(kernel),
        groups,
        data_format=data_format,
        lowering=lowering,
        **window,
    )
    expected = two_level_group_conv(
        x, kernel, groups=groups, data_format=data_format, **window
    )
    assert tuple(y.shape) == expected.shape
    np.testing.assert_allclose(to_numpy(y), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("case, lowering", ROWS)
def test_several_kernels_at_once(case, lowering, data_format):
    """Two kernels, then one with far more filters than the input is read."""
    shape, kernel_shape, groups, window = CASES[case]
    x = random(*shape)
    if data_format == "channels_first":
        x = np.moveaxis(x, -1, 1)
    for filters in (1, 2 * int(np.prod(kernel_shape[:-1]))):
        kernels = [
            random(*kernel_shape[:-1], groups * n, seed=n)
            for n in (filters, 2, 1)
        ]
        outputs = grouped_convs(
            ops.convert_to_tensor(x),
            [ops.convert_to_tensor(kernel) for kernel in kernels],
            groups,
            data_format=data_format,
            lowering=lowering,
            **window,
        )
        for y, kernel in zip(outputs, kernels, strict=True):
            expected = two_level_group_conv(
                x, kernel, groups=groups, data_format=data_format, **window
            )
            assert tuple(y.shape) == expected.shape
            np.testing.assert_allclose(
                to_numpy(y), expected, rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("case, convolutions", [("one pass", 1), ("two", 2)])
def test_the_input_is_read_once_where_that_pays(
    case, convolutions, monkeypatch
):
    convolved = []

    def conv(*args, **kwargs):
        convolved.append(args)
        return original(*args, **kwargs)

    original = ops.conv
    monkeypatch.setattr(ops, "conv", conv)
    window, filters = ((3, 3), 8) if case == "one pass" else ((1, 1), 8)
    kernels = [
        ops.convert_to_tensor(random(*window, 4, n)) for n in (filters, 2)
    ]
    x = ops.convert_to_tensor(random(1, 5, 5, 8))
    grouped_convs(x, kernels, 2, lowering="native")
    assert len(convolved) == convolutions


def test_data_format_defaults_to_the_image_data_format():
    keras.config.set_image_data_format("channels_first")
    x = ops.convert_to_tensor(random(2, 4, 5, 5))
    y = grouped_conv(x, ops.convert_to_tensor(random(2, 2, 2, 6)), 2)
    assert tuple(y.shape) == (2, 6, 4, 4)


@pytest.mark.parametrize("m", [1, 16])
@pytest.mark.parametrize("groups", [2, 16, 17, 40])
def test_slices_are_at_most_16(groups, m, monkeypatch):
    convolved = []

    def conv(inputs, kernel, **window):
        convolved.append(inputs.shape[-1])
        return original(inputs, kernel, **window)

    original = ops.conv
    monkeypatch.setattr(ops, "conv", conv)
    x = ops.convert_to_tensor(random(1, 2, groups * m))
    kernel = ops.convert_to_tensor(random(1, m, groups))
    grouped_conv(x, kernel, groups, lowering="slices")
    assert 1 <= len(convolved) <= 16
    assert sum(convolved) == groups * m
    # Wide groups share a slice only where there are too many of them.
    if m == 16:
        assert convolved[0] == -(-groups // 16) * m


def device(tensor):
    if keras.backend.backend() == "torch":
        return tensor.device.type
    return keras.distribution.list_devices()[0].split(":")[0].lower()


@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3)])
def test_auto_is_the_chosen_lowering(kernel_size):
    x = ops.convert_to_tensor(random(2, 5, 5, 4))
    kernel = ops.convert_to_tensor(random(*kernel_size, 2, 4, seed=1))
    lowering = choose_lowering(keras.backend.backend(), device(x), kernel_size)
    auto = grouped_conv(x, kernel, 2)
    chosen = grouped_conv(x, kernel, 2, lowering=lowering)
    np.testing.assert_array_equal(to_numpy(auto), to_numpy(chosen))


@pytest.mark.parametrize("arguments, lowering", CHOICES.items())
def test_choose_lowering(arguments, lowering):
    assert choose_lowering(*arguments) == lowering


@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
@pytest.mark.parametrize("device", ["cuda", "gpu", "tpu", "meta"])
@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3)])
def test_choose_lowering_off_the_cpu(backend, device, kernel_size):
    assert choose_lowering(backend, device, kernel_size) == "native"


def test_names_of_lowerings():
    assert LOWERINGS == ("auto", "native", "slices", "matmul")


# The dense kernel


@pytest.mark.parametrize("window", [(), (2,), (2, 3), (1, 2, 2)])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_block_diagonal(window, groups):
    kernel = random(*window, 2, 2 * groups)
    dense = to_numpy(block_diagonal(ops.convert_to_tensor(kernel), groups))
    expected = np.zeros((*window, 2 * groups, 2 * groups), "float32")
    for i in range(groups):
        block = slice(2 * i, 2 * i + 2)
        expected[..., block, block] = kernel[..., block]
    np.testing.assert_array_equal(dense, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_block_diagonal_keeps_the_dtype(dtype):
    kernel = ops.ones((2, 3, 4), dtype=dtype)
    dense = block_diagonal(kernel, 2)
    assert keras.backend.standardize_dtype(dense.dtype) == dtype


# Errors


@pytest.mark.parametrize(
    "x_shape, kernel_shape, kwargs, message",
    [
        (
            (2, 5, 5, 6),
            (3, 3, 2, 4),
            dict(groups=2),
            r"The input must have `groups \* kernel.shape\[-2\]` channels.*"
            r"inputs.shape=\(2, 5, 5, 6\), groups=2, "
            r"kernel.shape=\(3, 3, 2, 4\).*Pass the kernel of one group",
        ),
        (
            (2, 5, 5, 4),
            (3, 3, 2, 4),
            dict(groups=2, data_format="channels_first"),
            "data_format='channels_first'.*check `data_format`",
        ),
        (
            (2, 5, 5, 4),
            (3, 3, 2, 5),
            dict(groups=2),
            r"`kernel.shape\[-1\]` must be divisible by `groups`.*"
            r"kernel.shape\[-1\]=5, groups=2",
        ),
        (
            (2, 5, 5, 4),
            (3, 3, 2, 4),
            dict(groups=2, lowering="matmul"),
            r"`lowering='matmul'` computes kernels of size 1 only.*\(3, 3\)",
        ),
        (
            (2, 5, 5, 4),
            (3, 3, 2, 4),
            dict(groups=2, lowering="fast"),
            "`lowering` must be one of.*lowering='fast'",
        ),
    ],
)
def test_grouped_conv_errors(x_shape, kernel_shape, kwargs, message):
    x, kernel = random(*x_shape), random(*kernel_shape)
    with pytest.raises(ValueError, match=message):
        grouped_conv(
            ops.convert_to_tensor(x), ops.convert_to_tensor(kernel), **kwargs
        )


# Geometry, against counting by hand

SIZES = st.integers(1, 20)
SMALL = st.integers(1, 5)


def positions(low, size, kernel, stride, dilation):
    """Return where windows begin that fit into `low` zeros and the input."""
    last = size - dilation * (kernel - 1)
    return [p for p in range(low, max(last, low), stride) if p < last]


@given(SIZES, SMALL, SMALL, SMALL)
def test_output_size_of_valid_padding(size, kernel, stride, dilation):
    fits = positions(0, size, kernel, stride, dilation)
    result = output_size(size, kernel, stride, dilation, "valid")
    assert result == len(fits) if fits else result < 1


@given(SIZES, SMALL, SMALL, SMALL)
def test_output_size_of_causal_padding(size, kernel, stride, dilation):
    past = dilation * (kernel - 1)
    fits = positions(-past, size, kernel, stride, dilation)
    assert output_size(size, kernel, stride, dilation, "causal") == len(fits)


@given(SIZES, SMALL, SMALL, SMALL)
def test_same_padding(size, kernel, stride, dilation):
    low, high = same_padding(size, kernel, stride, dilation)
    outputs = output_size(size, kernel, stride, dilation, "same")
    assert outputs == len(range(0, size, stride))
    assert high - low in (0, 1)
    # The fewest zeros that let so many windows fit.
    reach = dilation * (kernel - 1)
    fits = positions(-low, size + high, kernel, stride, dilation)
    assert len(fits) == outputs
    if low + high:
        last = -low + (outputs - 1) * stride
        assert last + reach == size + high - 1


@given(SIZES, SMALL, SMALL, SMALL)
def test_same_padding_of_a_tensor(size, kernel, stride, dilation):
    tensor = ops.convert_to_tensor(size, dtype="int32")
    result = same_padding(tensor, kernel, stride, dilation)
    expected = same_padding(size, kernel, stride, dilation)
    assert tuple(int(p) for p in result) == expected


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
def test_unknown_size_stays_unknown(padding):
    assert output_size(None, 3, 2, 1, padding) is None


@given(SMALL, SMALL)
def test_margins(fine, coarse):
    [(low, high)] = margins((fine,), (coarse,), causal=False)
    # Taps of the fine window at 0, 1, ...; the coarse one begins at `low`.
    assert low + coarse + high == fine
    assert low == int(np.floor((fine - coarse) / 2))
    [(low, high)] = margins((fine,), (coarse,), causal=True)
    assert (low, high) == (fine - coarse, 0)


def test_margins_of_each_axis():
    assert margins((3, 2), (1, 5), causal=False) == [(1, 1), (-2, -1)]
