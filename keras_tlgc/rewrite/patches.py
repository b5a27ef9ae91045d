"""What the windows of a convolution cover, at sampled positions."""

import math
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np

from keras_tlgc.ops.geometry import output_size, same_padding

Array: TypeAlias = np.ndarray[Any, Any]


class Window(NamedTuple):
    """Where a layer's kernel meets its inputs: attributes as of `Conv1D`.

    A `Dense` layer is a 1x1 convolution along one axis, on which all positions
    of its inputs lie.
    """

    kernel_size: tuple[int, ...] = (1,)
    strides: tuple[int, ...] = (1,)
    dilation_rate: tuple[int, ...] = (1,)
    padding: str = "valid"
    data_format: str = "positions"

    @classmethod
    def of(cls, layer: keras.layers.Layer) -> "Window":
        if isinstance(layer, keras.layers.Dense):
            return cls()
        return cls(*(getattr(layer, name) for name in cls._fields))

    @property
    def axes(self) -> list[tuple[int, int, int]]:
        """The size, the stride and the dilation along each spatial axis."""
        return list(
            zip(self.kernel_size, self.strides, self.dilation_rate, strict=True)
        )

    def channels_last(self, x: Array) -> Array:
        """Return an array with its channels last, its positions before them."""
        if self.data_format == "positions":
            return x.reshape(len(x), -1, x.shape[-1])
        first = self.data_format == "channels_first"
        return np.moveaxis(x, 1, -1) if first else x


class Sampler:
    """Takes patches and pixels of arrays at positions of a layer's output.

    Args:
        layer: a `keras.layers.Conv{1,2,3}D` or `Dense`.
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
        self.window = Window.of(layer)
        self.sizes = self.window.channels_last(inputs).shape[1:-1]
        padding = "valid" if self.window.padding == "valid" else "same"
        outputs = [
            output_size(size, *axis, padding) or 0
            for size, axis in zip(self.sizes, self.window.axes, strict=True)
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
        window = self.window
        last = window.channels_last(inputs)
        last = np.pad(last, [(0, 0), *self._pads(), (0, 0)])
        taps = np.indices(window.kernel_size).reshape(len(window.axes), -1)
        index = [
            place[..., np.newaxis] * stride + tap * dilation
            for place, (_, stride, dilation), tap in zip(
                self.places, window.axes, taps, strict=True
            )
        ]
        taken = last[self.rows[..., np.newaxis], *index]
        size = len(taps[0]) * last.shape[-1]
        return taken.reshape(-1, size).astype("float32", copy=False)

    def pixels(self, outputs: Array) -> Array | None:
        """Return outputs at the positions, or `None` if sizes differ."""
        last = self.window.channels_last(outputs)
        if (len(last), *last.shape[1:-1]) != (len(self.rows), *self.outputs):
            return None
        taken = last[self.rows, *self.places]
        return taken.reshape(-1, last.shape[-1]).astype("float32", copy=False)

    def _pads(self) -> list[tuple[int, int]]:
        axes, padding = self.window.axes, self.window.padding
        if padding == "valid":
            return [(0, 0)] * len(axes)
        if padding == "causal":
            return [(d * (k - 1), 0) for k, _, d in axes]
        return [
            same_padding(size, *axis)
            for size, axis in zip(self.sizes, axes, strict=True)
        ]
