"""What trained weights are worth after a conversion, on real digits.

    OMP_NUM_THREADS=1 KERAS_BACKEND=torch python benchmarks/projection.py

trains WideResNets of standard convolutions on 5,000 MNIST digits, converts each
with `keras_tlgc.convert`, and fine-tunes what came out, on the same batches. It
compares these starts:

- `projected`: the two-level kernels closest to the trained ones;
- `truncated`: the diagonal blocks of the trained kernels alone, with a coarse
  level that has still to be learnt (C = 0, R at random);
- `random`: new kernels; biases, normalisations, first and last layer as they
  were;
- of GC, which has one level, `truncated` alone: these are its closest kernels.

Accuracy is measured right after the conversion, with the statistics of the
normalisations estimated anew (no weight changes), and after the fine-tuning.
Each seed runs in a process of its own, as many at a time as there are cores.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import keras

import keras_tlgc
from keras_tlgc.lab import Batches, Settings, load_data, train
from keras_tlgc.layers import TwoLevelGroupConv2D

STAGES = ["converted", "statistics anew", "fine-tuned"]
STATISTICS_BATCHES = 40  # With a momentum of 0.9 the old ones count 1.5%.


class Start(NamedTuple):
    """A network to fine-tune."""

    label: str
    groups: int
    model: keras.Model
    error: float | None = None  # Of the kernels, mean over layers.


def starts(model, groups, coarse_channels):
    """Yield the starts to compare, from one trained network, for one N."""

    def convert(weights, conv="two_level"):
        r = coarse_channels if conv == "two_level" else 1
        return keras_tlgc.convert(model, groups, conv, r, weights=weights)

    def error(report):
        return statistics.mean(row.error for row in report.converted)

    projected, report = convert("project")
    yield Start("GC-2L projected", groups, projected, error(report))
    one_level, report = convert("project", "group")
    truncated, _ = convert("random")
    for layer in truncated.layers:
        if isinstance(layer, TwoLevelGroupConv2D):
            layer.kernel.assign(one_level.get_layer(layer.name).kernel)
            layer.coarse_kernel.assign(layer.coarse_kernel * 0.0)
    yield Start("GC-2L truncated", groups, truncated, error(report))
    yield Start("GC-2L random", groups, convert("random").model)
    yield Start("GC truncated", groups, one_level, error(report))


def accuracies(model, data, seed, options):
    """Fine-tune; return the held-out accuracy (%) at each of `STAGES`."""
    chosen = slice(None, None, options.every)
    batches = Batches(data.pixels_train[chosen], data.y_train[chosen], 50, seed)
    decay = keras.optimizers.schedules.CosineDecay(
        options.rate, options.epochs * len(batches)
    )

    def compile_with(rate):
        model.compile(
            keras.optimizers.SGD(rate, momentum=0.9),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )

    def accuracy():
        _, share = model.evaluate(data.pixels_test, data.y_test, verbose=0)
        return 100 * share

    compile_with(0.0)
    found = [accuracy()]
    for i in range(STATISTICS_BATCHES):
        model.train_on_batch(*batches[i % len(batches)])
    found.append(accuracy())
    compile_with(decay)
    for epoch in range(options.epochs):
        batches.set_epoch(epoch)
        model.fit(batches, shuffle=False, verbose=0)
    return [*found, accuracy()]


def trained(options, seed):
    """Return a network of standard convolutions, trained."""
    settings = Settings(
        conv="standard",
        model=options.model,
        epochs=options.train_epochs,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        train(settings, folder, verbose=0)
        return keras.saving.load_model(f"{folder}/model.keras")


def measure(options):
    """Map each start's label, N and parameters to its errors and accuracies."""
    rows = {}
    with ProcessPoolExecutor(
        os.cpu_count(), multiprocessing.get_context("spawn")
    ) as pool:
        runs = [pool.submit(measure_seed, options, s) for s in options.seeds]
        for run in runs:
            for key, values in run.result():
                rows.setdefault(key, []).append(values)
    return rows


def measure_seed(options, seed):
    data = load_data("mnist5k")
    original = trained(options, seed)
    candidates = [Start("SC", 1, keras.models.clone_model(original))]
    candidates[0].model.set_weights(original.get_weights())
    for groups in options.groups:
        candidates += starts(original, groups, options.coarse_channels)
    rows = []
    for start in candidates:
        found = accuracies(start.model, data, seed, options)
        key = start.label, start.groups, start.model.count_params()
        rows.append((key, (start.error, *found)))
        numbers = ", ".join(f"{n:.1f}" for n in found)
        print(
            f"Seed {seed}, {start.label}, N = {start.groups}: {numbers}",
            flush=True,
        )
    return rows


def print_table(rows):
    columns = ["start", "N", "parameters", "error of kernels", *STAGES]
    print()
    print_row(columns)
    print_row(["---", *["---:"] * (len(columns) - 1)])
    for (label, groups, params), runs in rows.items():
        errors, *stages = zip(*runs, strict=True)
        error = "" if None in errors else f"{statistics.mean(errors):.2f}"
        cells = [label, str(groups), f"{params:,}", error]
        print_row([*cells, *map(mean_and_spread, stages)])


def mean_and_spread(values):
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def print_row(cells):
    print("|", " | ".join(cells), "|")


def integers(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="wrn-10-1", help="network, as in train --model")
    add("--train-epochs", type=int, default=5, help="of the original")
    add("--groups", type=integers, default=[2, 4, 8], help="numbers N")
    add("--coarse-channels", type=int, default=1, help="of each group")
    add("--epochs", type=int, default=3, help="of fine-tuning")
    add("--rate", type=float, default=0.05, help="of fine-tuning, at first")
    add("--every", type=int, default=1, help="fine-tune on each k-th image")
    add("--seeds", type=integers, default=[0, 1])
    options = parser.parse_args()
    print(f"Keras {keras.__version__}, {keras.backend.backend()}")
    try:
        rows = measure(options)
    except ValueError as error:
        parser.error(str(error))
    print_table(rows)


if __name__ == "__main__":
    main()
