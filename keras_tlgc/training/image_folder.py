"""Folders of image files, read and cropped while a network trains."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np

from keras_tlgc.applications.building import channel_axis
from keras_tlgc.training.batches import Batches, Shifts
from keras_tlgc.training.crops import imagenet_crops
from keras_tlgc.training.recipes import Recipe

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
# Of each channel of ImageNet's pixels, from 0 to 255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Image files of a classification task, in `train/` and `val/`.

    Attributes:
        train, test: pairs of the files' paths and their labels, integers in
            the order of the names of the classes.
        class_names: list of strings, the names of the subfolders.
        image_size: int, height and width of the images in pixels, resized.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    class_names: list[str]
    image_size: int
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
        is_shifted = recipe.augmentation == "shifts"
        return FileBatches(
            *self.train,
            recipe.batch_size,
            seed,
            Shifts(-np.array(MEAN) / STD) if is_shifted else None,
            image_size=self.image_size,
            random_crops=recipe.augmentation == "crops",
        )

    def test_batches(self, batch_size: int) -> "FileBatches":
        """Return all test images in batches, the last one perhaps smaller."""
        return FileBatches(*self.test, batch_size, image_size=self.image_size)


class FileBatches(Batches):
    """Batches of image files, read by `tf.data`, for any backend.

    Args:
        x: array of paths.
        y: array of labels.
        batch_size, seed, augment: as for `Batches`.
        image_size: int, height and width of the crops in pixels.
        random_crops: bool, whether to crop at random, the same way for the
            same seed and epoch, rather than the centre.
    """

    def __init__(self, *arguments, image_size: int, random_crops: bool = False):
        self.image_size, self.random_crops = image_size, random_crops
        super().__init__(*arguments)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for the 0-based `epoch`."""
        super().set_epoch(epoch)
        self._iterator: Any = None
        self._next = 0

    def read(self, index: int):
        """Return a batch, cropped. One after the other is fast."""
        if self._iterator is None or index < self._next:
            self._iterator, self._next = iter(self._dataset()), 0
        try:
            while self._next <= index:
                images, labels = next(self._iterator)
                self._next += 1
        except _tensorflow().errors.OpError as error:
            raise ValueError(
                "Image files must be whole, and of the kinds "
                f"{', '.join(SUFFIXES)}. Received: "
                f"{self._damaged(self._next) or error.message}. Mend it, or "
                "delete it and begin again."
            ) from error
        return images.numpy(), labels.numpy()

    def _dataset(self):
        tf = _tensorflow()
        seeds = np.random.SeedSequence((self.seed or 0, self.epoch))
        crops = imagenet_crops(
            self.image_size, int(seeds.generate_state(1)[0] >> 1)
        )
        crop = crops.training if self.random_crops else crops.evaluation
        last = channel_axis() == -1

        def cropped(image):
            image = (crop(image) - MEAN) / STD
            return image if last else tf.transpose(image, (2, 0, 1))

        files = tf.data.Dataset.from_tensor_slices(self.x[self.order])
        labels = tf.data.Dataset.from_tensor_slices(self.y[self.order])
        # Crops are drawn one after the other: the same ones in each run.
        images = files.map(_decoded, tf.data.AUTOTUNE).map(cropped)
        batches = tf.data.Dataset.zip(images, labels).batch(self.batch_size)
        return batches.prefetch(2)

    def _damaged(self, index):
        """Return the first file of a batch that cannot be decoded."""
        first = index * self.batch_size
        for path in self.x[self.order[first : first + self.batch_size]]:
            try:
                _decoded(path)
            except _tensorflow().errors.OpError:
                return f"'{path}', which cannot be decoded"
        return ""


def _decoded(path):
    tf = _tensorflow()
    return tf.io.decode_image(
        tf.io.read_file(path), channels=3, expand_animations=False
    )


def image_folder(directory: Path | None, image_size: int) -> ImageFolder:
    """Return the images below `train/CLASS/` and `val/CLASS/` of a folder.

    Args:
        directory: path of the folder.
        image_size: int, height and width to which they are resized.

    Raises:
        ValueError: if a folder is not there or has no images, if the classes of
            the two differ, or if TensorFlow or KerasCV is not installed.
    """
    if directory is None:
        raise ValueError(
            "`data='folder'` needs a folder. Received: none. Name one that "
            "holds train/CLASS/ and val/CLASS/ with --data-dir."
        )
    _tensorflow()
    imagenet_crops(image_size)
    names, train = _classes(directory / "train")
    test_names, test = _classes(directory / "val")
    if names != test_names:
        differing = sorted(set(names) ^ set(test_names))
        raise ValueError(
            "train/ and val/ must hold the same classes. Received: "
            f"'{directory}', where {len(differing)} are in one alone, as "
            f"'{differing[0]}'. Name their folders alike."
        )
    return ImageFolder(train, test, names, image_size)


def _classes(folder):
    """Return the names of the classes, and the files with their labels."""
    classes = [entry for entry in _shown(folder) if entry.is_dir()]
    paths, labels, empty = [], [], []
    for label, entry in enumerate(classes):
        files = [
            file.path
            for file in _shown(entry)
            if file.name.lower().endswith(SUFFIXES) and file.is_file()
        ]
        paths += files
        labels += [label] * len(files)
        if not files:
            empty.append(entry.path)
    if paths and empty:
        raise ValueError(
            f"Every class must have images, {', '.join(SUFFIXES)}. "
            f"Received: '{empty[0]}', which holds none. "
            "Convert its files, or remove the folder."
        )
    if not paths:
        what = "holds no images" if folder.is_dir() else "does not exist"
        raise ValueError(
            "Images must be in a subfolder for each class, as in "
            f"train/CLASS/IMAGE.jpg. Received: '{folder}', which {what}. "
            "ImageNet: unpack ILSVRC2012_img_train.tar and "
            "ILSVRC2012_img_val.tar, and sort the latter's images into folders "
            "of their classes."
        )
    names = [entry.name for entry in classes]
    return names, (np.array(paths), np.array(labels, "int32"))


def _shown(folder):
    """Return what is in a folder, by name, but for what systems hide there."""
    if not os.path.isdir(folder):
        return []
    entries = (e for e in os.scandir(folder) if not e.name.startswith("."))
    return sorted(entries, key=lambda entry: entry.name)


def _tensorflow():
    """Return TensorFlow, which reads files, without a GPU of another's."""
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise ValueError(
            "Images from files are read by TensorFlow, on any backend. "
            f"Received: {error}. Install it: "
            "pip install 'keras-tlgc[cv,tensorflow]'."
        ) from error
    if keras.backend.backend() != "tensorflow":
        with contextlib.suppress(RuntimeError):  # It is running already.
            tf.config.set_visible_devices([], "GPU")  # All memory, otherwise.
    return tf
