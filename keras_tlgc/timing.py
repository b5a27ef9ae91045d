"""How long functions take, one beside the other."""

import statistics
import time
from collections.abc import Callable, Sequence

ROUNDS = 15  # How often each function runs.
WARM_UP = 2  # Rounds before that, in which some compile.


def in_turns(
    functions: Sequence[Callable[[], object]],
    rounds: int = ROUNDS,
    warm_up: int = WARM_UP,
) -> list[list[float]]:
    """Return the milliseconds of functions that run in turns.

    What else the machine does then slows all of them down alike.

    Args:
        functions: what is timed.
        rounds: how often each of them runs.
        warm_up: rounds before those, which do not count.

    Returns:
        List of the times of each function, one for each round.
    """
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(warm_up + rounds):
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            found.append(1e3 * (time.perf_counter() - start))
    return [found[warm_up:] for found in times]


def times_in_turns(
    functions: Sequence[Callable[[], object]],
    rounds: int = ROUNDS,
    of: Callable[[list[float]], float] = statistics.median,
) -> list[float]:
    """Return one time of each function: see `in_turns`.

    Args:
        functions: what is timed.
        rounds: how often each of them runs.
        of: function of a list of times, such as `min`: on a machine that is
            busy, the median of short ones tells who else had its turn.
    """
    return [of(found) for found in in_turns(functions, rounds)]


def ratios(times: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the ratios of two functions' times, round by round, in order."""
    pairs = zip(times, others, strict=True)
    return sorted(a / b for a, b in pairs)


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median over the rounds of `ratios`."""
    return statistics.median(ratios(times, others))
