"""How a network of any kind is split, by its graph."""

import keras
import numpy as np
import pytest
from meshes import ON_JAX, device_mesh, images, is_split, model_parallel

import keras_tlgc
from keras_tlgc import layers
from keras_tlgc.audit import audit
from keras_tlgc.distribution import GroupParallel, plan

pytestmark = ON_JAX


def two_level(x, filters, name, **options):
    conv = layers.TwoLevelGroupConv2D(
        filters, 3, groups=4, padding="same", name=name, **options
    )
    x = keras.layers.BatchNormalization(name=f"{name}_bn")(conv(x))
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def stem(inputs):
    conv = keras.layers.Conv2D(16, 3, padding="same", name="stem")
    return conv(inputs)


def scores(inputs, x):
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="head")(x))


def u_net():
    inputs = keras.Input((8, 8, 3))
    wide = stem(inputs)
    x = two_level(wide, 16, "down", strides=2)
    up = keras.layers.Conv2DTranspose(
        16, 2, strides=2, padding="same", name="up"
    )
    x = keras.layers.Concatenate(name="join")([wide, up(x)])
    x = two_level(x, 8, "merge")
    return keras.Model(inputs, keras.layers.Conv2D(4, 1, name="pixels")(x))


def squeeze_and_excite():
    inputs = keras.Input((8, 8, 3))
    x = two_level(stem(inputs), 16, "conv")
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="each")(x)
    s = keras.layers.GlobalAveragePooling2D(name="squeeze")(x)
    s = keras.layers.Dense(6, activation="relu", name="reduce")(s)
    s = keras.layers.Dense(16, activation="sigmoid", name="expand")(s)
    s = keras.layers.Reshape((1, 1, 16), name="shape")(s)
    x = keras.layers.Multiply(name="excite")([x, s])
    return scores(inputs, two_level(x, 16, "last"))


def dense_net():
    inputs = keras.Input((8, 8, 3))
    x = stem(inputs)
    for i in range(2):
        y = two_level(x, 8, f"grow{i}")
        x = keras.layers.Concatenate(name=f"join{i}")([x, y])
    return scores(inputs, two_level(x, 16, "last"))


def kerashub_resnet():
    hub = pytest.importorskip("keras_hub", reason="keras_hub is not installed")
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[2, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(8, 8, 3),
    )
    converted, _ = keras_tlgc.convert(backbone, 4)
    return scores(converted.inputs, converted.output)


NETWORKS = {
    "U-Net": (u_net, {"pixels/kernel": -2, "up/kernel": -2}),
    "SE": (
        squeeze_and_excite,
        {"reduce/kernel": 0, "expand/kernel": 1, "each/kernel": -2},
    ),
    "KerasHub": (kerashub_resnet, {"head/kernel": 0}),
    "DenseNet": (dense_net, {"head/kernel": 0, "last/group_kernel": -1}),
}


def trained(model):
    x, _ = images(16)
    y = np.random.default_rng(1).normal(size=(16, *model.output_shape[1:]))
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model.fit(x, y, 8, epochs=2, shuffle=False, verbose=0).history


@pytest.mark.parametrize(("build", "split"), NETWORKS.values(), ids=NETWORKS)
def test_same_as_one_device_and_all_explained(build, split):
    model = build()
    weights = model.get_weights()
    expected = trained(model)["loss"]
    for shape in ((1, 4), (2, 2)):
        distribution = GroupParallel(device_mesh(*shape)).follow(model)
        with distribution.scope():
            anew = keras.models.clone_model(model)
            anew.set_weights(weights)
            # On one device layers of few channels are one dense convolution,
            # whose rounding the second epoch shows.
            np.testing.assert_allclose(
                trained(anew)["loss"], expected, rtol=1e-4
            )
            result = audit(anew, 8)
        assert result.ok, str(result)
        variables = {v.path: v for v in anew.variables}
        for path, axis in split.items():
            assert is_split(variables[path], axis), path
        for path, choice in plan(model, distribution).items():
            spec = [*variables[path].value.sharding.spec]
            assert any(spec) == choice.is_split, path


def test_what_a_plan_says():
    distribution = GroupParallel(device_mesh(1, 4))
    distribution.layout_map["last_bn/gamma"] = (None,)
    text = str(plan(squeeze_and_excite(), distribution))
    for words in (
        "its inputs are whole: nothing moves",
        "the channels before it are split; outputs are added up",
        "each device holds whole groups",
        "a rule of yours",
        "gamma, beta, moving_mean, moving_variance",
    ):
        assert words in text


def test_groups_that_the_devices_do_not_divide_stay_whole():
    """Without a plan they are an error."""
    model = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.GroupConv2D(8, 3, groups=2)]
    )
    distribution = GroupParallel(device_mesh(1, 4)).follow(model)
    path = model.layers[0].kernel.path
    why = distribution.layout_map.plan.whole[path]
    assert why == "4 devices do not divide 2 groups"
    with distribution.scope():
        anew = keras.models.clone_model(model)
    assert anew.layers[0].kernel.value.sharding.is_fully_replicated


def test_what_has_no_graph_has_no_plan():
    class Net(keras.Model):
        pass

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    with pytest.raises(ValueError, match="Received: distribution=None"):
        plan(model)
    model_parallel(1, 2)
    assert plan(model).whole
    with pytest.raises(ValueError, match="follows the graph of a functional"):
        plan(Net())
    with pytest.raises(ValueError, match="or Sequential model that is built"):
        plan(keras.Sequential([keras.layers.Dense(4)]))
