"""The kernels of balanced group convolution that come closest to a dense one.

Let the rows of T be the inputs of a kernel, group by group, and its columns the
outputs. The outputs of group j see its own inputs, through G_j, and the mean of
all groups' inputs, through B_j. Both are found at once, by linear regression.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]


class BalancedFactors(NamedTuple):
    """An approximation of a kernel, in which groups come first.

    Attributes:
        group: G, of shape `(N, d / N, n / N)`.
        balance: B, of the same shape.
    """

    group: Array
    balance: Array

    def dense(self) -> Array:
        """Return blockdiag(G) plus B / N in all blocks, of shape `(d, n)`."""
        groups, _, filters = self.group.shape
        spread = np.concatenate(self.balance, axis=1) / groups
        blocks = np.stack([spread] * groups)
        for i, group in enumerate(self.group):
            blocks[i, :, i * filters : (i + 1) * filters] += group
        return np.concatenate(blocks)


def balance(target: Array, moment: Array, groups: int) -> BalancedFactors:
    """Return the factors whose outputs are closest to those of a kernel.

    Args:
        target: T, of shape `(d, n)`, with the inputs group by group.
        moment: S, of shape `(d, d)`, positive definite: the identity for the
            Frobenius norm.
        groups: integer N of at least 2, which divides d and n.

    Returns:
        `BalancedFactors` that minimise `tr((T - T')^T S (T - T'))`.
    """
    d, n = target.shape
    own, filters = d // groups, n // groups
    mean = np.tile(np.eye(own) / groups, (groups, 1))
    wanted = moment @ target
    found = []
    for i in range(groups):
        rows = slice(i * own, (i + 1) * own)
        seen = np.concatenate([np.eye(d)[:, rows], mean], axis=1)
        columns = wanted[:, i * filters : (i + 1) * filters]
        kernels = np.linalg.solve(seen.T @ moment @ seen, seen.T @ columns)
        found.append(np.split(kernels, 2))
    return BalancedFactors(*map(np.stack, zip(*found, strict=True)))
