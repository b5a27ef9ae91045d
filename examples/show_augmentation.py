"""Show what the recipes make of images: a picture to look at before training.

    pip install -e ".[torch,cli]"
    KERAS_BACKEND=torch python examples/show_augmentation.py

draws digits as the CIFAR recipe pads, crops and flips them, and two photographs
that come with scikit-learn as the ImageNet recipe crops them.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import keras
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image

from keras_tlgc.lab import load_data, recipes

EPOCHS = 7


def main():
    args = parsed()
    keras.config.set_image_data_format("channels_last")
    with tempfile.TemporaryDirectory() as folder:
        rows = [*digits(2), *photographs(Path(folder))]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    grid = figure.subplots(len(rows), EPOCHS + 1)
    for axes, images in zip(grid, rows, strict=True):
        for ax, image in zip(axes, images, strict=True):
            ax.imshow(image, cmap="gray", vmin=0, vmax=255)
            ax.set_axis_off()
    grid[0, 0].set_title("image")
    grid[0, 1].set_title("epoch 1, 2, ...", loc="left")
    figure.savefig(args.output, dpi=50)
    print(f"Written: {args.output}")


def digits(count):
    """Return rows of digits: as they are, then as in each epoch."""
    data = load_data("mnist5k")
    # No image is left out where the batches are all whole.
    recipe = dataclasses.replace(recipes.cifar(), batch_size=100)
    batches = data.train_batches(recipe, seed=0)
    return [[batches.x[i], *epochs(batches, i)] for i in range(count)]


def photographs(folder):
    """Return rows of photographs, read from files, as ImageNet's are."""
    photos = [load_sample_image(f"{name}.jpg") for name in ("china", "flower")]
    for part in ("train", "val"):
        for i, photo in enumerate(photos):
            (folder / part / str(i)).mkdir(parents=True)
            path = folder / part / str(i) / "photo.png"
            keras.utils.save_img(path, photo, scale=False)
    data = load_data("folder", folder, image_size=112)
    recipe = recipes.Recipe(batch_size=2, augmentation="crops")
    batches = data.train_batches(recipe, seed=0)
    return [
        [photo, *(image.astype("uint8") for image in epochs(batches, i))]
        for i, photo in enumerate(photos)
    ]


def epochs(batches, index):
    """Return what becomes of one image in each epoch."""
    for epoch in range(EPOCHS):
        batches.set_epoch(epoch)
        place = int(np.flatnonzero(batches.order == index)[0])
        images, _ = batches[place // batches.batch_size]
        yield images[place % batches.batch_size]


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", default="augmentation.png")
    return parser.parse_args()


if __name__ == "__main__":
    main()
