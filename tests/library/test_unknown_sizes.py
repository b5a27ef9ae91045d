"""Sizes that are symbols, and JAX's strict settings."""

import itertools

import keras
import pytest
from cases import (
    BACKEND,
    FORMATS,
    LEARNABLE,
    RAGGED,
    TWO_LEVEL,
    assert_near,
    in_format,
    oracle,
)
from helpers import random, to_numpy

from keras_tlgc import layers

CAUSAL = {"padding": "causal"}
WINDOWED = ["native", "slices", "taps", "dense"]


@pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="only TensorFlow traces functions for sizes it does not know",
)
@pytest.mark.parametrize(
    ("window", "lowerings", "ranks"),
    [
        (dict(kernel_size=3, strides=2, coarse_kernel_size=5), WINDOWED, [2]),
        (
            dict(kernel_size=3, strides=3, coarse_kernel_size=4),
            ["slices"],
            [1, 2, 3],
        ),
        (dict(kernel_size=2, coarse_kernel_size=4, **CAUSAL), WINDOWED, [1]),
        (dict(kernel_size=4, coarse_kernel_size=1, **CAUSAL), ["slices"], [1]),
        (dict(kernel_size=1, strides=2), ["matmul"], [1, 2, 3]),
    ],
    ids=["same", "same_even", "causal", "causal_small", "1x1"],
)
@pytest.mark.parametrize("data_format", FORMATS)
def test_tensorflow_function_of_unknown_sizes(
    window, data_format, lowerings, ranks
):
    import tensorflow as tf

    window = {"padding": "same", **window}
    for rank, lowering in itertools.product(ranks, lowerings):
        layer = TWO_LEVEL[rank](
            4, groups=2, data_format=data_format, lowering=lowering, **window
        )
        shape = [None] * (rank + 2)
        shape[-1 if data_format == "channels_last" else 1] = 4
        layer.build(shape)
        function = tf.function(layer, input_signature=[tf.TensorSpec(shape)])
        for size in (5, 8):
            x = random(*in_format((2, *[size] * rank, 4), data_format))
            assert_near(to_numpy(function(x)), oracle(layer, x))


STRICT = {
    "group": lambda: layers.GroupConv2D(8, 3, groups=4),
    "two levels": lambda: layers.TwoLevelGroupConv2D(
        8, 3, strides=2, padding="same", groups=4
    ),
    "two levels of 1x1": lambda: layers.TwoLevelGroupConv2D(
        8, 1, strides=2, groups=4
    ),
    "shuffled": lambda: layers.ShuffleGroupConv2D(8, 3, groups=4),
    "a large coarse window": lambda: layers.TwoLevelGroupConv2D(
        8, 3, strides=2, padding="same", groups=4, coarse_kernel_size=5
    ),
    "windows with gaps": lambda: layers.TwoLevelGroupConv2D(
        8, (1, 2), strides=4, padding="same", groups=4, coarse_kernel_size=3
    ),
    "learnable": lambda: LEARNABLE(8, 3, groups=4),
    "ragged": lambda: RAGGED(
        4,
        3,
        input_groups=[[0, 2, 4], [1, 3, 5, 6, 7]],
        output_groups=[[3], [0, 1, 2]],
    ),
    "a channel a group": lambda: layers.GroupConv2D(
        8, 3, strides=2, padding="same", groups=8
    ),
    "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same"),
}


class Around(keras.layers.Layer):
    """A layer of a user's, whose shapes Keras finds by tracing it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, inputs):
        return self.layer(inputs)


@pytest.mark.parametrize("case", STRICT)
def test_unknown_sizes_inside_a_layer(case):
    layer = Around(STRICT[case]())
    y = layer(keras.Input((None, None, 8)))
    assert y.shape == (None, None, None, 8 if case != "ragged" else 4)


@pytest.mark.skipif(BACKEND != "jax", reason="settings of JAX")
@pytest.mark.parametrize("case", STRICT)
def test_jax_export_and_strict_settings(case):
    import jax
    import jax.export

    layer = STRICT[case]()
    x = jax.device_put(random(2, 7, 9, 8))
    y = layer(x)

    @jax.jit
    def compute(trainable, x):
        return layer.stateless_call(trainable, fixed, x)[0]

    fixed = [v.value for v in layer.non_trainable_variables]
    trainable = [v.value for v in layer.trainable_variables]
    sizes = jax.export.symbolic_shape("b, h, w")
    exported = jax.export.export(compute)(
        [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in trainable],
        jax.ShapeDtypeStruct((*sizes, 8), "float32"),
    )
    for shape in [x.shape, (1, 6, 8, 8), (3, 5, 6, 8)]:
        values = random(*shape)
        assert_near(
            to_numpy(exported.call(trainable, values)),
            to_numpy(layer(values)),
        )
    with (
        jax.transfer_guard("disallow"),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        assert_near(to_numpy(compute(trainable, x)), to_numpy(y))
        grad = jax.grad(lambda *inputs: compute(*inputs).sum())
        jax.jit(grad)(trainable, x)
        # Op by op, Keras' own padding hands zeros to the device.
        if case in list(STRICT)[:4]:
            layer(x)
