"""Where a value that is not finite goes, and where it does not."""

import keras
import numpy as np
import pytest
from cases import ONE_FORMAT
from convolving import Convolution
from helpers import gradients, random, to_numpy

from keras_tlgc.ops import block_diagonal


def not_finite(groups, m, value, lowering, data_format="channels_last", k=3):
    """Return where results are not finite: y, dx and dw.

    The input has one such value in group 0, amid 5 x 5. Each group has one
    filter. Channels are on the last axis of what is returned.
    """
    x = random(1, 5, 5, groups * m)
    x[0, 2, 2, 0] = value
    first = data_format == "channels_first"
    layer = Convolution(
        random(k, k, m, groups),
        groups=groups,
        padding="same",
        lowering=lowering,
        data_format=data_format,
    )
    x = np.moveaxis(x, -1, 1) if first else x
    dx, [dw] = gradients(layer, x)
    y = to_numpy(layer(x))
    y, dx = (np.moveaxis(a, 1, -1) if first else a for a in (y, dx))
    return [~np.isfinite(a) for a in (y, dx, dw)]


def only_group_0(groups, m, k=3):
    """Return where they are not, if groups exchange nothing."""
    y = np.zeros((1, 5, 5, groups), bool)
    dx = np.zeros((1, 5, 5, groups * m), bool)
    dw = np.zeros((k, k, m, groups), bool)
    reach = slice(2 - k // 2, 3 + k // 2)
    y[:, reach, reach, 0] = True
    reach = slice(3 - k, 2 + k)
    dx[:, reach, reach, :m] = True
    dw[..., 0] = True
    return y, dx, dw


@pytest.mark.parametrize("data_format", ONE_FORMAT)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "groups, m, k, lowering",
    [
        (4, 2, 3, "native"),
        (4, 16, 3, "slices"),
        (16, 16, 3, "slices"),
        (4, 2, 1, "matmul"),
        (4, 1, 3, "taps"),
        (4, 2, 3, "taps"),
    ],
)
def test_groups_are_isolated(groups, m, k, lowering, value, data_format):
    y, dx, dw = not_finite(groups, m, value, lowering, data_format, k)
    expected_y, expected_dx, expected_dw = only_group_0(groups, m, k)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(dx, expected_dx)
    # XLA computes this gradient on a CPU with zeros between the groups.
    if lowering != "native" or keras.backend.backend() == "torch":
        np.testing.assert_array_equal(dw, expected_dw)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_groups_of_one_slice_share_what_is_not_finite(value):
    """16 channels make a slice: of 12 groups of 4, the first 4 groups."""
    y, dx, dw = not_finite(12, 4, value, "slices")
    alone = only_group_0(12, 4)
    # It stays in its slice and, in the outputs, at its place.
    for actual, expected in zip((y, dx, dw), alone, strict=True):
        assert actual[expected].all() and actual.sum() > expected.sum()
    np.testing.assert_array_equal(y.any(axis=-1), alone[0].any(axis=-1))
    assert not y[..., 4:].any() and not dx[..., 16:].any()
    assert not dw[..., 4:].any()


def test_the_kernels_gradient_is_isolated_in_a_slice():
    """Zeros between groups are selected: no gradient is multiplied by 0."""
    kernel = random(3, 3, 4, 12)

    class Blocks(Convolution):
        def call(self, inputs):
            return inputs * block_diagonal(self.kernel, 3)

    layer = Blocks(kernel)
    x = np.ones((3, 3, 12, 12), "float32")
    x[0, 0, 0, 8] = np.nan  # Of a gradient, between the groups 0 and 2.
    x[0, 0, 5, 4] = np.inf  # Of a gradient, in group 1.
    _, [dw] = gradients(layer, x)
    expected = np.zeros(kernel.shape, bool)
    expected[0, 0, 1, 4] = True
    np.testing.assert_array_equal(~np.isfinite(dw), expected)
