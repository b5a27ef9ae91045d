"""What the networks refuse, before a layer is made."""

import keras
import numpy as np
import pytest
from networks import EVERY_NETWORK, small

from keras_tlgc.applications import MobileNetV2, WideResNet, WideResNetImageNet

pytestmark = pytest.mark.once


@EVERY_NETWORK
@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(groups=0), "`groups` must be a positive integer.*groups=0"),
        (dict(conv="dense"), "`conv` must be one of .*two_level.*'dense'"),
        (
            dict(groups=2),
            "`groups` must be 1 for conv='standard'.*groups=2.*Leave it out",
        ),
        (
            dict(conv="group", coarse_channels=2),
            "`coarse_channels` must be 1 for conv='group'.*channels=2",
        ),
        (
            dict(conv="two_level", coarse_channels=0),
            "`coarse_channels` must be a positive integer.*channels=0",
        ),
        (
            dict(include_top=False, pooling="min"),
            "`pooling` must be one of.*pooling='min'",
        ),
        (
            dict(input_shape=(32, 32)),
            r"`input_shape` must have 3 entries.*\(32, 32\).*Leave the batch",
        ),
        (
            dict(input_shape=(None, 32, 32, 3)),
            "`input_shape` must have 3 entries.*None, 32, 32, 3",
        ),
        (dict(input_shape=8), r"`input_shape` must have 3 entries.*=\(8,\)"),
        (
            dict(input_shape=(8, 8, None)),
            r"`input_shape` must hold positive.*\(8, 8, None\).*channels_last",
        ),
        (dict(input_shape=(8, 0, 3)), "`input_shape` must hold positive"),
        (dict(input_shape=(8, -1, 3)), "`input_shape` must hold positive"),
        (dict(input_shape=(8, 8.0, 3)), "`input_shape` must hold positive"),
        (
            dict(input_tensor=np.zeros((1, 8, 8, 3))),
            "`input_tensor` must be a Keras tensor.*ndarray.*keras.Input",
        ),
        (
            dict(input_tensor=keras.KerasTensor((None, 8, 8))),
            r"`input_tensor.shape\[1:\]` must have 3 entries.*\(8, 8\)",
        ),
        (
            dict(input_tensor=keras.KerasTensor((None, 8, 8, None))),
            r"`input_tensor.shape\[1:\]` must hold positive",
        ),
        (dict(classifier_activation="no_such"), "activation.*no_such"),
        (dict(name="a/b"), "`name` must be a string without.*name='a/b'"),
        (dict(name=3), "`name` must be a string without.*name=3"),
        (dict(weights="."), "`weights` must be None or the path.*no file"),
        (dict(classes=0), "`classes` must be a positive integer.*classes=0"),
        (dict(classes=2.0), "`classes` must be a positive integer.*=2.0"),
        (dict(dropout=1.0), "`dropout` must be a number from 0 to.*=1.0"),
        (dict(dropout="a"), "`dropout` must be a number from 0 to.*='a'"),
        (dict(weights=5), "`weights` must be None or the path.*='5'"),
        (
            dict(weights="nowhere.weights.h5"),
            "`weights` must be None or the path.*'nowhere.weights.h5'.*"
            "Check the path",
        ),
    ],
)
def test_errors(build, kwargs, message, monkeypatch):
    def add_weight(*args, **kwargs):
        raise AssertionError("A weight was made first.")

    monkeypatch.setattr(keras.Layer, "add_weight", add_weight)
    with pytest.raises(ValueError, match=message):
        small(build, **kwargs)


@pytest.mark.parametrize(
    "build, groups, message",
    [
        (
            WideResNet,
            3,
            r"groups=3, but 'stage1_block1_conv1' has 16 channels. "
            r"Allowed groups: \[1, 2, 4, 8, 16\]",
        ),
        (WideResNet, 32, "groups=32, but 'stage1_block1_conv1' has 16"),
        (
            WideResNetImageNet,
            3,
            r"groups=3, but 'stage1_block1_conv1' has 64 channels. "
            r"Allowed groups: \[1, 2, 4, 8, 16, 32, 64\]",
        ),
        (
            MobileNetV2,
            16,
            r"groups=16, but 'block2_project' has 24 channels. "
            r"Allowed groups: \[1, 2, 4, 8\]",
        ),
        (MobileNetV2, 3, "groups=3, but 'block1_project' has 32 channels"),
    ],
)
@pytest.mark.parametrize("conv", ["group", "learnable", "two_level"])
def test_groups_that_do_not_divide_the_channels(build, conv, groups, message):
    with pytest.raises(
        ValueError, match=f"`groups` must divide the channels.*{message}"
    ):
        small(build, conv, groups=groups)
