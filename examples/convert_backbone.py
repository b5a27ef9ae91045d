"""Make a KerasHub network smaller: train, convert, fine-tune, compare.

    pip install -e ".[jax,tensorflow,cli,hub]"
    KERAS_BACKEND=jax python examples/convert_backbone.py

A ResNet for 32x32 images, which is KerasHub's ResNet-18 without its last stage,
is trained on 4,000 MNIST digits. Its convolutions become two-level group
convolutions that start from the trained kernels, and the training goes on.
Nothing is downloaded; a backbone `from_preset` is converted the same way.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import keras
import keras_hub
import numpy as np

import keras_tlgc
from keras_tlgc.lab import load_data
from keras_tlgc.rewrite import largest_divisor

SIZE = 32


def main():
    args = parse_arguments()
    keras.utils.set_random_seed(args.seed)
    data = load_data("mnist5k")
    chosen = np.random.default_rng(args.seed).permutation(len(data.x_train))
    chosen = chosen[: args.images]
    x_train, y_train = as_photos(data.x_train[chosen]), data.y_train[chosen]
    x_test, y_test = as_photos(data.x_test), data.y_test

    def accuracy(model):
        return 100 * model.evaluate(x_test, y_test, verbose=0)[1]

    before = build_classifier(data.classes)
    fit(before, x_train, y_train, args.epochs)

    # Each convolution gets the most groups that divide its channels, up to a
    # limit.
    after, report = keras_tlgc.convert(before, largest_divisor(args.groups))
    print(report)
    fit(after, x_train, y_train, args.epochs)

    models = [before, after]
    accuracies = [accuracy(model) for model in models]
    seconds = seconds_in_turns(models, x_test[: args.batch_size], args.rounds)
    print("\n| | before | after | ratio |\n| --- | ---: | ---: | ---: |")
    print_row("parameters", [model.count_params() for model in models])
    print_row(".keras file, bytes", [file_bytes(model) for model in models])
    print_row(
        f"predict {args.batch_size} images, ms",
        [1000 * statistics.median(taken) for taken in seconds],
        ratio=statistics.median(b / a for a, b in zip(*seconds, strict=True)),
    )
    print_row("held-out accuracy, %", accuracies)


def as_photos(digits):
    """Return images as `build_classifier` takes them: larger, in RGB."""
    if keras.config.image_data_format() == "channels_first":
        digits = np.moveaxis(digits, 1, -1)
    images = keras.ops.image.resize(
        digits, (SIZE, SIZE), data_format="channels_last"
    )
    return np.repeat(keras.ops.convert_to_numpy(images), 3, axis=-1)


def build_classifier(classes):
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256],
        stackwise_num_blocks=[2, 2, 2],
        stackwise_num_strides=[1, 2, 2],
        block_type="basic_block",
        image_shape=(SIZE, SIZE, 3),
        data_format="channels_last",
    )
    return keras_hub.models.ResNetImageClassifier(
        backbone=backbone, num_classes=classes
    )


def fit(model, x, y, epochs):
    batch_size = 32
    steps = epochs * -(-len(x) // batch_size)
    rate = keras.optimizers.schedules.CosineDecay(0.02, steps)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=2)


def seconds_in_turns(models, x, rounds):
    """Return the seconds of each round, the models predicting in turn."""
    seconds = [[] for _ in models]
    for number in range(rounds + 2):
        for model, taken in zip(models, seconds, strict=True):
            begin = time.perf_counter()
            model.predict_on_batch(x)
            if number >= 2:  # The first rounds compile and warm up.
                taken.append(time.perf_counter() - begin)
    return seconds


def file_bytes(model):
    model.compile()  # The file is to leave out what the optimizer keeps.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.stat().st_size


def print_row(name, values, ratio=None):
    before, after = values
    digits = 0 if isinstance(before, int) else 1
    cells = [f"{value:,.{digits}f}" for value in values]
    print(
        "|", " | ".join([name, *cells, f"{ratio or after / before:.2f}"]), "|"
    )


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--groups", type=int, default=8, help="most groups of a convolution")
    add("--epochs", type=int, default=3, help="before, and again after")
    add("--images", type=int, default=4000, help="to train on")
    add("--batch-size", type=int, default=64, help="of what is timed")
    add("--rounds", type=int, default=20, help="of the timing")
    add("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
