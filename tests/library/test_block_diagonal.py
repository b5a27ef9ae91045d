"""The dense kernel of groups."""

import keras
import numpy as np
import pytest
from helpers import random, to_numpy
from keras import ops

from keras_tlgc.ops import block_diagonal


@pytest.mark.parametrize("window", [(), (2,), (2, 3), (1, 2, 2)])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_block_diagonal(window, groups):
    kernel = random(*window, 2, 2 * groups)
    dense = to_numpy(block_diagonal(ops.convert_to_tensor(kernel), groups))
    expected = np.zeros((*window, 2 * groups, 2 * groups), "float32")
    for i in range(groups):
        block = slice(2 * i, 2 * i + 2)
        expected[..., block, block] = kernel[..., block]
    np.testing.assert_array_equal(dense, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_block_diagonal_keeps_the_dtype(dtype):
    kernel = ops.ones((2, 3, 4), dtype=dtype)
    dense = block_diagonal(kernel, 2)
    assert keras.backend.standardize_dtype(dense.dtype) == dtype
