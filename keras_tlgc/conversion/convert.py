"""Models rewritten with group convolutions."""

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import keras
from keras import layers

from keras_tlgc.conversion.projection import project_kernel
from keras_tlgc.conversion.report import Report, Row
from keras_tlgc.conversion.rules import Rules, is_convolution
from keras_tlgc.conversion.tracing import (
    OpaqueLayerError,
    following,
    one_line,
    symbolic_inputs,
    trace,
)
from keras_tlgc.graphs import copy_weights, graph_nodes, is_graph
from keras_tlgc.validation import one_of


class Conversion(NamedTuple):
    """What `convert` returns: the new model, and what was done."""

    model: keras.Model
    report: Report


def convert(
    model: keras.Model,
    groups: int | Callable[[int, int], int],
    conv: str = "two_level",
    coarse_channels: int = 1,
    where: str | Callable[[keras.layers.Layer], bool] | None = None,
    weights: str = "project",
    track: Callable[[list], Iterable] = iter,
) -> Conversion:
    """Turn a model's convolutions into two-level group convolutions.

    Standard convolutions (`keras.layers.Conv1D`, `2D` and `3D`) become
    `TwoLevelGroupConv{1,2,3}D` of the same name and arguments where `groups`
    divides their input channels and filters and the result is smaller; all
    else stays. Nested models and `TimeDistributed` are entered. So are
    composite layers, such as the blocks of KerasHub and KerasCV: one that holds
    something to convert is replaced by a functional model of its name, where
    its `call` can be written out as one. Whatever is kept, the report says why.

    Args:
        model: functional or Sequential `keras.Model`, built, or a KerasHub
            task, whose backbone is converted. It is left as it is, and shares
            no weights with the result.
        groups: integer N of at least 2, or a function of input channels and
            filters that returns it for each layer, such as
            `largest_divisor(8)`; 1 keeps the layer.
        conv: `"two_level"`, or `"group"` for one level.
        coarse_channels: integer r, the coarse channels of each group.
        where: what to convert: a regular expression that is searched in each
            layer's path (names of the models and layers around it and its own,
            joined by `/`), or a function of the layer that returns a bool.
            All, if not given.
        weights: `"project"` sets the kernels to those closest to the trained
            ones (`project_kernel`); `"random"` starts them anew. The biases,
            and all other layers, keep their weights either way.
        track: function of the list of convolutions to be set that returns an
            iterable of them, to show progress: `tqdm.tqdm`,
            `rich.progress.track`.

    Returns:
        A pair `(model, report)`: the new model, not compiled, of the same
        inputs, outputs and names, and a `Report` with a row for each
        convolution, which `print` shows as a table.

    Raises:
        ValueError: if an argument is out of its range, the model is not
            functional or Sequential or is not built, a layer cannot be copied,
            a kernel has entries that are not finite, or nothing can be
            converted.

    Example:

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((8, 8, 3)),
    ...         keras.layers.Conv2D(16, 3, name="stem"),
    ...         keras.layers.Conv2D(32, 3, name="last"),
    ...     ]
    ... )
    >>> lighter, report = keras_tlgc.convert(model, groups=4)
    >>> print(f"{len(report.converted)} of {len(report.rows)} converted")
    1 of 2 converted
    >>> print(f"{report.params:,} -> {report.new_params:,} parameters")
    5,088 -> 1,904 parameters
    >>> report.kept[0].name, report.kept[0].reason
    ('stem', '4 groups do not divide 3 channels, 16 filters')
    """
    one_of("weights", weights, ["project", "random"])
    rules = Rules.make(groups, conv, coarse_channels, where)
    if not is_graph(model):
        raise ValueError(
            "The model must be functional or Sequential, and built. Received: "
            f"'{getattr(model, 'name', model)}', {type(model).__name__}, "
            f"built={getattr(model, 'built', None)}. Call it on data first; "
            "of a subclassed model, convert "
            "`keras.Model(inputs, model.call(inputs))`."
        )
    converter = _Converter(rules)
    new = converter.task(model) if _is_task(model) else converter.graph(model)
    if not converter.replaced:
        reasons = sorted({row.reason for row in converter.rows})
        raise ValueError(
            "There must be a convolution to convert. Received: the model "
            f"'{model.name}' with {len(converter.rows)} convolutions, "
            f"none of which can be converted{': ' if reasons else ''}"
            f"{'; '.join(reasons)}. Choose other `groups` or `where`."
        )
    converter.set_weights(weights, track)
    return Conversion(
        new,
        Report(
            tuple(converter.rows),
            model.count_params(),
            new.count_params(),
            tuple(converter.notes),
        ),
    )


