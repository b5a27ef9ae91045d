"""The statistics of batch normalisations, on batches of data."""

from typing import Any, TypeAlias

import keras
import numpy as np
from keras import layers, ops

from keras_tlgc.rewrite.streams import Step
from keras_tlgc.types import Tensor

Array: TypeAlias = np.ndarray[Any, Any]


class Statistics:
    """Adds up what gives the mean and the variance of channels."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: Any = 0.0
        self.squares: Any = 0.0

    def add(self, value: Tensor, axis: int) -> None:
        """Add a batch, whose channels lie along an axis."""
        value = ops.cast(value, "float32")
        axis %= len(value.shape)
        axes = [i for i in range(len(value.shape)) if i != axis]
        mean, variance = (
            ops.convert_to_numpy(x).astype("float64")
            for x in ops.moments(value, axes)
        )
        count = int(np.prod(value.shape)) // len(mean)
        self.count += count
        self.sums = self.sums + count * mean
        self.squares = self.squares + count * (variance + mean**2)

    @property
    def mean(self) -> Array:
        return np.asarray(self.sums / self.count)

    @property
    def variance(self) -> Array:
        squares = np.asarray(self.squares / self.count)
        return np.maximum(squares - self.mean**2, 0.0)


def is_norm(step: Step) -> bool:
    """Return whether a step normalises by statistics of its batches."""
    return type(step.operation) is layers.BatchNormalization


def scale_of(norm: keras.layers.Layer) -> Array:
    """Return what a normalisation multiplies each channel by, but never zero.

    A channel that it switches off counts as little as the least of others.
    """
    variance = ops.convert_to_numpy(norm.moving_variance).astype("float64")
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * np.abs(ops.convert_to_numpy(norm.gamma))
    return np.maximum(scale, 1e-3 * scale.max() or 1.0)
