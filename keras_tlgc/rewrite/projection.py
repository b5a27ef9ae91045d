"""The group kernels that come closest to a trained dense kernel."""

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from keras_tlgc.rewrite.alternating import (
    Factors,
    approximate,
    errors_of_ranks,
)
from keras_tlgc.rewrite.balancing import BalancedFactors, balance
from keras_tlgc.rewrite.moments import RIDGE, Moments
from keras_tlgc.validation import divisible_by_groups, one_of, positive_int

Array: TypeAlias = np.ndarray[Any, Any]

FORMS = ("two_level", "low_rank", "group", "balanced")


class Projection(NamedTuple):
    """Kernels of a two-level group convolution, and what they leave out.

    Attributes:
        group_kernel: G, of shape `window + (m / N, n)`; of the form
            `"low_rank"`, which has none, of shape `window + (m / N, 0)`.
        restriction_kernel: R, of shape `window + (m / N, N * r)`.
        coarse_kernel: C, of shape `(N * r, n)`.
        error: float from 0 to 1, what is left out, where W' is the
            `dense_kernel()` of a layer with these kernels: the share of the
            dense kernel's squared Frobenius norm, `||W - W'||^2 / ||W||^2`, or,
            with moments, of the targets' power, `E |y - W' p|^2 / E |y|^2`.
        balance_kernel: B, of the shape of G; of other forms than `"balanced"`
            empty. That form has no R and no C.
    """

    group_kernel: Array
    restriction_kernel: Array
    coarse_kernel: Array
    error: float
    balance_kernel: Array = np.zeros((0, 0))

    @property
    def kernels(self) -> list[Array]:
        """The kernels of its form: those of G, R, C, B that are not empty."""
        kernels = [*self[:3], self.balance_kernel]
        return [kernel for kernel in kernels if kernel.size]

    def over(self, scale: Array) -> "Projection":
        """Return the kernels for outputs that are divided by `scale`.

        R makes no outputs: G, B and C make up for the scale.
        """
        return self._replace(
            **{
                name: kernel / scale[: kernel.shape[-1]]
                for name, kernel in self._asdict().items()
                if name in ("group_kernel", "coarse_kernel", "balance_kernel")
            }
        )


def project_kernel(
    kernel: Array,
    groups: int,
    coarse_channels: int = 1,
    moments: Moments | None = None,
    form: str = "two_level",
) -> Projection:
    """Return the two-level kernels closest to a dense one.

    Without moments, these G, R and C (eq. 3.5 of the paper, where G and R have
    the window of the kernel) minimise the Frobenius norm of
    `W - (blockdiag(G) + C R)`. Let W_ji be the block of W from the inputs of
    group i to the outputs of group j. For j != i only `C R` reaches it. For
    each i these blocks, side by side, form one matrix, and its truncated
    singular value decomposition is its best approximation of rank r (Eckart and
    Young). The left vectors give R_i and the right ones the rows of C, each
    scaled by the root of its singular value. From group i to itself C is zero
    and G_i = W_ii.

    With moments of patches p and targets y, the outputs count instead of the
    kernel: alternating least squares minimises
    `E |y - W' p|^2 + a |W - W'|^2`, with a of 1e-4 of the mean of `p^2`. So
    what the inputs never show stays as in W. On the given moments the result is
    never worse than that without moments.

    Args:
        kernel: array of shape `window + (m, n)`, the kernel of a
            `keras.layers.Conv{1,2,3}D` with m input channels and n filters.
        groups: integer N, which divides m and, unless the form is
            `"low_rank"`, n.
        coarse_channels: integer r, the coarse channels of each group; 0 for
            one level.
        moments: optional `Moments` of the layer's inputs and targets.
        form: `"two_level"`; `"low_rank"` for C R alone, of which one group is
            the best kernel of rank r; `"group"` for G alone; or `"balanced"`
            for G and B, of at least 2 groups. Of these two `coarse_channels`
            tells nothing.

    Returns:
        A `Projection`, of the dtype of the kernel.

    Raises:
        ValueError: if the kernel has fewer than two dimensions or entries that
            are not finite, `groups` does not divide its channels, a number is
            out of range, there is no such form, or the moments are not finite
            or not those of this kernel.

    Example:

    >>> from keras_tlgc.rewrite import Moments, project_kernel
    >>> kernel = np.random.default_rng(0).normal(size=(3, 3, 16, 32))
    >>> [round(project_kernel(kernel, 4, r).error, 2) for r in (0, 1, 4)]
    [0.75, 0.66, 0.45]
    >>> patches = np.random.default_rng(1).normal(size=(500, 9, 4))
    >>> patches = np.tile(patches, 4).reshape(500, 144)  # Groups are alike.
    >>> moments = Moments.of(patches, patches @ kernel.reshape(144, 32))
    >>> print(f"{project_kernel(kernel, 4, 1, moments).error:.3f}")
    0.000
    """
    kernel = np.asarray(kernel)
    one_of("form", form, FORMS)
    _check(kernel, groups, coarse_channels, form)
    if moments is not None:
        _check_moments(kernel, moments)
    matrix, order = _by_groups(kernel, groups)
    factors = _closest(matrix, groups, coarse_channels, form)
    norm = np.sum(matrix**2)
    rest = np.sum((matrix - factors.dense()) ** 2)
    found = _projection(factors, kernel, float(rest / norm) if norm else 0.0)
    if moments is None:
        return found
    fitted = fit_kernel(kernel, groups, coarse_channels, moments, form)
    inverse = np.argsort(order)
    error = moments.error(factors.dense()[inverse])
    return min(fitted, found._replace(error=error), key=lambda one: one.error)


