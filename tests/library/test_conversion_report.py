"""What is converted, what is said of the rest, and what is refused."""

import keras
import numpy as np
import pytest
from composites import Block
from converting import IMAGE, conv, randomise_statistics, reasons, two
from helpers import to_numpy
from keras import layers

import keras_tlgc
from keras_tlgc.costs import model_costs
from keras_tlgc.layers import (
    GroupConv2D,
    LowRankConv2D,
    TwoLevelGroupConv2D,
)
from keras_tlgc.rewrite import largest_divisor, project_kernel

# No line of it depends on what computes the outputs.
pytestmark = pytest.mark.once


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
        "transposed": "it is transposed, and no layer in groups is",
        "depthwise": standard,
        "separable": "it is separable: split it to convert its pointwise half",
        "ours": ours,
        "ours_too": ours,
        "lora": "it has LoRA weights: merge them first",
        "mine": standard,
        "no_fewer": "with 4 groups it would have no fewer parameters",
        "small": "with 4 groups it would have no fewer parameters",
    }
    assert [row.name for row in report.converted] == ["yes"]


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
    # Groups that the devices of a mesh divide, or none.
    _, report = keras_tlgc.convert(two(), largest_divisor(16, multiple_of=16))
    assert reasons(report) == {"second": "1 group for 16 channels, 8 filters"}
    assert largest_divisor(7, multiple_of=4)(24, 36) == 4
    assert largest_divisor(12, multiple_of=3)(24, 36) == 12


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


@pytest.mark.parametrize("groups", [1, 4])
def test_low_rank_takes_the_closest_kernel(groups):
    model = two()
    kernel = model.get_layer("first").kernel
    closest = project_kernel(to_numpy(kernel), groups, 4, form="low_rank")
    new, report = keras_tlgc.convert(
        model, groups, conv="low_rank", coarse_channels=4, where="first"
    )
    layer, [row] = new.get_layer("first"), report.converted
    assert type(layer) is LowRankConv2D and row.groups == groups
    assert row.error == closest.error
    assert row.new_params == layer.count_params() < row.params
    for variable, value in zip(layer.weights, closest[1:3], strict=False):
        np.testing.assert_array_equal(to_numpy(variable), value)


def test_low_rank_needs_no_groups_of_filters():
    model = keras.Sequential([keras.Input((5, 5, 16)), conv(filters=9)])
    new, _ = keras_tlgc.convert(model, 4, "low_rank", coarse_channels=2)
    assert new.output_shape == model.output_shape
    with pytest.raises(ValueError, match="with 1 group it would have no fewer"):
        keras_tlgc.convert(model, 1, "low_rank", coarse_channels=9)
    # A function returns 1 to keep a layer.
    with pytest.raises(ValueError, match="1 group for 16 channels, 9 filters"):
        keras_tlgc.convert(model, largest_divisor(8), "low_rank")


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


def test_progress_is_of_copying_and_of_setting():
    done = []

    def track(items):
        done.append(0)
        for item in items:
            yield item
            done[-1] += 1

    x = keras.Input(IMAGE)
    inner = keras.Sequential([x, conv(), layers.ReLU()])
    block = Block(name="block")
    keras_tlgc.convert(keras.Model(x, block(inner(block(x)))), 2, track=track)
    assert done == [3, 2]


def test_verbose(capsys):
    def printed(model, **options):
        capsys.readouterr()
        keras_tlgc.convert(model, 4, **options)
        return capsys.readouterr().out

    out = printed(two(), verbose=1)
    copying, setting = out.removeprefix("Copying layers").split("Setting")
    assert "4/4" in copying and "2/2" in setting
    assert printed(two()) == printed(two(), verbose=0) == ""
    many = keras.Sequential([two(), *(layers.ReLU() for _ in range(50))])
    # No terminal, so no bars.
    copying, its_time, setting, _ = printed(many).splitlines()
    assert (copying, setting) == ("Copying layers", "Setting weights")
    assert its_time.startswith("54/54 - ") and its_time.endswith("/layer")
    assert printed(many, track=iter) == ""


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
        # Keras before 3.15 calls a constructor that takes nothing with tensors.
        def __init__(self, filters):
            x = keras.Input(IMAGE)
            super().__init__(x, conv(filters)(x), name="net")

        def get_config(self):
            return {}

    _, report = keras_tlgc.convert(Net(8), 2)
    assert report.notes == (
        "'net' is a functional model now, no longer a Net, and has nothing of "
        "that class's own",
    )
    assert report.notes[0] in str(report)


# Bad input


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
        (two, {"verbose": "loud"}, "`verbose` must be one of"),
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


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0,), "`limit` must be a positive integer"),
        ((8, 0), "`multiple_of` must be a positive integer"),
        ((4, 8), "`limit` must be at least `multiple_of`.*limit=4, multiple"),
    ],
)
def test_bad_limit(numbers, message):
    with pytest.raises(ValueError, match=message):
        largest_divisor(*numbers)
