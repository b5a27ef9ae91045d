"""Timing whole networks as users run them."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np

from keras_tlgc.applications.convolutions import CONVOLUTIONS, pair
from keras_tlgc.benchmark.backends import device, peak_bytes
from keras_tlgc.benchmark.layers import DTYPES
from keras_tlgc.benchmark.rows import RUNS, Row, Step, fill
from keras_tlgc.costs import model_costs
from keras_tlgc.folding import fold_batch_norm
from keras_tlgc.precision import dtype_policy
from keras_tlgc.validation import one_of, positive_int


def benchmark_networks(
    name: str,
    build: Callable[..., keras.Model],
    convs: Sequence[str] = ("group", "two_level"),
    groups: Sequence[int] = (4,),
    runs: Sequence[str] = ("training",),
    dtypes: Sequence[str] = ("float32",),
    batch_size: int = 16,
    jit_compile: bool | str = "auto",
    rounds: int = 5,
    seconds: float = 60.0,
) -> Iterator[list[Row]]:
    """Time a network of each kind of convolution against the standard one.

    A run of `"training"` is one step of SGD with momentum by
    `train_on_batch`, of `"forward"` and `"folded"` one of `predict_on_batch`.

    Args:
        name: string, the network's name in the rows.
        build: function that takes `conv` and `groups` and returns the network.
        convs: kinds of convolution beside the standard one.
        groups: integers, the numbers N of groups.
        runs: names in `RUNS`.
        dtypes: `"float32"`, `"bfloat16"`.
        batch_size: int.
        jit_compile: as in `keras.Model.compile`.
        rounds: int, how often each is timed.
        seconds: float, after which a slow one is timed 3 times only.

    Yields:
        Lists of `Row`, those of one run and dtype, the standard network first.

    Raises:
        ValueError: if a name is unknown or a number no positive integer.
    """
    variants = pair(dict.fromkeys(["standard", *convs]), groups)
    for n in (batch_size, rounds):
        positive_int("batch_size and rounds", n)
    for run in runs:
        one_of("run", run, RUNS)
    for dtype in dtypes:
        one_of("dtype", dtype, DTYPES)
    for dtype, run in itertools.product(dtypes, runs):
        pairs = []
        for conv, n in variants:
            row = Row(
                backend=keras.backend.backend(),
                device=device(),
                case=name,
                conv=conv,
                label=CONVOLUTIONS[conv].label,
                groups=n,
                run=run,
                dtype=dtype,
                data_format=keras.config.image_data_format(),
                jit_compile=jit_compile,
                batch_size=batch_size,
            )
            pairs.append((row, _maker(row, build)))
        rows = fill(pairs, rounds, seconds)
        for row in rows:
            row.limit = row.gflop / rows[0].gflop
        del pairs
        keras.utils.clear_session()
        yield rows


def _maker(row, build):
    options = {"groups": row.groups} if row.groups != 1 else {}

    def make() -> Step:
        with dtype_policy(DTYPES[row.dtype]):
            model = build(conv=row.conv, **options)
        with contextlib.suppress(ValueError):  # Sizes that are not known.
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