def fit_kernel(
    kernel: Array,
    groups: int,
    coarse_channels: int,
    moments: Moments,
    form: str,
    ridge: float = RIDGE,
) -> Projection:
    """Return the kernels that fit outputs, of arguments that are right.

    Args:
        ridge: float, the ratio of a to the mean of `p^2`.
    """
    matrix, order = _by_groups(kernel, groups)
    moments = moments._replace(
        inputs=moments.inputs[np.ix_(order, order)],
        cross=moments.cross[order],
    )
    target, weight = moments.refit(matrix, ridge)
    factors: Factors | BalancedFactors
    if form == "balanced":
        factors = balance(target, weight, groups)
    else:
        rank = 0 if form == "group" else coarse_channels
        fine = form != "low_rank"
        factors = approximate(target, weight, groups, rank, fine)
    return _projection(factors, kernel, moments.error(factors.dense()))


def _projection(
    factors: Factors | BalancedFactors, kernel: Array, error: float
) -> Projection:
    window, dtype = kernel.shape[:-2], kernel.dtype
    if isinstance(factors, BalancedFactors):
        pair = [_joined(part, window).astype(dtype) for part in factors]
        none = pair[0][..., :0], np.zeros((0, kernel.shape[-1]), dtype)
        return Projection(pair[0], *none, error, pair[1])
    group, restriction, coarse = _kernels(factors, window, dtype)
    return Projection(group, restriction, coarse, error)


def errors_of(
    kernel: Array, groups: int, ranks: list[int], moments: Moments, form: str
) -> list[float]:
    """Return about what kernels of several ranks miss: `E |W p - W' p|^2`.

    The arguments are those of `fit_kernel`, and right, with several numbers of
    coarse channels to try; the targets are what the kernel itself returns.
    """
    matrix, order = _by_groups(kernel, groups)
    weights = moments.weights()[np.ix_(order, order)]
    tried = [0] if form == "group" else ranks
    return errors_of_ranks(matrix, weights, groups, tried, form != "low_rank")


def _closest(
    matrix: Array, groups: int, coarse_channels: int, form: str
) -> Factors | BalancedFactors:
    """Return the factors closest to a matrix in the Frobenius norm."""
    if form == "balanced":
        return balance(matrix, np.eye(len(matrix)), groups)
    rank = 0 if form == "group" else coarse_channels
    fine = form != "low_rank"
    blocks = matrix.reshape(groups, -1, matrix.shape[1])
    own = blocks.shape[2] // groups if fine else 0
    found = []
    for i, block in enumerate(blocks):
        mine = slice(i * own, (i + 1) * own)
        r_i, c_i = _best_of_rank(np.delete(block, mine, axis=1), rank)
        c_i = np.insert(c_i, [i * own] * own, 0.0, axis=1)
        found.append((block[:, mine], r_i, c_i))
    return Factors(*map(np.stack, zip(*found, strict=True)))


