"""A model's calls in a row, and batches of data that move along them."""

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
from keras import layers, ops

from keras_tlgc._keras import functional_of, has_mask
from keras_tlgc.graphs import graph_nodes, is_graph
from keras_tlgc.types import Node, Tensor

Array: TypeAlias = np.ndarray[Any, Any]
Values: TypeAlias = dict[int, Tensor]

HELD = 2**27  # Bytes of a stream from which on values are held as halves.


class Half(NamedTuple):
    """An array in half precision, scaled so that nothing overflows."""

    values: Array
    scale: float

    @classmethod
    def of(cls, x: Array) -> "Half":
        scale = float(np.abs(x).max(initial=0.0)) / 2**15 or 1.0
        return cls(np.divide(x, scale).astype("float16"), scale)


def whole(x: Any) -> Any:
    """Return an array that may be held as `Half`."""
    if not isinstance(x, Half):
        return x
    return np.multiply(x.values, np.float32(x.scale), dtype="float32")


class Step(NamedTuple):
    """One call of a layer or operation.

    Attributes:
        operation: what is called: a layer, an operation, or a function.
        reads: tuple of integers, the keys of the values that it takes.
        writes: tuple of integers, the keys of the values that it returns.
        node: the call in its model, or `None` of a function of `reads`.
    """

    operation: Any
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    node: Node = None

    def run(self, operation: Any, values: Values) -> None:
        """Add what an operation returns for the values that this step takes."""
        given = [values[key] for key in self.reads]
        if self.node is None:
            results = operation(*given)
        else:
            tensors = map(id, self.node.input_tensors)
            filled = dict(zip(tensors, given, strict=True))
            args, kwargs = self.node.arguments.fill_in(filled)
            if isinstance(operation, layers.Layer) and (
                "training" in inspect.signature(operation.call).parameters
            ):
                kwargs = {**kwargs, "training": False}
            results = operation(*args, **kwargs)
        flat = keras.tree.flatten(results)
        values.update(zip(self.writes, flat, strict=True))


def steps_of(model: keras.Model) -> tuple[list[Step], list[int], list[int]]:
    """Return the calls that a model consists of, those of models within too.

    Returns:
        The steps, each after those whose values it takes, and the keys of the
        model's inputs and of its outputs.

    Raises:
        ValueError: if a mask is handed from layer to layer.
    """
    keys = itertools.count()
    inputs = [next(keys) for _ in model.inputs]
    steps: list[Step] = []
    outputs = _extend(steps, model, inputs, keys)
    return steps, inputs, outputs


def _extend(
    steps: list[Step],
    model: keras.Model,
    inputs: list[int],
    keys: Iterator[int],
) -> list[int]:
    """Add the calls of a layer or model to a list; return what they write."""
    known = dict(zip(map(id, model.inputs), inputs, strict=True))
    for node in graph_nodes(model):
        if node.is_input:
            continue
        if any(has_mask(tensor) for tensor in node.input_tensors):
            raise ValueError(
                "A model that is fitted on data must hand on no masks. "
                f"Received: the model '{model.name}', whose layer "
                f"'{node.operation.name}' gets one. Convert it without `data`."
            )
        reads = tuple(known[id(tensor)] for tensor in node.input_tensors)
        writes = _call(steps, node.operation, reads, node, keys)
        known |= zip(map(id, node.outputs), writes, strict=True)
    return [known[id(tensor)] for tensor in functional_of(model).outputs]


def _call(
    steps: list[Step],
    layer: Any,
    reads: tuple[int, ...],
    node: Node,
    keys: Iterator[int],
) -> list[int]:
    if is_graph(layer):
        return _extend(steps, layer, list(reads), keys)
    if type(layer) is layers.TimeDistributed:
        # As one batch, so that what is within is like any other layer.
        folded = next(keys)
        steps.append(Step(_fold_time, reads, (folded,)))
        [inner] = _call(steps, layer.layer, (folded,), None, keys)
        writes = [next(keys)]
        steps.append(Step(_unfold_time, (inner, *reads), tuple(writes)))
        return writes
    writes = [next(keys) for _ in (node.outputs if node else [0])]
    steps.append(Step(layer, reads, tuple(writes), node))
    return writes


