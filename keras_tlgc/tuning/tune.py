"""Timing the lowerings of a model's layers, and taking the fastest."""

import contextlib
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_tlgc._keras import parts_of
from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.layers.depthwise_conv import DepthwiseConv2D
from keras_tlgc.ops import tuned
from keras_tlgc.ops.lowerings import LOWERINGS, check_lowering
from keras_tlgc.ops.tuned import Call
from keras_tlgc.rewrite.copying import copy_layer, one_line
from keras_tlgc.sharding.per_shard import active_distribution
from keras_tlgc.timing import ROUNDS, in_turns, ratio, ratios
from keras_tlgc.tuning.report import Row, Tuning
from keras_tlgc.tuning.steps import (
    Step,
    layer_step,
    model_step,
    random_inputs,
)
from keras_tlgc.validation import positive_int, positive_ints

GAIN = 0.05  # The share of a layer's time that has to be saved
OF_ROUNDS = 0.75  # in so many of the rounds, or is noise.
SLOW = 3.0  # So many times slower than `auto`, one is not timed any further.


def tune(
    model: keras.Model,
    batch_size: int,
    *,
    training: bool = True,
    input_shape: tuple[int, ...] | None = None,
    path: str | os.PathLike[str] | None = None,
    rounds: int = ROUNDS,
) -> Tuning:
    """Take the lowering of each layer that is fastest on the machine at hand.

    `lowering="auto"` is a rule, measured on a few CPUs. This times, for each
    kind of call of the model's layers, what that rule takes and all lowerings
    that can compute it: forward and all gradients, compiled as the backend
    compiles a train step, in turns, on the device at hand. Of the lowerings
    that save at least 5% of its time in three of four rounds, the fastest
    becomes the layer's `lowering`, which `model.save` keeps. Then the model is
    timed as a whole, with what was chosen and with `"auto"`, in turns: forward
    in training mode and the gradients of the mean squares of its outputs. If it
    got slower, all layers keep `"auto"`.

    The results of the lowerings are the same, except for rounding and where a
    NaN goes. Weights, and the states of normalisations, stay as they are. What
    Keras compiled for `fit`, `evaluate` and `predict` is dropped, and compiled
    anew at the next call. A lowering that a layer had before is chosen anew.

    Args:
        model: `keras.Model`, built. Its layers get their `lowering`.
        batch_size: int, the size of a batch on one device.
        training: bool, whether gradients are timed too. With `False` the
            forward pass counts alone, for inference.
        input_shape: tuple, the shape of one input without the batch, for models
            with one input whose sizes are not known.
        path: path of a JSON file into which what was measured is written, in
            place of what it holds on the same calls. `lowering="auto"` takes it
            from there if the environment variable `KERAS_TLGC_TUNED` names the
            file (see `keras_tlgc.ops.use_tuned`).
        rounds: int, how often each lowering is timed.

    Returns:
        A `Tuning`, which `print` shows as a table.

    Raises:
        ValueError: if a number is not a positive integer, sizes of inputs are
            unknown or do not fit the model, no layer has several lowerings, a
            distribution is set, or `path` holds something else or lies in no
            folder.

    Example:

    >>> layer = keras_tlgc.layers.GroupConv2D(16, 3, groups=2, name="conv")
    >>> model = keras.Sequential([keras.Input((8, 8, 16)), layer])
    >>> report = keras_tlgc.tune(model, batch_size=2, rounds=1)
    >>> [row] = report.rows
    >>> row.lowering in keras_tlgc.ops.LOWERINGS
    True
    """
    positive_int("batch_size", batch_size)
    positive_int("rounds", rounds)
    _check_no_mesh()
    target = None if path is None else _checked(Path(path))
    x = random_inputs(_symbolic_inputs(model, input_shape), batch_size)
    layers, others = _layers_of(model)
    timing = _Timing(training, _jit_compile(model), rounds)
    before = {layer: layer.lowering for layer in layers}
    with _kept_state(model):
        try:
            rows, step, is_applied = _tuned(model, layers, x, timing)
        except BaseException:
            _set(before)
            raise
    _forget_compiled(model)
    if target is not None:
        tuned.write(target, _of_file(rows, training, is_applied))
    called = {name for row in rows for name in row.names}
    others += [
        Row((layer.path,), None, "auto", {}, "never asked for a lowering")
        for layer in layers
        if layer.path not in called
    ]
    return Tuning((*rows, *others), step, training, batch_size, is_applied)


