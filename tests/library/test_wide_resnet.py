import keras
import numpy as np
import pytest
from networks import layers_of, small

from keras_tlgc.applications import WideResNet, WideResNetImageNet

# Names and shapes; test_networks.py has what is computed.
pytestmark = pytest.mark.once


def test_names_and_shapes_of_layers():
    model = WideResNet(16, 2, input_shape=(9, 8, 3))
    shapes = {
        layer.name: tuple(layer.output.shape[1:]) for layer in model.layers
    }
    expected = {"stem_conv": (9, 8, 16), "predictions": (10,)}
    sizes = {1: (9, 8, 32), 2: (5, 4, 64), 3: (3, 2, 128)}
    inputs = {1: (9, 8, 16), 2: (9, 8, 32), 3: (5, 4, 64)}
    for stage, size in sizes.items():
        for block in (1, 2):
            name = f"stage{stage}_block{block}"
            expected[f"{name}_bn1"] = inputs[stage] if block == 1 else size
            for layer in ("conv1", "bn2", "conv2"):
                expected[f"{name}_{layer}"] = size
        expected[f"stage{stage}_block1_shortcut"] = size
    expected["head_bn"] = sizes[3]
    weighted = {layer.name for layer in model.layers if layer.weights}
    assert weighted == set(expected)
    assert {name: shapes[name] for name in expected} == expected
    assert model.name == "wide_resnet_16_2"


def test_names_and_shapes_of_layers_for_imagenet():
    model = WideResNetImageNet(34, 2, conv="two_level", groups=16)
    expected = {"stem_conv": (112, 112, 64), "stem_bn": (112, 112, 64)}
    before = (56, 56, 64)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        side, filters = 112 // 2**stage, 64 * 2**stage
        for block in range(1, blocks + 1):
            name = f"stage{stage}_block{block}"
            expected[f"{name}_bn1"] = before
            if block == 1:
                expected[f"{name}_shortcut"] = (side, side, filters)
            before = (side, side, filters)
            for layer in ("conv1", "bn2", "conv2"):
                expected[f"{name}_{layer}"] = before
    expected |= {"head_bn": (7, 7, 1024), "predictions": (1000,)}
    layers = layers_of(model)
    shapes = {n: v.output.shape[1:] for n, v in layers.items() if v.weights}
    assert shapes == expected
    assert layers["stem_pool"].output.shape == (None, 56, 56, 64)
    assert model.name == "wide_resnet_imagenet_34_2"


def test_strided_convolutions_pad_by_one_on_every_side():
    layers = layers_of(small(WideResNet))
    assert layers["stage2_block1_conv1_pad"].padding == ((1, 1), (1, 1))
    assert layers["stage2_block1_conv1"].padding == "valid"
    assert layers["stage2_block1_conv1"].strides == (2, 2)


def test_shortcut_reads_the_preactivated_input():
    layers = layers_of(small(WideResNet))
    shortcut = layers["stage2_block1_shortcut"]
    assert shortcut.input is layers["stage2_block1_bn1_relu"].output
    assert "stage1_block1_shortcut" not in layers  # 16 channels, stride 1.


def test_dropout_may_be_a_number_of_numpy():
    model = WideResNet(10, 1, dropout=np.float32(0.25))
    assert model.get_layer("stage1_block1_dropout").rate == 0.25


@pytest.mark.parametrize("build", [WideResNet, WideResNetImageNet])
def test_dropout(build):
    def rates(model):
        return {
            name: layer.rate
            for name, layer in layers_of(model).items()
            if isinstance(layer, keras.layers.Dropout)
        }

    assert rates(small(build)) == {}
    model = small(build, dropout=0.3)
    stages = (1, 2, 3) if build is WideResNet else (1, 2, 3, 4)
    names = [f"stage{stage}_block1_dropout" for stage in stages]
    assert rates(model) == dict.fromkeys(names, 0.3)
    conv2 = model.get_layer("stage1_block1_conv2")
    assert conv2.input is model.get_layer(names[0]).output


@pytest.mark.parametrize(
    "build, kwargs, message",
    [
        (WideResNet, dict(depth=11), "`depth` must be 6 b .*=11.*Try 10, 16"),
        (WideResNet, dict(depth=4), "`depth` must be 6 b .*depth=4"),
        (WideResNet, dict(depth=28.0), "`depth` must be a positive.*=28.0"),
        (WideResNet, dict(width=0), "`width` must be a positive integer.*=0"),
        (WideResNet, dict(width=1.5), "`width` must be a positive.*=1.5"),
        (
            WideResNetImageNet,
            dict(depth=50),
            r"`depth` must be one of \[10, 18, 34\].*depth=50",
        ),
        (WideResNetImageNet, dict(width=0), "`width` must be a positive.*=0"),
    ],
)
def test_errors(build, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**{"depth": 10, "width": 1} | kwargs)
