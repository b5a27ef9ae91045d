"""Layers and networks on a mesh: what is split, and that results are equal."""

import keras
import numpy as np
import pytest
from helpers import gradients, to_numpy
from meshes import (
    ON_JAX,
    compiled,
    data_parallel,
    device_mesh,
    images,
    is_split,
    model_parallel,
)
from networks import EVERY_NETWORK, few_stages, small  # noqa: F401

from keras_tlgc import layers
from keras_tlgc.applications import MobileNetV2, WideResNet
from keras_tlgc.distribution import GroupLayoutMap, get_layout_map

pytestmark = ON_JAX

GROUPED = {
    name: getattr(layers, name)
    for name in layers.__all__
    if name.startswith(("GroupConv", "TwoLevelGroupConv"))
}


def network(conv, groups=4):
    """Return a model of ours around one grouped convolution of a kind."""
    layer = {
        "group": layers.GroupConv2D,
        "two_level": layers.TwoLevelGroupConv2D,
    }[conv]
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, use_bias=False, name="stem_conv"),
            keras.layers.BatchNormalization(),
            layer(16, 3, groups=groups, activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation="softmax", name="predictions"),
        ]
    )


def history(
    build,
    epochs=2,
    batch_size=8,
    count=24,
    seed=3,
    optimizer=None,
    class_weight=None,
):
    """Train from the same start; return losses and predictions."""
    keras.utils.set_random_seed(seed)
    model = compiled(build(), optimizer and optimizer())
    x, y = images(count)
    fitted = model.fit(
        x,
        y,
        class_weight=class_weight,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        validation_data=(x, y),
        validation_batch_size=batch_size,
    )
    return fitted.history, model.predict(x[:8], verbose=0)


def assert_same(one, other, atol=1e-5):
    for name in one[0]:
        np.testing.assert_allclose(one[0][name], other[0][name], atol=atol)
    np.testing.assert_allclose(one[1], other[1], atol=10 * atol)


# --- the layout map


@pytest.mark.parametrize("name", GROUPED)
def test_layers_of_any_rank_and_name_are_split(name):
    model_parallel(2, 2)
    cls = GROUPED[name]
    inner = keras.Sequential([cls(8, 3, groups=4, name="anything")], name="net")
    inner.build((2, *[5] * cls.rank, 8))
    for variable in inner.weights:
        assert is_split(variable), variable.path
        assert variable.path.startswith("net/anything/")


@EVERY_NETWORK
@pytest.mark.parametrize("conv", ["standard", "group", "two_level"])
def test_networks_are_split(few_stages, build, conv):  # noqa: F811
    layout_map = model_parallel(1, 2)._layout_map
    model = small(build, conv)
    kernels = {"predictions/kernel": 0}
    for variable in model.variables:
        if variable.path == "predictions/bias":
            assert layout_map[variable.path] is None
            continue
        axis = kernels.get(variable.path, -1)
        if variable.path.endswith("_depthwise/kernel"):
            axis = -2
        assert is_split(variable, axis), variable.path
    for layer in model.layers:
        assert layout_map[f"{layer.name}/output"] is None


@pytest.mark.parametrize("conv", ["group", "two_level"])
def test_full_networks_match_one_rule_each(conv):
    layout_map = get_layout_map(device_mesh(1, 1))
    for build in (WideResNet, MobileNetV2):
        model = small(build, conv)
        for variable in model.variables:
            layout = layout_map[variable.path]  # Raises for two rules.
            if variable.path != "predictions/bias":
                assert len(layout.axes) == len(variable.shape)
        for layer in model._flatten_layers():
            path = layer.path or layer.name
            assert layout_map[f"{path}/output"] is None


def test_rules_of_the_user_come_first():
    layout_map = get_layout_map(device_mesh(1, 2))
    assert isinstance(layout_map, keras.distribution.LayoutMap)
    count = len(layout_map)
    assert layout_map["a/gamma"].axes == ("model",)
    layout_map["a/.*"] = (None,)
    assert layout_map["a/gamma"].axes == (None,)
    assert layout_map["b/gamma"].axes == ("model",)
    assert len(layout_map) == count + 1 == len(list(layout_map))
    assert layout_map.added == ["a/.*"]
    del layout_map["a/.*"]
    assert layout_map["a/gamma"].axes == ("model",)
    rule = next(rule for rule in layout_map if "gamma" in rule)
    del layout_map[rule]
    assert layout_map["a/gamma"] is None
    with pytest.raises(KeyError):
        del layout_map["no such rule"]


