"""What a benchmark measures, row by row, and how rows are timed in turns."""

import csv
import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from keras_tlgc.files import write_whole

# Kinds of runs, and how many times the forward pass's operations they take.
RUNS = {"training": 3, "forward": 1, "folded": 1}
MIN_ROUNDS = 3


class Step(NamedTuple):
    """Something to time: `run()` computes and waits for the result.

    `peak_bytes()` is the most memory that a run takes beyond its inputs and
    weights, NaN where that cannot be told.
    """

    run: Callable[[], object]
    peak_bytes: Callable[[], float]


@dataclasses.dataclass
class Row:
    """One measurement. Numbers that were not measured are NaN.

    Attributes:
        backend, device: strings, of Keras and of its first device.
        case: name of the layer's shape, or of the network.
        conv: kind of convolution: a key of `CONVOLUTIONS`, or `"keras"` for
            Keras' own grouped convolution.
        label: the kind's name in tables, with the lowering unless `"auto"`.
        groups: int, the number N of groups.
        run: `"training"` (forward and all gradients; of a network, a train
            step), `"forward"`, or `"folded"`, which is forward with batch
            normalisation folded into the convolutions.
        dtype: `"float32"` or `"bfloat16"`, the latter over float32 weights.
        data_format: `"channels_last"` or `"channels_first"`.
        jit_compile: as in `keras.Model.compile`.
        batch_size: int.
        ms, low_ms, high_ms: median, least and most milliseconds of a run.
        to_standard: median over rounds of the time relative to the standard
            convolution in the same round.
        limit: operations relative to the standard convolution.
        to_roofline: time relative to the least that the layer's operations
            and bytes take, at the rates that a large matrix product and a
            large sum attained in the same process.
        compile_s: seconds to build, compile and run once, less one run.
        peak_mb: megabytes of memory beyond inputs and weights: what the
            compiler plans for a layer on JAX, else what is taken. Not told of
            TensorFlow on a CPU.
        gflop: floating-point operations of a run, in 1e9.
        error: why there are no numbers, or an empty string.
    """

    backend: str
    device: str
    case: str
    conv: str
    label: str
    groups: int
    run: str
    dtype: str
    data_format: str
    jit_compile: bool | str
    batch_size: int
    ms: float = math.nan
    low_ms: float = math.nan
    high_ms: float = math.nan
    to_standard: float = math.nan
    limit: float = math.nan
    to_roofline: float = math.nan
    compile_s: float = math.nan
    peak_mb: float = math.nan
    gflop: float = math.nan
    error: str = ""


def fill(
    rows: list[tuple[Row, Callable[[], Step]]], rounds: int, seconds: float
) -> list[Row]:
    """Time steps in turns and fill their rows; the first one is the standard.

    Args:
        rows: list of pairs: a row, and a function that builds its step and
            runs it once.
        rounds: int, the most times each step is timed.
        seconds: float, after which a step sits out further rounds, once it
            was timed 3 times.

    Returns:
        The rows. One whose step failed carries the error and no numbers.
    """
    steps: dict[int, Step] = {}
    times: dict[int, list[float]] = {}
    for i, (row, make) in enumerate(rows):
        try:
            begin = time.perf_counter()
            step = make()
            row.compile_s = time.perf_counter() - begin
            step.run()  # Warm.
            row.peak_mb = step.peak_bytes() / 1e6
            steps[i], times[i] = step, []
        except Exception as error:
            row.compile_s = math.nan
            text = f"{type(error).__name__}: {error}"
            row.error = " ".join(text.split())[:300]
    for done in range(rounds):
        running = [
            (i, step)
            for i, step in steps.items()
            if done < MIN_ROUNDS or sum(times[i]) <= seconds
        ]
        if not running:
            break
        for i, step in running:
            begin = time.perf_counter()
            step.run()
            times[i].append(time.perf_counter() - begin)
    for i, taken in times.items():
        row = rows[i][0]
        row.ms, row.low_ms, row.high_ms = (
            1000 * of(taken) for of in (statistics.median, min, max)
        )
        row.compile_s = max(row.compile_s - row.ms / 1000, 0.0)
        if 0 in times:
            pairs = zip(taken, times[0], strict=False)
            row.to_standard = statistics.median(a / b for a, b in pairs)
    gc.collect()
    return [row for row, _ in rows]


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write rows as CSV, whole at every moment."""

    def write(path):
        with open(path, "w", newline="") as file:
            names = [field.name for field in dataclasses.fields(Row)]
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(map(dataclasses.asdict, rows))

    write_whole(path, write)


COLUMNS = {
    "case": lambda row: row.case,
    "kind": lambda row: row.label,
    "N": lambda row: str(row.groups),
    "ms": lambda row: _number(row.ms, ".1f"),
    "least..most": lambda row: (
        f"{_number(row.low_ms, '.1f')}..{_number(row.high_ms, '.1f')}"
    ),
    "to SC": lambda row: _number(row.to_standard, ".3f"),
    "limit": lambda row: _number(row.limit, ".3f"),
    "to roofline": lambda row: _number(row.to_roofline, ".1f"),
    "compile (s)": lambda row: _number(row.compile_s, ".1f"),
    "peak (MB)": lambda row: _number(row.peak_mb, ".0f"),
    "GFLOP": lambda row: _number(row.gflop, ".2f"),
    "images/s": lambda row: _number(1000 * row.batch_size / row.ms, ".1f"),
}


def markdown(rows: Iterable[Row]) -> str:
    """Return rows as Markdown tables, one for each kind of run."""
    tables: dict[str, list[Row]] = {}
    for row in rows:
        title = (
            f"{row.backend} on {row.device}, {row.run}, {row.dtype}, "
            f"{row.data_format}, jit_compile={row.jit_compile}, batch "
            f"{row.batch_size}"
        )
        tables.setdefault(title, []).append(row)
    return "\n\n".join(
        "\n".join([f"### {title}", "", *_table(members)])
        for title, members in tables.items()
    )


def _table(rows):
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"| {' | '.join(['---'] * len(COLUMNS))} |"
    for row in rows:
        cells = [of(row) for of in COLUMNS.values()]
        if row.error:
            cells[3:] = [row.error.replace("|", "/")]
        yield f"| {' | '.join(cells)} |"


def _number(value, spec):
    return "" if math.isnan(value) else format(value, spec)
