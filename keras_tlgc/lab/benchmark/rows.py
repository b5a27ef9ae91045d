"""What a benchmark measures, row by row, and how rows are timed in turns."""

import csv
import dataclasses
import gc
import io
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras

from keras_tlgc.files import write_text
from keras_tlgc.lab.tables import markdown_table
from keras_tlgc.ops.lowerings import device_of
from keras_tlgc.timing import in_turns, ratio
from keras_tlgc.validation import one_of, positive_int

# Kinds of runs, and how many times the forward pass's operations they take.
RUNS = {"training": 3, "forward": 1, "folded": 1}
DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


class Step(NamedTuple):
    """Something to time: `run()` computes and waits for the result.

    `peak_bytes()` is the most memory that a run takes beyond its inputs and
    weights, NaN where that is unknown.
    """

    run: Callable[[], object]
    peak_bytes: Callable[[], float]


@dataclasses.dataclass
class Row:
    """One measurement. Numbers that were not measured are NaN.

    Attributes:
        backend, device: strings, the backend of Keras and its kind of device.
        case: name of the layer's shape, or of the network.
        conv: kind of convolution: a key of `CONVOLUTIONS`, or `"keras"` for
            Keras' own grouped convolution.
        label: the kind's name in tables, with the lowering unless `"auto"`.
        groups: int, the number N of groups.
        run: `"training"` (forward and all gradients; of a network, a train
            step), `"forward"`, or `"folded"`, which is forward with batch
            normalisation folded into the convolutions.
        dtype: `"float32"` or `"bfloat16"`, the latter with float32 weights.
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
            compiler plans for a layer on JAX, else what is taken. Unknown for
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


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What all rows of a benchmark have in common.

    Args:
        coarse_channels: int, coarse channels of each group.
        runs: names in `RUNS`.
        dtypes: names in `DTYPES`.
        data_format: `"channels_last"` or `"channels_first"`.
        batch_size: int.
        jit_compile: as in `keras.Model.compile`.
        rounds: int, how often each step is timed.

    Raises:
        ValueError: if a name is unknown or a number is not a positive integer.
    """

    coarse_channels: int = 1
    runs: Sequence[str] = ("training",)
    dtypes: Sequence[str] = ("float32",)
    data_format: str = "channels_last"
    batch_size: int = 16
    jit_compile: bool | str = "auto"
    rounds: int = 7

    def __post_init__(self):
        for run in self.runs:
            one_of("run", run, RUNS)
        for dtype in self.dtypes:
            one_of("dtype", dtype, DTYPES)
        formats = ["channels_last", "channels_first"]
        one_of("data_format", self.data_format, formats)
        positive_int("coarse_channels", self.coarse_channels)
        positive_int("batch_size", self.batch_size)
        positive_int("rounds", self.rounds)

    def row(self, **about: Any) -> Row:
        """Return a row without numbers."""
        return Row(
            backend=keras.backend.backend(),
            device=device_of(keras.ops.zeros(())),
            data_format=self.data_format,
            jit_compile=self.jit_compile,
            batch_size=self.batch_size,
            **about,
        )


def fill(rows: list[tuple[Row, Callable[[], Step]]], rounds: int) -> list[Row]:
    """Time steps in turns and fill their rows; the first one is the standard.

    With each row comes a function that builds its step and runs it once. A row
    whose step fails carries the error and no numbers.
    """
    steps: dict[int, Step] = {}
    for i, (row, make) in enumerate(rows):
        try:
            begin = time.perf_counter()
            step = make()
            row.compile_s = time.perf_counter() - begin
            step.run()  # This warms up.
            row.peak_mb = step.peak_bytes() / 1e6
            steps[i] = step
        except Exception as error:
            row.compile_s = math.nan
            text = f"{type(error).__name__}: {error}"
            row.error = " ".join(text.split())[:300]
    found = in_turns([step.run for step in steps.values()], rounds, warm_up=0)
    times = dict(zip(steps, found, strict=True))
    for i, taken in times.items():
        row = rows[i][0]
        row.ms, row.low_ms, row.high_ms = (
            of(taken) for of in (statistics.median, min, max)
        )
        row.compile_s = max(row.compile_s - row.ms / 1000, 0.0)
        if 0 in times:
            row.to_standard = ratio(taken, times[0])
    gc.collect()
    return [row for row, _ in rows]


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write rows as CSV, whole at every moment."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Row))
    writer.writerows(map(dataclasses.astuple, rows))
    write_text(path, text.getvalue())


COLUMNS = {
    "case": lambda row: row.case,
    "kind": lambda row: row.label,
    "N": lambda row: str(row.groups),
    "ms": lambda row: _number(row.ms, ".1f"),
    "least..most": lambda row: f"{row.low_ms:.1f}..{row.high_ms:.1f}",
    "to SC": lambda row: _number(row.to_standard, ".3f"),
    "limit": lambda row: _number(row.limit, ".3f"),
    "to roofline": lambda row: _number(row.to_roofline, ".1f"),
    "compile (s)": lambda row: _number(row.compile_s, ".1f"),
    "peak (MB)": lambda row: _number(row.peak_mb, ".0f"),
    "GFLOP": lambda row: _number(row.gflop, ".2f"),
    "images/s": lambda row: _number(1000 * row.batch_size / row.ms, ".1f"),
}


def markdown(rows: Sequence[Row]) -> str:
    """Return rows of one kind of run as a Markdown table, with its title.

    Failures are listed below the table.
    """
    row = rows[0]
    title = (
        f"### {row.backend} on {row.device}, {row.run}, {row.dtype}, "
        f"{row.data_format}, jit_compile={row.jit_compile}, batch "
        f"{row.batch_size}\n"
    )
    cells = [[of(row) for of in COLUMNS.values()] for row in rows if row.ms > 0]
    failures = [
        f"\n{row.case}, {row.label}, N = {row.groups}: {row.error}"
        for row in rows
        if row.error
    ]
    table = markdown_table([*COLUMNS], cells, ["case", "kind"])
    return "\n".join([title, table, *failures])


def _number(value, spec):
    return "" if math.isnan(value) else format(value, spec)
