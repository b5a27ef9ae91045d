"""`DepthwiseConv2D` is Keras' layer, computed by taps on JAX and CPUs."""

import inspect

import keras
import numpy as np
import pytest
from cases import ONE_FORMAT, assert_near, built, in_format
from helpers import gradients, outputs, random
from keras import layers

import keras_tlgc
from keras_tlgc.layers import DepthwiseConv2D

ARGUMENTS = {
    "defaults": dict(),
    "strides": dict(strides=2, padding="same", activation="tanh"),
    "dilation": dict(dilation_rate=2, depth_multiplier=3),
    "large": dict(kernel_size=(4, 1), padding="same", use_bias=False),
}


@pytest.mark.parametrize("data_format", ONE_FORMAT)
@pytest.mark.parametrize("case", ARGUMENTS)
def test_is_keras_layer(case, data_format):
    """Outputs, gradients, names and shapes of variables."""
    options = {"kernel_size": 3, "data_format": data_format}
    options |= ARGUMENTS[case]
    shape = in_format((2, 7, 6, 4), data_format)
    x = random(*shape)
    ours = built(DepthwiseConv2D(**options), shape)
    theirs = built(layers.DepthwiseConv2D(**options), shape)
    assert [(v.name, v.shape) for v in ours.weights] == [
        (v.name, v.shape) for v in theirs.weights
    ]
    assert_near(outputs(ours, x), outputs(theirs, x))
    dx, dw = gradients(ours, x)
    expected_dx, expected_dw = gradients(theirs, x)
    for actual, expected in zip(
        [dx, *dw], [expected_dx, *expected_dw], strict=True
    ):
        assert_near(actual, expected, atol=1e-4)


@pytest.mark.backends("jax", reason="others compute it as Keras does")
@pytest.mark.parametrize(
    "layer",
    [DepthwiseConv2D(3), keras_tlgc.layers.GroupConv2D(4, 3, groups=2)],
    ids=["depthwise", "as many groups as channels"],
)
def test_is_computed_by_taps(layer):
    import jax

    x = random(1, 4, 4, 2)
    layer.build(x.shape)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(layer)(x))


@pytest.mark.backends("jax", reason="transformations of JAX")
def test_second_derivatives_and_vmap():
    import jax

    kernel = random(3, 3, 1, 4)
    x = random(2, 6, 5, 2, seed=1)

    def loss(lowering, x, kernel):
        y = keras_tlgc.ops.grouped_conv(
            x, kernel, 2, strides=2, lowering=lowering
        )
        return (y**3).sum()

    def slope(lowering, x, kernel):
        of_x, of_kernel = jax.grad(loss, (1, 2))(lowering, x, kernel)
        return (of_x**2).sum() + (of_kernel**2).sum()

    for of in (0, 1):
        actual, expected = (
            jax.grad(slope, 1 + of)(lowering, x, kernel)
            for lowering in ("taps", "native")
        )
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-2)
    of_each = jax.vmap(jax.grad(loss, 2), (None, 0, None))(
        "taps", x[:, None], kernel
    )
    assert_near(of_each.sum(0), jax.grad(loss, 2)("taps", x, kernel), 1e-3)


def test_takes_keras_arguments():
    ours, theirs = DepthwiseConv2D, layers.DepthwiseConv2D
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert ours(2).get_config().keys() == theirs(2).get_config().keys()


@pytest.mark.once
def test_saved_and_deployed(tmp_path):
    def model(depthwise):
        return keras.Sequential(
            [
                keras.Input((6, 6, 4)),
                depthwise(3, use_bias=False, name="each"),
                layers.BatchNormalization(name="norm"),
            ]
        )

    old, new = model(layers.DepthwiseConv2D), model(DepthwiseConv2D)
    x = random(2, 6, 6, 4)
    # Weights that were saved when a network held Keras' layer.
    old.save_weights(tmp_path / "old.weights.h5")
    new.load_weights(tmp_path / "old.weights.h5")
    assert_near(outputs(new, x), outputs(old, x))
    new.save(tmp_path / "new.keras")
    loaded = keras.models.load_model(tmp_path / "new.keras")
    assert type(loaded.get_layer("each")) is DepthwiseConv2D
    assert_near(outputs(loaded, x), outputs(old, x))
    # Folded, and without this package.
    plain = keras_tlgc.deploy(new)
    assert [type(layer) for layer in plain.layers[-1:]] == [
        layers.DepthwiseConv2D
    ]
    assert_near(outputs(plain, x), outputs(old, x))
    assert keras_tlgc.costs.model_costs(lambda: model(DepthwiseConv2D)) == (
        keras_tlgc.costs.model_costs(lambda: model(layers.DepthwiseConv2D))
    )
