"""Whether a budget of time is kept by the network that is deployed.

    OMP_NUM_THREADS=1 KERAS_BACKEND=torch python benchmarks/time_budget.py

trains a WideResNet of standard convolutions on MNIST digits for each seed, and
converts it with 1,000 unlabelled training images to shares of its time in
onnxruntime, and to shares of its multiply-adds. All networks are then deployed
and timed in turns in onnxruntime, on one thread and one image. The table has
what was asked, what the layers timed one by one promise, what the whole network
takes, what is left of the multiply-adds, the mean squared difference of the
outputs to those of the original as a share of their variance, and the accuracy
on 1,000 held-out digits (%).

The least time of 50 rounds counts, since other work on the machine only ever
adds to it.
"""

import argparse
import functools
import pathlib
import re
import statistics
import tempfile
import time

import convert_fit
import keras
import numpy as np

import keras_tlgc
from keras_tlgc.lab import exported, load_data
from keras_tlgc.timing import times_in_turns

COLUMNS = ("budget of", "asked", "promised", "ms", "to original")
COLUMNS += ("multiply-adds", "output error", "accuracy")


def promised(report):
    """Return the share that a budget says it leaves."""
    return float(re.search(r"have ([\d.]+) of", report.notes[-1])[1])


def measure(model, data, options):
    """Return rows of the table for one trained network."""
    images = data.sample(options.images)
    y = model.predict(data.pixels_test, verbose=0)
    rows, models = [["", 1.0, 1.0, 1.0]], [model]
    ways = [("time", b) for b in options.times]
    ways += [("multiply_adds", b) for b in options.adds]
    for of, budget in ways:
        runtime = exported.in_onnxruntime if of == "time" else None
        start = time.perf_counter()
        new, report = keras_tlgc.convert(
            model, budget=budget, of=of, runtime=runtime, data=images, verbose=0
        )
        seconds = time.perf_counter() - start
        print(f"{of}, {budget}: {seconds:.0f} s, {report.notes[-1]}")
        if options.verbose:
            print(report, flush=True)
        rows.append([of, budget, promised(report), convert_fit.share(report)])
        models.append(new)
    for row, one, ms in zip(rows, models, deployed(models, data), strict=True):
        missed = one.predict(data.pixels_test, verbose=0) - y
        error = np.mean(missed**2) / np.var(y)
        row[3:3] = [ms]
        row += [error, convert_fit.score(one, data)]
    return rows


def deployed(models, data):
    """Return the milliseconds of networks in onnxruntime."""
    with tempfile.TemporaryDirectory() as folder:
        calls = []
        for i, model in enumerate(models):
            path = pathlib.Path(folder, f"{i}.onnx")
            exported.write(keras_tlgc.deploy(model), path)
            x = data.pixels_test[:1].astype("float32")
            calls.append(functools.partial(exported.runner(path, 1), x))
        return times_in_turns(calls, 50, of=min)


def print_table(runs):
    print(f"\n| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for rows in zip(*runs, strict=True):
        of, asked, *values = zip(*rows, strict=True)
        said, ms, adds, error, score = map(statistics.mean, values)
        ratio = statistics.mean(
            row[3] / run[0][3] for row, run in zip(rows, runs, strict=True)
        )
        print(
            f"| {of[0] or 'original'} | {asked[0]} | {said:.2f} | {ms:.2f} | "
            f"{ratio:.2f} | {adds:.2f} | {error:.4f} | {score:.1f} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=convert_fit.numbers, default=[0])
    parser.add_argument("--load", help="A trained network, instead of seeds.")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument(
        "--times", type=convert_fit.shares, default=[0.8, 0.65, 0.5]
    )
    parser.add_argument(
        "--adds", type=convert_fit.shares, default=[0.7, 0.5, 0.35, 0.25]
    )
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    data = load_data("mnist5k")
    models = (
        [keras.saving.load_model(options.load)]
        if options.load
        else (convert_fit.trained(s, options.epochs) for s in options.seeds)
    )
    print_table([measure(model, data, options) for model in models])
