"""Converted models: what they compute, what they keep, what they report."""

import keras
import numpy as np
import pytest
from exact import CONVOLUTIONS, make_exact
from helpers import random, to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

import keras_tlgc
from keras_tlgc.conversion import largest_divisor
from keras_tlgc.costs import model_costs
from keras_tlgc.layers import (
    GroupConv2D,
    TwoLevelGroupConv1D,
    TwoLevelGroupConv2D,
    TwoLevelGroupConv3D,
)

IMAGE = (8, 8, 8)


def conv(filters=8, size=3, **options):
    return layers.Conv2D(filters, size, padding="same", **options)


def outputs_of(model, *more, training=False):
    x = [
        random(2, *(size or 8 for size in x.shape[1:]), seed=i)
        for i, x in enumerate(model.inputs)
    ]
    x = x if len(x) > 1 else x[0]
    return [
        to_numpy(y)
        for y in keras.tree.flatten(model(x, *more, training=training))
    ]


def assert_same_outputs(new, model, tolerance=1e-4):
    for one, other in zip(outputs_of(new), outputs_of(model), strict=True):
        assert np.std(other) > 1e-3  # There is something to compare.
        atol = tolerance * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=atol)


def assert_converts(model, converted, groups=2, tolerance=1e-4, **options):
    """Convert a model that loses nothing by it, and compare all of it."""
    make_exact(model, groups)
    randomise_statistics(model)
    before = outputs_of(model)
    weights = [to_numpy(v) for v in model.weights]
    parts = model._flatten_layers()
    nodes = [len(part._inbound_nodes) for part in parts]

    new, report = keras_tlgc.convert(model, groups, **options)

    assert [row.name for row in report.converted] == converted
    assert all(row.error < 1e-6 for row in report.converted)
    assert report.params == model.count_params()
    assert report.new_params == new.count_params()
    assert_same_outputs(new, model, tolerance)
    # And the original is as it was.
    assert model._flatten_layers() == parts
    assert [len(part._inbound_nodes) for part in parts] == nodes
    for value, old in zip(model.weights, weights, strict=True):
        np.testing.assert_array_equal(to_numpy(value), old)
    for one, other in zip(outputs_of(model), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not {id(v) for v in model.variables} & {id(v) for v in new.variables}
    return new, report


def randomise_statistics(model):
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name == "moving_variance":
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(rng.normal(size=variable.shape))


def reasons(report):
    return {row.name: row.reason for row in report.kept}


# What models are made of.


def test_functional_with_all_that_a_graph_has():
    a, b = keras.Input((8, 8, 8), name="a"), keras.Input((8, 8, 4), name="b")
    shared = conv(name="shared")
    x = layers.BatchNormalization()(shared(a))
    x = ops.relu(x + 0.5 * shared(x))
    y = conv(8, use_bias=False, name="one")(b)
    z = layers.Concatenate()([x, y])
    z = layers.SpatialDropout2D(0.5)(z)
    model = keras.Model(
        {"a": a, "b": b},
        {"deep": conv(4, name="last", activation="tanh")(z), "flat": x},
        name="two",
    )
    new, report = assert_converts_dicts(model, ["shared", "one", "last"])
    assert new.name == "two"
    assert [x.name for x in new.inputs] == ["a", "b"]
    assert [v.path for v in new.weights if "beta" in v.path] == [
        v.path for v in model.weights if "beta" in v.path
    ]
    assert len(report.rows) == 3  # The shared one once, with both its calls.
    row = report.rows[0]
    assert row.multiply_adds == 2 * 64 * 9 * 8 * 8


def assert_converts_dicts(model, converted):
    """As `assert_converts`, of a model that takes and returns a dict."""
    make_exact(model, 2)
    new, report = keras_tlgc.convert(model, 2)
    assert [row.name for row in report.converted] == converted
    x = {"a": random(2, 8, 8, 8), "b": random(2, 8, 8, 4)}
    expected, given = model(x), new(x)
    assert given.keys() == expected.keys()
    for name, y in expected.items():
        np.testing.assert_allclose(
            to_numpy(given[name]), to_numpy(y), rtol=1e-4, atol=1e-4
        )
    return new, report


def test_sequential_stays_sequential():
    model = keras.Sequential(
        [
            keras.Input(IMAGE),
            conv(name="a", activation="relu"),
            layers.MaxPooling2D(),
            conv(16, name="b"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    new, _ = assert_converts(model, ["a", "b"])
    assert type(new) is keras.Sequential
    assert type(new.layers[0]) is TwoLevelGroupConv2D
    assert [part.name for part in new.layers] == [
        part.name for part in model.layers
    ]


def test_nested_models_are_entered():
    inner = keras.Sequential([keras.Input(IMAGE), conv(name="c")], name="inner")
    x = keras.Input(IMAGE)
    middle = keras.Model(x, inner(x) + inner(conv(name="c")(x)), name="middle")
    y = keras.Input(IMAGE)
    model = keras.Model(y, middle(conv(name="c")(y)))
    _, report = assert_converts(
        model, ["c", "middle/c", "middle/inner/c"], tolerance=1e-3
    )
    assert report.rows[2].multiply_adds == 2 * 64 * 9 * 8 * 8


@pytest.mark.parametrize(
    ("layer", "new", "shape"),
    [
        (layers.Conv1D(8, 3, padding="causal"), TwoLevelGroupConv1D, (9, 8)),
        (layers.Conv1D(8, 3, strides=2), TwoLevelGroupConv1D, (9, 8)),
        (layers.Conv2D(8, (3, 2), dilation_rate=2), TwoLevelGroupConv2D, IMAGE),
        (layers.Conv2D(8, 1, strides=2), TwoLevelGroupConv2D, IMAGE),
        (
            layers.Conv2D(8, 3, use_bias=False, activation="gelu"),
            TwoLevelGroupConv2D,
            (None, None, 8),
        ),
        (
            layers.Conv3D(8, 2, padding="same"),
            TwoLevelGroupConv3D,
            (3, 4, 5, 8),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_arguments_of_a_convolution(layer, new, shape):
    model = keras.Sequential([keras.Input(shape), layer])
    made, report = assert_converts(model, [layer.name])
    [made] = made.layers
    assert type(made) is new
    config, old = made.get_config(), layer.get_config()
    for name in set(old) - {"groups", "autocast"}:
        assert config[name] == old[name], name
    if None in shape:
        assert report.rows[0].multiply_adds is None
        assert report.cells[0][4] == ""
        assert "multiply-adds" not in report.summary


def test_channels_first():
    options = {"data_format": "channels_first"}
    model = keras.Sequential(
        [keras.Input((8, 8, 6)), conv(name="c", strides=2, **options)]
    )
    new, report = assert_converts(model, ["c"])
    assert new.layers[0].data_format == "channels_first"
    assert report.rows[0].multiply_adds == 4 * 3 * 9 * 8 * 8


def test_regularizers_constraints_and_initializers():
    layer = conv(
        kernel_regularizer=keras.regularizers.L2(0.1),
        bias_regularizer="l1",
        activity_regularizer=keras.regularizers.L2(0.2),
        kernel_constraint=keras.constraints.NonNeg(),
        kernel_initializer="he_normal",
    )
    model = keras.Sequential([keras.Input(IMAGE), layer])
    [new] = keras_tlgc.convert(model, 2).model.layers
    config = new.get_config()
    l2 = keras.regularizers.serialize(layer.kernel_regularizer)
    for name in ("kernel", "restriction", "coarse"):
        assert config[f"{name}_regularizer"] == l2
    for name in ("bias_regularizer", "activity_regularizer"):
        assert config[name] == layer.get_config()[name]
    assert (
        config["kernel_constraint"] == layer.get_config()["kernel_constraint"]
    )
    assert type(new.restriction_initializer) is keras.initializers.HeNormal


def test_frozen_layers_and_models_stay_frozen():
    x = keras.Input(IMAGE)
    inner = keras.Sequential(
        [keras.Input(IMAGE), conv(name="c"), layers.BatchNormalization()],
        name="inner",
    )
    inner.trainable = False
    frozen = conv(name="frozen", trainable=False)
    model = keras.Model(x, conv(name="free")(frozen(inner(x))))
    new, _ = assert_converts(model, ["inner/c", "frozen", "free"])
    trained = {v.path.split("/")[0] for v in new.trainable_variables}
    assert trained == {"free"}
    assert not new.get_layer("inner").trainable


def test_dtype_policies_stay():
    x = keras.Input(IMAGE)
    y = conv(name="half", dtype="mixed_bfloat16")(x)
    y = conv(name="single", dtype="float32")(y)
    model = keras.Model(x, conv(name="low", dtype="bfloat16")(y))
    new, _ = assert_converts(model, ["half", "single", "low"], tolerance=0.05)
    for layer in model.layers[1:]:
        twin = new.get_layer(layer.name)
        assert twin.dtype_policy == layer.dtype_policy
        assert twin.kernel.dtype == layer.kernel.dtype


def test_normalization_and_time_distributed():
    x = keras.Input((3, *IMAGE))
    norm = layers.Normalization()
    norm.adapt(random(9, 3, *IMAGE) * 5 + 2)
    inner = keras.Sequential([keras.Input(IMAGE), conv(name="c")], name="in")
    y = layers.TimeDistributed(conv(name="frame"), name="t")(norm(x))
    model = keras.Model(x, layers.TimeDistributed(inner, name="u")(y))
    new, _ = assert_converts(model, ["t/frame", "u/in/c"])
    assert type(new.get_layer("t").layer) is TwoLevelGroupConv2D


def test_named_functions_stay_and_others_are_written_out(tmp_path):
    x = keras.Input(IMAGE)
    y = layers.Lambda(lambda x, by: by * x, arguments={"by": 3}, name="l")(x)
    y = layers.Lambda(keras.activations.silu, name="f")(y)
    model = keras.Model(x, conv(name="c")(y))
    new, _ = assert_converts(model, ["c"])
    assert type(new.get_layer("f")) is layers.Lambda
    assert type(new.get_layer("l")) is not layers.Lambda
    new.save(tmp_path / "new.keras")  # No code, so it loads safely.
    assert_same_outputs(keras.saving.load_model(tmp_path / "new.keras"), new)


def test_what_is_not_written_out_stays_a_lambda():
    other = layers.Dense(8)
    other.build((None, 8))
    x = keras.Input(IMAGE)
    noisy = layers.Lambda(
        lambda x: x + keras.random.normal((8,)), output_shape=IMAGE, name="l"
    )
    hidden = layers.Lambda(lambda x: other(x), output_shape=IMAGE, name="m")
    model = keras.Model(x, conv(name="c")(hidden(noisy(x))))
    new, _ = keras_tlgc.convert(model, 2)
    for name in ("l", "m"):
        assert new.get_layer(name).function is model.get_layer(name).function


# Composite layers.


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """A layer that holds others, as those of KerasHub do."""

    def __init__(self, filters=8, **options):
        super().__init__(**options)
        self.filters = filters
        dtype = self.dtype_policy
        self.conv = conv(filters, name="conv", dtype=dtype)
        self.norm = layers.BatchNormalization(name="norm", dtype=dtype)
        self.drop = layers.Dropout(0.5, name="drop", dtype=dtype)

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.norm.build((*input_shape[:-1], self.filters))
        self.built = True

    def call(self, x, training=None):
        y = self.norm(self.conv(x), training=training)
        return x + ops.relu(self.drop(y, training=training))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


class Outer(Block):
    """A composite in a composite."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inside = Block(name="inside")

    def call(self, x, training=None):
        y = self.inside(x, training=training)
        return super().call(y, training=training)

    def build(self, input_shape):
        super().build(input_shape)
        self.inside.build(input_shape)


def test_composites_are_written_out(tmp_path):
    x = keras.Input(IMAGE)
    block = Block(name="block", trainable=False)
    model = keras.Model(x, block(Outer(name="outer")(block(x))))
    new, report = assert_converts(
        model,
        ["block/conv", "outer/inside/conv", "outer/conv"],
        tolerance=1e-3,
    )
    assert isinstance(new.get_layer("block"), keras.Model)
    assert not new.get_layer("block").trainable
    assert new.get_layer("outer").trainable
    # In training, statistics of the batch and dropout are back.
    before, [again] = outputs_of(new), outputs_of(new, training=True)
    assert not np.allclose(again, before[0])
    assert report.rows[0].multiply_adds == 2 * 64 * 9 * 8 * 8
    new.save(tmp_path / "new.keras")  # Without the class `Outer`.
    assert_same_outputs(keras.saving.load_model(tmp_path / "new.keras"), new)


def test_composites_of_half_precision_cast_their_inputs():
    x = keras.Input(IMAGE)
    model = keras.Model(x, Block(name="block", dtype="mixed_bfloat16")(x))
    new, _ = assert_converts(model, ["block/conv"], tolerance=0.05)
    assert new.output.dtype == model.output.dtype == "bfloat16"


class OwnWeight(Block):
    def build(self, input_shape):
        super().build(input_shape)
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return self.scale * super().call(x)


class UsesKernel(Block):
    def call(self, x):
        return super().call(x) + ops.mean(self.conv.kernel)


class OtherInTraining(Block):
    def call(self, x, training=None):
        return self.conv(x) if training else super().call(x)


class DecidesItself(Block):
    def call(self, x, training=None):
        return self.drop(self.conv(x), training=bool(training))


class AddsLoss(Block):
    def call(self, x):
        self.add_loss(ops.mean(self.conv.kernel))
        return super().call(x)


class AddsLossOfInputs(Block):
    def call(self, x):
        self.add_loss(ops.mean(x))
        return super().call(x)


class Unfollowed(Block):
    def call(self, x):
        if isinstance(x, keras.KerasTensor) and self.built:
            raise RuntimeError("not twice\nor more")
        return super().call(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class NotHeld(Block):
    other = None

    def call(self, x):
        return self.other(super().call(x))


class BranchesInTraining(Block):
    def call(self, x, training=None):
        y = self.conv(x)
        return self.drop(y) if training else self.norm(y)


class NoConfig(Block):
    def get_config(self):
        raise RuntimeError("no config")


class Strange(layers.Layer):
    def call(self, x):
        return x

    def get_config(self):
        raise RuntimeError("no config")


class Holds(Block):
    def __init__(self, **options):
        super().__init__(**options)
        self.inside = Strange(name="inside")

    def call(self, x):
        return self.inside(super().call(x))


class OuterOfNoConfig(Outer):
    def __init__(self, **options):
        super().__init__(**options)
        self.inside = NoConfig(name="inside")


class Structures(Block):
    def build(self, shapes):
        super().build(shapes[0])

    def call(self, pair):
        x, y = pair
        return {"deep": super().call(x), "sum": ops.add(x, y)}


class NeedsSizes(Block):
    def build(self, input_shape):
        super().build(input_shape)
        self.pixels = input_shape[1] * input_shape[2]


class TwoInputs(Block):
    def build(self, x_shape, other_shape):
        super().build(x_shape)

    def call(self, x, other):
        return super().call(x) + other


class Wraps(layers.Wrapper):
    def call(self, x):
        return self.layer(x)


def not_held():
    NotHeld.other = conv(name="other")
    NotHeld.other.build((None, *IMAGE))
    return NotHeld(name="block")


REFUSED = [
    (lambda: OwnWeight(name="block"), "it has weights of its own"),
    (lambda: UsesKernel(name="block"), "it uses weights or tensors of its own"),
    (
        lambda: OtherInTraining(name="block"),
        "it calls other layers in training",
    ),
    (
        lambda: BranchesInTraining(name="block"),
        "BranchesInTraining: it calls other layers in training",
    ),
    (
        lambda: DecidesItself(name="block"),
        "it decides itself whether it is training",
    ),
    (lambda: AddsLoss(name="block"), "it adds losses in its call"),
    (
        lambda: Block(name="block", activity_regularizer="l2"),
        "it regularises its activity",
    ),
    (
        lambda: AddsLossOfInputs(name="block"),
        "its call cannot be followed: ValueError: `add_loss()`",
    ),
    (
        lambda: Unfollowed(name="block"),
        "its call cannot be followed: RuntimeError: not twice",
    ),
    (not_held, "it calls layers that it does not hold"),
    (lambda: Wraps(conv(name="conv"), name="block"), "wrappers may change"),
]


@pytest.mark.parametrize(
    ("make", "reason"), REFUSED, ids=[reason for _, reason in REFUSED]
)
def test_composites_that_stay(make, reason):
    x = keras.Input(IMAGE)
    model = keras.Model(x, conv(name="c")(make()(x)))
    make_exact(model, 2)
    new, report = keras_tlgc.convert(model, 2)
    assert [row.name for row in report.converted] == ["c"]
    [kept] = report.kept
    assert kept.name == "block/conv"
    assert kept.reason.startswith("it is within a ") and reason in kept.reason
    assert kept.new_params == kept.params > 0
    assert type(new.layers[1]) is type(model.layers[1])
    assert_same_outputs(new, model)


@pytest.mark.filterwarnings("ignore:Layer 'c'.*destroy the mask")
def test_composites_that_are_called_otherwise_stay():
    x = keras.Input(IMAGE)
    y = TwoInputs(name="two")(x, x)
    y = Block(name="keyword")(x=y)
    z = layers.Reshape((64, 8))(y)
    z = layers.Masking()(z)
    masked = Block1D(name="masked")(z)
    model = keras.Model(x, layers.Conv1D(8, 3, name="c")(masked))
    _, report = keras_tlgc.convert(model, 2)
    assert reasons(report) == {
        "two/conv": "it is within a TwoInputs: it is called with several "
        "arguments",
        "keyword/conv": "it is within a Block: it is called by keyword",
        "masked/conv": "it is within a Block1D: it is called with a mask",
    }


class Block1D(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.conv = layers.Conv1D(8, 3, padding="same", name="conv")
        self.supports_masking = True

    def build(self, input_shape):
        self.conv.build(input_shape)

    def call(self, x):
        return self.conv(x)


def test_what_a_composite_never_calls():
    class Spare(Block):
        def __init__(self, **options):
            super().__init__(**options)
            self.spare = conv(name="spare")

        def build(self, input_shape):
            super().build(input_shape)
            self.spare.build(input_shape)

    x = keras.Input(IMAGE)
    model = keras.Model(x, Spare(name="block")(x))
    _, report = keras_tlgc.convert(model, 2)
    assert reasons(report) == {"block/spare": "never called"}
    assert report.kept[0].new_params == 0 < report.kept[0].params


def test_a_composite_takes_and_returns_structures():
    x, y = keras.Input(IMAGE), keras.Input(IMAGE)
    model = keras.Model([x, y], Structures(name="block")([x, y]))
    new, _ = assert_converts(model, ["block/conv"])
    assert new.output.keys() == model.output.keys()


def test_a_composite_that_is_called_on_several_sizes():
    x = keras.Input(IMAGE)
    y = layers.MaxPooling2D()(x)
    block, stays = Block(name="block"), NeedsSizes(name="stays")
    outputs = [block(x), block(y), stays(x), stays(y)]
    new, report = assert_converts(keras.Model(x, outputs), ["block/conv"])
    assert new.get_layer("block").input_shape == (None, None, None, 8)
    [row] = report.kept
    reason = "it is within a NeedsSizes: its call cannot be followed: TypeError"
    assert row.name == "stays/conv" and row.reason.startswith(reason)


def test_composites_over_time_stay():
    x = keras.Input((3, *IMAGE))
    y = layers.TimeDistributed(ShapedBlock(name="block"), name="t")(x)
    double = layers.Lambda(lambda x: 2 * x, output_shape=IMAGE)
    y = layers.TimeDistributed(double)(y)
    # What is below another wrapper still has calls.
    inner = layers.TimeDistributed(conv(name="c"), name="in")
    y = layers.TimeDistributed(inner, name="u")(y[:, None])
    _, report = assert_converts(keras.Model(x, y), ["u/in/c"])
    assert reasons(report) == {
        "t/block/conv": "it is within a ShapedBlock: no functional model calls "
        "it"
    }


@keras.saving.register_keras_serializable("tests")
class ShapedBlock(Block):
    def compute_output_shape(self, input_shape):
        return input_shape


def test_what_is_frozen_within_a_composite_stays_so():
    x = keras.Input(IMAGE)
    out, stays = Block(name="out"), OwnWeight(name="stays")
    model = keras.Model(x, stays(out(x)))
    out.conv.trainable = stays.norm.trainable = False
    new, _ = assert_converts(model, ["out/conv"])
    out, stays = new.layers[1:]
    trained = [v.name for v in out.trainable_variables]
    assert trained == ["gamma", "beta"]
    assert not stays.norm.trainable and stays.conv.trainable
    assert len(stays.trainable_variables) == 3


def test_a_composite_that_holds_what_cannot_be_copied_stays():
    x = keras.Input(IMAGE)
    model = keras.Model(x, conv(name="c")(Holds(name="block")(x)))
    _, report = assert_converts(model, ["c"])
    [row] = report.kept  # Its conversion, done before that failed, is undone.
    assert row.name == "block/conv"
    assert row.reason.startswith(
        "it is within a Holds: Each layer must be one that its config makes"
    )


def test_a_composite_within_one_that_is_copied_needs_no_config():
    x = keras.Input(IMAGE)
    model = keras.Model(x, OuterOfNoConfig(name="block")(x))
    assert_converts(model, ["block/inside/conv", "block/conv"], tolerance=1e-3)


def test_layers_are_shared_over_models():
    x, y = keras.Input(IMAGE), keras.Input(IMAGE)
    shared, block = conv(name="c"), Block(name="block")
    inner = keras.Model(y, block(shared(y)), name="inner")
    model = keras.Model(x, inner(block(shared(x))))
    new, _ = assert_converts(model, ["c", "block/conv"], tolerance=1e-3)
    for name in ("c", "block"):
        assert new.get_layer("inner").get_layer(name) is new.get_layer(name)


def test_a_layer_that_cannot_be_copied():
    x = keras.Input(IMAGE)
    model = keras.Model(x, conv()(Strange(name="odd")(x)))
    with pytest.raises(
        ValueError,
        match=r"config makes again\. Received: 'odd', Strange, which is not: "
        r"RuntimeError: no config",
    ):
        keras_tlgc.convert(model, 2)
    model = keras.Model(x, conv()(NoConfig(name="block")(x)))
    with pytest.raises(ValueError, match="Received: 'block', NoConfig, which"):
        keras_tlgc.convert(model, 2)


# What is converted, and what is said of the rest.


def test_reasons():
    class Mine(layers.Conv2D):
        pass

    keras.saving.register_keras_serializable("tests")(Mine)
    lora = conv(name="lora")
    x = keras.Input(IMAGE)
    y = conv(6, name="six")(x)
    y = conv(8, 1, name="eight")(y)
    y = conv(8, groups=2, name="grouped")(y)
    y = layers.Conv2DTranspose(8, 2, name="transposed")(y)
    y = layers.DepthwiseConv2D(2, name="depthwise")(y)
    y = layers.SeparableConv2D(8, 2, name="separable")(y)
    y = GroupConv2D(8, 1, groups=4, name="ours")(y)
    y = TwoLevelGroupConv2D(8, 3, groups=4, name="ours_too")(y)
    y = Mine(8, 1, name="mine")(lora(y))
    y = conv(4, 1, name="no_fewer")(conv(4, 1, name="small")(y))
    model = keras.Model(x, conv(16, name="yes")(y))
    lora.enable_lora(2)
    _, report = keras_tlgc.convert(model, 4)
    standard = "it is not a standard convolution"
    ours = "it is a group convolution already"
    assert reasons(report) == {
        "six": "4 groups do not divide 8 channels, 6 filters",
        "eight": "4 groups do not divide 6 channels, 8 filters",
        "grouped": "it has 2 groups already",
        "transposed": standard,
        "depthwise": standard,
        "separable": standard,
        "ours": ours,
        "ours_too": ours,
        "lora": "it has LoRA weights: merge them first",
        "mine": standard,
        "no_fewer": "with 4 groups it would have no fewer parameters",
        "small": "with 4 groups it would have no fewer parameters",
    }
    assert [row.name for row in report.converted] == ["yes"]


def two():
    return keras.Sequential(
        [
            keras.Input((8, 8, 16)),
            conv(16, name="first"),
            layers.BatchNormalization(),
            layers.ReLU(),
            conv(8, 1, name="second"),
        ]
    )


@pytest.mark.parametrize(
    ("where", "converted"),
    [
        ("first", ["first"]),
        ("^(?!first)", ["second"]),
        (".", ["first", "second"]),
        (lambda layer: layer.filters == 8, ["second"]),
    ],
    ids=["name", "not", "any", "function"],
)
def test_where(where, converted):
    _, report = keras_tlgc.convert(two(), 2, where=where)
    assert [row.name for row in report.converted] == converted
    assert set(reasons(report).values()) <= {"`where` does not select it"}


def test_groups_by_a_rule():
    new, report = keras_tlgc.convert(two(), largest_divisor(16))
    assert [row.groups for row in report.rows] == [16, 8]
    assert [new.get_layer(row.name).groups for row in report.rows] == [16, 8]
    _, report = keras_tlgc.convert(two(), lambda m, n: 2 if n == 8 else 1)
    assert reasons(report) == {"first": "1 group for 16 channels, 16 filters"}
    assert largest_divisor(7)(24, 36) == 6


def test_one_level_takes_the_blocks_on_the_diagonal():
    model = two()
    new, report = keras_tlgc.convert(model, 4, conv="group")
    layer = new.get_layer("first")
    assert type(layer) is GroupConv2D
    kernel = to_numpy(model.get_layer("first").kernel)
    blocks = [
        kernel[..., 4 * i : 4 * i + 4, 4 * i : 4 * i + 4] for i in range(4)
    ]
    np.testing.assert_array_equal(
        to_numpy(layer.kernel), np.concatenate(blocks, axis=-1)
    )
    _, two_levels = keras_tlgc.convert(model, 4)
    _, more = keras_tlgc.convert(model, 4, coarse_channels=2)
    errors = [r.rows[0].error for r in (report, two_levels, more)]
    assert errors == sorted(errors, reverse=True)


def test_random_weights_keep_the_rest():
    model = two()
    randomise_statistics(model)
    projected, _ = keras_tlgc.convert(model, 4)
    new, report = keras_tlgc.convert(model, 4, weights="random")
    assert report.rows[0].error is None
    for value, other in zip(new.weights, projected.weights, strict=True):
        is_kernel = "kernel" in value.name
        same = np.array_equal(to_numpy(value), to_numpy(other))
        assert same != is_kernel, value.path


def test_progress_is_of_the_converted_layers():
    seen = []

    def track(items):
        for item in items:
            seen.append(item)
            yield item

    keras_tlgc.convert(two(), 4, track=track)
    assert len(seen) == 2


# The report.


def test_the_report_counts_as_the_costs_do():
    def build():
        inputs = keras.Input((8, 8, 16))
        y = conv(32, strides=2, name="a")(inputs)
        y = layers.DepthwiseConv2D(3, name="b")(y)
        return keras.Model(inputs, conv(16, 1, name="c")(y))

    new, report = keras_tlgc.convert(build(), 4)
    before = model_costs(build)
    after = model_costs(lambda: type(new).from_config(new.get_config()))
    assert report.params == before.params
    assert report.new_params == after.params
    rows = report.rows
    assert sum(row.multiply_adds for row in rows) == before.multiply_adds
    assert sum(row.new_multiply_adds for row in rows) == after.multiply_adds
    assert sum(row.new_params for row in rows) == new.count_params()
    lines = str(report).splitlines()
    assert lines[0].split()[:3] == ["convolution", "layer", "groups"]
    assert [line.split()[0] for line in lines[1:4]] == ["a", "b", "c"]
    assert f"{rows[0].params:,} -> {rows[0].new_params:,}" in lines[1]
    assert f"{rows[0].error:.3f}" in lines[1]
    assert lines[2].endswith("it is not a standard convolution")
    assert lines[4] == (
        f"2 of 3 convolutions converted; parameters {before.params:,} -> "
        f"{after.params:,}; multiply-adds {before.multiply_adds:,} -> "
        f"{after.multiply_adds:,}"
    )


def test_a_class_that_is_lost_is_noted():
    class Net(keras.Model):
        def __init__(self):
            x = keras.Input(IMAGE)
            super().__init__(x, conv()(x), name="net")

        def get_config(self):
            return {}

    _, report = keras_tlgc.convert(Net(), 2)
    assert report.notes == (
        "'net' is a functional model now, no longer a Net, and has nothing of "
        "that class's own",
    )
    assert report.notes[0] in str(report)


# What becomes of the new model.


def test_it_trains_and_loads(tmp_path):
    model = two()
    # A loss that cannot be written down is no obstacle.
    model.compile("sgd", loss=lambda y, t: ops.mean((y - t) ** 2))
    new, _ = keras_tlgc.convert(model, 4)
    assert model.compiled and not new.compiled
    x, y = random(8, 8, 8, 16), random(8, 8, 8, 8)
    new.compile(keras.optimizers.SGD(0.05), "mse")
    history = new.fit(x, y, epochs=4, batch_size=8, verbose=0).history["loss"]
    assert history[-1] < history[0]
    new.save(tmp_path / "new.keras")
    assert_same_outputs(keras.saving.load_model(tmp_path / "new.keras"), new)


@settings(max_examples=6)
@given(st.data())
def test_any_stack_of_convolutions(data):
    groups = data.draw(st.sampled_from([2, 3]))
    rank = data.draw(st.integers(1, 3))
    parts = [
        keras.Input((7,) * rank + (groups * data.draw(st.integers(2, 4)),))
    ]
    for _ in range(data.draw(st.integers(1, 2))):
        strides = data.draw(st.integers(1, 2))
        parts.append(
            CONVOLUTIONS[rank - 1](
                groups * data.draw(st.integers(2, 4)),
                data.draw(st.integers(1, 3)),
                strides=strides,
                dilation_rate=1
                if strides == 2
                else data.draw(st.sampled_from([1, 2])),
                padding=data.draw(st.sampled_from(["same", "valid"])),
                use_bias=data.draw(st.booleans()),
            )
        )
    model = keras.Sequential(parts)
    make_exact(model, groups)
    try:
        new, report = keras_tlgc.convert(model, groups)
    except ValueError as error:
        assert "no fewer parameters" in str(error)
        return
    assert all(row.error < 1e-6 for row in report.converted)
    assert_same_outputs(new, model, 1e-3)


# Bad input.


def subclassed():
    class Net(keras.Model):
        def call(self, x):
            return x

    return Net()


def not_finite():
    model = two()
    model.layers[0].kernel.assign(np.full((3, 3, 16, 16), np.inf))
    return model


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (two, {"groups": 1}, "`groups` must be at least 2 to convert"),
        (two, {"groups": 0}, "`groups` must be a positive integer"),
        (two, {"groups": 2.0}, "`groups` must be a positive integer"),
        (
            two,
            {"groups": lambda m, n: 0},
            "`groups` must be a positive integer",
        ),
        (two, {"conv": "shuffle"}, "`conv` must be one of"),
        (two, {"coarse_channels": 0}, "`coarse_channels` must be a positive"),
        (
            two,
            {"conv": "group", "coarse_channels": 2},
            "`coarse_channels` must be 1 for conv='group'",
        ),
        (two, {"weights": "zeros"}, "`weights` must be one of"),
        (two, {"where": "("}, "`where` must be a regular expression or a func"),
        (two, {"where": 3}, "`where` must be a regular expression or a func"),
        (
            two,
            {"where": "third"},
            "none of which can be converted: `where` does not select it",
        ),
        (
            lambda: keras.Sequential([keras.Input((3,)), layers.Dense(2)]),
            {},
            "with 0 convolutions, none of which can be converted.",
        ),
        (subclassed, {}, "must be functional or Sequential, and built"),
        (
            lambda: keras.Sequential([conv()]),
            {},
            r"must be functional or Sequential, and built\..*built=False",
        ),
        (lambda: "model", {}, "Received: 'model', str, built=None"),
        (not_finite, {}, "Of the layer 'first': The kernel must be of shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(make, options, message):
    with pytest.raises(ValueError, match=message):
        keras_tlgc.convert(make(), **{"groups": 2, **options})


def test_bad_limit():
    with pytest.raises(ValueError, match="`limit` must be a positive integer"):
        largest_divisor(0)
