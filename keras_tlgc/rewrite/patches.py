"""What the windows of a convolution cover, at sampled positions."""

import math
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_tlgc.ops.geometry import output_size, same_padding

Array: TypeAlias = np.ndarray[Any, Any]


class Sampler:
    """Takes patches and pixels of arrays at positions of a layer's output.

    Args:
        layer: a `keras.layers.Conv{1,2,3}D`.
        inputs: array of some inputs of the layer.
        most: integer, how many positions to take of each of them.
        rng: random generator.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        inputs: Array,
        most: int,
        rng: np.random.Generator,
    ) -> None:
        self.layer = layer
        self.sizes = _channels_last(layer, inputs).shape[1:-1]
        windows = zip(
            layer.kernel_size, layer.strides, layer.dilation_rate, strict=True
        )
        padding = "valid" if layer.padding == "valid" else "same"
        outputs = [
            output_size(size, *window, padding) or 0
            for size, window in zip(self.sizes, windows, strict=True)
        ]
        total = math.prod(outputs)
        count = min(most, total)
        chosen = [
            rng.choice(total, count, replace=False) for _ in range(len(inputs))
        ]
        self.rows = np.arange(len(inputs))[:, np.newaxis]
        # For each axis, the index of each position: [image, position].
        self.places = np.unravel_index(np.stack(chosen), outputs)
        self.outputs = tuple(outputs)

    def patches(self, inputs: Array) -> Array:
        """Return patches, in the order of `kernel.reshape(-1, n)`, as rows."""
        layer = self.layer
        last = _channels_last(layer, inputs)
        last = np.pad(last, [(0, 0), *self._pads(), (0, 0)])
        taps = np.indices(layer.kernel_size).reshape(layer.rank, -1)
        index = [
            place[..., np.newaxis] * stride + tap * dilation
            for place, stride, tap, dilation in zip(
                self.places,
                layer.strides,
                taps,
                layer.dilation_rate,
                strict=True,
            )
        ]
        taken = last[self.rows[..., np.newaxis], *index]
        size = len(taps[0]) * last.shape[-1]
        return taken.reshape(-1, size).astype("float32", copy=False)

    def pixels(self, outputs: Array) -> Array | None:
        """Return outputs at the positions, or `None` if sizes differ."""
        last = _channels_last(self.layer, outputs)
        if last.shape[1:-1] != self.outputs:
            return None
        taken = last[self.rows, *self.places]
        return taken.reshape(-1, last.shape[-1]).astype("float32", copy=False)

    def _pads(self) -> list[tuple[int, int]]:
        layer = self.layer
        windows = list(
            zip(
                layer.kernel_size,
                layer.strides,
                layer.dilation_rate,
                strict=True,
            )
        )
        if layer.padding == "valid":
            return [(0, 0)] * layer.rank
        if layer.padding == "causal":
            return [(d * (k - 1), 0) for k, _, d in windows]
        return [
            same_padding(size, *window)
            for size, window in zip(self.sizes, windows, strict=True)
        ]


def _channels_last(layer: keras.layers.Layer, x: Array) -> Array:
    return np.moveaxis(x, 1, -1) if layer.data_format == "channels_first" else x
