"""The data that a conversion is fitted on."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_tlgc._keras import functional_of

Array: TypeAlias = np.ndarray[Any, Any]

HELD_OUT = 0.2  # The share of the data that no layer is fitted to.
BATCH_ENTRIES = 2 * 10**6  # Of the inputs: 13 images of 224x224 pixels.


class Images:
    """Data in batches, of which the last ones are held out.

    Attributes:
        count: integer, how many images there are.
        held_out: array, the indices of those that are held out.

    Args:
        model: the model that takes the data.
        data: what `model.predict` takes; labels and weights are ignored.
        seed: integer, decides which data are held out.

    Raises:
        ValueError: if there are fewer than 2 images, or entries that are not
            finite.
    """

    def __init__(self, model: keras.Model, data: Any, seed: int = 0) -> None:
        # Keras knows all kinds of data, and what in them is a label.
        same = keras.Model(model.inputs, model.inputs)
        found = same.predict(data, verbose=0)
        self.arrays = [np.asarray(x) for x in keras.tree.flatten(found)]
        self.count = len(self.arrays[0])
        if self.count < 2 or not all(np.isfinite(x).all() for x in self.arrays):
            raise ValueError(
                "`data` must hold at least 2 inputs of the model, all finite. "
                f"Received: {self.count} of shapes "
                f"{[x.shape[1:] for x in self.arrays]}, with values from "
                f"{min(map(np.min, self.arrays))} to "
                f"{max(map(np.max, self.arrays))}. A few hundred inputs are "
                "better, since a fifth of them is held out."
            )
        held = max(1, round(HELD_OUT * self.count))
        order = np.random.default_rng(seed).permutation(self.count)
        entries = sum(x[0].size for x in self.arrays)
        size = max(1, BATCH_ENTRIES // entries)
        self.held_out = order[:held]
        fitted, held_out = (
            np.split(part, range(size, len(part), size))
            for part in (order[held:], self.held_out)
        )
        self.fitted = len(fitted)
        self.parts = fitted + held_out

    def batches(self, keys: list[int]) -> list[dict[int, Array]]:
        """Return batches, as dicts from the keys of the inputs to arrays."""
        named = list(zip(keys, self.arrays, strict=True))
        return [{key: x[part] for key, x in named} for part in self.parts]

    def is_held(self, batch: int) -> bool:
        """Return whether a batch is held out, by its number."""
        return batch >= self.fitted

    def accuracy(self, labels: Array, model: keras.Model) -> float:
        """Return of how much of the held-out data a model finds the label."""
        held = [x[self.held_out] for x in self.arrays]
        given = keras.tree.pack_sequence_as(functional_of(model).input, held)
        found = np.asarray(model.predict(given, verbose=0)).argmax(-1)
        return float(np.mean(found == labels[self.held_out]))


def scorer(
    evaluate: Any, images: Images | None
) -> Callable[[keras.Model], float | None]:
    """Return the function of a model that the argument `evaluate` stands for.

    Raises:
        ValueError: if it is neither a function nor a label for each image.
    """
    if evaluate is None:
        return lambda model: None
    if callable(evaluate):
        return lambda model: float(evaluate(model))
    labels = np.asarray(evaluate)
    count = images.count if images else 0
    if images is None or labels.size != count or labels.dtype.kind not in "iu":
        raise ValueError(
            "`evaluate` must be a function of a model, or an integer label for "
            f"each of `data`. Received: an array of shape {labels.shape} and "
            f"type {labels.dtype} for {count} inputs. Pass a function, such as "
            "`lambda model: model.evaluate(x, y)[1]`."
        )
    return functools.partial(images.accuracy, labels.reshape(-1))
