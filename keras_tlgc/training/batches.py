"""Batches of images, in an order that a resumed run repeats."""

from collections.abc import Callable

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_tlgc.applications.building import channel_axis


class Batches(keras.utils.PyDataset):
    """Batches of arrays.

    With a seed their order is given by seed and epoch alone, and the last
    images of an epoch that do not fill a batch are left out, others each
    epoch: call `set_epoch` before each epoch. Without one they come as they
    are, all of them.

    Args:
        x: array of inputs.
        y: array of targets.
        batch_size: int, images in a batch; with a seed, at most `len(x)`.
        seed: int, or `None`.
        augment: optional function of a batch of inputs and a
            `numpy.random.Generator`, which returns other inputs.

    Raises:
        ValueError: if there are fewer inputs than fill one batch.
    """

    def __init__(
        self,
        x,
        y,
        batch_size: int,
        seed: int | None = None,
        augment: Callable | None = None,
    ):
        super().__init__()
        if seed is not None and batch_size > len(x):
            raise ValueError(
                "`batch_size` must not exceed the number of training images. "
                f"Received: batch_size={batch_size}, {len(x)} images. "
                "Use a smaller batch."
            )
        self.x, self.y = x, y
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for the 0-based `epoch`."""
        self.epoch = epoch
        self.order = np.arange(len(self.x))
        if self.seed is not None:
            rng = np.random.default_rng((self.seed, epoch))
            self.order = rng.permutation(self.order)

    def __len__(self):
        if self.seed is not None:
            return len(self.x) // self.batch_size
        return -(-len(self.x) // self.batch_size)

    def __getitem__(self, index):
        x, y = self.read(index)
        if self.augment is not None:
            # Not index: a last 0 would make it the generator of the order.
            rng = np.random.default_rng((self.seed, self.epoch, index + 1))
            x = self.augment(x, rng)
        return x, y

    def read(self, index: int):
        """Return a batch, not augmented."""
        first = index * self.batch_size
        chosen = self.order[first : first + self.batch_size]
        return self.x[chosen], self.y[chosen]


class Shifts:
    """Pad images, crop each at random, and flip half of them (Section 4).

    Not `keras.layers.RandomCrop`, which crops all images of a batch alike.

    Args:
        black: sequence of floats, what to pad each channel with.
        padding: int, pixels on each side.
    """

    def __init__(self, black: ArrayLike, padding: int = 4):
        self.black, self.padding = np.asarray(black, "float32"), padding

    def __call__(self, images, rng: np.random.Generator):
        """Return images of the same shape, in Keras' image data format."""
        axis = channel_axis()
        images = np.moveaxis(images, axis, -1)
        count, height, width, channels = images.shape
        around = 2 * self.padding
        padded = np.empty(
            (count, height + around, width + around, channels), images.dtype
        )
        padded[:] = self.black
        inside = slice(self.padding, -self.padding)
        padded[:, inside, inside] = images
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, (height, width), axis=(1, 2)
        )
        top, left = rng.integers(0, around + 1, (2, count))
        crops = windows[np.arange(count), top, left]  # Channels come first.
        flipped = rng.random(count) < 0.5
        crops[flipped] = crops[flipped, ..., ::-1]
        return np.moveaxis(crops, 1, axis)
