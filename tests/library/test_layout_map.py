"""The layout map: what is split, and which rules do not fit."""

import keras
import pytest
from mesh_networks import network
from meshes import (
    ON_JAX,
    compiled,
    device_mesh,
    images,
    is_split,
    model_parallel,
)
from networks import EVERY_NETWORK, small

from keras_tlgc import layers
from keras_tlgc.applications import MobileNetV2
from keras_tlgc.distribution import (
    GroupLayoutMap,
    GroupParallel,
    get_layout_map,
)

GROUPED = {
    name: getattr(layers, name)
    for name in layers.__all__
    if name.startswith(("GroupConv", "TwoLevelGroupConv"))
}

pytestmark = ON_JAX


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
def test_networks_are_split(few_stages, build, conv):
    distribution = model_parallel(1, 2)
    model = small(build, conv)
    kernels = {"predictions/kernel": 0}
    assert list(distribution.choices.whole) == ["predictions/bias"]
    for variable in model.variables:
        if variable.path == "predictions/bias":
            continue
        axis = kernels.get(variable.path, -1)
        if variable.path.endswith("_depthwise/kernel"):
            axis = -2
        assert is_split(variable, axis), variable.path
    for layer in model.layers:
        path = f"{layer.name}/output"
        assert distribution.get_tensor_layout(path) is None


def test_map_is_a_door_to_the_same_choices(few_stages):
    """Keras' own class asks the map for paths alone."""

    def by_the_map(*mesh):
        layout_map = get_layout_map(device_mesh(*mesh))
        distribution = keras.distribution.ModelParallel(
            layout_map=layout_map, batch_dim_name="batch"
        )
        keras.distribution.set_distribution(distribution)
        return layout_map

    chosen = model_parallel(1, 4).choices
    small(MobileNetV2, "two_level", groups=4)
    layout_map = by_the_map(1, 4)
    model = small(MobileNetV2, "two_level", groups=4)
    assert layout_map.choices == chosen
    assert is_split(model.get_layer("block1_project").kernel)
    by_the_map(2, 2)
    with pytest.raises(ValueError, match="must split every batch evenly"):
        compiled(network("group")).fit(*images(3), verbose=0)


def test_rules_of_the_user_come_first():
    layout_map = get_layout_map(device_mesh(1, 2))
    assert isinstance(layout_map, keras.distribution.LayoutMap)
    assert layout_map["a/gamma"].axes == ("model",)
    layout_map["a/.*"] = (None,)
    assert layout_map["a/gamma"].axes == (None,)
    assert layout_map["b/gamma"].axes == ("model",)
    assert layout_map["b/kernel"] is None
    assert list(layout_map) == ["a/.*"]
    layout_map["a/gam.*"] = ("model",)
    with pytest.raises(ValueError, match="matches multiple layout"):
        layout_map["a/gamma"]
    del layout_map["a/.*"], layout_map["a/gam.*"]
    assert layout_map["a/gamma"].axes == ("model",)
    with pytest.raises(KeyError):
        del layout_map["no such rule"]


def test_other_names_of_axes():
    mesh = keras.distribution.DeviceMesh(
        (1, 2), ("data", "channels"), keras.distribution.list_devices()[:2]
    )
    layout_map = get_layout_map(mesh, "channels", "data")
    assert isinstance(layout_map, GroupLayoutMap)
    distribution = GroupParallel(mesh, "channels", "data")
    assert distribution.model_axis == "channels"
    assert distribution.batch_dim_name == "data"
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
    with pytest.raises(ValueError, match="model_axis='models', and a mesh"):
        GroupParallel(mesh, model_axis="models")


def test_all_devices_along_the_model_axis():
    mesh = GroupParallel().device_mesh
    count = len(keras.distribution.list_devices())
    assert (mesh.axis_names, mesh.shape) == (("batch", "model"), (1, count))


class OfAUser(keras.layers.Layer):
    """A layer with the names of our variables, and other shapes."""

    def build(self, input_shape):
        channels = input_shape[-1]
        self.gamma = self.add_weight(shape=(channels,), name="gamma")
        self.group_kernel = self.add_weight(
            shape=(channels, channels), name="group_kernel"
        )
        self.kernel = self.add_weight(shape=(1, 1, 8, 8), name="kernel")

    def call(self, inputs):
        return inputs @ self.group_kernel * self.gamma


WHOLE = {
    "filters that 4 devices do not divide": (
        lambda: [
            keras.layers.Conv2D(30, 3),
            keras.layers.BatchNormalization(),
        ],
        "4 devices do not divide 30 filters",
    ),
    "a head after positions": (
        lambda: [keras.layers.Flatten(), keras.layers.Dense(8)],
        "the channels before it are whole",
    ),
    "height, width and channels": (
        lambda: [keras.layers.LayerNormalization(axis=(1, 2, 3))],
        "it normalises more than channels",
    ),
    "groups of Keras": (
        lambda: [keras.layers.Conv2D(8, 3, groups=2)],
        "XLA cannot split a grouped convolution of Keras",
    ),
    "a layer of the user": (
        lambda: [OfAUser(name="stem_conv")],
        "nothing is known about 'gamma' of OfAUser",
    ),
    "groups of unlike sizes": (
        lambda: [layers.LearnableGroupConv2D(8, 3, groups=4)],
        "its groups are not of one size, or not fixed",
    ),
}


