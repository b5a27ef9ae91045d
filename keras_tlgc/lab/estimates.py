"""How long a comparison will take, from a few steps of each network."""

import math
import time
from collections.abc import Callable, Sized
from typing import NamedTuple

import keras

from keras_tlgc.lab.benchmark.backends import peak_bytes
from keras_tlgc.lab.comparison import Comparison
from keras_tlgc.lab.outcomes import Configuration
from keras_tlgc.lab.run import build_network
from keras_tlgc.lab.tables import markdown_table
from keras_tlgc.precision import dtype_policy

# Steps are timed for about as many seconds, and at most so many of them.
SECONDS, MOST_STEPS = 3.0, 50


class Estimate(NamedTuple):
    """What one run will take.

    Attributes:
        configuration: the `Configuration`.
        step: float, the seconds of a train step, with its images.
        hours: float, those of all epochs, held-out images included.
        memory: float, the bytes that training takes beside what was held
            before it; NaN where that is unknown.
        failure: string, why it cannot be trained; empty if it can.
    """

    configuration: Configuration
    step: float = math.nan
    hours: float = math.nan
    memory: float = math.nan
    failure: str = ""


def estimate(comparison: Comparison, data=None) -> list[Estimate]:
    """Estimate how long each network of a comparison trains, and what it takes.

    A few steps of each are run as `compare` would run them, on this machine, on
    one device. Nothing is written.

    Args:
        comparison: the `Comparison`.
        data: optional images of the comparison, if they are read already.

    Returns:
        A list with an `Estimate` for each configuration, each for one seed.
    """
    runs = comparison.runs()[: len(comparison.configurations())]
    data = data or runs[0].load_data()
    return [_estimate(settings, data) for settings in runs]


def estimates_table(comparison: Comparison, rows: list[Estimate]) -> str:
    """Return a table in Markdown, and what all runs take one after another."""
    columns = ["Type", "N", "Seconds a step", "Hours a run", "Memory, GiB"]
    cells = [
        [
            row.configuration.label,
            f"{row.configuration.groups}",
            f"{row.step:.3g}",
            f"{row.hours:.3g}",
            f"{row.memory / 2**30:.2f}",
        ]
        for row in rows
    ]
    table = markdown_table(columns, cells, ["Type"]).replace(" nan |", "   - |")
    possible = [row.hours for row in rows if not row.failure]
    seeds = len(comparison.seeds)
    lines = [
        table,
        "",
        f"In all: {len(possible) * seeds} runs, one after the other, take "
        f"about {seeds * sum(possible):.3g} hours.",
    ]
    lines += [
        f"{row.configuration.title} cannot be trained: {row.failure}"
        for row in rows
        if row.failure
    ]
    return "\n".join(lines)


def _estimate(settings, data) -> Estimate:
    configuration = Configuration.of(settings)
    keras.utils.clear_session()
    try:
        with dtype_policy(settings.precision):
            return Estimate(configuration, *_measured(settings, data))
    except Exception as error:  # As in `compare`, the next one may do.
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return Estimate(configuration, failure=message)


def _measured(settings, data) -> tuple[float, float, float]:
    """Return seconds a step, hours in all, and bytes."""
    batches = data.train_batches(settings, settings.seed)
    test = data.test_batches(settings.batch_size)
    model = build_network(settings, data)
    model.compile(
        optimizer=settings.optimizer(len(batches)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )

    def training(steps):
        model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)

    def testing(steps):
        model.evaluate(test, steps=steps, verbose=0)

    compiling = _seconds(training, 1) + _seconds(testing, 1)
    memory = peak_bytes(lambda: training(1))
    step, held_out = _each(training, batches), _each(testing, test)
    epoch = len(batches) * step + len(test) * held_out
    return step, (compiling + settings.epochs * epoch) / 3600, memory


def _each(run: Callable[[int], None], batches: Sized) -> float:
    """Return the seconds of one step, without those of beginning."""
    once = _seconds(run, 1)
    most = min(len(batches) - 1, MOST_STEPS)
    steps = min(max(1, round(SECONDS / once)), most)
    if not steps:
        return once
    return max(_seconds(run, 1 + steps) - once, 0.0) / steps


def _seconds(run, steps):
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start
