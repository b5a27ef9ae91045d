"""What a third level would save, and what it would cost.

    OMP_NUM_THREADS=1 KERAS_BACKEND=torch python benchmarks/levels.py

With many groups the coarse operator C is itself a dense product, of N coarse
channels to n outputs. As in multigrid it can be split once more: M sets of
N / M groups each condense their coarse channels to one (T),

    y = G x + (blockdiag(B) + D T) R x,

where B couples the groups of a set, and D all sets. Instead of N n parameters
that takes N n / M + N + M n, and between nodes, each of which holds a set, M
channels are exchanged instead of N.

The command trains networks of four convolutions, of 128 channels, with each
kind on the same batches of Fashion-MNIST (or, with `--data mnist5k`, digits)
and prints their parameters and errors.
"""

import argparse
import functools
import statistics

import keras
import numpy as np

from keras_tlgc.applications.convolutions import coarse_initializer, convolution
from keras_tlgc.lab import load_data
from keras_tlgc.layers import GroupConv2D

CHANNELS = 128


def three_level(x, groups, sets):
    """Return G x + (blockdiag(B) + D T) R x."""
    conv = functools.partial(GroupConv2D, padding="same", use_bias=False)
    he = keras.initializers.HeNormal
    coarse = {"kernel_initializer": coarse_initializer("two_level")}
    filters = x.shape[-1]
    fine = conv(filters, 3, groups=groups, kernel_initializer=he())(x)
    r = conv(groups, 3, groups=groups, kernel_initializer=he())(x)
    within = conv(filters, 1, groups=sets, **coarse)(r)
    condensed = conv(sets, 1, groups=sets, kernel_initializer="lecun_normal")(r)
    between = conv(filters, 1, **coarse)(condensed)
    return keras.layers.add([fine, within, between])


def one_of_ours(x, conv, groups, coarse_channels=1):
    make = convolution(conv, groups, coarse_channels)
    return make(
        x.shape[-1],
        3,
        padding="same",
        use_bias=False,
        kernel_initializer=keras.initializers.HeNormal(),
    )(x)


# Of both comparisons, by what their convolutions cost.
KINDS = {
    "GC, N = 32": (one_of_ours, {"conv": "group", "groups": 32}),
    "GC-2L, N = 16": (one_of_ours, {"conv": "two_level", "groups": 16}),
    "GC-2L, N = 32": (one_of_ours, {"conv": "two_level", "groups": 32}),
    "GC-3L, N = 32, M = 8": (three_level, {"groups": 32, "sets": 8}),
    "GC-3L, N = 32, M = 4": (three_level, {"groups": 32, "sets": 4}),
    "Low rank, N = 8, r = 3": (
        one_of_ours,
        {"conv": "low_rank", "groups": 8, "coarse_channels": 3},
    ),
    "GC, N = 64": (one_of_ours, {"conv": "group", "groups": 64}),
    "GC-2L, N = 64": (one_of_ours, {"conv": "two_level", "groups": 64}),
    "GC-3L, N = 64, M = 8": (three_level, {"groups": 64, "sets": 8}),
    "Low rank, N = 8, r = 2": (
        one_of_ours,
        {"conv": "low_rank", "groups": 8, "coarse_channels": 2},
    ),
}


def network(image_shape, classes, make, options):
    inputs = keras.Input(image_shape)
    x = keras.layers.Conv2D(CHANNELS, 3, 2, "same", use_bias=False)(inputs)
    for i in range(4):
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU()(x)
        if i == 2:
            x = keras.layers.MaxPooling2D()(x)
        x = make(x, **options)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(inputs, keras.layers.Dense(classes, "softmax")(x))


def error_of(seed, data, kind, options):
    """Return parameters of one convolution, and the error in percent."""
    make, arguments = KINDS[kind]
    keras.utils.set_random_seed(seed)
    rows = np.random.default_rng(seed).permutation(len(data.x_train))
    rows = rows[: options.images]
    shape = data.x_train.shape[1:]
    model = network(shape, data.classes, make, arguments)
    ends = keras.Input((14, 14, CHANNELS))
    layer = keras.Model(ends, make(ends, **arguments))
    steps = options.epochs * -(-len(rows) // 50)
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(0.05, steps), momentum=0.9
        ),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(
        *(data.x_train[rows], data.y_train[rows]),
        batch_size=50,
        epochs=options.epochs,
        verbose=0,
    )
    accuracy = model.evaluate(data.x_test, data.y_test, 500, verbose=0)[1]
    return layer.count_params(), 100 * (1 - accuracy)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    data = load_data(options.data)
    print("| kind | parameters of a convolution | error (%), by seed | mean |")
    print("| --- | ---: | --- | ---: |")
    for kind in KINDS:
        runs = [error_of(s, data, kind, options) for s in range(options.seeds)]
        errors = [error for _, error in runs]
        cells = ", ".join(f"{error:.1f}" for error in errors)
        mean = statistics.mean(errors)
        print(f"| {kind} | {runs[0][0]:,} | {cells} | {mean:.1f} |", flush=True)


if __name__ == "__main__":
    main()