def test_other_names_of_axes():
    mesh = keras.distribution.DeviceMesh(
        (1, 2), ("data", "channels"), keras.distribution.list_devices()[:2]
    )
    layout_map = get_layout_map(mesh, "channels", "data")
    assert isinstance(layout_map, GroupLayoutMap)
    assert layout_map["x/coarse_kernel"].axes == (None, "channels")


def test_bad_meshes():
    mesh = device_mesh(1, 2)
    with pytest.raises(ValueError, match="`device_mesh` must be a"):
        get_layout_map((1, 2))
    with pytest.raises(ValueError, match="must be an axis of the mesh"):
        get_layout_map(mesh, "models")
    with pytest.raises(ValueError, match="data_parallel_dim_name='data'"):
        get_layout_map(mesh, data_parallel_dim_name="data")
    with pytest.raises(ValueError, match="need an axis of the mesh each"):
        get_layout_map(mesh, "model", "model")


def test_devices_must_divide_the_groups():
    model_parallel(1, 4)
    layer = layers.TwoLevelGroupConv2D(8, 3, groups=2, name="conv")
    with pytest.raises(ValueError, match="must divide the groups") as error:
        layer.build((1, 8, 8, 8))
    assert "groups=2, and 4 devices" in str(error.value)
    assert not layer.weights


# --- results


@pytest.mark.parametrize(
    ("conv", "groups", "mesh"),
    [
        ("two_level", 4, (1, 4)),
        ("two_level", 8, (2, 4)),  # Two groups on each device.
        ("two_level", 4, (4, 2)),
        ("two_level", 4, (2, 1)),
        ("group", 4, (2, 2)),
    ],
)
def test_same_as_one_device(conv, groups, mesh):
    one = history(lambda: network(conv, groups))
    model_parallel(*mesh)
    assert_same(history(lambda: network(conv, groups)), one)


@pytest.mark.parametrize(
    ("build", "conv", "options"),
    [
        (WideResNet, "two_level", {"groups": 4, "coarse_channels": 1}),
        (WideResNet, "group", {"groups": 4}),
        (WideResNet, "standard", {}),
        (MobileNetV2, "two_level", {"groups": 4, "coarse_channels": 2}),
        (MobileNetV2, "group", {"groups": 4}),
    ],
)
def test_networks_same_as_one_device(few_stages, build, conv, options):  # noqa: F811
    def make():
        return small(build, conv, **options)

    one = history(make, epochs=1)
    model_parallel(2, 2)
    assert_same(history(make, epochs=1), one, atol=2e-5)


def test_mixed_precision_same_as_one_device():
    keras.config.set_dtype_policy("mixed_bfloat16")
    one = history(lambda: network("two_level"), epochs=1)
    model_parallel(2, 2)
    assert_same(history(lambda: network("two_level"), epochs=1), one, 2e-2)


@pytest.mark.parametrize("conv", ["group", "two_level"])
def test_data_parallel_same_as_one_device(conv):
    one = history(lambda: network(conv))
    data_parallel(4)
    assert_same(history(lambda: network(conv)), one)


