"""The task whose groups must talk."""

import numpy as np
import pytest

from keras_tlgc.lab.data.pairs import PAIRS, pairs


def test_pairs():
    x_train, y_train, x_test, y_test = pairs()
    assert x_train.shape == (4000, 8, 8, 32) and x_test.shape == (
        1000,
        8,
        8,
        32,
    )
    assert set(y_train) == set(range(16))
    x, y = np.concatenate([x_train, x_test]), np.concatenate([y_train, y_test])
    # The mean over the image tells a channel's sign: 9 of 64 pixels are marked.
    means = x.mean((1, 2)) * 64 / 9
    assert np.abs(means).mean() == pytest.approx(1, abs=0.1)
    signs = means > 0
    for bit, (one, other) in enumerate(PAIRS):
        agrees = (signs[:, one] != signs[:, other]) == (y >> bit & 1)
        assert agrees.mean() > 0.95
        # One alone says nothing.
        for channel in (one, other):
            agrees = signs[:, channel] == (y >> bit & 1)
            assert agrees.mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(pairs()[0], x_train)


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16])
def test_pairs_are_parted_one_after_the_other(groups):
    size = 32 // groups
    parted = [one // size != other // size for one, other in PAIRS]
    assert parted == [groups > 2**bit for bit in range(4)]
