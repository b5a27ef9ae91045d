"""CIFAR and Fashion-MNIST, from the files that their authors publish.

Each function takes the folder that holds the files, or `None` for where Keras
or the system keeps them. It returns training images, their labels, test images
and their labels: images `(count, height, width, channels)` of uint8, labels
`(count,)`.
"""

import gzip
import pickle
from pathlib import Path

import keras
import numpy as np

CIFAR_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
FASHION_HOME = "https://github.com/zalandoresearch/fashion-mnist"
# Where Debian's package `dataset-fashion-mnist` puts the files.
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def cifar10(directory: Path | None):
    """Return CIFAR-10."""
    if directory is None:
        return _from_keras("cifar10", CIFAR_HOME)
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return _cifar(directory, "cifar-10-batches-py", files, b"labels", 10)


def cifar100(directory: Path | None):
    """Return CIFAR-100, with its 100 fine labels."""
    if directory is None:
        return _from_keras("cifar100", CIFAR_HOME)
    files = ["train", "test"]
    return _cifar(directory, "cifar-100-python", files, b"fine_labels", 100)


def fashion_mnist(directory: Path | None):
    """Return Fashion-MNIST: 60,000 and 10,000 images, 28x28, of clothes."""
    if directory is None and DEBIAN_FASHION.is_dir():
        directory = DEBIAN_FASHION
    if directory is None:
        return _from_keras("fashion_mnist", FASHION_HOME)
    return (
        *_fashion_part(directory, "train"),
        *_fashion_part(directory, "t10k"),
    )


def _from_keras(name, home):
    """Return a data set from Keras' cache, or download it there."""
    try:
        data = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Whatever a download raises.
        raise ValueError(
            f"`data='{name}'` must be in Keras' cache or be downloaded to it. "
            f"Received: {error}. Get its files from {home} (CIFAR's Python "
            "version, unpacked) and name their folder with --data-dir."
        ) from error
    (x_train, y_train), (x_test, y_test) = data
    if x_train.ndim == 3:
        x_train, x_test = x_train[..., None], x_test[..., None]
    return x_train, y_train.reshape(-1), x_test, y_test.reshape(-1)


def _fashion_part(directory, part):
    """Return images and labels from files in the format of MNIST."""
    try:
        images = directory / f"{part}-images-idx3-ubyte.gz"
        x = np.frombuffer(gzip.decompress(images.read_bytes()), "uint8")
        labels = directory / f"{part}-labels-idx1-ubyte.gz"
        y = np.frombuffer(gzip.decompress(labels.read_bytes()), "uint8")
        x, y = x[16:].reshape(-1, 28, 28, 1), y[8:].astype("int64")
        _check(x, y, 10)
    except Exception as error:  # Whatever bytes that are no archive raise.
        raise ValueError(
            "The folder must hold Fashion-MNIST's four files, as they are "
            f"published. Received: '{directory}', whose {part} images cannot "
            f"be read ({error!r}). Get them from {FASHION_HOME}."
        ) from error
    return x, y


def _cifar(directory, folder, files, label, classes):
    """Return CIFAR from its folder, or from the one that holds that folder.

    Args:
        directory: path of either.
        folder: name of the folder that its archive unpacks.
        files: names of the files there, that of the test images last.
        label: key of the labels.
        classes: number of classes.
    """
    within = directory if directory.name == folder else directory / folder
    *parts, test = (
        _cifar_file(within / file, label, classes) for file in files
    )
    x_train, y_train = map(np.concatenate, zip(*parts, strict=True))
    return x_train, y_train, *test


class _ArraysOnly(pickle.Unpickler):
    """Reads what CIFAR's files hold, and runs no code."""

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
    try:
        with open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
        images = content[b"data"].reshape(-1, 3, 32, 32).astype("uint8")
        labels = np.array(content[label], "int64")
        _check(images, labels, classes)
    except Exception as error:  # Whatever bytes that are no pickle raise.
        raise ValueError(
            "The folder must hold CIFAR's Python version, as its archive "
            f"unpacks. Received: '{path}', which cannot be read ({error!r}). "
            f"Get it from {CIFAR_HOME}."
        ) from error
    return np.moveaxis(images, 1, -1), labels


def _check(images, labels, classes):
    if labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(f"{len(images)} images, labels {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels that are not 0 to {classes - 1}")
