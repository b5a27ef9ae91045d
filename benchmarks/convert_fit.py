"""What a converted network still knows, without any training, on real digits.

    OMP_NUM_THREADS=1 KERAS_BACKEND=torch python benchmarks/convert_fit.py

trains a WideResNet-10-1 of standard convolutions on 4,000 MNIST digits for each
seed, and converts it with `keras_tlgc.convert`: with projected kernels, and
with layers fitted on unlabelled training images. The table has the accuracy on
1,000 held-out digits (%), and the mean over layers of the share of the outputs'
variance that a layer misses on images that it was not fitted to.

With `--resnet50 224` it converts a ResNet50 of random weights and images of
that size instead, as many as `--images` says, with 4 groups or with `--budget`,
and prints seconds, those of the processors, and the peak of the memory. Use
`OMP_NUM_THREADS=2` for both cores.

Of networks at a share of their cost, `conversion.py` makes the table.
"""

import argparse
import resource
import statistics
import tempfile
import time

import keras
import numpy as np

import keras_tlgc
from keras_tlgc.lab import Settings, load_data, train
from keras_tlgc.rewrite.rows import changed
from keras_tlgc.rewrite.rules import Choice


def trained(seed, epochs):
    """Return a network of standard convolutions, trained."""
    settings = Settings(
        conv="standard", model="wrn-10-1", epochs=epochs, seed=seed
    )
    with tempfile.TemporaryDirectory() as folder:
        train(settings, folder, verbose=0)
        return keras.saving.load_model(f"{folder}/model.keras")


def fit(model, settings, data, verbose=0):
    """Train a network on the batches and with the rates of `settings`."""
    batches = data.train_batches(settings, settings.seed)
    model.compile(
        settings.optimizer(len(batches)), "sparse_categorical_crossentropy"
    )
    in_order = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: batches.set_epoch(epoch)
    )
    model.fit(
        batches,
        epochs=settings.epochs,
        shuffle=False,
        callbacks=[in_order],
        verbose=verbose,
    )


def score(model, data):
    """Return the accuracy on held-out images in percent."""
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return 100 * model.evaluate(data.pixels_test, data.y_test, verbose=0)[1]


def measure(options):
    """Map N and parameters to a list of accuracies and errors, by seed."""
    data = load_data("mnist5k")
    images = data.sample(options.images)
    rows = {}
    for seed in options.seeds:
        model = trained(seed, options.epochs)
        original = score(model, data)
        rows.setdefault((1, model.count_params()), []).append(
            (original, original, 0.0)
        )
        for groups in options.groups:
            projected, _ = keras_tlgc.convert(model, groups, options.conv)
            fitted, report = keras_tlgc.convert(
                model, groups, options.conv, data=images
            )
            error = statistics.mean(r.output_error for r in report.converted)
            found = score(projected, data), score(fitted, data), error
            print(f"Seed {seed}, N = {groups}: {found}", flush=True)
            key = groups, fitted.count_params()
            rows.setdefault(key, []).append(found)
    return rows


def share(report):
    """Return what is left of the multiply-adds of the convolutions."""
    before = sum(row.multiply_adds for row in report.rows)
    return sum(row.new_multiply_adds for row in report.rows) / before


def uniform(model, rows, conv, groups, budget):
    """Return how to convert all layers alike, with the most that fits."""
    best = None
    for rank in range(1, 2 if conv == "group" else 65):
        choice = Choice(conv, groups, rank)
        layers = [(row, model.get_layer(row.name)) for row in rows]
        left = sum(
            row.multiply_adds
            if choice.why_not(layer)
            else changed(row, layer, choice).new_multiply_adds
            for row, layer in layers
        )
        if left <= budget * sum(row.multiply_adds for row in rows):
            best = choice._asdict()
    return best


def measure_resnet50(options):
    """Print what it takes to convert a ResNet50, layer by layer."""
    keras.utils.set_random_seed(0)
    shape = options.resnet50, options.resnet50, 3
    model = keras.applications.ResNet50(weights=None, input_shape=shape)
    rng = np.random.default_rng(0)
    images = rng.random((options.images, *shape), "float32")
    start = time.perf_counter()

    def track(steps):
        for done, step in enumerate(steps, 1):
            yield step
            seconds = time.perf_counter() - start
            print(f"{done} of {len(steps)}: {used(seconds)}", flush=True)

    way = {"budget": options.budget} if options.budget else {"groups": 4}
    _, report = keras_tlgc.convert(model, data=images, track=track, **way)
    print(report)
    print(used(time.perf_counter() - start))


def used(seconds):
    """Return what this process has used so far, as text."""
    now = resource.getrusage(resource.RUSAGE_SELF)
    busy = now.ru_utime + now.ru_stime
    peak = now.ru_maxrss / 2**20
    return f"{seconds:.0f} s, {busy:.0f} s of processors, {peak:.2f} GiB"


def print_table(rows):
    print("\n| N | parameters | kernels | outputs | output error |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for (groups, params), runs in rows.items():
        *accuracies, errors = zip(*runs, strict=True)
        cells = [f"{groups}", f"{params:,}", *map(mean_and_spread, accuracies)]
        print(f"| {' | '.join(cells)} | {statistics.mean(errors):.3f} |")


def mean_and_spread(values):
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def numbers(text, kind=int):
    return [kind(part) for part in text.split(",")]


def shares(text):
    return numbers(text, float)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--groups", type=numbers, default=[2, 4, 8])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--conv", default="two_level")
    parser.add_argument("--budget", type=float)
    parser.add_argument("--resnet50", type=int)
    options = parser.parse_args()
    if options.resnet50:
        measure_resnet50(options)
    else:
        print_table(measure(options))