class _Converter:
    """Copies layers, each once, and keeps the report on the way."""

    def __init__(self, rules):
        self.rules = rules
        self.copies = {}  # id of a layer: the layer and its copy
        self.plain = []  # layers whose copies take the same weights
        self.replaced = []  # (index of the row, layer)
        self.rows = []
        self.notes = []
        self.records = [self.plain, self.replaced, self.rows, self.notes]
        self.traced = {}  # id of a layer: a layer that is ours already

    def graph(self, model, path="", calls=1):
        """Return a copy of a functional or Sequential model at a path."""
        prefix = f"{path}/" if path else ""
        nodes = {}
        for node in graph_nodes(model):
            nodes.setdefault(id(node.operation), []).append(node)

        def copy(layer):
            # All that is in a model happens as often as it is called.
            return self.copy(
                layer, prefix + layer.name, nodes[id(layer)] * calls
            )

        with _not_compiled(model):
            new = keras.models.clone_model(model, clone_function=copy)
        if type(new) is not type(model):
            self.notes.append(
                f"'{path or model.name}' is a functional model now, no longer "
                f"a {type(model).__name__}, and has nothing of that class's own"
            )
        if not model.trainable:
            new.trainable = False
        return new

    def task(self, model):
        """Return a KerasHub task with its backbone converted."""
        backbone = model.backbone
        new = self.graph(backbone, backbone.name)
        config = {**model.get_config(), "backbone": new}
        task = type(model).from_config(config)
        for layer in model.layers:
            if layer is not backbone and not isinstance(
                layer, layers.InputLayer
            ):
                _copy_state(task.get_layer(layer.name), layer)
                self.rows += [
                    self.row(part, part.name, [], "it is not in the backbone")
                    for part in _convolutions(layer)
                ]
        return task

    def copy(self, layer, path, nodes):
        """Return the copy of a layer, converted where the rules say so."""
        if id(layer) not in self.copies:
            self.copies[id(layer)] = layer, self.new(layer, path, nodes)
        return self.copies[id(layer)][1]

    def new(self, layer, path, nodes):
        if is_convolution(layer):
            groups, reason = self.rules.groups_of(layer, path)
            if reason:
                return self.keep(layer, path, nodes, reason)
            return self.replace(layer, path, nodes, groups)
        if is_graph(layer):
            return self.graph(layer, path, len(nodes))
        if type(layer) is layers.TimeDistributed:
            inner = layer.layer
            if not (
                is_convolution(inner)
                or is_graph(inner)
                or type(inner) is layers.TimeDistributed
            ):
                nodes = []  # Its inputs lack the time, so these are not its.
            inner = self.copy(inner, f"{path}/{inner.name}", nodes)
            return layers.TimeDistributed(inner, **_common(layer))
        if type(layer) is layers.Lambda:
            return self.function(layer, nodes)
        if isinstance(layer, layers.Layer) and _convolutions(layer):
            return self.composite(layer, path, nodes)
        return self.same(layer)

    def function(self, layer, nodes):
        """Return a copy of a `Lambda` layer, or its operations."""
        # A function without a name could be written down as code only, which
        # is not safe to load.
        name = getattr(layer.function, "__name__", "")
        if name == "<lambda>" and layer.mask is None:
            with contextlib.suppress(OpaqueLayerError):
                return trace(layer, symbolic_inputs(nodes))
        return layers.Lambda(
            layer.function,
            output_shape=layer._output_shape,
            mask=layer.mask,
            arguments=layer.arguments,
            **_common(layer),
        )

    def composite(self, layer, path, nodes):
        """Return a functional model in the place of a composite layer."""
        inside = _convolutions(layer)
        found = [
            self.rules.groups_of(part, f"{path}/{part.name}") for part in inside
        ]
        # What was written out already is ours, and goes on being so.
        is_ours = id(layer) in self.traced
        reason = ""
        if is_ours or any(groups > 1 for groups, _ in found):
            before = [list(some) for some in self.records]
            try:
                return self.written_out(layer, path, nodes, is_ours)
            except (OpaqueLayerError, _CopyError) as error:
                for some, old in zip(self.records, before, strict=True):
                    some[:] = old
                reason = f"it is within a {type(layer).__name__}: {error}"
        for part, (_, why) in zip(inside, found, strict=True):
            self.rows.append(
                self.row(part, f"{path}/{part.name}", [], why or reason)
            )
        return self.same(layer)

    def written_out(self, layer, path, nodes, is_ours):
        inputs = symbolic_inputs(nodes)
        copy = layer
        if not is_ours:
            copy = _from_config(layer)
            with following():
                copy(inputs)
            _copy_state(copy, layer)
        model = trace(copy, inputs)
        called = {id(part): part for part in model._flatten_layers()}
        self.traced |= called
        new = self.graph(model, path, len(nodes))
        for part in _convolutions(copy):
            if id(part) not in called:
                row = self.row(part, f"{path}/{part.name}", [], "never called")
                self.rows.append(row._replace(new_params=0))
        return new

    def same(self, layer):
        new = _from_config(layer)
        if isinstance(layer, layers.Layer):
            self.plain.append(layer)
        return new

    def keep(self, layer, path, nodes, reason):
        self.rows.append(self.row(layer, path, nodes, reason))
        return self.same(layer)

    def replace(self, layer, path, nodes, groups):
        self.replaced.append((len(self.rows), layer))
        row = self.row(layer, path, nodes, "")
        size = self.rules.kernel_size(layer, groups)
        old_size = math.prod(layer.kernel.shape)
        adds = row.multiply_adds
        self.rows.append(
            row._replace(
                groups=groups,
                new_params=row.params - old_size + size,
                new_multiply_adds=adds and adds // old_size * size,
            )
        )
        return self.rules.replacement(layer, groups)

    def row(self, layer, path, nodes, reason):
        params = layer.count_params() if layer.built else 0
        adds = _multiply_adds(layer, nodes)
        return Row(
            path, type(layer).__name__, 1, reason, params, params, adds, adds
        )

    def set_weights(self, weights, track):
        """Give the new layers the weights of the old ones."""
        for layer in self.plain:
            _copy_state(self.copies[id(layer)][1], layer)
        for index, layer in track(self.replaced):
            new = self.copies[id(layer)][1]
            if layer.use_bias:
                new.bias.assign(layer.bias)
            if weights == "project":
                error = self.project(layer, new, self.rows[index])
                self.rows[index] = self.rows[index]._replace(error=error)

    def project(self, layer, new, row):
        two_level = self.rules.conv == "two_level"
        try:
            projection = project_kernel(
                keras.ops.convert_to_numpy(layer.kernel),
                row.groups,
                self.rules.coarse_channels if two_level else 0,
            )
        except ValueError as error:
            raise ValueError(f"Of the layer '{row.name}': {error}") from error
        new.kernel.assign(projection.group_kernel)
        if two_level:
            new.restriction_kernel.assign(projection.restriction_kernel)
            new.coarse_kernel.assign(projection.coarse_kernel)
        return projection.error


