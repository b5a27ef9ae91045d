"""Projected kernels: exact where they can be, and never beaten."""

import numpy as np
import pytest
from exact import closest
from helpers import random, to_numpy
from hypothesis import given
from hypothesis import strategies as st

from keras_tlgc.conversion import project_kernel
from keras_tlgc.layers import TwoLevelGroupConv1D, TwoLevelGroupConv2D


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


def descend(kernel, groups, rank, seed, steps=4000, rate=0.02):
    """Return the error that Adam ends at, from random G, R and C."""
    rng = np.random.default_rng(seed)
    m, n = kernel.shape[-2:]
    target = kernel.reshape(-1, m, n)
    mine = np.kron(
        np.eye(groups), np.ones((m // groups, n // groups))
    )  # Where G is, and R beside it.
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


@pytest.mark.parametrize(
    ("shape", "groups", "rank"),
    [
        ((1, 6, 6), 3, 1),
        ((3, 4, 8), 2, 1),
        ((2, 2, 8, 4), 2, 2),
        ((4, 4), 4, 1),
        ((3, 4, 6), 2, 0),
    ],
    ids=str,
)
def test_no_optimiser_finds_a_closer_kernel(shape, groups, rank):
    kernel = random(*shape, seed=1).astype("float64")
    projection = project_kernel(kernel, groups, rank)
    assert {part.dtype for part in projection[:3]} == {kernel.dtype}
    ours = projection.error
    theirs = [descend(kernel, groups, rank, seed) for seed in range(3)]
    assert min(theirs) > ours - 1e-9
    np.testing.assert_allclose(min(theirs), ours, atol=1e-3)


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


def test_a_kernel_of_zeros_and_half_precision():
    projection = project_kernel(np.zeros((3, 4, 4), "float16"), 2)
    assert projection.error == 0
    for kernel in projection[:3]:
        assert kernel.dtype == "float16"
        assert not kernel.any()


@pytest.mark.parametrize(
    ("kernel", "groups", "coarse_channels", "message"),
    [
        (np.ones(4), 2, 1, r"shape `window \+ \(m, n\)`.*Received: shape \(4,"),
        (np.full((4, 4), np.nan), 2, 1, "with entries that are not"),
        (np.ones((4, 4)), 0, 1, "`groups` must be a positive integer"),
        (np.ones((4, 4)), 2, -1, "`coarse_channels` must be a positive"),
        (np.ones((3, 4)), 2, 1, "input channels"),
        (np.ones((4, 3)), 2, 1, "filters"),
    ],
)
def test_bad_kernels(kernel, groups, coarse_channels, message):
    with pytest.raises(ValueError, match=message):
        project_kernel(kernel, groups, coarse_channels)
