"""Timing single convolutions."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_tlgc.applications.building import convolution_args
from keras_tlgc.applications.convolutions import CONVOLUTIONS, Kind
from keras_tlgc.lab.benchmark.backends import attained, step_of_layer
from keras_tlgc.lab.benchmark.rows import (
    DTYPES,
    RUNS,
    Conditions,
    Row,
    Step,
    fill,
)
from keras_tlgc.ops import LOWERINGS
from keras_tlgc.precision import bytes_of
from keras_tlgc.validation import one_of, positive_int
from keras_tlgc.variables import kernel_size


class Shape(NamedTuple):
    """A convolution: the side of its output, channels, filters, kernel size."""

    size: int
    channels: int
    filters: int
    kernel_size: int
    strides: int = 1


SHAPES = {
    # The stages of WideResNet-28-10, WideResNet-34-2, and 1x1 convolutions of
    # MobileNetV2.
    "wrn1": Shape(32, 160, 160, 3),
    "wrn2": Shape(16, 320, 320, 3),
    "wrn3": Shape(8, 640, 640, 3),
    # Of WideResNet-10-1, and the widths between those and the others.
    "narrow1": Shape(32, 16, 16, 3),
    "narrow2": Shape(16, 32, 32, 3),
    "narrow3": Shape(8, 64, 64, 3),
    "narrow4": Shape(56, 64, 64, 3),
    "imagenet1": Shape(56, 128, 128, 3),
    "imagenet2": Shape(28, 256, 256, 3),
    "imagenet3": Shape(14, 512, 512, 3),
    "imagenet4": Shape(7, 1024, 1024, 3),
    "mobilenet-expand0": Shape(112, 16, 96, 1),
    "mobilenet-expand1": Shape(56, 24, 144, 1),
    "mobilenet-expand2": Shape(14, 96, 576, 1),
    "mobilenet-project2": Shape(14, 576, 96, 1),
    "mobilenet-head": Shape(7, 320, 1280, 1),
    # Of its depthwise convolutions, with as many groups as channels.
    "depthwise1": Shape(56, 96, 96, 3, strides=2),
    "depthwise2": Shape(56, 144, 144, 3),
    "depthwise3": Shape(28, 192, 192, 3),
    "depthwise4": Shape(14, 384, 384, 3),
    "depthwise5": Shape(14, 576, 576, 3),
    "depthwise6": Shape(7, 960, 960, 3),
}

KINDS = {
    **CONVOLUTIONS,
    "keras": Kind(keras.layers.Conv2D, ("groups",), "Conv2D(groups)"),
}
WITH_LOWERING = ("group", "shuffle", "two_level", "balanced", "low_rank")


def benchmark_layers(
    shapes: Sequence[str] = ("wrn",),
    convs: Sequence[str] = ("keras", "group", "two_level"),
    groups: Sequence[int] = (4, 16),
    lowerings: Sequence[str] = ("auto",),
    **conditions: Any,
) -> Iterator[list[Row]]:
    """Time convolutions against the standard one of the same shape.

    All convolutions in one list of rows run in turns, in one process. The
    memory is what the compiler plans on JAX, and what is taken elsewhere.

    Args:
        shapes: names in `SHAPES`, or beginnings of such names.
        convs: kinds of convolution beside the standard one, keys of `KINDS`.
        groups: integers, the numbers N of groups. Those that do not divide
            the channels of a shape are left out there.
        lowerings: how our layers are computed. Those that cannot compute a
            shape are left out there.
        **conditions: the fields of `Conditions`.

    Yields:
        Lists of `Row`, those of one shape, run and dtype, the standard
        convolution first.

    Raises:
        ValueError: if a name is unknown or a number is not a positive integer.
    """
    names = [name for prefix in shapes for name in _named(prefix)]
    for conv in convs:
        one_of("conv", conv, KINDS)
    for lowering in lowerings:
        one_of("lowering", lowering, LOWERINGS)
    under = Conditions(**conditions)
    for run in under.runs:
        one_of("run", run, ("training", "forward"))
    if under.jit_compile is False and keras.backend.backend() == "jax":
        raise ValueError(
            "Steps of layers are always compiled on JAX. "
            f"Received: jit_compile={under.jit_compile}. Pass 'auto'."
        )
    variants = [("standard", 1, "auto")] + [
        (conv, positive_int("groups", n), lowering)
        for n, conv in itertools.product(groups, convs)
        for lowering in (lowerings if conv in WITH_LOWERING else ["auto"])
        if conv != "standard"
    ]
    for dtype in under.dtypes:
        rates = attained(dtype)
        for name, run in itertools.product(names, under.runs):
            rows = [
                _row(*variant, under, case=name, run=run, dtype=dtype)
                for variant in variants
                if _fits(SHAPES[name], *variant)
            ]
            filled = fill(rows, under.rounds)
            for row in filled:
                _relate(row, filled[0], SHAPES[name], rates)
            yield filled


def _named(prefix):
    names = [name for name in SHAPES if name.startswith(prefix)]
    return names or [one_of("shape", prefix, SHAPES)]


def _fits(shape, conv, groups, lowering):
    divides = not (shape.channels % groups or shape.filters % groups)
    return divides and (lowering != "matmul" or shape.kernel_size == 1)


def _row(conv, groups, lowering, under, **about):
    """Return a row without numbers, and the function that makes its step."""
    kind = KINDS[conv]
    r = under.coarse_channels
    options: dict[str, Any] = kind.taken(groups=groups, coarse_channels=r)
    label = kind.label_of(r)
    if lowering != "auto":
        options["lowering"] = lowering
        label = f"{label}, {lowering}"
    row = under.row(conv=conv, label=label, groups=groups, **about)
    shape = SHAPES[row.case]

    def make() -> Step:
        layer = kind.make(
            shape.filters,
            shape.kernel_size,
            strides=shape.strides,
            data_format=row.data_format,
            dtype=DTYPES[row.dtype],
            **convolution_args(),
            **options,
        )
        side = shape.size * shape.strides
        sizes = [row.batch_size, side, side]
        axis = 1 if row.data_format == "channels_first" else 3
        sizes.insert(axis, shape.channels)
        x = np.random.default_rng(0).normal(size=sizes).astype("float32")
        layer.build(x.shape)
        row.gflop = _gflop(layer, shape, row)
        return step_of_layer(layer, x, row.run == "training", row.jit_compile)

    return row, make


def _gflop(layer, shape, row):
    """Count the operations: a kernel's entries for each output position."""
    positions = row.batch_size * shape.size**2
    return 2 * RUNS[row.run] * positions * kernel_size(layer) / 1e9


def _relate(row, standard, shape, rates):
    """Set what the row's time is to be compared with."""
    row.limit = row.gflop / standard.gflop
    passes = RUNS[row.run]
    positions = row.batch_size * shape.size**2
    kernels = 1e9 * row.gflop / (2 * passes * positions)
    read = shape.channels * shape.strides**2
    entries = positions * (read + shape.filters) + kernels
    moved = passes * bytes_of(row.dtype) * entries
    least = max(1e9 * row.gflop / rates[0], moved / rates[1])
    row.to_roofline = row.ms / (1000 * least)
