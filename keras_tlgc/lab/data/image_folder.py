"""Folders of image files, read and cropped while a network trains."""

import dataclasses
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import ClassVar

import numpy as np

from keras_tlgc.applications.building import channel_axis
from keras_tlgc.lab.data.batches import Batches, shift
from keras_tlgc.lab.data.crops import center_crop, random_crop
from keras_tlgc.lab.data.image_files import (
    labelled_files,
    read_image,
)
from keras_tlgc.lab.recipes import Recipe

READERS = futures.ThreadPoolExecutor(thread_name_prefix="images")
# These are for each channel of ImageNet's pixels, from 0 to 255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Image files of a classification task, in `train/` and `val/`.

    Attributes:
        train, test: pairs of the files' paths and their labels, integers in
            the order of the names of the classes.
        class_names: list of strings, the names of the subfolders.
        image_size: int, height and width in pixels, after resizing.
        passed_over: list of strings, paths of files that are no images.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    class_names: list[str]
    image_size: int
    passed_over: list[str] = dataclasses.field(default_factory=list)
    mean: ClassVar = MEAN
    std: ClassVar = STD

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, as a network takes it."""
        size = self.image_size
        return (size, size, 3) if channel_axis() == -1 else (3, size, size)

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of training and of test images."""
        return len(self.train[0]), len(self.test[0])

    def train_batches(self, recipe: Recipe, seed: int) -> "FileBatches":
        """Return the training images in batches, augmented.

        Raises:
            ValueError: if they do not fill a batch.
        """
        is_random = recipe.augmentation == "crops"
        return FileBatches(
            *self.train,
            recipe.batch_size,
            seed,
            shift if recipe.augmentation == "shifts" else None,
            crop=self._random_crop if is_random else self._center_crop,
        )

    def test_batches(self, batch_size: int) -> "FileBatches":
        """Return all test images in batches, the last one perhaps smaller."""
        return FileBatches(*self.test, batch_size, crop=self._center_crop)

    def _random_crop(self, image, rng):
        return random_crop(image, self.image_size, rng)

    def _center_crop(self, image, rng):
        return center_crop(image, self.image_size)


class FileBatches(Batches):
    """Batches of image files, the next one read while one is computed.

    Args:
        x: array of paths.
        y: array of labels.
        batch_size, seed, augment: as for `Batches`.
        crop: function of an image of Pillow and a `numpy.random.Generator`,
            which returns images of one size. The generator is the same for
            the same seed, epoch and file.
        channels: int, 3 for colours or 1 for grey.
    """

    def __init__(self, *arguments, crop: Callable, channels: int = 3):
        self.crop, self.channels = crop, channels
        super().__init__(*arguments)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for the 0-based `epoch`."""
        super().set_epoch(epoch)
        self._ahead: dict[int, list[futures.Future]] = {}

    def read(self, index: int):
        """Return a batch, cropped. To read batches in their order is fast."""
        images = self._ahead.get(index) or self._begin(index)
        self._ahead = {index + 1: self._begin(index + 1)}
        pixels = np.stack([image.result() for image in images])
        return np.moveaxis(pixels, -1, channel_axis()), self.y[self._of(index)]

    def _of(self, index):
        first = index * self.batch_size
        return self.order[first : first + self.batch_size]

    def _begin(self, index):
        return [READERS.submit(self._read, i) for i in self._of(index)]

    def _read(self, i):
        rng = np.random.default_rng((self.seed or 0, self.epoch, i, 1))
        return read_image(
            self.x[i], self.channels, lambda image: self.crop(image, rng)
        )


def image_folder(directory: Path | None, image_size: int) -> ImageFolder:
    """Return the images below `train/CLASS/` and `val/CLASS/` of a folder.

    Args:
        directory: path of the folder.
        image_size: int, height and width to which they are resized.

    Raises:
        ValueError: if a folder is not there or has no images, or if the
            classes of the two differ.
    """
    if directory is None:
        raise ValueError(
            "`data='folder'` needs a folder. Received: none. Name one that "
            "holds train/CLASS/ and val/CLASS/ with --data-dir."
        )
    names, paths, labels, others = labelled_files(directory / "train")
    test_names, *test, other_tests = labelled_files(directory / "val")
    if names != test_names:
        differing = sorted(set(names) ^ set(test_names))
        raise ValueError(
            "train/ and val/ must hold the same classes. Received: "
            f"{str(directory)!r}, where {len(differing)} are in one "
            f"alone, as {differing[0]!r}. Name their folders alike."
        )
    return ImageFolder(
        (paths, labels),
        (test[0], test[1]),
        names,
        image_size,
        others + other_tests,
    )
