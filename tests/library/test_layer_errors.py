"""What the layers refuse: the rule, what was received, and a remedy."""

import numpy as np
import pytest
from cases import (
    LACKS,
    LAYERS,
    LOW_RANK,
    TWO_LEVEL,
    built,
    every_layer,
    in_format,
    make,
    plain,
)

# All of it is refused before anything is computed.
pytestmark = pytest.mark.once

BAD_ARGUMENTS = [
    (dict(filters=0), "`filters` must be a positive integer.*filters=0"),
    (dict(filters=4.0), "`filters` must be a positive integer.*filters=4.0"),
    (dict(filters=True), "`filters` must be a positive integer.*=True"),
    (dict(filters=None), "`filters` must be a positive integer.*=None"),
    (dict(groups=0), "`groups` must be a positive integer.*groups=0"),
    (dict(groups=-2), "`groups` must be a positive integer.*groups=-2"),
    (dict(groups=2.0), "`groups` must be a positive integer.*groups=2.0"),
    (dict(groups=True), "`groups` must be a positive integer.*groups=True"),
    (dict(groups="2"), "`groups` must be a positive integer.*groups='2'"),
    (
        dict(filters=6, groups=4),
        r"`filters` must be divisible by `groups`.*filters=6, groups=4.*"
        r"\[1, 2, 3, 6\]",
    ),
    (
        dict(filters=10**18, groups=3),
        r"`filters` must be divisible by.*\[1, 2, 4, .*50{17}, 10{18}\]",
    ),
    (dict(kernel_size=0), "`kernel_size` must be a positive.*kernel_size=0"),
    (dict(kernel_size=True), "`kernel_size` must be a positive.*=True"),
    (dict(kernel_size=2.5), "`kernel_size` must be a positive.*=2.5"),
    (dict(kernel_size=(3,) * 4), "`kernel_size` must be a positive.*3, 3, 3"),
    (dict(kernel_size=None), "`kernel_size` must be a positive.*=None"),
    (dict(kernel_size="3"), "`kernel_size` must be a positive.*='3'"),
    (dict(strides=0), "`strides` must be a positive integer.*strides=0"),
    (dict(strides=(1,) * 4), "`strides` must be a positive integer or"),
    (dict(dilation_rate=0), "`dilation_rate` must be a positive.*rate=0"),
    (dict(dilation_rate=(1, False)), "`dilation_rate` must be.*False"),
    (
        dict(strides=2, dilation_rate=2),
        "`strides` above 1 cannot be combined with `dilation_rate`.*"
        r"strides=\(2.*dilation_rate=\(2.*Set one of them to 1",
    ),
    (dict(padding="full"), "`padding` must be one of.*padding='full'"),
    (dict(padding=None), "`padding` must be one of.*padding=None"),
    (dict(padding=1), "`padding` must be one of.*padding=1"),
    (
        dict(data_format="NHWC"),
        "`data_format` must be one of.*channels_first.*data_format='NHWC'",
    ),
    (dict(lowering="fast"), "`lowering` must be one of.*lowering='fast'"),
    (
        dict(lowering="matmul"),
        r"`lowering='matmul'` computes kernels of size 1 only.*size \(3",
    ),
]


@every_layer
@pytest.mark.parametrize("kwargs, message", BAD_ARGUMENTS)
def test_bad_arguments(cls, kwargs, message):
    if set(kwargs) & set(LACKS.get(cls, ())):
        pytest.skip("an argument that the layer does not take")
    if "divisible" in message and (
        cls in LOW_RANK.values() or not cls.equal_groups
    ):
        pytest.skip("groups need not divide the filters")
    with pytest.raises(ValueError, match=message):
        plain(cls, **kwargs)


