"""Alternating least squares for kernels of groups, of low rank, or of both.

Let the rows of T be the inputs of a kernel, group by group, and its columns the
outputs. `Factors` holds an approximation of T by T' = blockdiag(G) + R C, where
R is block diagonal too. Its error is `tr((T - T')^T S (T - T'))`, for a second
moment S of the inputs. Each step below minimises it over some of the factors
while the others stay, so no step raises it.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

SWEEPS = 100
FEW = 4  # Sweeps that tell about what is lost at a rank,
STRIDE = 5  # of which every fifth one is tried.
TOLERANCE = 1e-4  # The share of the error that a sweep has to gain.


class Factors(NamedTuple):
    """An approximation of a kernel, in which groups come first.

    Attributes:
        group: G, of shape `(N, d / N, n / N)`.
        restriction: R, of shape `(N, d / N, r)`.
        coarse: C, of shape `(N, r, n)`.
    """

    group: Array
    restriction: Array
    coarse: Array

    def dense(self) -> Array:
        """Return blockdiag(G) + R C, of shape `(d, n)`."""
        dense = self.restriction @ self.coarse
        filters = self.group.shape[-1]
        for i, group in enumerate(self.group):
            dense[i, :, i * filters : (i + 1) * filters] += group
        return np.concatenate(dense)


def approximate(
    target: Array, moment: Array, groups: int, rank: int, fine: bool = True
) -> Factors:
    """Return factors whose outputs are close to those of a kernel.

    Args:
        target: T, of shape `(d, n)`, with the inputs group by group.
        moment: S, of shape `(d, d)`, positive definite.
        groups: integer N, which divides d and n, or only d if G is left out.
        rank: integer r, the coarse channels of each group, or 0 for G alone.
        fine: whether there is a G.

    Returns:
        `Factors`. With one group, no G and r coarse channels these are the best
        there are, by a singular value decomposition; else those at which
        alternating least squares ends.
    """
    search = _Search(target, moment, groups, fine)
    search.improve_group()
    search.add_pairs(rank)
    if not rank or (groups == 1 and not fine):
        return search.factors
    return search.descend()


def errors_of_ranks(
    target: Array,
    moment: Array,
    groups: int,
    ranks: list[int],
    fine: bool = True,
) -> list[float]:
    """Return about how much of a kernel's outputs is lost at each rank.

    The ranks grow: what is found for one is where the search for the next one
    starts, to which the pairs are added that gain most, and which takes few
    sweeps then. Only some of the ranks are tried. Between them the logarithm of
    the error is interpolated, since errors fall about by the same share with
    each coarse channel. With one group and no G the errors are exact.

    Args:
        target, moment, groups, fine: see `approximate`.
        ranks: increasing list of integers, numbers of coarse channels.
    """
    search = _Search(target, moment, groups, fine)
    search.improve_group()
    if groups == 1 and not fine:
        white = search.whiten[0] @ search.left
        powers = np.linalg.eigvalsh(_gram(white))[::-1]
        return [max(0.0, float(np.sum(powers[rank:]))) for rank in ranks]
    tried = sorted({*ranks[::STRIDE], ranks[-1]})
    found = []
    for rank in tried:
        search.add_pairs(rank - search.rank)
        for _ in range(FEW if rank else 0):
            search.sweep()
        found.append(search.error())
    least = 1e-12 * float(np.sum(target * search.wanted)) or 1e-300
    logs = np.log(np.maximum(found, least))
    return list(map(float, np.exp(np.interp(ranks, tried, logs))))


class _Search:
    """Factors, and what they leave of the target: E = S (T - T')."""

    def __init__(
        self, target: Array, moment: Array, groups: int, fine: bool
    ) -> None:
        d, n = target.shape
        own, outputs = d // groups, n // groups if fine else 0
        self.target, self.moment = target, moment
        self.wanted = moment @ target
        self.rows = [slice(i * own, (i + 1) * own) for i in range(groups)]
        self.columns = [
            slice(i * outputs, (i + 1) * outputs) for i in range(groups)
        ]
        self.factors = Factors(
            np.zeros((groups, own, outputs)),
            np.zeros((groups, own, 0)),
            np.zeros((groups, 0, n)),
        )
        self.left = self.wanted.copy()
        # The inverses of L_i, with S_ii = L_i L_i^T.
        self.whiten = [
            np.linalg.inv(np.linalg.cholesky(moment[i, i])) for i in self.rows
        ]

    @property
    def rank(self) -> int:
        return self.factors.restriction.shape[-1]

    def move(self, factors: Factors) -> None:
        """Take other factors."""
        self.factors = Factors(*(part.copy() for part in factors))
        self.left = self.wanted - self.gathered() @ np.concatenate(
            self.factors.coarse
        )
        for i, j, g in zip(
            self.rows, self.columns, self.factors.group, strict=True
        ):
            self.left[:, j] -= self.moment[:, i] @ g

    def gathered(self) -> Array:
        """Return S R."""
        parts = zip(self.rows, self.factors.restriction, strict=True)
        return np.concatenate([self.moment[:, i] @ r for i, r in parts], axis=1)

    def error(self) -> float:
        return float(np.sum((self.target - self.factors.dense()) * self.left))

    def descend(self) -> Factors:
        """Improve the factors in turn, until a sweep gains little.

        A sweep starts ahead of where the last one ended, in the direction in
        which it went (Nesterov's acceleration). If that leads up, the next one
        starts where the best one ended.
        """
        best, error, ahead = self.factors, self.error(), 0
        for _ in range(SWEEPS):
            self.sweep()
            now = self.error()
            gain = error - now
            if gain < 0:
                ahead = 0
                self.move(best)
                continue
            last, best, error = best, self.factors, now
            if gain < TOLERANCE * error:
                break
            ahead += 1
            share = ahead / (ahead + 3)
            self.move(
                Factors(
                    *(
                        b + share * (b - a)
                        for a, b in zip(last, best, strict=True)
                    )
                )
            )
        return best

    def sweep(self) -> None:
        """Improve each of the factors once."""
        self.improve_restriction()
        self.improve_coarse()
        self.improve_group()

    def improve_group(self) -> None:
        """Improve G, each G_j by itself, since no other one shares columns."""
        for i, j, whiten, g in zip(
            self.rows,
            self.columns,
            self.whiten,
            self.factors.group,
            strict=True,
        ):
            step = whiten.T @ (whiten @ self.left[i, j])
            g += step
            self.left[:, j] -= self.moment[:, i] @ step

    def add_pairs(self, count: int) -> None:
        """Add columns to R_i and rows to C_i, for one i after the other.

        Their product comes closest to `S_ii^-1 E_i` in the norm that S_ii
        gives. With `S_ii = L L^T` this is the best approximation of
        `L^-1 E_i`.
        """
        restriction = np.zeros((*self.factors.restriction.shape[:2], count))
        coarse = np.zeros((len(restriction), count, self.target.shape[1]))
        for i, whiten, r, c in zip(
            self.rows, self.whiten, restriction, coarse, strict=True
        ):
            white = whiten @ self.left[i]
            is_wide = white.shape[0] <= white.shape[1]
            vectors = np.linalg.eigh(_gram(white))[1][:, ::-1][:, :count]
            found = vectors.shape[1]  # There may be fewer than asked for.
            left = vectors if is_wide else white @ vectors
            r[:, :found] = whiten.T @ left
            c[:found] = vectors.T @ white if is_wide else vectors.T
            self.left -= (self.moment[:, i] @ r) @ c
        group, *pairs = self.factors
        self.factors = Factors(
            group,
            np.concatenate([pairs[0], restriction], axis=2),
            np.concatenate([pairs[1], coarse], axis=1),
        )

    def improve_restriction(self) -> None:
        for i, whiten, r, c in zip(
            self.rows,
            self.whiten,
            self.factors.restriction,
            self.factors.coarse,
            strict=True,
        ):
            step = whiten.T @ (whiten @ (self.left[i] @ c.T))
            step = _solved(c @ c.T, step.T).T
            r += step
            self.left -= (self.moment[:, i] @ step) @ c

    def improve_coarse(self) -> None:
        """Improve C, of all groups at once."""
        gathered = self.gathered()
        parts = list(zip(self.rows, self.factors.restriction, strict=True))
        power = np.concatenate([r.T @ gathered[i] for i, r in parts])
        slope = np.concatenate([r.T @ self.left[i] for i, r in parts])
        step = _solved(power, slope)
        self.factors.coarse[:] += step.reshape(self.factors.coarse.shape)
        self.left -= gathered @ step


def _gram(x: Array) -> Array:
    """Return the smaller one of `x x^T` and `x^T x`."""
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    return np.asarray(gram)


def _solved(power: Array, slope: Array) -> Array:
    """Return the step that minimises, also where factors do not count."""
    scale = np.mean(np.diagonal(power)) or 1.0
    damped = power + 1e-12 * scale * np.eye(len(power))
    return np.asarray(np.linalg.solve(damped, slope))
