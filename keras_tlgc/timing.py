"""How long functions take, one beside the other."""

import statistics
import time
from collections.abc import Callable, Sequence

ROUNDS = 15  # How often each function runs.
WARM_UP = 2  # Rounds before that, in which some compile.


def times_in_turns(
    functions: Sequence[Callable[[], object]],
    rounds: int = ROUNDS,
    of: Callable[[list[float]], float] = statistics.median,
) -> list[float]:
    """Return the milliseconds of functions that run in turns.

    What else the machine does then slows all of them down alike.

    Args:
        functions: what is timed.
        rounds: how often each of them runs.
        of: function of a list of times, such as `min`: on a machine that is
            busy, the median of short ones tells who else had its turn.
    """
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(WARM_UP + rounds):
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            found.append(1e3 * (time.perf_counter() - start))
    return [of(found[WARM_UP:]) for found in times]
