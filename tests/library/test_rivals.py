"""Channel shuffle and fully learnable groups, against their definitions."""

import inspect
import re
import textwrap

import keras
import numpy as np
import pytest
from cases import ONE_FORMAT
from helpers import gradients, random, to_numpy
from oracle import two_level_group_conv

from keras_tlgc import layers, ops
from keras_tlgc.applications import WideResNet

FORMATS = pytest.mark.parametrize("data_format", ONE_FORMAT)
WINDOWS = pytest.mark.parametrize(
    "window",
    [
        dict(kernel_size=3),
        dict(kernel_size=(2, 3), strides=2, padding="same"),
        dict(kernel_size=2, dilation_rate=2, padding="same"),
        dict(kernel_size=1, strides=2),
    ],
    ids=str,
)


def channels_to(data_format, x):
    return x if data_format == "channels_last" else np.moveaxis(x, -1, 1)


# Channel shuffle


@FORMATS
def test_channel_shuffle_by_hand(data_format):
    x = channels_to(data_format, np.array([[[0, 1, 2, 10, 11, 12]]]))
    y = to_numpy(ops.channel_shuffle(x, 2, data_format))
    assert y.shape == x.shape
    assert y.flatten().tolist() == [0, 10, 1, 11, 2, 12]


@FORMATS
def test_channel_shuffle_undoes_itself(data_format):
    x = channels_to(data_format, random(2, 3, 4, 12))
    y = ops.channel_shuffle(x, 3, data_format)
    assert (to_numpy(y) != x).any()
    z = ops.channel_shuffle(y, 4, data_format)
    np.testing.assert_array_equal(to_numpy(z), x)


