"""Timing whole networks as users run them."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_tlgc.applications.convolutions import CONVOLUTIONS, pair
from keras_tlgc.costs import model_costs
from keras_tlgc.lab.benchmark.backends import peak_bytes
from keras_tlgc.lab.benchmark.rows import (
    DTYPES,
    RUNS,
    Conditions,
    Row,
    Step,
    fill,
)
from keras_tlgc.precision import dtype_policy
from keras_tlgc.rewrite import fold_batch_norm


def benchmark_networks(
    name: str,
    build: Callable[..., keras.Model],
    convs: Sequence[str] = ("group", "two_level"),
    groups: Sequence[int] = (4,),
    **conditions: Any,
) -> Iterator[list[Row]]:
    """Time a network of each kind of convolution against the standard one.

    A run of `"training"` is one step of SGD with momentum by
    `train_on_batch`. A run of `"forward"` or `"folded"` is one call of
    `predict_on_batch`.

    Args:
        name: string, the network's name in the rows.
        build: function that takes `conv`, `groups` and `coarse_channels` and
            returns the network.
        convs: kinds of convolution beside the standard one.
        groups: integers, the numbers N of groups.
        **conditions: the fields of `Conditions`.

    Yields:
        Lists of `Row`, those of one run and dtype, the standard network first.

    Raises:
        ValueError: if a name is unknown or a number is not a positive integer.
    """
    variants = pair(dict.fromkeys(["standard", *convs]), groups)
    under = Conditions(**conditions)
    keras.config.set_image_data_format(under.data_format)
    for dtype, run in itertools.product(under.dtypes, under.runs):
        rows = [
            under.row(
                case=name,
                conv=conv,
                label=CONVOLUTIONS[conv].label_of(under.coarse_channels),
                groups=n,
                run=run,
                dtype=dtype,
            )
            for conv, n in variants
        ]
        rows = fill(
            [(row, _maker(row, build, under)) for row in rows], under.rounds
        )
        for row in rows:
            row.limit = row.gflop / rows[0].gflop
        keras.utils.clear_session()
        yield rows


def _maker(row, build, under):
    options = CONVOLUTIONS[row.conv].taken(
        groups=row.groups, coarse_channels=under.coarse_channels
    )

    def make() -> Step:
        with dtype_policy(DTYPES[row.dtype]):
            model = build(conv=row.conv, **options)
        with contextlib.suppress(ValueError):  # Sizes may be unknown.
            adds = model_costs(lambda: model).multiply_adds
            row.gflop = 2 * RUNS[row.run] * row.batch_size * adds / 1e9
        if row.run == "folded":
            model = fold_batch_norm(model)
        model.compile(
            keras.optimizers.SGD(0.01, momentum=0.9),
            "sparse_categorical_crossentropy",
            jit_compile=row.jit_compile,
        )
        random = np.random.default_rng(0)
        x = random.normal(size=(row.batch_size, *model.inputs[0].shape[1:]))
        x = x.astype("float32")
        classes = math.prod(model.outputs[0].shape[1:])
        y = random.integers(0, classes, size=row.batch_size)

        def run():
            if row.run == "training":
                return model.train_on_batch(x, y)
            return model.predict_on_batch(x)

        run()
        return Step(run, lambda: peak_bytes(run))

    return make
