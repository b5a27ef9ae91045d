"""A budget is kept, and loses least of what can be had for it."""

import itertools

import keras
import numpy as np
import pytest
from composites import Block
from converting import conv, outputs_of, two
from helpers import random, to_numpy
from keras import layers

import keras_tlgc
from keras_tlgc.rewrite import Moments, budget, project_kernel
from keras_tlgc.rewrite.budget import Option, least_loss
from keras_tlgc.rewrite.pricing import Unit
from keras_tlgc.rewrite.projection import errors_of
from keras_tlgc.rewrite.rules import KINDS

pytestmark = pytest.mark.once


def images(count=60, *shape, seed=0):
    mix = random(4, 16, seed=9)
    return random(count, *(shape or (8, 8)), 4, seed=seed) @ mix


def network():
    """Return a network of layers of several sizes, and one that stays."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 16)),
            conv(32, name="a", activation="relu"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, name="stays"),
            conv(32, 1, name="b"),
            conv(16, name="c", strides=2),
        ]
    )


@pytest.mark.parametrize("of", ["multiply_adds", "params"])
def test_a_budget_is_kept(of):
    model, x = network(), images()
    errors, expected = [], []
    for share in (0.3, 0.6, 0.9):
        new, report = keras_tlgc.convert(model, budget=share, of=of, data=x)
        before = sum(getattr(row, of) for row in report.rows)
        after = sum(getattr(row, f"new_{of}") for row in report.rows)
        assert after <= share * before
        assert after > (share - 0.1) * before  # And it is used.
        assert f"have {after / before:.3f} of the original's {of}" in str(
            report
        )
        y, y_new = to_numpy(model(x)), to_numpy(new(x))
        errors.append(np.mean((y - y_new) ** 2) / np.var(y))
        expected.append(sum(row.expected_error for row in report.converted))
    assert errors == sorted(errors, reverse=True)
    assert expected == sorted(expected, reverse=True)
    assert errors[0] > 3 * errors[-1]


def test_units_of_outputs_do_not_count():
    """Networks that are equal, but for the scale of what is within."""
    choices = []
    for scale in (1.0, 0.01):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 16)),
                conv(32, name="a", activation="relu", use_bias=False),
                conv(32, name="b", activation="relu", use_bias=False),
                conv(32, name="c", use_bias=False),
            ]
        )
        for name, factor in (("a", scale), ("b", 1 / scale)):
            kernel = model.get_layer(name).kernel
            kernel.assign(kernel * factor)
        _, report = keras_tlgc.convert(model, budget=0.4, data=images())
        choices.append(
            [(row.form, row.groups, row.coarse_channels) for row in report.rows]
        )
    assert choices[0] == choices[1]


def test_the_report_shows_what_was_chosen():
    _, report = keras_tlgc.convert(network(), budget=0.8, data=images())
    assert report.columns[2:5] == ("form", "groups", "r")
    assert report.columns[7] == "expected error"
    rows = {row.name: row for row in report.rows}
    assert rows["stays"].reason == "it is not a standard convolution"
    assert rows["stays"].expected_error is None
    reasons = {row.reason for row in report.kept}
    assert reasons <= {rows["stays"].reason, budget.KEPT}
    for row, cells in zip(report.rows, report.cells, strict=True):
        assert cells[2] == row.form
        if not row.reason:
            assert row.form in KINDS
            assert cells[7] == f"{row.expected_error:.3f}"
            given = row.form in ("low_rank", "two_level")
            assert cells[4] == (str(row.coarse_channels) if given else "")
    shares, lost = zip(*report.curve, strict=True)
    assert shares == tuple(sorted(shares)) and shares[-1] == 1.0
    assert lost == tuple(sorted(lost, reverse=True))
    assert (lost[0], lost[-1]) == (1.0, 0.0)


def test_the_report_is_drawn(tmp_path):
    for options in ({"budget": 0.4, "data": images()}, {"groups": 4}):
        _, report = keras_tlgc.convert(network(), **options)
        figure = report.plot()
        bars, *curve = figure.axes
        names = [label.get_text() for label in bars.get_yticklabels()]
        assert names == [
            f"{row.name} (kept)" if row.reason else row.name
            for row in report.rows
        ]
        widths = {
            report.rows[round(bar.get_y() + bar.get_height() / 2)].name: (
                bar.get_width()
            )
            for bar in bars.patches
        }
        assert widths == {
            row.name: row.error
            if row.output_error is None
            else row.output_error
            for row in report.converted
        }
        if report.curve:
            [line] = curve[0].get_lines()
            np.testing.assert_array_equal(line.get_xydata(), report.curve)
        figure.savefig(tmp_path / "report.png")


def test_the_layers_of_composites_are_chosen_too():
    x = keras.Input((8, 8, 16))
    y = Block(16, name="block")(x)
    model = keras.Model(x, conv(16, name="last")(y))
    before = outputs_of(model)
    for share in (0.3, 0.98):
        new, report = keras_tlgc.convert(model, budget=share, data=images())
        assert {row.reason for row in report.kept} <= {budget.KEPT}
        assert report.converted
        for one, other in zip(outputs_of(model), before, strict=True):
            np.testing.assert_array_equal(one, other)
    y, y_new = (to_numpy(m(images(seed=1))) for m in (model, new))
    assert np.mean((y - y_new) ** 2) < 0.05 * np.var(y)


def toy(seed):
    rng = np.random.default_rng(seed)
    return [
        [
            Option(None, int(cost), 0.5, float(loss))
            for cost, loss in zip(
                [100, *rng.integers(10, 100, 5)],
                [0.0, *rng.random(5)],
                strict=True,
            )
        ]
        for _ in range(3)
    ]


def total(options):
    return sum(o.cost for o in options), sum(o.loss for o in options)


def test_a_choice_is_that_of_brute_force():
    # Errors fall ever more slowly: then what fits is taken step by step.
    falling = [
        [
            Option(None, 10 * i, 0.5, weight * (1 - i / 10) ** 2)
            for i in range(1, 11)
        ]
        for weight in (1.0, 3.0, 0.2)
    ]
    for allowed in range(30, 301, 10):
        chosen = least_loss(falling, allowed)
        fitting = [
            all_of
            for all_of in itertools.product(*falling)
            if total(all_of)[0] <= allowed
        ]
        best = min(total(all_of)[1] for all_of in fitting)
        assert total(chosen)[0] <= allowed
        assert total(chosen)[1] == pytest.approx(best)


@pytest.mark.parametrize("seed", range(10))
def test_a_choice_is_best_for_what_it_costs(seed):
    options = toy(seed)
    least = sum(min(o.cost for o in some) for some in options)
    last = np.inf
    for allowed in range(least, 301, 5):
        cost, error = total(least_loss(options, allowed))
        assert cost <= allowed
        assert error <= last + 1e-9
        last = error
    assert total(least_loss(options, 300)) == (300, 0)
    # Of the relaxation's own solutions none is better.
    for multiplier in np.geomspace(1e-4, 1e-1, 20):
        relaxed = [
            min(some, key=lambda o, m=multiplier: o.loss + m * o.cost)
            for some in options
        ]
        cost, error = total(relaxed)
        assert total(least_loss(options, cost))[1] <= error + 1e-9


def test_candidates():
    [layer] = conv_layers(keras.Sequential([keras.Input((8, 8, 64)), conv(64)]))
    size = 9 * 64 * 64
    found = Unit().candidates(layer)
    assert len(found) == len(set(found))
    assert all(choice.kernel_size(layer) < size for choice in found)
    assert {choice.groups for choice in found} == {1, 2, 4, 8, 16}
    plain = [c.coarse_channels for c in found if c[:2] == ("low_rank", 1)]
    assert plain == [8, 16, 24, 32, 40, 48, 56]  # 57 would still be smaller.
    # Where 8 filters are too many for a choice, there are fewer.
    [layer] = conv_layers(keras.Sequential([keras.Input((8, 8, 16)), conv(16)]))
    plain = [
        c.coarse_channels
        for c in Unit().candidates(layer)
        if c[:2] == ("low_rank", 1)
    ]
    assert plain == [2, 4, 6, 8, 10, 12, 14]


def conv_layers(model):
    return [part for part in model.layers if isinstance(part, layers.Conv2D)]


@pytest.mark.parametrize("form", ["low_rank", "two_level", "group"])
def test_what_is_expected_is_close_to_what_is_fitted(form):
    kernel = random(3, 3, 8, 16)
    mix = np.eye(72) + 0.5 * random(72, 72, seed=1)
    patches = random(2000, 72, seed=2) @ mix
    moments = Moments.of(patches, patches @ kernel.reshape(72, 16))
    for groups in (1, 2, 4) if form == "low_rank" else (2, 4):
        found = errors_of(kernel, groups, [1, 2, 3], moments, form)
        for rank, one in zip([1, 2, 3], found, strict=False):
            best = project_kernel(kernel, groups, rank, moments, form).error
            ratio = one / np.sum(moments.targets) / best
            assert 0.95 < ratio < 1.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "`budget` must be a number between 0 and 1"),
        ({"budget": 1.0}, "Received: budget=1.0"),
        ({"budget": "half"}, "Received: budget='half'"),
        ({"groups": 4}, "Received: budget=0.5 with groups."),
        ({"conv": "two_level", "coarse_channels": 1}, "with conv, coarse_ch"),
        ({"of": "watts"}, "`of` must be one of"),
        (
            {"budget": None, "groups": 2, "of": "params"},
            "`of` must come with `budget`",
        ),
        ({"data": None}, "`budget` needs `data`"),
        ({"weights": "random"}, "`weights` must be 'project' with `data`"),
        ({"where": "none"}, "There must be a convolution to convert"),
        ({"budget": 0.01}, r"`budget` must be at least 0\.\d\d\d, the least"),
    ],
    ids=str,
)
def test_bad_input(options, message):
    options = {"budget": 0.5, "data": images(4), **options}
    with pytest.raises(ValueError, match=message):
        keras_tlgc.convert(two(), **options)


def test_sizes_have_to_be_known_for_multiply_adds():
    model = keras.Sequential([keras.Input((None, None, 16)), conv(16)])
    with pytest.raises(ValueError, match="whose inputs have a known size"):
        keras_tlgc.convert(model, budget=0.5, data=images(4))
    _, report = keras_tlgc.convert(
        model, budget=0.5, of="params", data=images(4)
    )
    assert len(report.converted) == 1
