"""Models written in plain Keras layers, for inference."""

import importlib

import keras
import numpy as np
import pytest
from cases import (
    BACKEND,
    GROUP,
    LAYERS,
    LEARNABLE,
    ONE_FORMAT,
    TWO_LEVEL,
    make,
    two_level_case,
)
from composites import Block
from converting import assert_same_outputs, randomise_statistics
from grids import ALL_CASES
from helpers import outputs, random, run_python, to_numpy
from keras import layers
from networks import options_for_inference

import keras_tlgc
from keras_tlgc.applications import MobileNetV2, WideResNet
from keras_tlgc.applications.convolutions import CONVOLUTIONS
from keras_tlgc.rewrite.forms import with_groups_apart

# The package has a function of the module's name.
module = importlib.import_module("keras_tlgc.rewrite.deploy")


def parts(model):
    return model._flatten_layers(include_self=False)


def assert_deploys(model, tolerance=1e-4, **options):
    """Deploy a model, and compare outputs, names and what is left of it."""
    randomise_statistics(model)
    before = [to_numpy(v) + 0 for v in model.weights]
    plain = keras_tlgc.deploy(model, **options)
    assert_same_outputs(plain, model, tolerance)
    assert plain.name == model.name and not plain.compiled
    assert not [p for p in parts(plain) if "keras_tlgc" in type(p).__module__]
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)
    assert not {id(v) for v in model.weights} & {id(v) for v in plain.weights}
    return plain


def choose(form, monkeypatch):
    """Have each layer written in a form."""
    monkeypatch.setattr(
        module, "of_least", lambda smallest: lambda layer, forms, sizes: form
    )


def alone(layer, x):
    inputs = keras.Input(x.shape[1:])
    return keras.Model(inputs, layer(inputs))


def assert_each_form(layer, x, monkeypatch):
    model = alone(layer, x)
    expected = outputs(model, x)
    sizes = module._sizes(layer, nodes(model))
    forms = layer.plain_forms(sizes)
    if BACKEND == "torch":
        forms += with_groups_apart(forms)
    for form in forms:
        choose(form, monkeypatch)
        y = outputs(keras_tlgc.deploy(model), x)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def nodes(model):
    return keras_tlgc.graphs.calls_by_id(model)[id(model.layers[-1])]


@ALL_CASES
@pytest.mark.parametrize("data_format", ONE_FORMAT)
def test_each_form_of_two_levels(case, data_format, monkeypatch):
    layer, x = two_level_case(case, data_format)
    assert_each_form(layer, x, monkeypatch)


@pytest.mark.parametrize("data_format", ONE_FORMAT)
@pytest.mark.parametrize(
    "cls", [cls for cls in LAYERS if cls not in TWO_LEVEL.values()]
)
def test_each_form_of_other_layers(cls, data_format, monkeypatch):
    if data_format == "channels_first" and cls.rank == 1:
        pytest.skip("nothing new")
    assert_each_form(*make(cls, data_format=data_format), monkeypatch)


@pytest.mark.usefixtures("few_stages")
@pytest.mark.once
@pytest.mark.parametrize("data_format", ONE_FORMAT)
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_networks(conv, data_format):
    keras.config.set_image_data_format(data_format)
    options = options_for_inference(conv, data_format)
    for model in (WideResNet(10, 1, **options), MobileNetV2(**options)):
        plain = assert_deploys(model)
        assert [x.name for x in plain.inputs] == [x.name for x in model.inputs]
        names = {layer.name for layer in model.layers}
        assert {layer.name for layer in plain.layers[1:]} <= names
        kinds = {type(part) for part in parts(plain)}
        # Those that nothing folds are convolutions, of channels that are last.
        is_left = layers.BatchNormalization in kinds
        assert not is_left or data_format == "channels_first"
        head = model.get_layer("predictions").get_weights()
        for one, other in zip(
            plain.get_layer("predictions").get_weights(), head, strict=True
        ):
            np.testing.assert_array_equal(one, other)


WITHOUT = """
import sys
sys.modules["keras_tlgc"] = None  # It cannot be imported.
import keras, numpy as np
x = np.load(sys.argv[1])
for path in sys.argv[2:]:
    y = keras.saving.load_model(path)(x)
    np.save(path + ".npy", keras.ops.convert_to_numpy(y))
"""


def test_loads_without_this_package(tmp_path, monkeypatch):
    layer, x = make(TWO_LEVEL[2], activation=layers.PReLU(shared_axes=[1, 2]))
    model = alone(layer, x)
    model(x)  # This builds the activation.
    layer.activation.alpha.assign(random(*layer.activation.alpha.shape))
    files = [tmp_path / "x.npy", tmp_path / "a.keras", tmp_path / "b.keras"]
    np.save(files[0], x)
    assert_deploys(model).save(files[1])
    [apart, *_] = with_groups_apart(layer.plain_forms(x.shape[1:-1]))
    choose(apart, monkeypatch)
    assert_deploys(model).save(files[2])
    run_python(WITHOUT, *files)
    for path in files[1:]:
        y = np.load(f"{path}.npy")
        np.testing.assert_allclose(y, outputs(model, x), atol=1e-5)


def two_level(filters=16, size=3, groups=4, **options):
    return keras_tlgc.layers.TwoLevelGroupConv2D(
        filters, size, padding="same", groups=groups, **options
    )


