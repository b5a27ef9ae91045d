"""Conversion within composite layers, and why some of them stay."""

import keras
import numpy as np
import pytest
from composites import (
    AddsLoss,
    AddsLossOfInputs,
    AlwaysTrains,
    Block,
    Block1D,
    BranchesInTraining,
    ByDefault,
    Detector,
    DropsTraining,
    Holds,
    NeedsSizes,
    NeverTrains,
    NoConfig,
    OtherInTraining,
    Outer,
    OuterOfNoConfig,
    OwnWeight,
    ShapedBlock,
    Spare,
    SpareModel,
    Strange,
    Structures,
    TrainsByDefault,
    TwoInputs,
    Unfollowed,
    UsesKernel,
    Wraps,
    not_held,
)
from converting import (
    IMAGE,
    assert_converts,
    assert_same_outputs,
    conv,
    outputs_of,
    reasons,
)
from exact import make_exact
from keras import layers

import keras_tlgc
from keras_tlgc._keras import parts_of


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


@pytest.mark.parametrize("make", [ByDefault, TrainsByDefault])
@pytest.mark.parametrize("training", [None, False, True])
@pytest.mark.parametrize("sequential", [False, True])
def test_composites_keep_their_default_of_training(make, training, sequential):
    x = keras.Input(IMAGE)
    block = make(name="block")
    model = keras.Sequential([x, block])
    if not sequential:
        model = keras.Model(x, block(x))
    new, _ = assert_converts(model, ["block/conv"], tolerance=1e-3)
    assert isinstance(new.get_layer("block"), keras.Model)
    [given] = outputs_of(new, training=training)
    [expected] = outputs_of(model, training=training)
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.once
def test_paths_within_composites():
    x = keras.Input(IMAGE)
    model = keras.Model(x, Outer(name="outer")(x))
    _, report = keras_tlgc.convert(model, 2, where="^outer/inside/conv$")
    assert [row.name for row in report.converted] == ["outer/inside/conv"]
    assert reasons(report) == {"outer/conv": "`where` does not select it"}


def test_composites_of_half_precision_cast_their_inputs():
    x = keras.Input(IMAGE)
    model = keras.Model(x, Block(name="block", dtype="mixed_bfloat16")(x))
    new, _ = assert_converts(model, ["block/conv"], tolerance=0.05)
    assert new.output.dtype == model.output.dtype == "bfloat16"


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
    *(
        (
            lambda make=make: make(name="block"),
            f"{make.__name__}: it decides itself whether it is training",
        )
        for make in (AlwaysTrains, NeverTrains, DropsTraining)
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
    *(
        (
            lambda wrap=wrap: wrap(conv(name="conv"), name="block"),
            "wrappers may",
        )
        for wrap in (Wraps, layers.SpectralNormalization)
    ),
]


@pytest.mark.once
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


@pytest.mark.once
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


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "called"),
    [(Spare, "block/conv"), (SpareModel, "block/a/conv")],
)
def test_what_is_never_called(make, called):
    x = keras.Input(IMAGE)
    block = make(name="block")
    model = keras.Model(x, block(x))
    if block.spare not in parts_of(block):
        pytest.skip("Before 3.15, Keras' functional models hold no more layers")
    _, report = assert_converts(model, [called])
    assert reasons(report) == {"block/spare/conv": "never called"}
    [row] = report.kept
    assert (row.params, row.new_params) == (8 * 8 * 9 + 8, 0)
    assert row.multiply_adds == row.new_multiply_adds == 0
    # The rows and a note account for all that is gone.
    saved = sum(row.params - row.new_params for row in report.rows)
    norm = 4 * 8
    assert report.params - report.new_params == saved + norm
    assert report.notes[-1] == (
        f"{row.params + norm} parameters that no call of the model reaches are "
        "not in the new one"
    )


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


@pytest.mark.once
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


@pytest.mark.once
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


@pytest.mark.once
def test_a_composite_that_holds_what_cannot_be_copied_stays():
    x = keras.Input(IMAGE)
    model = keras.Model(x, conv(name="c")(Holds(name="block")(x)))
    _, report = assert_converts(model, ["c"])
    [row] = report.kept  # Its conversion, done before that failed, is undone.
    assert row.name == "block/conv"
    assert row.reason.startswith(
        "it is within a Holds: Each layer must be one that its config makes"
    )


@pytest.mark.once
def test_a_composite_within_one_that_is_copied_needs_no_config():
    x = keras.Input(IMAGE)
    model = keras.Model(x, OuterOfNoConfig(name="block")(x))
    assert_converts(model, ["block/inside/conv", "block/conv"], tolerance=1e-3)


@pytest.mark.once
def test_layers_are_shared_over_models():
    x, y = keras.Input(IMAGE), keras.Input(IMAGE)
    shared, block = conv(name="c"), Block(name="block")
    inner = keras.Model(y, block(shared(y)), name="inner")
    model = keras.Model(x, inner(block(shared(x))))
    new, _ = assert_converts(model, ["c", "block/conv"], tolerance=1e-3)
    for name in ("c", "block"):
        assert new.get_layer("inner").get_layer(name) is new.get_layer(name)


@pytest.mark.once
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


@pytest.mark.once
def test_a_task_that_needs_the_class_of_its_backbone():
    backbone = SpareModel("backbone")
    backbone.image_shape = IMAGE
    task = Detector(backbone, name="task")
    with pytest.raises(
        ValueError,
        match=r"backbone\. Received: 'task', Detector, which does not: "
        r"AttributeError.* Convert `keras\.Model\(task\.input, task\.output\)`",
    ):
        keras_tlgc.convert(task, 2)
    model = keras.Model(task.input, task.output)
    assert_converts(model, ["backbone/a/conv", "head"], tolerance=1e-3)
