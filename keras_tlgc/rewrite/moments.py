"""Second moments of a layer's inputs and targets, and what they say of it."""

import functools
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

RIDGE = 1e-4  # Of the mean diagonal of the inputs' moments.


class Moments(NamedTuple):
    """Second moments of what a kernel sees and of what it should return.

    A patch p is what the window of a convolution covers at one position, as a
    vector in the order of `kernel.reshape(-1, n)`: the taps of the window, and
    for each of them the channels. The target y is what the layer should return
    there for its n filters, before its activation. `Moments.of` computes the
    moments from arrays of both.

    Attributes:
        inputs: array of shape `(d, d)`, the mean of `p p^T`.
        cross: array of shape `(d, n)`, the mean of `p y^T`.
        targets: array of shape `(n,)`, the mean of `y^2`.
        positions: integer, how many the means are taken over.
    """

    inputs: Array
    cross: Array
    targets: Array
    positions: int

    @classmethod
    def of(cls, patches: Array, targets: Array) -> "Moments":
        """Return the moments of patches and targets, as rows of two arrays."""
        sums = Sums()
        sums.add(*(np.asarray(x, "float64") for x in (patches, targets)))
        return sums.moments()

    def error(self, kernel: Array) -> float:
        """Return `E |y - W^T p|^2 / E |y|^2` of a kernel W of shape `(d, n)`.

        It is 0 for a kernel that meets all targets, and 1 for one of zeros. If
        all targets are zero, it is 0.
        """
        power = float(np.sum(self.targets))
        gain = np.sum(kernel * (2 * self.cross - self.inputs @ kernel))
        return max(0.0, 1 - float(gain) / power) if power > 0 else 0.0

    def refit(self, kernel: Array, ridge: float = RIDGE) -> tuple[Array, Array]:
        """Return the dense kernel that meets the targets best, and its weights.

        The kernel T minimises `E |y - T^T p|^2 + a |T - W|^2`: where the inputs
        say nothing, it stays what it was. Of any other kernel this sum is that
        of T and `tr((T - T')^T (S + a) (T - T'))` more.

        Args:
            kernel: W, array of shape `(d, n)`.
            ridge: float, the ratio of a to the mean diagonal of S.

        Returns:
            T, of shape `(d, n)`, and `S + a`, of shape `(d, d)`.
        """
        moment = self.weights(ridge)
        missing = self.cross - self.inputs @ kernel
        return kernel + np.linalg.solve(moment, missing), moment

    def weights(self, ridge: float = RIDGE) -> Array:
        """Return `S + a`, of shape `(d, d)`, which is positive definite."""
        weight = ridge * np.mean(np.diagonal(self.inputs))
        moment = self.inputs.copy()
        # Inputs that are all zero leave any kernel as it is.
        moment[np.diag_indices_from(moment)] += weight if weight > 0 else 1.0
        return moment


class Sums:
    """Adds moments up in float64, batch by batch.

    Args:
        kernel: optional array of shape `(d, n)`, of which the outputs are known
            for all patches. The targets are close to these, so that products
            with the difference lose nothing in float32. Those with the targets
            themselves would lose what a dense refit has to find.
    """

    def __init__(self, kernel: Array | None = None) -> None:
        self.kernel = kernel
        self.count = 0
        self.shift: Any = None
        self.inputs: Any = 0.0
        self.missed: Any = 0.0
        self.targets: Any = 0.0
        self.shifted: Any = 0.0
        self.target: Any = 0.0
        self.miss: Any = 0.0

    # What is not finite is for the caller to find in the moments.
    @np.errstate(over="ignore", invalid="ignore")
    def add(
        self, patches: Array, targets: Array, known: Array | float = 0.0
    ) -> None:
        """Add the rows of arrays: patches, targets and the known outputs."""
        missed = targets - known
        self.count += len(patches)
        total = functools.partial(np.sum, axis=0, dtype="float64")
        if self.shift is None:
            self.shift = (total(patches) / len(patches)).astype(patches.dtype)
        # Where inputs vary little about a large mean, products of the inputs
        # themselves would lose the variance in float32.
        shifted = patches - self.shift
        self.inputs = _added(self.inputs, shifted.T @ shifted)
        self.missed = _added(self.missed, shifted.T @ missed)
        self.targets += total(np.square(targets))
        self.shifted += total(shifted)
        self.target += total(targets)
        self.miss += total(missed)

    @property
    def means(self) -> tuple[Array, Array]:
        """The mean patch and the mean target."""
        patch = self.shift + self.shifted / self.count
        return patch, self.target / self.count

    @np.errstate(over="ignore", invalid="ignore")
    def moments(self, central: bool = False) -> Moments:
        """Return the second moments, or those about the means."""
        inputs, missed, targets = (
            total / self.count
            for total in (self.inputs, self.missed, self.targets)
        )
        patch, target = self.means
        miss, shifted = self.miss / self.count, self.shifted / self.count
        inputs -= np.outer(shifted, shifted)
        missed -= np.outer(shifted, miss)
        if central:
            targets -= np.square(target)
        else:
            inputs += np.outer(patch, patch)
            missed += np.outer(patch, miss)
        known = 0.0 if self.kernel is None else inputs @ self.kernel
        return Moments(inputs, missed + known, targets, self.count)


def _added(total: Any, product: Array) -> Array:
    """Return a sum in float64, in the same memory where there is some."""
    if isinstance(total, float):
        return product.astype("float64")
    total += product
    return np.asarray(total)