class _CopyError(ValueError):
    """A layer that its config does not make again."""


def _from_config(layer):
    try:
        return type(layer).from_config(layer.get_config())
    except Exception as error:  # Whatever a foreign layer raises.
        raise _CopyError(
            "Each layer must be one that its config makes again. Received: "
            f"'{layer.name}', {type(layer).__name__}, which is not: "
            f"{one_line(error)} Mend its `get_config`."
        ) from error


def _is_task(model):
    """Return whether a model is a task of KerasHub, which need not be here."""
    return all(
        hasattr(model, name)
        for name in ("backbone", "preprocessor", "save_to_preset")
    )


def _copy_state(target, source):
    """Set weights as those of another layer, and freeze what is frozen."""
    copy_weights(target, source)
    # A config says so of the layer itself, but not of those within.
    parts = zip(target._flatten_layers(), source._flatten_layers(), strict=True)
    for new, old in parts:
        if new.trainable != old.trainable:
            new.trainable = old.trainable


def _convolutions(layer):
    return [p for p in layer._flatten_layers() if is_convolution(p)]


def _common(layer):
    return {
        "name": layer.name,
        "dtype": layer.dtype_policy,
        "trainable": layer.trainable,
    }


@contextlib.contextmanager
def _not_compiled(model):
    """Let a clone not be compiled: a loss may not be one to write down."""
    compiled, model.compiled = model.compiled, False
    try:
        yield
    finally:
        model.compiled = compiled


def _multiply_adds(layer, nodes):
    """Count multiplications: a kernel's entries for each position."""
    total = 0
    for node in nodes:
        is_transposed = "Transpose" in type(layer).__name__
        [tensor] = node.input_tensors if is_transposed else node.output_tensors
        first = layer.data_format == "channels_first"
        shape = list(tensor.shape[1:])
        if None in shape:
            return None
        positions = math.prod(shape) // shape[-layer.rank - 1 if first else -1]
        kernels = sum(
            math.prod(v.shape) for v in layer.weights if "kernel" in v.name
        )
        total += positions * kernels
    return total or None
