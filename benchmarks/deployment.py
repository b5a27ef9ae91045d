"""Deployed networks against those they replace, in onnxruntime and in Keras.

    KERAS_BACKEND=torch python benchmarks/deployment.py
    KERAS_BACKEND=torch python benchmarks/deployment.py --predict

One thread, one image, medians in turns. Weights are random.
"""

import argparse
import functools
import pathlib
import tempfile

import keras
import numpy as np

import keras_tlgc
from keras_tlgc.applications import MobileNetV2, WideResNet
from keras_tlgc.lab import exported
from keras_tlgc.lab.tables import markdown_table


def resnet(groups=None):
    model = keras.applications.ResNet50V2(weights=None)
    if groups is None:
        return model
    rule = keras_tlgc.rewrite.largest_divisor(groups)
    return keras_tlgc.convert(model, rule, weights="random", verbose=0).model


def of_ours(build, groups=None):
    if groups is None:
        return build()
    return build(conv="two_level", groups=groups)


NETWORKS = {
    "WideResNet-28-10": (functools.partial(of_ours, WideResNet), [4, 16]),
    "ResNet50V2": (resnet, [4, 8]),
    "MobileNetV2": (functools.partial(of_ours, MobileNetV2), [4, 8]),
}


def in_onnxruntime(name, build, numbers, rounds):
    """Yield a row for the network and each of its deployed forms."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for groups in [None, *numbers]:
            paths.append(pathlib.Path(folder, f"{groups}.onnx"))
            exported.write(keras_tlgc.deploy(build(groups)), paths[-1])
        runs = [exported.runner(path, 1) for path in paths]
        x = zeros(build())
        calls = [functools.partial(run, x) for run in runs]
        times = exported.times_in_turns(calls, rounds)
        for groups, path, ms in zip([1, *numbers], paths, times, strict=True):
            size = f"{exported.size(path) / 1e6:.1f}"
            ratio = f"{ms / times[0]:.2f}"
            yield [name, str(groups), f"{ms:.1f}", ratio, size]


def in_keras(name, build, numbers, rounds):
    """Yield a row for each two-level network, as it is and deployed."""
    for groups in numbers:
        model = build(groups)
        models = [
            model,
            keras_tlgc.deploy(model),
            keras_tlgc.deploy(model, measure=True),
        ]
        x = zeros(model)
        calls = [functools.partial(m.predict_on_batch, x) for m in models]
        own, *plain = exported.times_in_turns(calls, rounds)
        ratios = [f"{ms / own:.2f}" for ms in plain]
        yield [name, str(groups), f"{own:.1f}", *ratios]


def zeros(model):
    return np.zeros((1, *model.input_shape[1:]), "float32")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    options = parser.parse_args()
    columns = ["network", "N", "ms", "to standard", "MB"]
    rows = in_onnxruntime
    if options.predict:
        columns = ["network", "N", "own ms", "deployed", "measure=True"]
        rows = in_keras
    found = [
        row
        for name in options.networks
        for row in rows(name, *NETWORKS[name], options.rounds)
    ]
    print(markdown_table(columns, found, ["network"]))


if __name__ == "__main__":
    main()
