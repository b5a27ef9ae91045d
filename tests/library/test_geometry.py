"""Geometry, against counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_tlgc.ops.geometry import margins, output_size, same_padding

pytestmark = pytest.mark.once

SIZES = st.integers(1, 20)
SMALL = st.integers(1, 5)


def positions(low, size, kernel, stride, dilation):
    """Return where windows begin that fit into `low` zeros and the input."""
    last = size - dilation * (kernel - 1)
    return [p for p in range(low, max(last, low), stride) if p < last]


@given(SIZES, SMALL, SMALL, SMALL)
def test_output_size_of_valid_padding(size, kernel, stride, dilation):
    fits = positions(0, size, kernel, stride, dilation)
    result = output_size(size, kernel, stride, dilation, "valid")
    assert result == len(fits) if fits else result < 1


@given(SIZES, SMALL, SMALL, SMALL)
def test_output_size_of_causal_padding(size, kernel, stride, dilation):
    past = dilation * (kernel - 1)
    fits = positions(-past, size, kernel, stride, dilation)
    assert output_size(size, kernel, stride, dilation, "causal") == len(fits)


@given(SIZES, SMALL, SMALL, SMALL)
def test_same_padding(size, kernel, stride, dilation):
    low, high = same_padding(size, kernel, stride, dilation)
    outputs = output_size(size, kernel, stride, dilation, "same")
    assert outputs == len(range(0, size, stride))
    assert high - low in (0, 1)
    # The fewest zeros that let so many windows fit.
    reach = dilation * (kernel - 1)
    fits = positions(-low, size + high, kernel, stride, dilation)
    assert len(fits) == outputs
    if low + high:
        last = -low + (outputs - 1) * stride
        assert last + reach == size + high - 1


@given(SIZES, SMALL, SMALL, SMALL)
def test_same_padding_of_a_tensor(size, kernel, stride, dilation):
    tensor = ops.convert_to_tensor(size, dtype="int32")
    result = same_padding(tensor, kernel, stride, dilation)
    expected = same_padding(size, kernel, stride, dilation)
    assert tuple(int(p) for p in result) == expected


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
def test_unknown_size_stays_unknown(padding):
    assert output_size(None, 3, 2, 1, padding) is None


@given(SMALL, SMALL)
def test_margins(fine, coarse):
    [(low, high)] = margins((fine,), (coarse,), causal=False)
    # Taps of the fine window at 0, 1, ...; the coarse one begins at `low`.
    assert low + coarse + high == fine
    assert low == int(np.floor((fine - coarse) / 2))
    [(low, high)] = margins((fine,), (coarse,), causal=True)
    assert (low, high) == (fine - coarse, 0)


def test_margins_of_each_axis():
    assert margins((3, 2), (1, 5), causal=False) == [(1, 1), (-2, -1)]
