"""Networks by name."""

import pytest

from keras_tlgc import applications
from keras_tlgc.applications import convolutions, network_builder, registry
from keras_tlgc.applications.plain import plain
from keras_tlgc.valueless import without_values


@pytest.mark.parametrize(
    ("name", "built"),
    [
        ("wrn-10-1", "wide_resnet_10_1"),
        ("wrn-imagenet-10-1", "wide_resnet_imagenet_10_1"),
        ("mobilenetv2-0.35", "mobilenet_v2_0.35"),
        ("plain-1-8", "plain"),
        *((name, None) for name in registry.DEFAULTS),
    ],
)
def test_names(name, built):
    """Each names a network, those of functions what these build."""
    build = network_builder(name)
    model = without_values(lambda: build(classes=3))
    function = getattr(applications, name, None)
    if function is not None:
        built = without_values(function).name
    assert model.name == built
    assert model.output_shape == (None, 3)


@pytest.mark.parametrize("name", ["wrn-28", "wrn-28-10x", "VGG16", "", 5, []])
def test_names_of_no_network(name):
    with pytest.raises(ValueError, match=r"of the form wrn-DEPTH-WIDTH or .*"):
        network_builder(name)


def test_plain_network():
    for conv in convolutions.CONVOLUTIONS:
        groups = 1 if conv == "standard" else 4
        model = plain(2, 8, conv, groups, 1, input_shape=(8, 8, 4), classes=3)
        assert model.output_shape == (None, 3)
    assert model.get_layer("conv1").groups == 4
    assert sum("Conv" in type(x).__name__ for x in model.layers) == 2
    for arguments, message in [
        ((2, 6, "group", 4), "'conv1' has 6"),
        ((2, 8, "group", 8), "'input' has 4"),
        ((0, 8, "group", 4), "`depth` must be a positive"),
        ((2, 0, "group", 4), "`width` must be a positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            plain(*arguments, input_shape=(8, 8, 4))
