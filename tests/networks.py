"""Every network and every kind of convolution: one list for all tests."""

import keras
import pytest
from helpers import once

from keras_tlgc.applications import (
    MobileNetV2,
    WideResNet,
    WideResNetImageNet,
    mobilenet_v2,
    wide_resnet,
)
from keras_tlgc.applications.convolutions import CONVOLUTIONS

NETWORKS = {
    WideResNet: dict(depth=10, width=1),
    WideResNetImageNet: dict(depth=10, width=1),
    MobileNetV2: dict(dropout=0),
}
# Options that differ from 1, for every kind that takes them.
OPTIONS = {"groups": 2, "coarse_channels": 3}

EVERY_NETWORK = pytest.mark.parametrize(
    "build", NETWORKS, ids=lambda build: build.__name__
)
EVERY_KIND = pytest.mark.parametrize("conv", CONVOLUTIONS)
# Other backends run every network, and the two kinds with operations of their
# own.
EVERY_PAIR = pytest.mark.parametrize(
    ("build", "conv"),
    [
        (build, conv)
        if conv == "two_level" or (build, conv) == (WideResNet, "learnable")
        else once(build, conv)
        for build in NETWORKS
        for conv in CONVOLUTIONS
    ],
    ids=lambda value: getattr(value, "__name__", value),
)


@pytest.fixture
def few_stages(monkeypatch):
    """Cut the networks' tables to what differs between their stages."""
    for module, name, value in (
        (wide_resnet, "CIFAR_STAGES", [(16, 1), (32, 2)]),
        (wide_resnet, "IMAGENET_STAGES", [(64, 1), (16, 2)]),
        (wide_resnet, "IMAGENET_BLOCKS", {10: (1, 1)}),
        (mobilenet_v2, "STAGES", [(1, 16, 1, 1), (6, 24, 2, 2)]),
        (mobilenet_v2, "HEAD", 32),
    ):
        monkeypatch.setattr(module, name, value)


def small(build, conv="standard", **kwargs):
    """Return a small network of the kind, for images of 8x8 pixels."""
    last = keras.config.image_data_format() == "channels_last"
    options = CONVOLUTIONS[conv].options if conv in CONVOLUTIONS else ()
    defaults = dict(
        NETWORKS[build],
        conv=conv,
        input_shape=(8, 8, 3) if last else (3, 8, 8),
        **{name: OPTIONS[name] for name in options},
    )
    return build(**defaults | kwargs)


def layers_of(model):
    return {layer.name: layer for layer in model.layers}


def options_for_inference(conv, data_format):
    """Return what networks are built with to compare their logits."""
    last = data_format == "channels_last"
    return dict(
        classifier_activation=None,
        conv=conv,
        groups=4 if "groups" in CONVOLUTIONS[conv].options else 1,
        input_shape=(32, 32, 3) if last else (3, 32, 32),
    )