@pytest.mark.once
def test_cost_model():
    """Few channels are cheaper as one convolution, many in three."""
    for channels, filters, size, is_dense in [
        (16, 96, 1, True),
        (24, 144, 1, True),
        (64, 64, 3, False),
        (1024, 256, 1, False),
        (256, 1024, 1, False),
    ]:
        x = np.zeros((1, 8, 8, channels), "float32")
        plain = keras_tlgc.deploy(alone(two_level(filters, size), x))
        assert isinstance(plain.layers[-1], layers.Conv2D) == is_dense


@pytest.mark.once
def test_smallest():
    model = alone(two_level(), np.zeros((1, 8, 8, 16)))
    assert keras_tlgc.deploy(model).count_params() > model.count_params()
    plain = assert_deploys(model, smallest=True)
    assert plain.count_params() == model.count_params()


@pytest.mark.once
def test_measured():
    inputs = keras.Input((8, 8, 32))
    x = two_level(32, name="a")(inputs)
    x = two_level(32, name="b")(x)
    x = layers.TimeDistributed(two_level(32, groups=8))(x[:, None])
    assert_deploys(keras.Model(inputs, x), measure=True)
    model = alone(two_level(), np.zeros((1, 8, 8, 16)))
    free = keras.models.clone_model(model, keras.Input((None, 8, 16)))
    with pytest.raises(
        ValueError, match=r"`measure=True` needs.*\(None, 8\)\. Give"
    ):
        keras_tlgc.deploy(free, measure=True)


@pytest.mark.once
@pytest.mark.parametrize("cls", [GROUP[2], TWO_LEVEL[2], LEARNABLE])
def test_lora_is_merged_and_folded(cls):
    layer, x = make(cls, activation=None)
    layer.enable_lora(2)
    for i, factor in enumerate(layer.lora_kernels):
        factor.assign(random(*factor.shape, seed=i))
    norm = layers.BatchNormalization()
    inputs = keras.Input(x.shape[1:])
    plain = assert_deploys(keras.Model(inputs, norm(layer(inputs))))
    kinds = {type(part) for part in parts(plain)}
    assert layers.BatchNormalization not in kinds
    assert not [v for v in plain.weights if "lora" in v.name]


@pytest.mark.once
def test_shared_nested_wrapped_and_composite():
    inner = keras.Sequential(
        [
            keras.Input((None, None, 16)),
            two_level(),
            layers.BatchNormalization(),
        ]
    )
    shared, wrapped = two_level(name="shared"), two_level(16, 1)
    inputs = keras.Input((8, 8, 16))
    x = shared(inner(inner(shared(inputs))))
    x = keras.ops.expand_dims(x, 1)
    x = layers.TimeDistributed(wrapped)(layers.TimeDistributed(inner)(x))
    x = BlockOfOurs(name="block")(x[:, 0])
    plain = assert_deploys(keras.Model(inputs, x))
    kinds = {type(part) for part in parts(plain)}
    assert layers.BatchNormalization not in kinds and BlockOfOurs not in kinds


class BlockOfOurs(Block):
    def __init__(self, filters=16, **options):
        super().__init__(filters, **options)
        self.conv = two_level(name="conv")


@pytest.mark.once
def test_activations():
    inputs = keras.Input((8, 8, 16))
    shared = layers.PReLU(shared_axes=[1, 2])
    x = two_level(activation=shared)(inputs)
    x = two_level(activation=shared)(x)
    x = two_level(96, 1, activation=lambda x: keras.ops.relu(x) + 1)(x)
    model = keras.Model(inputs, x)
    model(random(1, 8, 8, 16))  # This builds the activation.
    shared.alpha.assign(random(*shared.alpha.shape))
    plain = assert_deploys(model)
    assert len([p for p in parts(plain) if type(p) is layers.PReLU]) == 1


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    x = random(2, 8, 8, 16)
    model = alone(two_level(), x)
    plain = keras_tlgc.deploy(model)
    assert {p.dtype_policy.name for p in parts(plain)} == {"mixed_bfloat16"}
    np.testing.assert_allclose(to_numpy(plain(x)), to_numpy(model(x)), atol=0.1)


@pytest.mark.once
def test_unknown_sizes():
    inputs = keras.Input((None, None, 16))
    model = keras.Model(
        inputs, two_level(strides=2, coarse_kernel_size=1)(inputs)
    )
    plain = keras_tlgc.deploy(model)
    for size in (7, 8):
        x = random(1, size, size, 16)
        np.testing.assert_allclose(
            outputs(plain, x), outputs(model, x), atol=1e-5
        )
    conv = two_level(strides=2, coarse_kernel_size=5, name="wide")
    with pytest.raises(
        ValueError, match=r"needs inputs of known.*'wide', coarse_k.*\(5, 5\)"
    ):
        keras_tlgc.deploy(keras.Model(inputs, conv(inputs)))


@pytest.mark.once
def test_errors():
    model = keras.Sequential([two_level()])
    with pytest.raises(
        ValueError, match=r"must be functional or Seq.*built=False\. Call it"
    ):
        keras_tlgc.deploy(model)
    model = alone(two_level(), np.zeros((1, 8, 8, 16)))
    with pytest.raises(
        ValueError, match=r"fastest forms.*smallest=True\. Leave"
    ):
        keras_tlgc.deploy(model, measure=True, smallest=True)