class _Timing(NamedTuple):
    """How lowerings are timed: see `tune` and `keras.Model.compile`."""

    training: bool
    jit_compile: bool | str
    rounds: int


class _Calls:
    """Notes which layers ask for a lowering, and for what."""

    def __init__(self) -> None:
        self.layers: dict[Call, list[Any]] = {}

    def __call__(self, call: Call, layer: Any) -> str:
        asking = self.layers.setdefault(call, [])
        if all(layer is not one for one in asking):
            asking.append(layer)
        return "auto"


def _tuned(
    model: keras.Model, layers: list[Any], x: Any, timing: _Timing
) -> tuple[list[Row], float, bool]:
    """Set what is fastest, and return what was measured."""
    auto = dict.fromkeys(layers, "auto")
    _set(auto)
    calls = _Calls()
    with tuned.answered_by(calls):
        old = model_step(model, x, timing.training, timing.jit_compile)
    with tuned.answered_by(lambda call, layer: "auto"):
        rows = [
            _timed(call, asking, timing)
            for call, asking in calls.layers.items()
        ]
        chosen = _chosen(rows, calls)
        if not chosen:
            return rows, 1.0, True
        _set(chosen)
        new = model_step(model, x, timing.training, timing.jit_compile)

        # Where nothing is compiled, a step takes what the layers have then.
        def run(step: Step, lowerings: dict[Any, str]) -> object:
            _set(lowerings)
            return step.run()

        times = in_turns(
            [
                functools.partial(run, old, auto),
                functools.partial(run, new, chosen),
            ],
            timing.rounds,
        )
    step = ratio(times[1], times[0])
    is_faster = step < 1
    _set(chosen if is_faster else auto)
    return rows, step, is_faster


def _chosen(rows: list[Row], calls: _Calls) -> dict[Any, str]:
    """Return the new lowering of each layer whose calls agree on one."""
    found: dict[Any, set[str]] = {}
    for row, asking in zip(rows, calls.layers.values(), strict=True):
        for layer in asking:
            found.setdefault(layer, set()).add(row.lowering)
    return {
        layer: lowering
        for layer, (lowering, *others) in found.items()
        if not others and lowering != "auto"
    }


def _timed(call: Call, layers: list[Any], timing: _Timing) -> Row:
    """Time all lowerings of a call."""
    steps, errors = {}, []
    for lowering in LOWERINGS:
        try:
            check_lowering(lowering, call.kernel_size)
            check_lowering(lowering, call.coarse_kernel_size)
        except ValueError:
            continue
        try:
            steps[lowering] = _step(call, layers[0], lowering, timing)
        except Exception as error:  # Whatever a backend raises.
            errors.append(f"{lowering} failed: {one_line(error)}")
    names = tuple(layer.path for layer in layers)
    if "auto" not in steps:
        return Row(names, call, "auto", {}, "; ".join(errors))
    times = _times(steps, timing.rounds)
    auto = times["auto"]
    to_auto = {name: round(ratio(ms, auto), 4) for name, ms in times.items()}
    clear = [name for name, ms in times.items() if _is_faster(ms, auto)]
    lowering = min(clear, key=to_auto.__getitem__, default="auto")
    return Row(names, call, lowering, to_auto, "; ".join(errors))


def _is_faster(times: list[float], auto: list[float]) -> bool:
    """Return whether what is saved is no noise, nor what else the machine did.

    On a machine that is busy, a median alone may say anything.
    """
    found = ratios(times, auto)
    return found[math.ceil(OF_ROUNDS * len(found)) - 1] <= 1 - GAIN


def _step(call: Call, layer: Any, lowering: str, timing: _Timing) -> Step:
    random = np.random.default_rng(0)
    # JAX would compile the random numbers of each shape, for seconds.
    names = [name for name in vars(layer) if name.endswith("_initializer")]
    changes = {"lowering": lowering, "padding": call.padding}
    changes |= dict.fromkeys(names, "zeros")
    new: Any = copy_layer(layer, {}, activity_regularizer=None, **changes)
    new.build(call.input_shape)
    for weight in new.weights:
        weight.assign(random.normal(size=weight.shape))
    x = random.normal(size=call.input_shape).astype("float32")
    return layer_step(new, x, timing.training, timing.jit_compile)


