import keras
import numpy as np
import pytest
from networks import layers_of

from keras_tlgc.applications import MobileNetV2
from keras_tlgc.costs import count_params, model_costs
from keras_tlgc.layers import GroupConv2D, TwoLevelGroupConv2D

# Channels and side of the output of each block, from Table 2 of Sandler et al.
BLOCKS = [(16, 112)] + [(24, 56)] * 2 + [(32, 28)] * 3 + [(64, 14)] * 4
BLOCKS += [(96, 14)] * 3 + [(160, 7)] * 3 + [(320, 7)]

# Names and shapes; test_networks.py has what is computed.
pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def layers():
    return layers_of(MobileNetV2(conv="two_level", groups=8))


def test_names_and_shapes(layers):
    expected = {"stem_conv": (112, 112, 32), "stem_bn": (112, 112, 32)}
    channels, side = 32, 112
    for number, (filters, new_side) in enumerate(BLOCKS, start=1):
        hidden, name = (
            channels * 6 if number > 1 else channels,
            f"block{number}",
        )
        for layer, size, n in (
            ("expand", side, hidden),
            ("depthwise", new_side, hidden),
            ("project", new_side, filters),
        ):
            if layer != "expand" or number > 1:
                expected[f"{name}_{layer}"] = (size, size, n)
                expected[f"{name}_{layer}_bn"] = (size, size, n)
        channels, side = filters, new_side
    expected |= {"head_conv": (7, 7, 1280), "head_bn": (7, 7, 1280)}
    expected["predictions"] = (1000,)
    weighted = {name: layer for name, layer in layers.items() if layer.weights}
    assert list(weighted) == list(expected)
    shapes = {n: tuple(v.output.shape[1:]) for n, v in weighted.items()}
    assert shapes == expected


def test_blocks_add_their_input_where_shapes_agree(layers):
    added = [name for name in layers if name.endswith("_add")]
    repeated = [i for i in range(2, 18) if BLOCKS[i - 1] == BLOCKS[i - 2]]
    assert added == [f"block{i}_add" for i in repeated]
    first, second = layers["block3_add"].input
    assert first is layers["block2_project_bn"].output
    assert second is layers["block3_project_bn"].output


def test_only_the_last_convolution_has_no_coarse_level(layers):
    kinds = {type(layer) for layer in layers.values()}
    assert {GroupConv2D, TwoLevelGroupConv2D} <= kinds
    one_level = [n for n, v in layers.items() if type(v) is GroupConv2D]
    assert one_level == ["head_conv"]


def test_projections_are_linear(layers):
    assert layers["block2_project"].activation is keras.activations.linear
    assert "block2_project_bn_relu" not in layers
    assert layers["block2_expand_bn_relu"].max_value == 6
    assert layers["block2_depthwise_bn_relu"].max_value == 6


def test_standard_one_costs_what_its_authors_say():
    costs = model_costs(MobileNetV2)
    assert round(costs.params / 1e6, 1) == 3.5
    assert round(costs.multiply_adds / 1e6) == 301  # "300M".


@pytest.mark.parametrize("alpha", [0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
def test_width(alpha):
    assert count_params(lambda: MobileNetV2(alpha)) == count_params(
        lambda: keras.applications.MobileNetV2(weights=None, alpha=alpha)
    )


def test_depthwise_kernels_start_as_he(layers):
    for name, layer in layers.items():
        if name.endswith("depthwise"):
            std = np.std(keras.ops.convert_to_numpy(layer.kernel))
            assert 0.8 < std / (2 / 9) ** 0.5 < 1.2


def test_dropout():
    rates = [
        layer.rate
        for layer in layers_of(MobileNetV2(dropout=0.3)).values()
        if isinstance(layer, keras.layers.Dropout)
    ]
    assert rates == [0.3]


@pytest.mark.parametrize(
    "alpha", [0, -1.0, float("nan"), float("inf"), "1", None, True]
)
def test_bad_width(alpha):
    with pytest.raises(
        ValueError, match=r"`alpha` must be a positive number. Received: alpha="
    ):
        MobileNetV2(alpha)
