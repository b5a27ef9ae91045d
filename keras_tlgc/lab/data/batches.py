"""Batches of images, in an order that a resumed run repeats."""

from collections.abc import Callable

import keras
import numpy as np

from keras_tlgc.applications.building import channel_axis

FRAME = 4  # Pixels that `shift` adds on each side.


class Batches(keras.utils.PyDataset):
    """Batches of arrays.

    With a seed, the order depends only on the seed and the epoch: call
    `set_epoch` before each epoch. The last images that do not fill a batch are
    left out; in each epoch these are others. Without a seed, all images come in
    the order that they have.

    Args:
        x: array of inputs.
        y: array of targets.
        batch_size: int, images in a batch; with a seed, at most `len(x)`.
        seed: int, or `None`.
        augment: optional function of a batch of inputs and a
            `numpy.random.Generator`, which returns the inputs to use instead.

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
            # With `index`, the 0 of the first batch would not count, and this
            # would be the generator of the order.
            rng = np.random.default_rng((self.seed, self.epoch, index + 1))
            x = self.augment(x, rng)
        return x, y

    def read(self, index: int):
        """Return a batch, not augmented."""
        first = index * self.batch_size
        chosen = self.order[first : first + self.batch_size]
        return self.x[chosen], self.y[chosen]


def shift(images, rng: np.random.Generator):
    """Pad images, crop each at random, and flip half of them (Section 4).

    The frame is black, 4 pixels on each side. `keras.layers.RandomCrop` is not
    used, since it crops all images of a batch alike. Images and result are in
    Keras' image data format.
    """
    axis = channel_axis()
    images = np.moveaxis(images, axis, -1)
    count, height, width, _ = images.shape
    frame = (FRAME, FRAME)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(images, [(0, 0), frame, frame, (0, 0)]),
        (height, width),
        axis=(1, 2),
    )
    top, left = rng.integers(0, 2 * FRAME + 1, (2, count))
    crops = windows[np.arange(count), top, left]  # Channels come first.
    flipped = rng.random(count) < 0.5
    crops[flipped] = crops[flipped, ..., ::-1]
    return np.moveaxis(crops, 1, axis)
