"""What keeps two levels from learning what groups have to exchange.

    OMP_NUM_THREADS=1 KERAS_BACKEND=torch python benchmarks/initialization.py

trains networks of two-level convolutions, of 64 channels in 8 groups, on the
task `pairs`, whose labels no group knows. It has as many as `--seeds` for each
setting of: the gain that C starts with, to that of the networks' builders; the
rate; how long it stays up; batch normalisation between R and C; and the
convolutions, one after the other. The table has the share of a convolution's
variance that C R carries at the start, the errors in percent, and how many runs
ended above `--stuck`.
"""

import argparse
import functools
import statistics

import keras
import numpy as np
from convert_fit import fit, score

from keras_tlgc.applications.building import batch_norm_relu, convolution_args
from keras_tlgc.applications.convolutions import coarse_initializer
from keras_tlgc.lab import Settings, load_data
from keras_tlgc.layers import GroupConv2D

CHANNELS = 64
EARLY, LATE = (0.3, 0.6, 0.8), (0.7, 0.9)
DEFAULTS = {
    "depth": 4,
    "groups": 8,
    "start": "builders",
    "gain": 1.0,
    "normalised": False,
    "learning_rate": 0.1,
    "drops": EARLY,
    "epochs": 8,
}
# Each changes something of the defaults.
SETTINGS = [
    {},
    {"gain": 0.0},
    {"gain": 0.5},
    {"gain": 2.83},  # What He et al. (2015) propose for the forward pass.
    {"start": "layer"},
    {"normalised": True},
    {"learning_rate": 0.03},
    {"drops": LATE},
    {"drops": LATE, "gain": 2.83},
    {"drops": LATE, "epochs": 20},
    {"depth": 3},
    {"depth": 2},
    {"groups": 1},
]


def two_levels(x, groups, start, gain, normalised):
    """Return G x + C R x and C R x.

    All kernels start as those of networks of `keras_tlgc.applications`, C times
    the gain, or as those of a `TwoLevelGroupConv2D` by itself.
    """
    args = convolution_args()
    if start == "layer":
        args["kernel_initializer"] = "glorot_uniform"
    conv = functools.partial(GroupConv2D, groups=groups, **args)
    fine = conv(CHANNELS, 3)(x)
    r = conv(groups, 3)(x)
    if normalised:
        r = keras.layers.BatchNormalization(momentum=0.9)(r)
    if start == "builders":
        initializer = coarse_initializer("two_level")
        initializer.scale *= gain**2
        args["kernel_initializer"] = initializer if gain else "zeros"
    coarse = keras.layers.Conv2D(CHANNELS, 1, **args)(r)
    return keras.layers.add([fine, coarse]), coarse


def network(image_shape, classes, depth, **options):
    """Return the network, and one with the terms of its convolutions."""
    x = inputs = keras.Input(image_shape)
    terms = []
    for i in range(depth):
        both, coarse = two_levels(x, **options)
        terms.append((both, coarse))
        x = batch_norm_relu(both, f"norm{i}")
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(classes, "softmax")(x)
    return keras.Model(inputs, outputs), keras.Model(inputs, terms)


def run(data, seed, epochs, drops, learning_rate, **options):
    """Return C R's mean share of the variance at the start, and the error."""
    keras.utils.set_random_seed(seed)
    settings = Settings(
        seed=seed, epochs=epochs, drops=drops, learning_rate=learning_rate
    )
    model, terms = network(data.image_shape, data.classes, **options)
    shares = [
        np.var(coarse) / np.var(both)
        for both, coarse in terms.predict(data.pixels_train[:500], verbose=0)
    ]
    fit(model, settings, data)
    return statistics.mean(map(float, shares)), 100 - score(model, data)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--stuck", type=float, default=5.0)
    options = parser.parse_args()
    data = load_data("pairs")
    print("| changed | share of C R | errors (%) | mean | stuck |")
    print("| --- | ---: | --- | ---: | ---: |")
    for change in SETTINGS:
        runs = [
            run(data, seed, **{**DEFAULTS, **change})
            for seed in range(options.seeds)
        ]
        shares, errors = zip(*runs, strict=True)
        cells = [
            ", ".join(f"{name} = {value}" for name, value in change.items()),
            f"{statistics.mean(shares):.2f}",
            ", ".join(f"{error:.1f}" for error in errors),
            f"{statistics.mean(errors):.1f}",
            f"{sum(error > options.stuck for error in errors)}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