def _best_of_rank(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Return the factors of the best approximation of a rank."""
    rows, columns = matrix.shape
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    scale = np.sqrt(values[:rank])
    factors = np.zeros((rows, rank)), np.zeros((rank, columns))
    factors[0][:, : len(scale)] = left[:, :rank] * scale
    factors[1][: len(scale)] = scale[:, np.newaxis] * right[:rank]
    return factors


def _by_groups(kernel: Array, groups: int) -> tuple[Array, Array]:
    """Return a kernel as a matrix, group by group of its inputs.

    Returns:
        The matrix of shape `(d, n)`, and where its rows stand in
        `kernel.reshape(-1, n)`. Within a group they are ordered by the taps of
        the window, then by channel.
    """
    *window, channels, filters = kernel.shape
    places = np.arange(math.prod(window) * channels)
    places = places.reshape(-1, groups, channels // groups)
    order = places.swapaxes(0, 1).ravel()
    return kernel.reshape(-1, filters)[order].astype("float64"), order


def _kernels(
    factors: Factors, window: tuple[int, ...], dtype: Any
) -> list[Array]:
    """Return G, R and C in the shapes and the dtype that layers hold."""
    group, restriction, coarse = factors
    # A coarse channel may be scaled in R or in C. The first training step is
    # even if both have the same norm. The sign of each is free too: with this
    # choice the kernels have no negative entries if the dense one has none and
    # the rank is 1, as `NonNeg` asks.
    norms = np.linalg.norm(restriction, axis=1), np.linalg.norm(coarse, axis=2)
    is_used = (norms[0] > 0) & (norms[1] > 0)
    scale = np.sqrt(np.divide(*norms[::-1], where=is_used, out=1.0 * is_used))
    scale = np.where(is_used, scale, 1.0)
    scale = np.where(np.sum(restriction, axis=1) < 0, -scale, scale)
    restriction = restriction * scale[:, np.newaxis]
    coarse = coarse / scale[:, :, np.newaxis]
    kernels = [_joined(part, window) for part in (group, restriction)]
    kernels.append(np.concatenate(coarse))
    return [kernel.astype(dtype) for kernel in kernels]


def _joined(part: Array, window: tuple[int, ...]) -> Array:
    """Return the kernel of shape `window + (m / N, ...)` of all groups."""
    groups, rows, filters = part.shape
    own = rows // math.prod(window)
    taps = part.reshape(groups, -1, own, filters) if filters else part
    taps = np.concatenate(taps, axis=-1)
    return taps.reshape(*window, own, groups * filters)


def _check_moments(kernel: Array, moments: Moments) -> None:
    n = kernel.shape[-1]
    d = kernel.size // n
    shapes = [np.shape(part) for part in moments[:3]]
    is_finite = all(np.isfinite(part).all() for part in moments[:3])
    if shapes != [(d, d), (d, n), (n,)] or not is_finite:
        raise ValueError(
            "The moments must be finite and those of the kernel's patches and "
            f"outputs. Received: shapes {shapes} for a kernel of shape "
            f"{kernel.shape}{'' if is_finite else ', not all finite'}. "
            "Take `Moments.of(patches, targets)` with patches of shape "
            f"(count, {d}) and targets of shape (count, {n})."
        )


def _check(kernel: Array, groups: int, coarse_channels: int, form: str) -> None:
    if kernel.ndim < 2 or not np.isfinite(kernel).all():
        raise ValueError(
            "The kernel must be of shape `window + (m, n)`, with finite "
            f"entries. Received: shape {kernel.shape}"
            f"{'' if kernel.ndim < 2 else ', with entries that are not'}. "
            "Take the `kernel` of a convolution."
        )
    positive_int("groups", groups)
    if coarse_channels != 0 or form == "low_rank":
        positive_int("coarse_channels", coarse_channels)
    divisible_by_groups("input channels", kernel.shape[-2], groups)
    if form != "low_rank":
        divisible_by_groups("filters", kernel.shape[-1], groups)
    if form == "balanced" and groups == 1:
        raise ValueError(
            "The form 'balanced' needs at least 2 groups, whose mean differs "
            "from each. Received: groups=1. Use more, or another form."
        )