def test_channel_shuffle_uses_the_image_data_format():
    keras.config.set_image_data_format("channels_first")
    x = random(1, 4, 2, 2)
    y = to_numpy(ops.channel_shuffle(x, 2))
    np.testing.assert_array_equal(y, x[:, [0, 2, 1, 3]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_bfloat16"])
def test_dense_kernel_of_any_dtype(dtype):
    layer = learnable((None, 4, 4, 4), dtype=dtype)
    np.testing.assert_array_equal(
        to_numpy(layer.to_group_conv().dense_kernel()),
        to_numpy(layer.dense_kernel()),
    )


@pytest.mark.once
def test_lowering_is_no_argument_of_rivals_without_choice():
    for cls in (layers.LearnableGroupConv2D, layers.RaggedGroupConv2D):
        with pytest.raises(TypeError, match="lowering"):
            cls(4, 3, lowering="native")


@pytest.mark.once
def test_channel_shuffle_bad_arguments():
    x = random(1, 2, 2, 6)
    with pytest.raises(ValueError, match=r"`groups` must be a positive.*=0"):
        ops.channel_shuffle(x, 0)
    with pytest.raises(ValueError, match=r"`data_format` must be one of.*'a'"):
        ops.channel_shuffle(x, 2, "a")


def test_channel_shuffle_error():
    with pytest.raises(
        ValueError, match=r"`input channels` must be divisible.*channels=6.*=4"
    ):
        ops.channel_shuffle(random(1, 2, 2, 6), 4, "channels_last")


@FORMATS
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_shuffle_layer_is_a_shuffled_group_convolution(rank, data_format):
    kwargs = dict(
        filters=6,
        kernel_size=2,
        strides=2,
        padding="same",
        groups=3,
        data_format=data_format,
        activation="relu",
        bias_initializer="random_normal",
    )
    group = getattr(layers, f"GroupConv{rank}D")(**kwargs)
    shuffle = getattr(layers, f"ShuffleGroupConv{rank}D")(**kwargs)
    x = channels_to(data_format, random(2, *[5, 4, 3][:rank], 9))
    y = to_numpy(group(x))
    shuffle.build(x.shape)
    shuffle.set_weights(group.get_weights())
    axis = -1 if data_format == "channels_last" else 1
    np.testing.assert_array_equal(
        to_numpy(shuffle(x)), np.take(y, [0, 2, 4, 1, 3, 5], axis)
    )


def test_dense_kernel_of_a_shuffle_layer():
    layer = layers.ShuffleGroupConv2D(6, 3, groups=2, use_bias=False)
    x = random(2, 5, 5, 4)
    y = to_numpy(layer(x))
    np.testing.assert_allclose(
        y, two_level_group_conv(x, to_numpy(layer.dense_kernel())), atol=1e-5
    )


# Fully learnable group convolution


def learnable(shape, scores=None, **kwargs):
    """Return a built layer; `scores` name the group of channels and filters."""
    defaults = dict(filters=7, kernel_size=2, groups=3)
    layer = layers.LearnableGroupConv2D(
        **defaults | kwargs, bias_initializer="random_normal"
    )
    layer.build(shape)
    if scores is not None:
        for v, groups in zip(selections(layer), scores, strict=True):
            v.assign(5 * np.eye(layer.groups)[groups])
    return layer


def selections(layer):
    return layer.input_selection, layer.output_selection


def mask_of(layer):
    chosen_in, chosen_out = (
        to_numpy(v).argmax(axis=1) for v in selections(layer)
    )
    return chosen_in[:, None] == chosen_out


@FORMATS
@WINDOWS
def test_learnable_equals_its_definition(window, data_format):
    x = channels_to(data_format, random(2, 6, 5, 8))
    layer = learnable(x.shape, data_format=data_format, **window)
    mask = mask_of(layer)
    assert mask.any() and not mask.all()
    kernel = to_numpy(layer.kernel) * mask
    expected = two_level_group_conv(
        x,
        kernel,
        to_numpy(layer.bias),
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=data_format,
    )
    np.testing.assert_allclose(to_numpy(layer(x)), expected, atol=1e-5)
    np.testing.assert_array_equal(to_numpy(layer.dense_kernel()), kernel)


def test_gradients_go_straight_through_to_the_softmax():
    x = random(2, 5, 5, 8)
    layer = learnable(x.shape, use_bias=False)
    conv = keras.layers.Conv2D(7, 2, use_bias=False)
    conv.build(x.shape)
    conv.set_weights([to_numpy(layer.dense_kernel())])
    _, [d_masked] = gradients(conv, x)
    _, [d_kernel, d_in, d_out] = gradients(layer, x)

    np.testing.assert_allclose(d_kernel, d_masked * mask_of(layer), rtol=1e-4)
    # What each weight, masked or not, would change when it opened.
    opened = np.sum(d_masked * to_numpy(layer.kernel), axis=(0, 1))
    hard_in, hard_out = (
        np.eye(3)[to_numpy(v).argmax(axis=1)] for v in selections(layer)
    )
    for v, gradient, upstream in (
        (layer.input_selection, d_in, opened @ hard_out),
        (layer.output_selection, d_out, opened.T @ hard_in),
    ):
        soft = np.exp(to_numpy(v))
        soft /= soft.sum(axis=1, keepdims=True)
        mean = np.sum(soft * upstream, axis=1, keepdims=True)
        np.testing.assert_allclose(
            gradient, soft * (upstream - mean), rtol=1e-3, atol=1e-4
        )
        assert (gradient != 0).all()


GROUPINGS = {
    "even": ([0, 0, 1, 1], [0, 1, 0, 1, 0, 1]),
    "uneven": ([2, 0, 2, 2], [2, 1, 0, 2, 2, 2]),
    "filters without channels": ([0, 0, 2, 2], [1, 1, 0, 2, 1, 0]),
    "channels without filters": ([0, 1, 1, 2], [0, 0, 0, 2, 2, 2]),
    "nothing meets": ([0, 0, 1, 1], [2, 2, 2, 2, 2, 2]),
    "all in one": ([1, 1, 1, 1], [1, 1, 1, 1, 1, 1]),
}


@FORMATS
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_to_group_conv(grouping, data_format):
    x = channels_to(data_format, random(2, 5, 6, 4))
    scores = GROUPINGS[grouping]
    layer = learnable(
        x.shape,
        scores,
        filters=6,
        strides=2,
        padding="same",
        data_format=data_format,
        activation="tanh",
        name="mine",
    )
    fast = layer.to_group_conv()
    assert fast.name == "mine"
    np.testing.assert_allclose(to_numpy(fast(x)), to_numpy(layer(x)), atol=1e-5)
    np.testing.assert_array_equal(
        to_numpy(fast.dense_kernel()), to_numpy(layer.dense_kernel())
    )
    kept = 4 * int(mask_of(layer).sum()) + 6
    assert fast.count_params() == layer.count_kept_params() == kept
    assert layer.count_params() == 4 * 4 * 6 + 3 * (4 + 6) + 6


def test_groups_need_not_divide_anything():
    x = random(2, 4, 4, 5)
    for groups in (1, 2, 9):
        layer = learnable(x.shape, groups=groups, use_bias=False)
        fast = layer.to_group_conv()
        assert fast.count_params() == layer.count_kept_params()
        np.testing.assert_allclose(
            to_numpy(fast(x)), to_numpy(layer(x)), atol=1e-5
        )
    one = learnable(x.shape, groups=1)
    assert one.count_kept_params() == 4 * 5 * 7 + 7
    _, dw = gradients(one, x)  # No choice, no gradient, but no error either.
    assert not dw[1].any() and not dw[2].any()


def test_rounded_scores_do_not_tie():
    x = random(1, 4, 4, 4)
    layer = learnable(x.shape, dtype="mixed_bfloat16", groups=2)
    for v in selections(layer):
        v.assign(np.tile([1.0, 1.0001], (v.shape[0], 1)))
    assert layer.count_kept_params() == layer.count_params() - 2 * (4 + 7)
    np.testing.assert_array_equal(
        to_numpy(layer(x)), to_numpy(layer.to_group_conv()(x))
    )
    layer.input_selection.assign(np.tile([1.0001, 1.0], (4, 1)))
    assert layer.count_kept_params() == 7
    y = to_numpy(layer(x))
    assert (y == y[:, :1, :1]).all()  # The bias alone.


def test_both_selections_start_differently():
    initializer = keras.initializers.RandomNormal(seed=1)
    layer = layers.LearnableGroupConv2D(
        8, 1, groups=2, selection_initializer=initializer
    )
    layer.build((None, 4, 4, 8))
    one, other = map(to_numpy, selections(layer))
    assert one.shape == other.shape
    assert (one != other).any()
    assert 0.01 < one.std() < 0.2
    fresh = learnable((None, 4, 4, 200), filters=200, groups=4)
    one, other = map(to_numpy, selections(fresh))
    assert (one != other).any()
    assert 0.9 < one.std() < 1.1
    # In the mean 1/N of the weights are kept.
    assert 0.2 < mask_of(fresh).mean() < 0.3


def convert(model):
    """Do what the docstring of `to_group_conv` says."""
    recipe = inspect.getdoc(layers.LearnableGroupConv2D.to_group_conv)
    recipe = re.search(r"^    fast = .*?^    \)$", recipe, re.M | re.S)[0]
    names = {
        "keras": keras,
        "model": model,
        "LearnableGroupConv2D": layers.LearnableGroupConv2D,
    }
    exec(textwrap.dedent(recipe), names)
    return names["fast"]


@pytest.mark.once
def test_whole_network_to_group_convolutions():
    model = WideResNet(10, 1, conv="learnable", groups=2, input_shape=(8, 8, 3))
    fast = convert(model)
    names = [[layer.name for layer in m.layers[1:]] for m in (fast, model)]
    assert names[0] == names[1]
    x = random(2, 8, 8, 3)
    np.testing.assert_allclose(
        fast.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )
    assert fast.count_params() < 0.8 * model.count_params()


def test_nested_network_to_group_convolutions():
    layer = learnable((None, 4, 4, 4))
    inner = keras.Sequential([keras.Input((4, 4, 4)), layer])
    model = keras.Sequential([keras.Input((4, 4, 4)), inner])
    fast = convert(model)
    x = random(2, 4, 4, 4)
    np.testing.assert_allclose(
        fast.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )
    assert fast.count_params() == layer.count_kept_params()


@pytest.mark.parametrize("method", ["to_group_conv", "count_kept_params"])
def test_methods_before_build(method):
    layer = layers.LearnableGroupConv2D(4, 3, groups=2)
    with pytest.raises(
        ValueError,
        match=rf"`{method}` needs a layer that has weights.*{layer.name}",
    ):
        getattr(layer, method)()


@pytest.mark.once
@pytest.mark.parametrize(
    "input_groups, output_groups, message",
    [
        (
            [[0, 1]],
            [[0], [1]],
            "must be of one length. Received: 1 groups of inputs, 2 of filters",
        ),
        (
            [[0, 1]],
            [[0]],
            r"`output_groups` must hold each of 0, ..., 1 exactly.*=\[\[0\]\]",
        ),
        (
            [[0], [1]],
            [[0], [0, 1]],
            "`output_groups` must hold each of 0, ..., 1",
        ),
        ([[0], [2]], [[0], [1]], "`input_groups` must hold each of 0, ..., 1"),
        ([[0], []], [[0], [1]], "`input_groups` must hold each of 0, ..., 1"),
        ([], [], "`output_groups` must hold each of 0, ..., 1"),
        ([0, 1], [[0], [1]], "`input_groups` must be lists of integers.*0, 1"),
        ([[0.9], [1]], [[0], [1]], "`input_groups` must be lists of int"),
    ],
)
def test_errors_of_ragged_groups(input_groups, output_groups, message):
    with pytest.raises(ValueError, match=message):
        layer = layers.RaggedGroupConv2D(
            2, 1, input_groups=input_groups, output_groups=output_groups
        )
        assert "input_groups" in message
        layer.build((None, 4, 4, 2))
