"""Timing single convolutions."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_tlgc.applications.building import convolution_args
from keras_tlgc.applications.convolutions import CONVOLUTIONS, Kind
from keras_tlgc.benchmark.backends import attained, device, layer_step
from keras_tlgc.benchmark.rows import RUNS, Row, Step, fill
from keras_tlgc.costs import BYTES
from keras_tlgc.ops import LOWERINGS
from keras_tlgc.validation import one_of, positive_int


class Shape(NamedTuple):
    """A convolution: the side of its input, channels, filters, kernel size."""

    size: int
    channels: int
    filters: int
    kernel_size: int


SHAPES = {
    # The stages of WideResNet-28-10, WideResNet-34-2, and 1x1 convolutions of
    # MobileNetV2.
    "wrn1": Shape(32, 160, 160, 3),
    "wrn2": Shape(16, 320, 320, 3),
    "wrn3": Shape(8, 640, 640, 3),
    "imagenet1": Shape(56, 128, 128, 3),
    "imagenet2": Shape(28, 256, 256, 3),
    "imagenet3": Shape(14, 512, 512, 3),
    "imagenet4": Shape(7, 1024, 1024, 3),
    "mobilenet-expand1": Shape(56, 24, 144, 1),
    "mobilenet-expand2": Shape(14, 96, 576, 1),
    "mobilenet-project2": Shape(14, 576, 96, 1),
    "mobilenet-head": Shape(7, 320, 1280, 1),
}

KINDS = {
    **CONVOLUTIONS,
    "keras": Kind(keras.layers.Conv2D, ("groups",), "Conv2D(groups)"),
}
DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
WITH_LOWERING = ("group", "shuffle", "two_level")


def benchmark_layers(
    shapes: Sequence[str] = ("wrn",),
    convs: Sequence[str] = ("keras", "group", "two_level"),
    groups: Sequence[int] = (4, 16),
    lowerings: Sequence[str] = ("auto",),
    runs: Sequence[str] = ("training",),
    dtypes: Sequence[str] = ("float32",),
    data_format: str = "channels_last",
    batch_size: int = 16,
    jit_compile: bool | str = "auto",
    rounds: int = 7,
    seconds: float = 3.0,
) -> Iterator[list[Row]]:
    """Time convolutions against the standard one of the same shape.

    All that are compared in one list of rows run in turns, in one process. On
    JAX the memory is what the compiler plans, elsewhere what is taken.

    Args:
        shapes: names in `SHAPES`, or beginnings of such names.
        convs: kinds of convolution beside the standard one: keys of
            `CONVOLUTIONS`, or `"keras"`: `keras.layers.Conv2D(groups=N)`.
        groups: integers, the numbers N of groups. Those that do not divide
            the channels of a shape are left out there.
        lowerings: how our layers are computed. Those that cannot compute a
            shape are left out there.
        runs: `"training"`, `"forward"`.
        dtypes: `"float32"`, `"bfloat16"`.
        data_format: `"channels_last"` or `"channels_first"`.
        batch_size: int.
        jit_compile: as in `keras.Model.compile`.
        rounds: int, how often each is timed.
        seconds: float, after which a slow one is timed 3 times only.

    Yields:
        Lists of `Row`, those of one shape, run and dtype, the standard
        convolution first.

    Raises:
        ValueError: if a name is unknown or a number no positive integer.
    """
    names = [name for prefix in shapes for name in _named(prefix)]
    for conv in convs:
        one_of("conv", conv, KINDS)
    for n in (*groups, batch_size, rounds):
        positive_int("groups, batch_size and rounds", n)
    for run in runs:
        one_of("run", run, ("training", "forward"))
    for dtype in dtypes:
        one_of("dtype", dtype, DTYPES)
    for lowering in lowerings:
        one_of("lowering", lowering, LOWERINGS)
    one_of("data_format", data_format, ["channels_last", "channels_first"])
    variants = [("standard", 1, "auto")] + [
        (conv, n, lowering)
        for n, conv in itertools.product(groups, convs)
        for lowering in (lowerings if conv in WITH_LOWERING else ["auto"])
        if conv != "standard"
    ]
    common = {
        "backend": keras.backend.backend(),
        "device": device(),
        "data_format": data_format,
        "jit_compile": jit_compile,
        "batch_size": batch_size,
    }
    for dtype in dtypes:
        rates = attained(dtype)
        for name, run in itertools.product(names, runs):
            rows = [
                _row(*variant, case=name, run=run, dtype=dtype, **common)
                for variant in variants
                if _fits(SHAPES[name], *variant)
            ]
            filled = fill(rows, rounds, seconds)
            for row in filled:
                _relate(row, filled[0], SHAPES[name], rates)
            yield filled


def _named(prefix):
    names = [name for name in SHAPES if name.startswith(prefix)]
    return names or [one_of("shape", prefix, SHAPES)]


def _fits(shape, conv, groups, lowering):
    divides = not (shape.channels % groups or shape.filters % groups)
    return divides and (lowering != "matmul" or shape.kernel_size == 1)


def _row(conv, groups, lowering, **about):
    """Return a row without numbers, and what builds its step."""
    kind = KINDS[conv]
    options = {"groups": groups} if "groups" in kind.options else {}
    label = kind.label
    if lowering != "auto":
        options["lowering"] = lowering
        label = f"{label}, {lowering}"
    row = Row(conv=conv, label=label, groups=groups, **about)
    shape = SHAPES[row.case]

    def make() -> Step:
        layer = kind.make(
            shape.filters,
            shape.kernel_size,
            data_format=row.data_format,
            dtype=DTYPES[row.dtype],
            **convolution_args(),
            **options,
        )
        sizes = [row.batch_size, shape.size, shape.size]
        axis = 1 if row.data_format == "channels_first" else 3
        sizes.insert(axis, shape.channels)
        x = np.random.default_rng(0).normal(size=sizes).astype("float32")
        layer.build(x.shape)
        row.gflop = _gflop(layer, shape, row)
        return layer_step(layer, x, row.run == "training", row.jit_compile)

    return row, make


def _gflop(layer, shape, row):
    """Count the operations: a kernel's entries for each output position."""
    kernels = sum(_size(v) for v in layer.weights if "kernel" in v.name)
    positions = row.batch_size * shape.size**2
    return 2 * RUNS[row.run] * positions * kernels / 1e9


def _relate(row, standard, shape, rates):
    """Set what the row's time is to be compared with."""
    row.limit = row.gflop / standard.gflop
    passes = RUNS[row.run]
    positions = row.batch_size * shape.size**2
    kernels = 1e9 * row.gflop / (2 * passes * positions)
    entries = positions * (shape.channels + shape.filters) + kernels
    moved = passes * BYTES[row.dtype] * entries
    least = max(1e9 * row.gflop / rates[0], moved / rates[1])
    row.to_roofline = row.ms / (1000 * least)


def _size(variable):
    return math.prod(variable.shape)
