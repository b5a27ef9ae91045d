"""The copy of a model in which group convolutions replace convolutions."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras import layers

from keras_tlgc._keras import parts_of
from keras_tlgc.graphs import calls_by_id, is_graph
from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.rewrite.constraints import constraint_notes
from keras_tlgc.rewrite.copying import (
    Copies,
    CopyError,
    assign,
    build_with_zeros,
    common_options,
    config_of,
    copy_graph,
    copy_layer,
    copy_state,
    freeze_as,
    one_line,
)
from keras_tlgc.rewrite.fitting import Fit
from keras_tlgc.rewrite.images import Images
from keras_tlgc.rewrite.progress import Track, layers_of
from keras_tlgc.rewrite.projection import project_kernel
from keras_tlgc.rewrite.report import Row
from keras_tlgc.rewrite.rows import changed, row_of
from keras_tlgc.rewrite.rules import Choice, Rules
from keras_tlgc.rewrite.samples import set_kernels
from keras_tlgc.rewrite.tracing import (
    OpaqueLayerError,
    following,
    symbolic_inputs,
    trace,
)
from keras_tlgc.types import Node


class Converter:
    """Copies each layer once and collects what the report will say."""

    def __init__(
        self,
        rules: Rules,
        track: Track,
        weights: str = "project",
        written: dict[int, keras.layers.Layer] | None = None,
    ) -> None:
        self.rules = rules
        self.track = track
        self.weights = weights
        # By the `id` of a layer, what announces that it is copied.
        self.steps: dict[int, Iterator[Any]] = {}
        self.copies: Copies = {}
        # Layers whose copies take the same weights.
        self.plain: list[keras.layers.Layer] = []
        # Layers that others replace, each with the index of its row.
        self.replaced: list[tuple[int, keras.layers.Layer]] = []
        # Layers that the graph calls, with the index of the row and the calls.
        self.called: list[tuple[int, keras.layers.Layer, list[Node]]] = []
        self.rows: list[Row] = []
        self.notes: list[str] = []
        # Weights of layers that are never called.
        self.left_out: list[keras.Variable] = []
        self.records: list[list[Any]] = [
            self.plain,
            self.replaced,
            self.called,
            self.rows,
            self.notes,
            self.left_out,
        ]
        # By its `id`, each layer that was written out, and so is ours already.
        self.traced: dict[int, keras.layers.Layer] = {}
        # By the `id` of a composite layer, its copy that was written out: one
        # of an earlier converter has the layers that that one has seen.
        self.written = {} if written is None else written

    def whole(self, model: keras.Model) -> keras.Model:
        """Return a copy of a model or of a KerasHub task."""
        return self.task(model) if _is_task(model) else self.model(model)

    def model(self, model: keras.Model, path: str = "") -> keras.Model:
        """Return a copy of a whole model, and report what it leaves out."""
        waiting = {id(layer): layer for layer in layers_of(model)}
        steps = iter(self.track(list(waiting.values())))
        self.steps = dict.fromkeys(waiting, steps)
        new = self.graph(model, path)
        for _ in steps:  # This tells the tracker that the last one is done.
            pass
        copied = [
            part
            for layer, _ in self.copies.values()
            # Operations have no parts, and the parts of models and wrappers are
            # in `copies` themselves.
            if isinstance(layer, layers.Layer)
            and not is_graph(layer)
            and type(layer) is not layers.TimeDistributed
            for part in parts_of(layer)
        ]
        self.leave_out(model, path, copied)
        return new

    def leave_out(
        self,
        layer: keras.layers.Layer,
        path: str,
        copied: Iterable[keras.layers.Layer],
    ) -> None:
        """Report what a model or layer holds besides the parts it calls."""
        parts = {id(part) for part in copied}
        for part, name in self.rules.within(layer, path):
            if id(part) not in parts:
                row = row_of(part, name, [], "never called")
                self.rows.append(
                    row._replace(
                        new_params=0, multiply_adds=0, new_multiply_adds=0
                    )
                )
        weights = {id(weight) for part in copied for weight in part.weights}
        self.left_out += [w for w in layer.weights if id(w) not in weights]

    def note_what_is_lost(self) -> None:
        """Note what the rows of the report do not show."""
        new = [self.copies[id(layer)][1] for _, layer in self.replaced]
        self.notes += constraint_notes(new)
        count = sum(math.prod(weight.shape) for weight in self.left_out)
        if count:
            self.notes.append(
                f"{count:,} parameters that no call of the model reaches are "
                "not in the new one"
            )

    def graph(
        self, model: keras.Model, path: str = "", calls: int = 1
    ) -> keras.Model:
        """Return a copy of a functional or Sequential model at a path."""
        prefix = f"{path}/" if path else ""
        nodes = calls_by_id(model)

        def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
            # Each call of the model calls everything that is in it.
            return self.copy(
                layer, prefix + layer.name, nodes[id(layer)] * calls
            )

        new = copy_graph(model, copy)
        if type(new) is not type(model):
            self.notes.append(
                f"'{path or model.name}' is a functional model now, no longer "
                f"a {type(model).__name__}, and has nothing of that class's own"
            )
        return new

    def task(self, model: keras.Model) -> keras.Model:
        """Return a KerasHub task with its backbone converted."""
        backbone = model.backbone
        new = self.model(backbone, backbone.name)
        config = {**model.get_config(), "backbone": new}
        try:
            task = type(model).from_config(config)
        except Exception as error:  # Some want a certain class of backbone.
            raise ValueError(
                "A task must be one that takes a functional model for its "
                f"backbone. Received: '{model.name}', {type(model).__name__}, "
                f"which does not: {one_line(error)} Convert "
                "`keras.Model(task.input, task.output)`, all of its network."
            ) from error
        inside = {id(part) for part in parts_of(backbone)}
        for layer in model.layers:
            if id(layer) not in inside and not isinstance(
                layer, layers.InputLayer
            ):
                copy_state(task.get_layer(layer.name), layer)
        self.rows += [
            row_of(part, name, [], "it is not in the backbone")
            for part, name in self.rules.within(model)
            if id(part) not in inside
        ]
        return task

    def copy(
        self, layer: keras.layers.Layer, path: str, nodes: list[Node]
    ) -> keras.layers.Layer:
        """Return the copy of a layer, converted where the rules say so."""
        if id(layer) not in self.copies:
            next(self.steps.get(id(layer), iter(())), None)
            self.copies[id(layer)] = layer, self.new(layer, path, nodes)
        return self.copies[id(layer)][1]

    def new(
        self, layer: keras.layers.Layer, path: str, nodes: list[Node]
    ) -> keras.layers.Layer:
        if self.rules.concern(layer):
            choice = self.rules.choose(layer, path)
            if isinstance(choice, str):
                return self.keep(layer, path, nodes, choice)
            return self.replace(layer, path, nodes, choice)
        if is_graph(layer):
            return self.graph(layer, path, len(nodes))
        if type(layer) is layers.TimeDistributed:
            inner = layer.layer
            if not (
                self.rules.concern(inner)
                or is_graph(inner)
                or type(inner) is layers.TimeDistributed
            ):
                nodes = []  # Unlike its inputs, these have an axis of time.
            inner = self.copy(inner, f"{path}/{inner.name}", nodes)
            return layers.TimeDistributed(inner, **common_options(layer))
        if type(layer) is layers.Lambda:
            return self.function(layer, nodes)
        if isinstance(layer, layers.Layer) and self.rules.within(layer):
            return self.composite(layer, path, nodes)
        return self.same(layer)

    def function(
        self, layer: layers.Lambda, nodes: list[Node]
    ) -> keras.layers.Layer:
        """Return a copy of a `Lambda` layer, or a model of its operations."""
        # A saved model could hold a function without a name only as code, which
        # is not safe to load.
        name = getattr(layer.function, "__name__", "")
        if name == "<lambda>" and layer.mask is None:
            with contextlib.suppress(OpaqueLayerError):
                return trace(layer, symbolic_inputs(nodes))
        return copy_layer(layer, self.copies)

    def composite(
        self, layer: keras.layers.Layer, path: str, nodes: list[Node]
    ) -> keras.layers.Layer:
        """Return a functional model for a composite layer, or just a copy."""
        inside = self.rules.within(layer, path)
        found = [self.rules.choose(part, name) for part, name in inside]
        # A layer within one that was written out is a copy already. It is
        # written out too, without copying it again.
        is_ours = id(layer) in self.traced
        reason = ""
        if is_ours or not all(isinstance(one, str) for one in found):
            before = [list(some) for some in self.records]
            copies = dict(self.copies)
            try:
                return self.written_out(layer, path, nodes, is_ours)
            except (OpaqueLayerError, CopyError) as error:
                for some, old in zip(self.records, before, strict=True):
                    some[:] = old
                self.copies = copies
                reason = f"it is within a {type(layer).__name__}: {error}"
        for (part, name), one in zip(inside, found, strict=True):
            why = one if isinstance(one, str) else reason
            self.rows.append(row_of(part, name, [], why))
        return self.same(layer)

    def written_out(
        self,
        layer: keras.layers.Layer,
        path: str,
        nodes: list[Node],
        is_ours: bool,
    ) -> keras.Model:
        inputs = symbolic_inputs(nodes)
        copy = layer if is_ours else self.written.get(id(layer))
        if copy is None:
            copy = copy_layer(layer, {})
            with following():
                copy(inputs)
            copy_state(copy, layer)
            self.written[id(layer)] = copy
        model = trace(copy, inputs)
        called = parts_of(model)
        self.traced |= {id(part): part for part in called}
        new = self.graph(model, path, len(nodes))
        self.leave_out(copy, path, called)
        return new

    def same(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        new = copy_layer(layer, self.copies)
        if isinstance(layer, layers.Layer):
            self.plain.append(layer)
        return new

    def keep(
        self,
        layer: keras.layers.Layer,
        path: str,
        nodes: list[Node],
        reason: str,
    ) -> keras.layers.Layer:
        self.called.append((len(self.rows), layer, nodes))
        self.rows.append(row_of(layer, path, nodes, reason))
        return self.same(layer)

    def replace(
        self,
        layer: keras.layers.Layer,
        path: str,
        nodes: list[Node],
        choice: Choice,
    ) -> BaseGroupConv:
        self.replaced.append((len(self.rows), layer))
        self.called.append((len(self.rows), layer, nodes))
        row = row_of(layer, path, nodes, "")
        self.rows.append(changed(row, layer, choice))
        config = config_of(layer, self.copies)
        initializer = keras.initializers.get(config["kernel_initializer"])
        if not choice.can_initialize(layer, initializer):
            config["kernel_initializer"] = "glorot_uniform"
            self.notes.append(
                f"'{path}' has kernels of the initializer glorot_uniform: its "
                "own gives no other shapes than that of its kernel"
            )
        new = choice.replacement(layer, config)
        if self.weights != "random":
            build_with_zeros(new, layer.kernel.shape[-2])
        return new

    def set_weights(self) -> None:
        """Give the new layers the weights of the old ones."""
        for layer in self.plain:
            copy_state(self.copies[id(layer)][1], layer)
        for index, layer in self.track(self.replaced):
            new = self.copies[id(layer)][1]
            if layer.use_bias:
                assign(new.bias, layer.bias)
                freeze_as(new.bias, layer.bias)
            if isinstance(layer.activation, layers.Layer):
                copy_state(new.activation, layer.activation)
            for kernel in new.sharded_kernels:
                freeze_as(kernel, layer.kernel)
            if self.weights == "project":
                error = self.project(layer, new, self.rows[index])
                self.rows[index] = self.rows[index]._replace(error=error)

    def project(
        self, layer: keras.layers.Layer, new: BaseGroupConv, row: Row
    ) -> float:
        try:
            projection = project_kernel(
                keras.ops.convert_to_numpy(layer.kernel),
                row.groups,
                new.gathered_channels // new.groups,
                form=row.form,
            )
        except ValueError as error:
            raise ValueError(f"Of the layer '{row.name}': {error}") from error
        set_kernels(new, projection.kernels)
        return projection.error

    def fit(self, model: keras.Model, data: Images) -> None:
        """Fit the new layers to the outputs of the old ones, on data."""
        fit, indices = self.fitter(model, data)
        for key, found in fit.run(self.track).items():
            row = self.rows[indices[key]]
            self.rows[indices[key]] = row._replace(output_error=found.error)
        self.notes += fit.notes

    def fitter(
        self, model: keras.Model, data: Images
    ) -> tuple[Fit, dict[int, int]]:
        """Return what fits the new layers, and the row of each by its `id`."""
        rows = {id(self.copies[id(old)][1]): i for i, old in self.replaced}
        forms = {key: self.rows[i].form for key, i in rows.items()}
        originals = {id(copy): old for old, copy in self.copies.values()}
        return Fit(model, originals, forms, data), rows


def _is_task(model: keras.Model) -> bool:
    """Return whether a model is a KerasHub task, without importing KerasHub."""
    return all(
        hasattr(model, name)
        for name in ("backbone", "preprocessor", "save_to_preset")
    )