@pytest.mark.parametrize(("make", "why"), WHOLE.values(), ids=WHOLE)
def test_what_cannot_be_split_stays_whole(make, why):
    """Kernel, bias and statistics of a layer together."""
    middle = []

    def build():
        middle[:] = make()
        return keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.TwoLevelGroupConv2D(8, 3, name="wide"),
                *middle,
                keras.layers.Flatten(),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )

    rules = {".*/wide/(group|restriction)_kernel": (None,)}
    distribution = model_parallel(1, 4, rules)
    build()
    for layer in middle:
        for variable in layer.weights:
            sharding = variable.value.sharding
            assert sharding.is_fully_replicated, variable.path
            assert len(sharding.device_set) == 4
            assert variable.path in distribution.choices.whole
    first = next(v for layer in middle for v in layer.weights)
    assert distribution.choices.whole[first.path] == why
    assert why in str(distribution.choices)


def test_layers_of_keras_are_split_with_their_channels():
    model_parallel(1, 4)
    parts = {
        keras.layers.Conv2DTranspose(8, 3): {"kernel": -2, "bias": -1},
        keras.layers.SeparableConv2D(16, 3): {
            "depthwise_kernel": -2,
            "pointwise_kernel": -1,
            "bias": -1,
        },
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2): {
            "kernel": -2,
            "bias": -1,
        },
        keras.layers.LayerNormalization(): {"gamma": -1, "beta": -1},
        keras.layers.PReLU(shared_axes=[1, 2]): {"alpha": -1},
        keras.layers.GlobalAveragePooling2D(): {},
        keras.layers.Dense(8, use_bias=False): {"kernel": 0},
    }
    model = keras.Sequential([keras.Input((16, 16, 3)), *parts])
    for layer, axes in parts.items():
        assert [v.name for v in layer.weights] == list(axes)
        for variable in layer.weights:
            assert is_split(variable, axes[variable.name]), variable.path
    assert model.output_shape == (None, 8)


def test_a_normalisation_follows_the_layer_before_it():
    model_parallel(1, 2, {"(.*/)?whole/.*": (None,)})
    keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3),
            (split := keras.layers.BatchNormalization()),
            keras.layers.Conv2D(8, 3, name="whole"),
            (whole := keras.layers.BatchNormalization()),
        ]
    )
    assert is_split(split.gamma)
    assert whole.gamma.value.sharding.is_fully_replicated


def test_what_follows_no_split_layer_stays_whole():
    """The inputs are whole, and so are a transformer's positions."""
    distribution = model_parallel(1, 2)
    model = keras.Sequential(
        [
            keras.Input((6, 8)),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(16),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(4),
        ]
    )
    paths = {v.path for v in model.weights}
    assert distribution.choices.whole.keys() == paths


def test_layers_of_a_subclassed_model_are_known():
    """Keras gives their variables values when all layers are built."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv2D(8, 3)
            self.own = OfAUser()

        def call(self, x):
            return self.own(self.conv(x))

    model_parallel(1, 2)
    model = Net()
    model(images(2)[0])
    assert is_split(model.conv.kernel)
    assert model.own.gamma.value.sharding.is_fully_replicated


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_slots_have_a_layout_of_their_own_rank(name):
    model_parallel(2, 2)
    model = compiled(network("two_level"), getattr(keras.optimizers, name)())
    model.optimizer.build(model.trainable_variables)
    shapes = {v.shape: v.path for v in model.trainable_variables}
    ranks = set()
    for slot in model.optimizer.variables:
        assert len(slot.value.sharding.device_set) == 4
        if slot.shape not in shapes and slot.shape:
            ranks.add(len(slot.shape))
    assert (3 in ranks) == (name == "Adafactor")
    assert model.fit(*images(8), verbose=0).history["loss"]


@pytest.mark.parametrize(
    "axes", [(None, "model"), (None, None, None, "model")], ids=["rank", "size"]
)
def test_rules_of_the_user_must_fit(axes):
    model_parallel(1, 4, {".*/stem/kernel": axes})
    layer = keras.layers.Conv2D(6, 3, name="stem")
    model = keras.Sequential([keras.Input((8, 8, 3))], name="net")
    with pytest.raises(ValueError, match="must have an entry for each") as e:
        model.add(layer)
    assert f"'.*/stem/kernel' = {axes}, for 'net/stem/kernel'" in str(e.value)
    assert "of shape (3, 3, 3, 6)" in str(e.value)
    assert "{'model': 4}" in str(e.value)
    assert not layer.weights


def test_devices_must_divide_the_groups():
    model_parallel(1, 4)
    layer = layers.TwoLevelGroupConv2D(8, 3, groups=2, name="conv")
    with pytest.raises(ValueError, match="must divide the groups") as error:
        layer.build((1, 8, 8, 8))
    assert "groups=2, and 4 devices" in str(error.value)
    assert not layer.weights