def _fold_time(x: Tensor) -> Tensor:
    return ops.reshape(x, (-1, *x.shape[2:]))


def _unfold_time(x: Tensor, like: Tensor) -> Tensor:
    return ops.reshape(x, (*like.shape[:2], *x.shape[1:]))


class Stream:
    """Batches of data on their way through a model.

    It holds only what steps that are still to be run will read. Where that is
    more than `HELD` bytes, it is rounded to half precision, with which 256
    images of 224x224 pixels in a ResNet50 stay below 4 GB.

    Args:
        steps: list of the model's steps, in order.
        batches: list of dicts from keys to arrays, the model's inputs.
        chosen: function of a step that returns what to call in it.
        kept: keys of values that are never dropped, the model's outputs.
    """

    def __init__(
        self,
        steps: list[Step],
        batches: list[dict[int, Array]],
        chosen: Callable[[Step], Any],
        kept: list[int],
    ) -> None:
        self.waiting = list(steps)
        self.batches: list[dict[int, Any]] = list(batches)
        self.chosen = chosen
        self.kept = set(kept)

    def copy(self, chosen: Callable[[Step], Any]) -> "Stream":
        """Return a stream at the same place that will call something else."""
        return Stream(self.waiting, self.batches, chosen, list(self.kept))

    def before(self, keys: list[int]) -> list[Step]:
        """Return the steps to be run before values are known, in order."""
        wanted, found = set(keys), []
        for step in reversed(self.waiting):
            if not wanted.isdisjoint(step.writes):
                found.append(step)
                wanted.update(step.reads)
        return found[::-1]

    def peek(self, keys: list[int]) -> Iterator[list[Tensor]]:
        """Yield the values of each batch, and leave the stream where it is."""
        steps = self.before(keys)
        for batch in self.batches:
            values = self._run(steps, batch, set(keys))
            yield [whole(values[key]) for key in keys]

    def advance(
        self,
        keys: list[int],
        see: Callable[[int, Step, Values], None] = lambda *_: None,
    ) -> None:
        """Move on to where values are known, and hold them.

        Args:
            keys: list of the keys of the values.
            see: function that is called with the number of the batch, a step,
                and the values that it is about to read.
        """
        steps = self.before(keys)
        run = set(map(id, steps))
        self.waiting = [step for step in self.waiting if id(step) not in run]
        needed = {key for step in self.waiting for key in step.reads}
        needed |= self.kept | set(keys)
        for i, batch in enumerate(self.batches):
            values = self._run(
                steps, batch, needed, lambda *args, i=i: see(i, *args)
            )
            new = {
                key: ops.convert_to_numpy(value)
                for key, value in values.items()
                if key in needed and key not in batch
            }
            size = sum(x.nbytes for x in new.values()) * len(self.batches)
            self.batches[i] = {
                **{key: x for key, x in batch.items() if key in needed},
                **{key: _held(x, size) for key, x in new.items()},
            }

    def _run(
        self,
        steps: list[Step],
        batch: dict[int, Array],
        needed: set[int],
        see: Callable[[Step, Values], None] = lambda *_: None,
    ) -> Values:
        values: Values = dict(batch)
        last = {key: i for i, step in enumerate(steps) for key in step.reads}
        with _without_gradients():
            for i, step in enumerate(steps):
                for key in step.reads:
                    values[key] = ops.convert_to_tensor(whole(values[key]))
                see(step, values)
                step.run(self.chosen(step), values)
                for key in {*step.reads, *step.writes} - needed:
                    if last.get(key, i) == i:
                        del values[key]
        return values


def _held(x: Array, size: int) -> Array | Half:
    return Half.of(x) if size > HELD and x.dtype == "float32" else x


def _without_gradients() -> contextlib.AbstractContextManager[Any]:
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()
