"""The layers, small cases of them, and what builds and compares them."""

import keras
import numpy as np
import pytest
from grids import CASES, LOW_RANK_CASES
from helpers import once, random, to_numpy
from oracle import balanced_conv, low_rank_conv, two_level_group_conv

from keras_tlgc import layers

BACKEND = keras.backend.backend()
OTHER_BACKENDS = sorted({"jax", "tensorflow", "torch"} - {BACKEND})
FORMATS = ["channels_last", "channels_first"]
# Other backends run channels first only where the format itself is tested.
ONE_FORMAT = ["channels_last", once("channels_first")]

GROUP = {
    1: layers.GroupConv1D,
    2: layers.GroupConv2D,
    3: layers.GroupConv3D,
}
TWO_LEVEL = {
    1: layers.TwoLevelGroupConv1D,
    2: layers.TwoLevelGroupConv2D,
    3: layers.TwoLevelGroupConv3D,
}
SHUFFLE = {
    1: layers.ShuffleGroupConv1D,
    2: layers.ShuffleGroupConv2D,
    3: layers.ShuffleGroupConv3D,
}
LOW_RANK = {
    1: layers.LowRankConv1D,
    2: layers.LowRankConv2D,
    3: layers.LowRankConv3D,
}
BALANCED = {
    1: layers.BalancedGroupConv1D,
    2: layers.BalancedGroupConv2D,
    3: layers.BalancedGroupConv3D,
}
LEARNABLE = layers.LearnableGroupConv2D
RAGGED = layers.RaggedGroupConv2D
CONV = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
LAYERS = [
    *GROUP.values(),
    *TWO_LEVEL.values(),
    *SHUFFLE.values(),
    *LOW_RANK.values(),
    *BALANCED.values(),
    LEARNABLE,
    RAGGED,
]
# Ranks 1 and 3 add something new only in what the two-level layers compute.
every_layer = pytest.mark.parametrize(
    "cls",
    [
        cls if cls.rank == 2 or cls in TWO_LEVEL.values() else once(cls)
        for cls in LAYERS
    ],
)
# Arguments of the other layers that a layer does not take.
LACKS = {LEARNABLE: ("lowering",), RAGGED: ("groups", "lowering")}

TWO_LEVEL_ONLY = ("coarse_channels", "coarse_kernel_size")
WINDOW = ("groups", "strides", "padding", "dilation_rate")


def two_level_case(case, data_format="channels_last", **more):
    """Return the case's layer, built, and an input for it."""
    shape, kwargs = CASES[case]
    kwargs = default_filters(kwargs) | kwargs | more
    layer = TWO_LEVEL[len(shape) - 2](**kwargs, data_format=data_format)
    shape = in_format(shape, data_format)
    return built(layer, shape), random(*shape)


def low_rank_case(case, data_format="channels_last", **more):
    """Return the low-rank case's layer, built, and an input for it."""
    shape, kwargs = LOW_RANK_CASES[case]
    layer = LOW_RANK[len(shape) - 2](
        **kwargs | {"coarse_channels": 3, "data_format": data_format} | more
    )
    shape = in_format(shape, data_format)
    return built(layer, shape), random(*shape)


def group_case(case, data_format="channels_last", kind=GROUP, **more):
    """Return the case's group convolution, built, and an input for it."""
    shape, kwargs = CASES[case]
    kwargs = default_filters(kwargs) | without(kwargs, TWO_LEVEL_ONLY) | more
    layer = kind[len(shape) - 2](**kwargs, data_format=data_format)
    shape = in_format(shape, data_format)
    return built(layer, shape), random(*shape)


def default_filters(kwargs):
    return {"filters": 8 if kwargs["groups"] == 4 else 6}


def built(layer, shape):
    """Build the layer with random weights, none of them zero."""
    # The weights are drawn here, since JAX compiles initializers for seconds.
    for name in (
        "kernel",
        "bias",
        "restriction",
        "coarse",
        "balance",
        "selection",
    ):
        if hasattr(layer, f"{name}_initializer"):
            setattr(layer, f"{name}_initializer", keras.initializers.Zeros())
    layer.build(shape)
    layer.set_weights(
        [random(*v.shape, seed=i) / 2 for i, v in enumerate(layer.weights)]
    )
    return layer


def in_format(shape, data_format):
    batch, *spatial, channels = shape
    if data_format == "channels_last":
        return shape
    return (batch, channels, *spatial)


def without(kwargs, names):
    return {k: v for k, v in kwargs.items() if k not in names}


