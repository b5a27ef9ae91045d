"""The group kernels that come closest to a trained dense kernel."""

from typing import NamedTuple

import numpy as np

from keras_tlgc.validation import divisible_by_groups, positive_int


class Projection(NamedTuple):
    """Kernels of a two-level group convolution, and what they leave out.

    Attributes:
        group_kernel: G, of shape `window + (m / N, n)`.
        restriction_kernel: R, of shape `window + (m / N, N * r)`.
        coarse_kernel: C, of shape `(N * r, n)`.
        error: float from 0 to 1, the share of the dense kernel's squared
            Frobenius norm that is left out: `||W - W'||^2 / ||W||^2`, for W'
            the `dense_kernel()` of a layer with these kernels.
    """

    group_kernel: np.ndarray
    restriction_kernel: np.ndarray
    coarse_kernel: np.ndarray
    error: float


def project_kernel(
    kernel: np.ndarray, groups: int, coarse_channels: int = 1
) -> Projection:
    """Return the two-level kernels closest to a dense one.

    Among all G, R and C (eq. 3.5 of the paper, the windows of G and R being
    that of the kernel) these minimise the Frobenius norm of
    `W - (blockdiag(G) + C R)`. With W_ji the block of W from the inputs of
    group i to the outputs of group j, `C R` alone reaches W_ji for j != i. For
    each i these blocks side by side are one matrix, whose truncated singular
    value decomposition is the best of rank r (Eckart and Young): the left
    vectors give R_i, the right ones the rows of C, each scaled by the root of
    the singular value. C is zero from group i to itself, where G_i = W_ii.

    The best one-level kernel is G alone, with `coarse_channels=0`.

    Args:
        kernel: array of shape `window + (m, n)`, the kernel of a
            `keras.layers.Conv{1,2,3}D` with m input channels and n filters.
        groups: integer N, which divides m and n.
        coarse_channels: integer r, the coarse channels of each group; 0 for
            one level.

    Returns:
        A `Projection`, of the dtype of the kernel.

    Raises:
        ValueError: if the kernel has fewer than two dimensions or entries that
            are not finite, `groups` does not divide its channels, or a number
            is out of range.

    Example:

    >>> from keras_tlgc.conversion import project_kernel
    >>> kernel = np.random.default_rng(0).normal(size=(3, 3, 16, 32))
    >>> [round(project_kernel(kernel, 4, r).error, 2) for r in (0, 1, 4)]
    [0.75, 0.66, 0.45]
    """
    kernel = np.asarray(kernel)
    _check(kernel, groups, coarse_channels)
    *window, inputs, outputs = kernel.shape
    own = outputs // groups
    # [i, entries of the window and of group i's inputs, outputs of all groups]
    blocks = np.moveaxis(
        kernel.reshape(*window, groups, inputs // groups, outputs), -3, 0
    )
    matrices = blocks.reshape(groups, -1, outputs).astype("float64")
    norm = np.sum(matrices**2)
    restrictions, coarse, left_out = [], [], 0.0
    for i, matrix in enumerate(matrices):
        mine = slice(i * own, (i + 1) * own)
        others = np.delete(matrix, mine, axis=1)
        r_i, c_i, lost = _best_of_rank(others, coarse_channels)
        restrictions.append(r_i)
        coarse.append(np.insert(c_i, [i * own] * own, 0.0, axis=1))
        left_out += lost
    restriction = np.concatenate(restrictions, axis=1)
    group = np.concatenate(
        [blocks[i][..., i * own : (i + 1) * own] for i in range(groups)],
        axis=-1,
    )
    shape = (*window, inputs // groups, groups * coarse_channels)
    return Projection(
        group,
        restriction.reshape(shape).astype(kernel.dtype),
        np.concatenate(coarse).astype(kernel.dtype),
        float(left_out / norm) if norm else 0.0,
    )


def _best_of_rank(matrix, rank):
    """Factorise the best approximation, and give what it leaves out."""
    rows, columns = matrix.shape
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    scale = np.sqrt(values[:rank])
    factors = np.zeros((rows, rank)), np.zeros((rank, columns))
    factors[0][:, : len(scale)] = left[:, :rank] * scale
    factors[1][: len(scale)] = scale[:, np.newaxis] * right[:rank]
    return *factors, np.sum(values[rank:] ** 2)


def _check(kernel, groups, coarse_channels):
    if kernel.ndim < 2 or not np.isfinite(kernel).all():
        raise ValueError(
            "The kernel must be of shape `window + (m, n)`, with finite "
            f"entries. Received: shape {kernel.shape}"
            f"{'' if kernel.ndim < 2 else ', with entries that are not'}. "
            "Take the `kernel` of a convolution."
        )
    positive_int("groups", groups)
    if coarse_channels != 0:
        positive_int("coarse_channels", coarse_channels)
    divisible_by_groups("input channels", kernel.shape[-2], groups)
    divisible_by_groups("filters", kernel.shape[-1], groups)
