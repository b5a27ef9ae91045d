"""How many images a second the input pipelines deliver, beside the model.

    python benchmarks/pipeline.py
    python benchmarks/pipeline.py --model wrn-28-10 --batch-size 128

Made-up images of CIFAR's and of ImageNet's shapes go through the pipelines of
the recipes alone, and one batch of them goes through a network's training
steps. A pipeline that is k times as fast as the network keeps it fed, and would
feed k accelerators of this machine's speed, or one that is k times as fast.
"""

import argparse
import dataclasses
import itertools
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from keras_tlgc.applications.building import channel_axis
from keras_tlgc.lab import RECIPES, ImageData, Settings, load_data
from keras_tlgc.lab.run import build_network


def main():
    options = parsed()
    print("| images | pipeline (images/s) | network | (images/s) | ratio |")
    print("| --- | ---: | --- | ---: | ---: |")
    for name, model, make in (
        ("cifar", options.model, cifar_images),
        ("imagenet", options.imagenet_model, imagenet_images),
    ):
        recipe = dataclasses.replace(
            RECIPES[name](), batch_size=options.batch_size
        )
        with tempfile.TemporaryDirectory() as folder:
            data = make(Path(folder), options.images, recipe.image_size)
            batches = data.train_batches(recipe, 0)
            alone = speed_of_pipeline(batches, options.seconds)
            network = speed_of_network(model, data, batches, options.steps)
        print(
            f"| {name} | {alone:.0f} | {model} | {network:.1f} "
            f"| {alone / network:.0f} |"
        )


def cifar_images(folder, images, size):
    """Return images as `load_data("cifar10")` does."""
    del folder  # They are in memory.
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (images, size, size, 3), "uint8")
    x = np.moveaxis(x, -1, channel_axis())
    y = rng.integers(0, 10, images)
    return ImageData(x, y, x, y, 10, (127.5,) * 3, (74.0,) * 3)


def imagenet_images(folder, images, size):
    """Return images in JPEG files, as large and smooth as ImageNet's."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("one", "two"):
            (folder / part / name).mkdir(parents=True)
            for i in range(images // 16):
                coarse = rng.uniform(0, 255, (47, 63, 3))
                pixels = keras.ops.image.resize(
                    coarse, (375, 500), data_format="channels_last"
                )
                keras.utils.save_img(
                    folder / part / name / f"{i}.jpg",
                    keras.ops.convert_to_numpy(pixels),
                    data_format="channels_last",
                    scale=False,
                )
    return load_data("folder", folder, size)


def speed_of_pipeline(batches, seconds):
    """Return images a second, after the first batch."""
    batches[0]
    images, begin = 0, time.perf_counter()
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        for index in range(len(batches)):
            images += len(batches[index][1])
            if (spent := time.perf_counter() - begin) > seconds:
                return images / spent


def speed_of_network(model, data, batches, steps):
    """Return how many images of one batch in memory it trains on a second."""
    network = build_network(Settings(model=model, groups=8), data)
    network.compile("sgd", "sparse_categorical_crossentropy")
    x, y = batches[0]
    network.train_on_batch(x, y)
    begin = time.perf_counter()
    for _ in range(steps):
        network.train_on_batch(x, y)
    return steps * len(y) / (time.perf_counter() - begin)


def parsed():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="wrn-28-10", help="trained on 32x32 images")
    add("--imagenet-model", default="wrn-imagenet-34-2", help="on 224x224")
    add("--batch-size", type=int, default=32)
    add("--images", type=int, default=2048, help="that are made up")
    add("--seconds", type=float, default=10, help="of each pipeline")
    add("--steps", type=int, default=3, help="of each network")
    return parser.parse_args()


if __name__ == "__main__":
    main()