@pytest.mark.parametrize(
    "options",
    [
        {"clipnorm": 0.1},
        {"global_clipnorm": 0.1},  # A norm over what all devices hold.
        {"gradient_accumulation_steps": 3},
        {"use_ema": True, "ema_overwrite_frequency": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_optimizers_same_as_one_device(options):
    def train():
        return history(
            lambda: network("two_level"),
            optimizer=lambda: keras.optimizers.SGD(0.1, **options),
            class_weight=dict.fromkeys(range(10), 1.0) | {1: 3.0, 2: 0.0},
        )

    one = train()
    model_parallel(2, 2)
    assert_same(train(), one)


def test_recomputed_same_as_one_device():
    def build():
        # Batch normalisation of Keras 3.15 fails under it, on JAX.
        with keras.RematScope(mode="full"):
            return keras.Sequential(
                [
                    keras.Input((8, 8, 3)),
                    keras.layers.Conv2D(8, 3, name="stem_conv"),
                    layers.TwoLevelGroupConv2D(16, 3, groups=4),
                    layers.TwoLevelGroupConv2D(16, 3, groups=4),
                    keras.layers.GlobalAveragePooling2D(),
                    keras.layers.Dense(10, "softmax", name="predictions"),
                ]
            )

    one = history(build)
    model_parallel(2, 2)
    assert_same(history(build), one)


def test_named_inputs_and_outputs_same_as_one_device():
    def train():
        keras.utils.set_random_seed(0)
        image = keras.Input((8, 8, 3), name="image")
        extra = keras.Input((3,), name="extra")
        x = layers.TwoLevelGroupConv2D(16, 3, groups=4)(
            keras.layers.Conv2D(16, 3, name="stem_conv")(image)
        )
        x = keras.layers.GlobalAveragePooling2D()(x)
        x = keras.layers.Concatenate()([x, extra])
        outputs = {
            "label": keras.layers.Dense(10, "softmax", name="label")(x),
            "size": keras.layers.Dense(1, name="size")(x),
        }
        model = keras.Model({"image": image, "extra": extra}, outputs)
        model.compile(
            "sgd", {"label": "sparse_categorical_crossentropy", "size": "mse"}
        )
        x, label = images(24)
        extra = x[:, 0, 0]
        inputs = {"image": x, "extra": extra}
        targets = {"label": label, "size": extra[:, :1]}
        fitted = model.fit(inputs, targets, batch_size=8, verbose=0)
        return fitted.history, model.predict(inputs, verbose=0)["label"]

    one = train()
    model_parallel(2, 2)
    assert_same(train(), one)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("window", [{}, {"coarse_kernel_size": 5}])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_layers_same_as_one_device(rank, window, data_format):
    cls = GROUPED[f"TwoLevelGroupConv{rank}D"]
    shape = (4, *[6] * rank, 8)
    if data_format == "channels_first":
        shape = (4, 8, *[6] * rank)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")

    def results():
        keras.utils.set_random_seed(1)
        layer = cls(
            16,
            3,
            strides=2,
            padding="same",
            groups=4,
            coarse_channels=2,
            data_format=data_format,
            **window,
        )
        layer.build(x.shape)
        dx, dw = gradients(layer, x)
        return [to_numpy(layer(x)), dx, *dw]

    one = results()
    model_parallel(2, 2)
    for a, b in zip(results(), one, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


# --- where the plain path runs


def test_batches_of_any_size_when_called():
    plain = layers.TwoLevelGroupConv2D(8, 3, groups=4)
    x, _ = images(3, (6, 6, 8))
    expected = to_numpy(plain(x))
    model_parallel(2, 2)
    layer = layers.TwoLevelGroupConv2D(8, 3, groups=4)
    layer.build(x.shape)
    layer.set_weights(plain.get_weights())
    np.testing.assert_allclose(to_numpy(layer(x)), expected, atol=1e-5)
    assert layer(keras.KerasTensor((None, 6, 6, 8))).shape == (None, 4, 4, 8)
    data_parallel(2)
    layer = layers.TwoLevelGroupConv2D(8, 3, groups=4)
    layer.build(x.shape)
    layer.set_weights(plain.get_weights())
    np.testing.assert_allclose(to_numpy(layer(x)), expected, atol=1e-5)


def test_layer_kept_whole():
    """Neither are its groups counted against the mesh, nor is it split."""
    one = history(lambda: network("two_level", groups=2))
    whole = {
        "(.*/)?conv/(group|restriction)_kernel": (None,) * 4,
        "(.*/)?conv/coarse_kernel": (None, None),
    }
    model_parallel(1, 4, whole)
    assert_same(history(lambda: network("two_level", groups=2)), one)


def test_subclassed_model():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = layers.TwoLevelGroupConv2D(8, 3, groups=4)
            self.pool = keras.layers.GlobalAveragePooling2D()
            self.predictions = keras.layers.Dense(10, activation="softmax")

        def call(self, x):
            return self.predictions(self.pool(self.conv(x)))

    x, y = images(8, (6, 6, 8))

    def loss():
        keras.utils.set_random_seed(0)
        return compiled(Net()).fit(x, y, batch_size=4, verbose=0).history

    one = loss()
    model_parallel(2, 2)
    np.testing.assert_allclose(loss()["loss"], one["loss"], atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.ShuffleGroupConv2D(16, 3, groups=4),
        lambda: layers.LearnableGroupConv2D(16, 3, groups=4),
    ],
)
def test_rivals_same_as_one_device(make):
    """They exchange all channels, which XLA sees to."""

    def build():
        model = network("group")
        return keras.Sequential([*model.layers[:2], make(), *model.layers[-2:]])

    one = history(build, epochs=1)
    model_parallel(2, 2)
    assert_same(history(build, epochs=1), one)