BAD_COARSE_ARGUMENTS = [
    (dict(coarse_channels=0), "`coarse_channels` must be a positive.*=0"),
    (dict(coarse_channels=1.5), "`coarse_channels` must be a positive.*=1.5"),
    (dict(coarse_channels=True), "`coarse_channels` must be a pos.*=True"),
    (dict(coarse_channels=None), "`coarse_channels` must be a pos.*=None"),
    (dict(coarse_kernel_size=0), "`coarse_kernel_size` must be a pos.*=0"),
    (dict(coarse_kernel_size=1.0), "`coarse_kernel_size` must be a.*=1.0"),
    (dict(coarse_kernel_size=True), "`coarse_kernel_size` must be.*=True"),
    (dict(coarse_kernel_size=(1,) * 4), "`coarse_kernel_size` must be.*1, 1"),
    (
        dict(kernel_size=1, coarse_kernel_size=3, lowering="matmul"),
        r"`lowering='matmul'` computes kernels of size 1 only.*size \(3",
    ),
]


@pytest.mark.parametrize("cls", TWO_LEVEL.values())
@pytest.mark.parametrize("kwargs, message", BAD_COARSE_ARGUMENTS)
def test_bad_coarse_arguments(cls, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cls(**{"filters": 4, "kernel_size": 3} | kwargs)


@pytest.mark.parametrize("cls", LAYERS)
def test_causal_padding_is_for_1d(cls):
    if cls.rank == 1:
        assert plain(cls, padding="CAUSAL").padding == "causal"
        return
    with pytest.raises(
        ValueError, match=r"`padding` must be one of.*padding='causal'"
    ):
        plain(cls, padding="causal")


BAD_INPUTS = [
    (
        dict(groups=4),
        lambda rank: (None, *[8] * rank, 6),
        r"`input channels` must be divisible by `groups`.*input channels=6, "
        r"groups=4.*Allowed groups for 6 channels: \[1, 2, 3, 6\]",
    ),
    (
        dict(),
        lambda rank: (None, *[8] * rank, None),
        "The number of input channels must be known.*None.*fixed channel",
    ),
    (
        dict(data_format="channels_first"),
        lambda rank: (None, None, *[8] * rank),
        r"The number of input channels must be known.*\(batch, channels, ",
    ),
    (
        dict(),
        lambda rank: (None, *[8] * rank, 8, 4),
        r"The input must have \d dimensions, \(batch, \*spatial, channels\)",
    ),
    (
        dict(),
        lambda rank: (8, 4),
        r"The input must have \d dimensions.*input_shape=\(8, 4\).*Reshape it",
    ),
    (
        dict(),
        lambda rank: (None, *[2] * rank, 4),
        r"The window must fit into the input.*input_shape=\(None, 2.*"
        r"kernel_size=\(3.*padding='valid'.*Use a smaller window",
    ),
    (
        dict(dilation_rate=2),
        lambda rank: (None, *[4] * rank, 4),
        r"The window must fit into the input.*dilation_rate=\(2",
    ),
]


@every_layer
@pytest.mark.parametrize("kwargs, shape, message", BAD_INPUTS)
def test_bad_inputs(cls, kwargs, shape, message):
    if "divisible" in message and not cls.equal_groups:
        pytest.skip("groups need not divide the channels")
    layer = plain(cls, **kwargs)
    with pytest.raises(ValueError, match=message):
        layer.compute_output_shape(shape(cls.rank))
    with pytest.raises(ValueError, match=message):
        layer.build(shape(cls.rank))
    assert len(layer.weights) == 0  # A second `build` starts afresh.
    assert not layer.built
    built(layer, in_format((1, *[8] * cls.rank, 4), layer.data_format))
    assert len(layer.weights) >= 2


@every_layer
def test_other_channels_after_build(cls):
    layer, x = make(cls)
    with pytest.raises(ValueError, match="incompatible with the layer"):
        layer(np.concatenate([x, x], axis=-1))


@every_layer
def test_dense_kernel_before_build(cls):
    layer = plain(cls)
    with pytest.raises(
        ValueError,
        match="`dense_kernel` needs a layer that has weights.*"
        rf"'{layer.name}'.*Call it on data first",
    ):
        layer.dense_kernel()
