"""Projected kernels: exact where they can be, and never beaten."""

import numpy as np
import pytest
from exact import closest
from helpers import random, to_numpy
from hypothesis import given
from hypothesis import strategies as st

from keras_tlgc.layers import (
    BalancedGroupConv2D,
    LowRankConv2D,
    TwoLevelGroupConv1D,
    TwoLevelGroupConv2D,
)
from keras_tlgc.rewrite import Moments, project_kernel
from keras_tlgc.rewrite.moments import Sums


def error_between(kernel, dense):
    return np.sum((kernel - dense) ** 2) / np.sum(kernel**2)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(
    ("window", "layer"),
    [((5,), TwoLevelGroupConv1D), ((3, 2), TwoLevelGroupConv2D)],
)
def test_error_is_that_of_the_layer(window, layer, rank):
    kernel = random(*window, 12, 8)
    projection = project_kernel(kernel, 4, rank)
    new = layer(8, window, groups=4, coarse_channels=rank, use_bias=False)
    new.build((None, *(9 for _ in window), 12))
    new.kernel.assign(projection.group_kernel)
    new.restriction_kernel.assign(projection.restriction_kernel)
    new.coarse_kernel.assign(projection.coarse_kernel)

    dense = to_numpy(new.dense_kernel())

    np.testing.assert_allclose(
        projection.error, error_between(kernel, dense), rtol=1e-5
    )
    np.testing.assert_allclose(
        dense, closest(kernel, 4, rank), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("rank", [1, 2])
def test_what_two_levels_express_is_found(rank):
    kernel = closest(random(3, 3, 8, 12), 4, rank)
    assert project_kernel(kernel, 4, rank).error < 1e-10
    np.testing.assert_allclose(closest(kernel, 4, rank), kernel, atol=1e-5)
    assert project_kernel(kernel, 4, rank - 1).error > 0.01


@pytest.mark.once
def test_error_is_that_of_a_balanced_layer():
    kernel = random(3, 2, 12, 8)
    projection = project_kernel(kernel, 4, form="balanced")
    layer = BalancedGroupConv2D(8, (3, 2), groups=4, use_bias=False)
    layer.build((None, 5, 5, 12))
    for variable, value in zip(
        layer.sharded_kernels, projection.kernels, strict=True
    ):
        variable.assign(value)
    found = error_between(kernel, to_numpy(layer.dense_kernel()))
    np.testing.assert_allclose(projection.error, found, rtol=1e-5)
    exact = to_numpy(layer.dense_kernel())
    assert project_kernel(exact, 4, form="balanced").error < 1e-10


@pytest.mark.parametrize("groups", [1, 4])
def test_error_is_that_of_a_low_rank_layer(groups):
    kernel = random(3, 2, 12, 6)
    projection = project_kernel(kernel, groups, 2, form="low_rank")
    assert projection.group_kernel.shape == (3, 2, 12 // groups, 0)
    layer = LowRankConv2D(
        6, (3, 2), groups=groups, coarse_channels=2, use_bias=False
    )
    layer.build((None, 9, 9, 12))
    layer.set_weights(projection[1:3])
    np.testing.assert_allclose(
        projection.error,
        error_between(kernel, to_numpy(layer.dense_kernel())),
        rtol=1e-5,
    )
    exact = to_numpy(layer.dense_kernel())
    assert project_kernel(exact, groups, 2, form="low_rank").error < 1e-10


def descend(kernel, groups, rank, seed, has_g=True, steps=4000, rate=0.02):
    """Return the error that Adam ends at, from random G, R and C."""
    rng = np.random.default_rng(seed)
    m, n = kernel.shape[-2:]
    target = kernel.reshape(-1, m, n)
    # Where G is, if there is one, and R beside it.
    mine = np.zeros((m, n))
    if has_g:
        mine = np.kron(np.eye(groups), np.ones((m // groups, n // groups)))
    gathers = np.kron(np.eye(groups), np.ones((m // groups, rank)))
    parts = [
        rng.normal(size=target.shape),
        rng.normal(size=(len(target), m, groups * rank)),
        rng.normal(size=(groups * rank, n)),
    ]
    moments = [[np.zeros_like(p), np.zeros_like(p)] for p in parts]
    for step in range(1, steps + 1):
        group, restriction, coarse = parts
        rest = group * mine + (restriction * gathers) @ coarse - target
        slopes = [
            rest * mine,
            (rest @ coarse.T) * gathers,
            np.einsum("wmr,wmn->rn", restriction * gathers, rest),
        ]
        for part, slope, (mean, square) in zip(
            parts, slopes, moments, strict=True
        ):
            mean += 0.1 * (slope - mean)
            square += 0.001 * (slope**2 - square)
            scale = np.sqrt(square / (1 - 0.999**step)) + 1e-9
            now = rate * min(1, 2 * (1 - step / steps))
            part -= now * mean / (1 - 0.9**step) / scale
    return np.sum(rest**2) / np.sum(target**2)


@pytest.mark.once
@pytest.mark.parametrize(
    ("shape", "groups", "rank", "form"),
    [
        ((1, 6, 6), 3, 1, "two_level"),
        ((3, 4, 8), 2, 1, "two_level"),
        ((2, 2, 8, 4), 2, 2, "two_level"),
        ((4, 4), 4, 1, "two_level"),
        ((3, 4, 6), 2, 0, "two_level"),
        ((3, 4, 5), 2, 2, "low_rank"),
    ],
    ids=str,
)
def test_no_optimiser_finds_a_closer_kernel(shape, groups, rank, form):
    kernel = random(*shape, seed=1).astype("float64")
    projection = project_kernel(kernel, groups, rank, form=form)
    has_g = form == "two_level"
    assert {p.dtype for p in projection[:3]} == {kernel.dtype}
    ours = projection.error
    theirs = [descend(kernel, groups, rank, seed, has_g) for seed in range(3)]
    assert min(theirs) > ours - 1e-9
    np.testing.assert_allclose(min(theirs), ours, atol=1e-3)


@pytest.mark.once
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_more_coarse_channels_leave_less_out(groups, m, n, taps, seed):
    kernel = random(taps, groups * m, groups * n, seed=seed)
    errors = [project_kernel(kernel, groups, r).error for r in range(4)]
    assert all(0 <= error <= 1 for error in errors)
    assert all(np.diff(errors) <= 1e-9)
    # One level leaves out all that is between groups.
    blocks = kernel.reshape(taps, groups, m, groups, n)
    own = sum(np.sum(blocks[:, i, :, i] ** 2) for i in range(groups))
    np.testing.assert_allclose(
        errors[0], 1 - own / np.sum(kernel**2), atol=1e-5
    )
    # No block has a rank above its rows.
    full = project_kernel(kernel, groups, taps * m + 1)
    assert full.error < 1e-9
    assert full.restriction_kernel.shape[-1] == groups * (taps * m + 1)


@pytest.mark.once
def test_a_kernel_of_zeros_and_half_precision():
    projection = project_kernel(np.zeros((3, 4, 4), "float16"), 2)
    assert projection.error == 0
    for kernel in projection[:3]:
        assert kernel.dtype == "float16"
        assert not kernel.any()


@pytest.mark.once
@pytest.mark.parametrize(
    ("kernel", "arguments", "message"),
    [
        (np.ones(4), [2], r"shape `window \+ \(m, n\)`.*Received: shape \(4,"),
        (np.full((4, 4), np.nan), [2], "with entries that are not"),
        (np.ones((4, 4)), [0], "`groups` must be a positive integer"),
        (np.ones((4, 4)), [2, -1], "`coarse_channels` must be a positive"),
        (
            np.ones((4, 4)),
            [2, 0, None, "low_rank"],
            "`coarse_channels` must be",
        ),
        (np.ones((4, 4)), [2, 1, None, "dense"], "`form` must be one of"),
        (np.ones((3, 4)), [2], "input channels"),
        (np.ones((4, 3)), [2], "filters"),
    ],
)
def test_bad_kernels(kernel, arguments, message):
    with pytest.raises(ValueError, match=message):
        project_kernel(kernel, *arguments)


# On moments of inputs and targets


def correlated(count, d, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, d)) @ rng.normal(size=(d, d)) / d**0.5


def problem(*shape, count=200, noise=0.3):
    """Return a kernel, patches, and targets that it only nearly gives."""
    kernel = random(*shape, seed=1).astype("float64")
    patches = correlated(count, kernel.size // shape[-1])
    targets = patches @ kernel.reshape(-1, shape[-1])
    rng = np.random.default_rng(2)
    return kernel, patches, targets + noise * rng.normal(size=targets.shape)


def dense(projection, groups):
    """Return the dense kernel of a projection, from its definition."""
    group, restriction, coarse, _, balance = projection
    *window, own, gathered = restriction.shape
    n, r = coarse.shape[1], gathered // groups
    filters = group.shape[-1] // groups
    whole = np.zeros((*window, own * groups, n))
    for i in range(groups):
        inputs = slice(i * own, (i + 1) * own)
        some = slice(i * r, (i + 1) * r)
        whole[..., inputs, :] += restriction[..., some] @ coarse[some]
        outputs = slice(i * filters, (i + 1) * filters)
        whole[..., inputs, outputs] += group[..., outputs]
        if balance.size:
            whole[..., inputs, :] += balance / groups
    return whole


@pytest.mark.once
def test_moments_of_inputs_that_vary_little_about_a_large_mean():
    patches = (100.0 + correlated(4000, 32)).astype("float32")
    kernel = random(32, 8, seed=1)
    exact = patches.astype("float64")
    targets = exact @ kernel + random(4000, 8, seed=2)
    sums = Sums(kernel.astype("float64"))
    for part in np.split(np.arange(4000), 4):
        known = patches[part] @ kernel
        sums.add(patches[part], targets[part].astype("float32"), known)
    for central in (True, False):
        found = sums.moments(central)
        x, y = (
            one - central * one.mean(axis=0, keepdims=True)
            for one in (exact, targets)
        )
        np.testing.assert_allclose(
            found.inputs, x.T @ x / 4000, rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(
            found.cross, x.T @ y / 4000, rtol=1e-5, atol=1e-2 if central else 1
        )
        np.linalg.cholesky(found.weights())
    np.testing.assert_allclose(sums.means[0], exact.mean(axis=0), rtol=1e-6)


def output_error(kernel, patches, targets):
    rest = targets - patches @ kernel.reshape(-1, kernel.shape[-1])
    return np.sum(rest**2) / np.sum(targets**2)


FORMS = ["two_level", "low_rank", "group", "balanced"]


@pytest.mark.once
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [200, 10])
def test_fitted_kernels_are_no_worse_on_their_moments(form, count):
    kernel, patches, targets = problem(2, 2, 8, 12, count=count)
    moments = Moments.of(patches, targets)
    for groups in (2, 4):
        fitted = project_kernel(kernel, groups, 2, moments, form)
        closest = project_kernel(kernel, groups, 2, form=form)
        error = output_error(dense(fitted, groups), patches, targets)
        np.testing.assert_allclose(fitted.error, error, rtol=1e-6, atol=1e-9)
        before = output_error(dense(closest, groups), patches, targets)
        assert error < 0.9 * before
        assert [part.shape for part in fitted[:3]] == [
            part.shape for part in closest[:3]
        ]


@pytest.mark.once
@pytest.mark.parametrize(
    ("form", "shape", "groups", "rank"),
    [
        ("two_level", (6, 6), 3, 1),
        ("two_level", (2, 4, 8), 2, 1),
        ("low_rank", (2, 4, 6), 2, 1),
        ("low_rank", (2, 6, 5), 1, 2),
        ("group", (2, 4, 6), 2, 0),
        ("balanced", (2, 6, 6), 3, 0),
    ],
    ids=str,
)
def test_no_optimiser_finds_a_better_fit(form, shape, groups, rank):
    optimize = pytest.importorskip("scipy.optimize")
    kernel, patches, targets = problem(*shape)
    fitted = project_kernel(
        kernel, groups, rank, Moments.of(patches, targets), form
    )
    kernels = fitted[:3] + fitted[4:]
    sizes = [part.size for part in kernels]
    shapes = [part.shape for part in kernels]

    def loss(flat):
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        parts = [x.reshape(s) for x, s in zip(parts, shapes, strict=True)]
        return output_error(
            dense((*parts[:3], 0, parts[3]), groups), patches, targets
        )

    found = [
        optimize.minimize(
            loss, np.random.default_rng(i).normal(size=sum(sizes))
        ).fun
        for i in range(4)
    ]
    # It may end at another local minimum, as these searches do.
    assert fitted.error < min(found) * 1.05 + 1e-6
    assert fitted.error > min(found) - 1e-3


@pytest.mark.once
def test_one_group_of_low_rank_is_the_best_of_its_rank():
    kernel, patches, targets = problem(2, 6, 5, noise=0)
    for rank in (1, 3, 5):
        moments = Moments.of(patches, targets)
        fitted = project_kernel(kernel, 1, rank, moments, "low_rank")
        values = np.linalg.svd(targets, compute_uv=False)
        best = np.sum(values[rank:] ** 2) / np.sum(values**2)
        np.testing.assert_allclose(fitted.error, best, atol=1e-5)
        closest = project_kernel(kernel, 1, rank, form="low_rank")
        values = np.linalg.svd(kernel.reshape(-1, 5), compute_uv=False)
        best = np.sum(values[rank:] ** 2) / np.sum(values**2)
        np.testing.assert_allclose(closest.error, best, atol=1e-9)


@pytest.mark.once
@pytest.mark.parametrize("form", FORMS)
def test_what_inputs_never_show_stays(form):
    kernel = closest(random(3, 8, 8, seed=1).astype("float64"), 2, 1)
    if form != "two_level":
        kernel = dense(project_kernel(kernel, 2, 3, form=form), 2)
    for patches in (np.zeros((5, 24)), correlated(5, 24)):
        patches[:, 3] = 0  # A dead channel.
        targets = patches @ kernel.reshape(24, 8)
        moments = Moments.of(patches, targets)
        fitted = project_kernel(
            kernel, 2, 1 if form == "two_level" else 3, moments, form
        )
        assert fitted.error < 1e-6
        assert all(np.isfinite(part).all() for part in fitted[:3])
        np.testing.assert_allclose(dense(fitted, 2), kernel, atol=2e-2)


@pytest.mark.once
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross": np.ones((3, 4))}, "The moments must be finite and those of"),
        ({"inputs": np.full((4, 4), np.nan)}, "not all finite"),
    ],
)
def test_bad_moments(change, message):
    moments = Moments.of(np.ones((2, 4)), np.ones((2, 4)))
    with pytest.raises(ValueError, match=message):
        project_kernel(np.ones((4, 4)), 2, 1, moments._replace(**change))


@pytest.mark.once
def test_bad_forms():
    with pytest.raises(ValueError, match="`form` must be one of"):
        project_kernel(np.ones((4, 4)), 2, form="three_level")
    with pytest.raises(ValueError, match="`coarse_channels` must be a positi"):
        project_kernel(np.ones((4, 4)), 2, 0, form="low_rank")
    with pytest.raises(ValueError, match="'balanced' needs at least 2 groups"):
        project_kernel(np.ones((4, 4)), 1, form="balanced")