def _times(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Return the times of all steps that are not many times slower."""
    runs = [step.run for step in steps.values()]
    first = map(min, in_turns(runs, rounds=3, warm_up=0))
    least = dict(zip(steps, first, strict=True))
    names = [name for name, ms in least.items() if ms <= SLOW * least["auto"]]
    times = in_turns([steps[name].run for name in names], rounds)
    return dict(zip(names, times, strict=True))


def _set(lowerings: dict[Any, str]) -> None:
    for layer, lowering in lowerings.items():
        layer.lowering = lowering


def _of_file(
    rows: list[Row], training: bool, is_applied: bool
) -> Iterator[tuned.Row]:
    """Yield what the file says of the calls that were timed."""
    machine = tuned.this_machine()
    for row in rows:
        if row.call is not None and row.to_auto:
            lowering = row.lowering if is_applied else "auto"
            yield tuned.Row(machine, training, row.call, lowering, row.to_auto)


def _layers_of(model: keras.Model) -> tuple[list[Any], list[Row]]:
    """Return the layers to tune, and rows for those of one lowering."""
    layers, others = [], []
    for part in parts_of(model):
        if not isinstance(part, (BaseGroupConv, DepthwiseConv2D)):
            continue
        reason = _why_not(part)
        if reason:
            others.append(Row((part.path,), None, "auto", {}, reason))
        else:
            layers.append(part)
    if not layers:
        raise ValueError(
            "A model to tune must have a layer with several lowerings, such as "
            "`TwoLevelGroupConv2D` with `groups` above 1. Received: "
            f"'{model.name}', which has none. Convert it by "
            "`keras_tlgc.convert` first."
        )
    return layers, others


def _why_not(layer: Any) -> str:
    """Return why there is nothing to choose for a layer, or an empty string."""
    if isinstance(layer, DepthwiseConv2D):
        return "takes no `lowering`"
    if not layer.rank or "lowering" in layer.not_arguments:
        return "has one lowering"
    return "has one group" if layer.groups == 1 else ""


def _jit_compile(model: keras.Model) -> bool | str:
    return model.jit_compile if model.compiled else "auto"


def _forget_compiled(model: keras.Model) -> None:
    """Let Keras compile anew what it compiled for the old lowerings."""
    for part in parts_of(model):
        if isinstance(part, keras.Model):
            part.train_function = None
            part.test_function = None
            part.predict_function = None


@contextlib.contextmanager
def _kept_state(model: keras.Model) -> Iterator[None]:
    """Put back what is not trainable and a step changes, such as means."""
    kept = [v for v in model.variables if not v.trainable]
    values = [keras.ops.convert_to_numpy(v) for v in kept]
    try:
        yield
    finally:
        for variable, value in zip(kept, values, strict=True):
            variable.assign(value)


def _check_no_mesh() -> None:
    distribution = active_distribution()
    if distribution is not None:
        raise ValueError(
            "Lowerings are tuned on one device. Received: the distribution "
            f"{type(distribution).__name__}, which is set. Call `tune` with "
            "`path=` in a process of its own, without one, with the batch of "
            f"one device; then name that file in {tuned.VARIABLE} in all "
            "processes of the mesh."
        )


def _checked(path: Path) -> Path:
    """Return a path, or raise a `ValueError` if no file can be written."""
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            "`path` must be a file in a folder that exists. Received: "
            f"path='{path}'. Name another file, or make the folder."
        )
    if path.exists():
        tuned.read(path)
    return path


def _symbolic_inputs(model: keras.Model, shape: tuple[int, ...] | None) -> Any:
    """Return the inputs of a model, with sizes that are all known."""
    inputs = getattr(model, "inputs", None) or []
    if not model.built:
        raise ValueError(
            "A model to tune must have weights. Received: "
            f"'{model.name}', not built yet. Call it on data first."
        )
    if shape is not None and len(inputs) < 2:
        known = inputs[0].shape[1:] if inputs else shape
        if _fits(known, shape):
            dtype = inputs[0].dtype if inputs else keras.config.floatx()
            return keras.KerasTensor((None, *shape), dtype)
    shapes = [tuple(one.shape[1:]) for one in inputs]
    if shape is not None or not shapes or any(None in one for one in shapes):
        raise ValueError(
            "The sizes of all inputs must be known. Received: "
            f"'{model.name}' with inputs of shapes {shapes or 'unknown'}, and "
            f"input_shape={shape}. Pass the shape of one input without its "
            "batch, such as `input_shape=(224, 224, 3)`, to a model with one "
            "input; build one with several for fixed sizes."
        )
    return inputs[0] if len(inputs) == 1 else model.input


def _fits(known: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    """Return whether a shape is positive integers, and those that are known."""
    positive_ints("input_shape", shape, len(known))
    pairs = zip(known, shape, strict=True)
    return all(one in (None, size) for one, size in pairs)