def oracle(layer, x):
    """Return the outputs that the layer's weights define."""
    rank = f"_{layer.rank}d"
    weights = {v.name.removesuffix(rank): to_numpy(v) for v in layer.weights}
    options = {name: getattr(layer, name) for name in (*WINDOW, "data_format")}
    if "balance_kernel" in weights:
        return balanced_conv(
            x,
            weights["group_kernel"],
            weights["balance_kernel"],
            weights.get("group_bias", 0),
            **options,
        )
    if "group_kernel" not in weights:
        return low_rank_conv(
            x,
            weights["restriction_kernel"],
            weights["coarse_kernel"],
            weights.get("group_bias", 0),
            **options,
        )
    return two_level_group_conv(
        x,
        weights["group_kernel"],
        weights.get("group_bias"),
        weights.get("restriction_kernel"),
        weights.get("coarse_kernel"),
        **options,
    )


def assert_near(actual, expected, atol=1e-5):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=atol)


def make(cls, **kwargs):
    """Return a small layer of the class, built, and an input for it."""
    defaults = dict(
        filters=4,
        kernel_size=2,
        strides=2,
        padding="same",
        groups=2,
        activation="tanh",
    )
    if cls in TWO_LEVEL.values():
        defaults["coarse_kernel_size"] = 3
    if cls in LOW_RANK.values():
        defaults["coarse_channels"] = 2
    if cls is RAGGED:
        defaults |= groups_of(4, 4)
    layer = cls(**without(defaults | kwargs, LACKS.get(cls, ())))
    shape = in_format((3, *[5, 4, 3][: cls.rank], 4), layer.data_format)
    return built(layer, shape), random(*shape)


def groups_of(channels, filters):
    """Return two groups: of 3 channels and 1 filter, and of all the others."""
    return dict(
        input_groups=[
            [3, 0, 1],
            [i for i in range(channels) if i not in (0, 1, 3)],
        ],
        output_groups=[[2], [i for i in range(filters) if i != 2]],
    )


def make_model(cls, **kwargs):
    layer, x = make(cls, **kwargs)
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            layer,
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    return model, layer, x


# Arguments that differ from all defaults.
UNUSUAL = dict(
    filters=6,
    kernel_size=2,
    strides=2,
    padding="same",
    data_format="channels_first",
    groups=2,
    activation="gelu",
    use_bias=False,
    kernel_initializer="he_normal",
    bias_initializer=keras.initializers.Constant(0.5),
    kernel_regularizer=keras.regularizers.L2(0.1),
    bias_regularizer="l1",
    activity_regularizer=keras.regularizers.L1(0.2),
    kernel_constraint=keras.constraints.MaxNorm(3.0),
    bias_constraint="non_neg",
    lowering="native",
    lora_rank=2,
    lora_alpha=3,
    name="unusual",
    dtype="mixed_bfloat16",
    trainable=False,
)
UNUSUAL_TWO_LEVEL = UNUSUAL | dict(
    coarse_channels=3,
    coarse_kernel_size=3,
    restriction_initializer="he_uniform",
    coarse_initializer="zeros",
    restriction_regularizer=keras.regularizers.L1(0.3),
    coarse_regularizer="l2",
    restriction_constraint=keras.constraints.UnitNorm(axis=0),
    coarse_constraint="non_neg",
)


def unusual(cls):
    more = {}
    if cls in TWO_LEVEL.values():
        return cls(**UNUSUAL_TWO_LEVEL)
    if cls in LOW_RANK.values():
        more = {
            name: value
            for name, value in UNUSUAL_TWO_LEVEL.items()
            if name.startswith("coarse") and name != "coarse_kernel_size"
        }
    if cls in BALANCED.values():
        more = dict(
            balance_initializer="he_uniform",
            balance_regularizer=keras.regularizers.L1(0.3),
            balance_constraint="non_neg",
        )
    if cls is LEARNABLE:
        more = dict(selection_initializer="zeros")
    if cls is RAGGED:
        more = groups_of(5, UNUSUAL["filters"])
    return cls(**without(UNUSUAL | more, LACKS.get(cls, ())))


def plain(cls, **kwargs):
    """Return a layer of 4 filters and kernel size 3, unless `kwargs` differ."""
    if cls is RAGGED and kwargs.get("filters", 4) == 4:
        kwargs = groups_of(4, 4) | kwargs
    return cls(**{"filters": 4, "kernel_size": 3} | kwargs)
