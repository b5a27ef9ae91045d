"""Deployed networks against those they replace, in other runtimes and in Keras.

    KERAS_BACKEND=torch python benchmarks/deployment.py
    KERAS_BACKEND=torch python benchmarks/deployment.py --int8
    KERAS_BACKEND=torch python benchmarks/deployment.py --runtime openvino
    KERAS_BACKEND=tensorflow python benchmarks/deployment.py --runtime litert
    KERAS_BACKEND=torch python benchmarks/deployment.py --predict

One thread, one image, medians in turns. Weights are random, and so are the
images that the ranges of integers are taken from. The size of a file is given
in MB, and as a ratio to that of the weights alone as floats.
"""

import argparse
import functools
import itertools
import pathlib
import tempfile

import keras
import numpy as np

import keras_tlgc
from keras_tlgc.applications import MobileNetV2, WideResNet
from keras_tlgc.lab import exported
from keras_tlgc.lab.tables import markdown_table
from keras_tlgc.timing import times_in_turns


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


def in_openvino(path, threads):
    """Return a function that runs an ONNX file in OpenVINO."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads}
    model = openvino.Core().compile_model(path, "CPU", options)
    return lambda x: model(x)[0]


RUNTIMES = {
    "onnxruntime": (".onnx", exported.runner),
    "openvino": (".onnx", in_openvino),
    "litert": (".tflite", exported.runner),
}


def in_runtime(options, name, build, numbers):
    """Yield a row for the network and each of its deployed forms."""
    suffix, runner = RUNTIMES[options.runtime]
    x, numbers = random(build(), 8), [None, *numbers]
    ranges = [None, x] if options.int8 else [None]
    with tempfile.TemporaryDirectory() as folder:
        calls, sizes = [], []
        for groups, calibration in itertools.product(numbers, ranges):
            path = pathlib.Path(folder, f"{len(calls)}{suffix}")
            plain = keras_tlgc.deploy(build(groups))
            exported.write(plain, path, calibration)
            calls.append(functools.partial(runner(path, 1), x[:1]))
            size = exported.size(path)
            to_weights = f"{size / (4 * plain.count_params()):.2f}"
            sizes.append([f"{size / 1e6:.1f}", to_weights])
        times = times_in_turns(calls, options.rounds)
    step = len(ranges)
    for i, groups in zip(range(0, len(times), step), numbers, strict=True):
        ratio = f"{times[i] / times[0]:.2f}"
        row = [name, str(groups or 1), f"{times[i]:.1f}", ratio, *sizes[i]]
        if options.int8:
            row += [f"{times[i + 1] / times[i]:.2f}", *sizes[i + 1]]
        yield row


def in_keras(options, name, build, numbers):
    """Yield a row for each two-level network, as it is and deployed."""
    for groups in numbers:
        model = build(groups)
        models = [
            model,
            keras_tlgc.deploy(model),
            keras_tlgc.deploy(model, measure=True),
        ]
        x = random(model, 1)
        calls = [functools.partial(m.predict_on_batch, x) for m in models]
        own, *plain = times_in_turns(calls, options.rounds)
        ratios = [f"{ms / own:.2f}" for ms in plain]
        yield [name, str(groups), f"{own:.1f}", *ratios]


def random(model, count):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, *model.input_shape[1:])).astype("float32")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--runtime", default="onnxruntime", choices=RUNTIMES)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    options = parser.parse_args()
    columns = ["network", "N", "ms", "to standard", "MB", "to weights"]
    rows = in_runtime
    if options.int8:
        columns += ["int8 to float", "int8 MB", "to weights "]
    if options.predict:
        columns = ["network", "N", "own ms", "deployed", "measure=True"]
        rows = in_keras
    found = [
        row
        for name in options.networks
        for row in rows(options, name, *NETWORKS[name])
    ]
    print(markdown_table(columns, found, ["network"]))


if __name__ == "__main__":
    main()
