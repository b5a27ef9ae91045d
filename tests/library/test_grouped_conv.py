import itertools

import keras
import numpy as np
import pytest
from cases import ONE_FORMAT
from convolving import Convolution, jitted
from helpers import float64, gradients, random, to_numpy
from keras import ops
from oracle import two_level_group_conv

from keras_tlgc.ops import LOWERINGS, grouped_conv
from keras_tlgc.ops.grouped_conv import grouped_convs

FORMATS = ["channels_last", "channels_first"]


# name: (input shape, channels last; kernel shape; groups; other arguments).
CASES = {
    "1d": ((2, 7, 6), (3, 2, 6), 3, dict(strides=2, padding="same")),
    "2d": ((2, 6, 5, 4), (2, 3, 2, 6), 2, dict(strides=(2, 1))),
    "2d_dilation": ((2, 6, 6, 4), (2, 2, 2, 4), 2, dict(dilation_rate=2)),
    "2d_1x1": ((2, 5, 6, 6), (1, 1, 2, 3), 3, dict(strides=(2, 3))),
    "2d_one_group": ((2, 4, 4, 3), (2, 2, 3, 4), 1, dict()),
    "2d_depthwise": (
        (2, 7, 6, 5),
        (3, 2, 1, 10),
        5,
        dict(strides=(2, 3), padding="same"),
    ),
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


@pytest.mark.parametrize("data_format", ONE_FORMAT)
@pytest.mark.parametrize("case, lowering", ROWS)
def test_grouped_convs(case, lowering, data_format):
    """One kernel, several, and one with far more filters than are read."""
    shape, kernel_shape, groups, window = CASES[case]
    window = dict(window, data_format=data_format)
    x = random(*shape)
    if data_format == "channels_first":
        x = np.moveaxis(x, -1, 1)
    many = 2 * int(np.prod(kernel_shape[:-1]))
    for filters in ([kernel_shape[-1] // groups], [1, 2, 1], [many, 2, 1]):
        kernels = [
            random(*kernel_shape[:-1], groups * n, seed=n) for n in filters
        ]
        results = jitted(
            lambda x, *kernels: grouped_convs(
                x, kernels, groups, lowering=lowering, **window
            )
        )(*map(ops.convert_to_tensor, (x, *kernels)))
        for y, kernel in zip(results, kernels, strict=True):
            expected = two_level_group_conv(x, kernel, groups=groups, **window)
            assert tuple(y.shape) == expected.shape
            np.testing.assert_allclose(
                to_numpy(y), expected, rtol=1e-5, atol=1e-5
            )


# What `keras.ops.conv` takes: Keras' own tests of it, with groups


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("convert", [np.asarray, np.ndarray.tolist])
def test_takes_arrays(convert, lowering):
    x, kernel = random(2, 4, 4, 6), random(1, 1, 3, 4, seed=1)
    y = grouped_conv(
        convert(x),
        convert(kernel),
        2,
        strides=np.int64(2),
        padding="SAME",
        lowering=lowering,
    )
    expected = two_level_group_conv(x, kernel, groups=2, strides=2)
    np.testing.assert_allclose(to_numpy(y), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "int32"])
@pytest.mark.parametrize("window", [(1, 1), (2, 2)])
def test_the_output_is_of_the_kernels_type(window, dtype):
    x = ops.convert_to_tensor(np.ones((1, 3, 3, 4), dtype))
    y = grouped_conv(x, ops.ones((*window, 2, 4)), 2)
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    np.testing.assert_array_equal(to_numpy(y), 2 * np.prod(window))


# name: (sizes, kernel size, other arguments, sizes of the output).
SYMBOLIC = {
    "1d": ((20,), (4,), dict(padding="SAME"), (20,)),
    "1d_dilation": ((20,), (4,), dict(strides=(2,), dilation_rate=2), (7,)),
    "2d_free_width": ((10, None), (2, 2), dict(), (9, None)),
    "2d_free_1x1": ((None, None), (1, 1), dict(strides=2), (None, None)),
    "3d": ((8, None, 8), (3,) * 3, dict(strides=(2, 1, 2)), (3, None, 3)),
}


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("case", SYMBOLIC)
def test_symbolic_inputs(case, data_format, tmp_path):
    """A functional model of the operation: its shapes, values and file."""
    sizes, window, kwargs, out = SYMBOLIC[case]
    kwargs = dict(kwargs, data_format=data_format)
    kernels = [random(*window, 3, 2 * n, seed=n) for n in (2, 1)]
    last = data_format == "channels_last"
    x = keras.Input((*sizes, 6) if last else (6, *sizes))
    outputs = grouped_convs(x, kernels, 2, **kwargs)
    assert [y.shape for y in outputs] == [
        (None, *out, n) if last else (None, n, *out) for n in (4, 2)
    ]
    spec = keras.KerasTensor(kernels[0].shape)
    assert grouped_conv(x, spec, 2, **kwargs).shape == outputs[0].shape
    # TensorFlow has no convolution with both, except for shapes.
    if kwargs.get("strides", 1) != 1 and "dilation_rate" in kwargs:
        return
    model = keras.Model(x, outputs)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    batch = random(2, *[size or 5 for size in x.shape[1:]])
    kwargs["padding"] = kwargs.get("padding", "valid").lower()
    for y, kernel in zip(model(batch), kernels, strict=True):
        expected = two_level_group_conv(batch, kernel, groups=2, **kwargs)
        np.testing.assert_allclose(to_numpy(y), expected, rtol=1e-5, atol=1e-5)


# `auto` works wherever another lowering does.

HARD = {
    "an empty batch": dict(batch=0),
    "an empty batch of wide groups": dict(batch=0, m=16),
    "an empty batch, strided": dict(batch=0, m=16, strides=2),
    "an empty batch in 1d": dict(batch=0, rank=1, m=16),
    "an empty batch in 3d": dict(batch=0, rank=3, m=16),
    "float64": dict(dtype="float64"),
    "float64 of wide groups": dict(dtype="float64", m=16, strides=2),
    "float64 in 1d": dict(dtype="float64", rank=1),
    "float64 in 3d": dict(dtype="float64", rank=3),
    "an empty batch of float64": dict(dtype="float64", batch=0),
    "float16": dict(dtype="float16"),
    "bfloat16 of wide groups": dict(dtype="bfloat16", m=16),
    "a channel a group": dict(m=1, strides=2, padding="same"),
    "a channel a group, dilated": dict(m=1, dilation_rate=2),
    "a channel a group in 1d": dict(m=1, rank=1, window=4, padding="same"),
    "a channel a group in 3d": dict(m=1, rank=3, batch=0),
    "a channel a group in float16": dict(m=1, dtype="float16"),
    "1x1, strided, dilated": dict(window=1, strides=2, dilation_rate=2),
    "a batch of one": dict(batch=1, window=1),
}


def hard_case(
    data_format,
    batch=2,
    rank=2,
    m=2,
    window=3,
    dtype="float32",
    **kwargs,
):
    shape = (batch, *[6] * rank, 4 * m)
    x = random(*shape, dtype="float64")
    if data_format == "channels_first":
        x = np.moveaxis(x, -1, 1)
    kernel = random(*[window] * rank, m, 8, seed=1, dtype="float64")
    kwargs = dict(kwargs, data_format=data_format)
    x, kernel = (ops.cast(ops.array(a), dtype) for a in (x, kernel))
    return x, kernel, kwargs


@pytest.fixture
def _float64(case):
    if HARD[case].get("dtype") == "float64":
        with float64():
            yield
    else:
        yield


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("data_format", ONE_FORMAT)
@pytest.mark.parametrize("case", HARD)
def test_auto_works_where_another_lowering_does(case, data_format):
    x, kernel, kwargs = hard_case(data_format, **HARD[case])

    def results(lowering):
        layer = Convolution(kernel, groups=4, lowering=lowering, **kwargs)
        dx, [dw] = gradients(layer, x)
        return to_numpy(layer(x)), dx, dw

    actual = results("auto")
    for lowering in LOWERINGS[1:]:
        try:
            expected = results(lowering)
            break
        except Exception:  # Which one does not matter: `auto` works.
            continue
    tolerance = 0.3 if "float16" in case else 1e-3
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="of TensorFlow"
)
@pytest.mark.parametrize("m", [2, 16])
def test_a_replica_without_data(m):
    """The replica's batch has a size that the graph does not know."""
    import tensorflow as tf

    kernel = ops.convert_to_tensor(random(3, 3, m, 8))
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])

    @tf.function(input_signature=[tf.TensorSpec((None, 6, 6, 4 * m))])
    def compute(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = grouped_conv(x, kernel, 4)
            loss = tf.reduce_sum(y * y)
        return y, tape.gradient(loss, x)

    for batch in (0, 2):
        x = random(batch, 6, 6, 4 * m)
        y, dx = strategy.run(compute, [tf.constant(x)])
        expected = two_level_group_conv(x, to_numpy(kernel), groups=4)
        np.testing.assert_allclose(to_numpy(y), expected, atol=1e-4)
        assert tuple(dx.shape) == x.shape


def test_data_format_defaults_to_the_image_data_format():
    keras.config.set_image_data_format("channels_first")
    x = ops.convert_to_tensor(random(2, 4, 5, 5))
    y = grouped_conv(x, ops.convert_to_tensor(random(2, 2, 2, 6)), 2)
    assert tuple(y.shape) == (2, 6, 4, 4)


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
        (
            (2, 5, 5, 4),
            (3, 3, 2, 4),
            dict(groups=0),
            "`groups` must be a positive integer.*groups=0",
        ),
        (
            (2, 5, 5, 4),
            (3, 2, 4),
            dict(groups=2),
            r"`inputs` must have 3 to 5 dimensions, and each kernel as many.*"
            r"\(2, 5, 5, 4\), kernels of shapes \[\(3, 2, 4\)\]",
        ),
        (
            (5, 4),
            (3, 2, 4),
            dict(groups=2),
            "`inputs` must have 3 to 5 dimensions.*Pass at least one kernel",
        ),
        (
            (2, 5, 5, 4),
            (1, 1, 2, 4),
            dict(groups=2, lowering="matmul", padding="half"),
            "`padding` must be one of.*padding='half'",
        ),
        (
            (2, 5, 5, 4),
            (3, 3, 2, 4),
            dict(groups=2, data_format="Channels_Last"),
            "`data_format` must be one of.*data_format='Channels_Last'",
        ),
        (
            (2, 5, 5, 4),
            (3, 3, 2, 4),
            dict(groups=2, strides=(1, 1, 1)),
            r"`strides` must be a positive integer or 2.*\(1, 1, 1\)",
        ),
        (
            (2, 5, 5, 4),
            (3, 3, 2, 4),
            dict(groups=2, dilation_rate=0),
            "`dilation_rate` must be a positive integer or 2.*=0",
        ),
    ],
)
def test_grouped_conv_errors(x_shape, kernel_shape, kwargs, message):
    x, kernel = random(*x_shape), random(*kernel_shape)
    with pytest.raises(ValueError, match=message):
        grouped_conv(
            ops.convert_to_tensor(x), ops.convert_to_tensor(kernel), **kwargs
        )


@pytest.mark.parametrize(
    "windows, message",
    [
        ([], r"each kernel as many.*kernels of shapes \[\]. Pass at least one"),
        (
            [(3, 3), (1, 1)],
            r"must have one window.*\[\(3, 3\), \(1, 1\)\]. Surround",
        ),
    ],
)
def test_grouped_convs_errors(windows, message):
    kernels = [random(*window, 2, 4) for window in windows]
    with pytest.raises(ValueError, match=message):
        grouped_convs(random(2, 5, 5, 4), kernels, 2)


def test_a_window_beyond_a_symbolic_input():
    with pytest.raises(ValueError, match=r"window must fit.*\(None, 4, 4, 4\)"):
        grouped_conv(keras.Input((4, 4, 4)), random(5, 5, 2, 4), 2)
