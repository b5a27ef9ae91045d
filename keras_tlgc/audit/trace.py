"""What a train step of PyTorch moves over a mesh, read while it runs once."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import torch
from keras import tree
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import flop_registry

from keras_tlgc._keras import observed
from keras_tlgc.audit.batch import made_up_data
from keras_tlgc.audit.hlo import Collective
from keras_tlgc.audit.report import some
from keras_tlgc.audit.rules import asked_outputs
from keras_tlgc.audit.step import (
    Step,
    Tensor,
    recorded_calls,
    spare_optimizer,
    variables_of_step,
)
from keras_tlgc.sharding.per_shard import axes_of, axis_size

# Operations of PyTorch that move data, by the beginning of their names without
# underscores, and those that do not. All others in their namespaces send.
NAMESPACES = ("c10d", "_c10d_functional")
KINDS = {
    "allgather": "all-gather",
    "allreduce": "all-reduce",
    "reducescatter": "reduce-scatter",
    "alltoall": "all-to-all",
    "broadcast": "collective-broadcast",
}
MOVE_NOTHING = ("wait", "barrier", "monitoredbarrier", "wrap")


def trace_step(model, distribution, batch_size: int, data=None) -> Step:
    """Run the train step that `model.fit` would run, once, and log it.

    The batch consists of zeros. All processes of the mesh must call this. The
    model, its metrics and its optimizer have their values back afterwards.

    Args:
        model: compiled `keras.Model`.
        distribution: the `keras.distribution.ModelParallel` it was built under.
        batch_size: int, samples in a global batch.
        data: optional batch `(x, y)` or `(x, y, sample_weight)` of arrays, of
            which only shapes and types are read.

    Returns:
        A `Step`. If PyTorch fails amid the step its findings say so.

    Raises:
        ValueError: if the distribution is not a `ModelParallel`, or the model
            was built outside of it.
    """
    mesh = distribution.device_mesh
    _check(model, distribution)
    with spare_optimizer(model):
        batch = data or made_up_data(model, batch_size)
        batch = keras.utils.unpack_x_y_sample_weight(tuple(batch))
        groups = variables_of_step(model, batch)
        count = axis_size(mesh, distribution.batch_dim_name)
        local = tree.map_structure(lambda a: _zeros(a, count), batch)
        log = _Log(mesh.backend_mesh)
        findings = []
        with (
            _kept([variable for group in groups for variable in group]),
            recorded_calls(model, log.run) as calls,
            _without_gradient(model.optimizer, log) as untrained,
            observed(log.observe),
            asked_outputs(distribution) as outputs,
        ):
            try:
                model.train_on_batch(*local)
            except RuntimeError as error:
                findings.append(_failed(error, log.where))
        if untrained:
            findings.append(_untrained(untrained))
        trainable, fixed, slots, metrics = (
            [_tensor(variable) for variable in group] for group in groups
        )
        return Step(
            distribution,
            log.collectives,
            calls,
            trainable,
            fixed,
            slots,
            metrics,
            flops=log.flops,
            bytes_accessed=math.nan,
            temporary_bytes=math.nan,
            # `DTensor` may add up the parts of a gradient where they are
            # needed, and put the whole together after the update.
            sum_kinds=("all-reduce", "reduce-scatter", "all-gather"),
            findings=findings,
            outputs=outputs,
        )


class _Log:
    """The collectives of a step, and which layers they come from.

    Attributes:
        collectives: list of `Collective`.
        flops: int, operations of convolutions and products of matrices.
        where: string, the names of the layers that are at work, with slashes.
    """

    def __init__(self, mesh):
        self.collectives: list[Collective] = []
        self.flops = 0
        self.where = ""
        self._nodes: set[Any] = set()
        ranks = mesh.mesh.flatten().tolist()
        self._everybody = tuple(range(len(ranks)))
        self._members = {
            group.group_name: tuple(
                map(ranks.index, distributed.get_process_group_ranks(group))
            )
            for group in map(mesh.get_group, mesh.mesh_dim_names)
        }

    def observe(self, operation: Any, args: Any, kwargs: Any, result: Any):
        """Log an operation on the parts of this device."""
        if operation.namespace in NAMESPACES:
            self._moved(operation, [*args, *kwargs.values()], result)
        elif count := flop_registry.get(operation.overloadpacket):
            self.flops += count(*args, **kwargs, out_val=result)

    def _moved(self, operation, args, result):
        name = operation.name().split("::")[1].split(".")[0].replace("_", "")
        members = self._members.get(_group_name(args), self._everybody)
        if name.startswith(MOVE_NOTHING) or len(members) == 1:
            return
        kinds = [KINDS[start] for start in KINDS if name.startswith(start)]
        self.collectives += [
            Collective(
                (*kinds, "collective-permute")[0],
                str(array.dtype).removeprefix("torch."),
                tuple(array.shape),
                (members,),
                f"{self.where}/{name}",
            )
            for array in _arrays(result)
        ]

    def run(
        self,
        layer: keras.layers.Layer,
        call: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call a layer; what it moves, now or backward, is its own.

        Where the call fails, `where` remains.
        """
        before = self.where
        self.where = f"{before}/{layer.name}"
        outputs = call(*args, **kwargs)
        self._follow_backward(_arrays(outputs), _arrays((args, kwargs)))
        self.where = before
        return outputs

    def _follow_backward(self, outputs, inputs):
        where = self.where

        def enter(_):
            self.where = where

        seen = {array.grad_fn for array in inputs} | {None}
        nodes = [array.grad_fn for array in outputs]
        while nodes:
            node = nodes.pop()
            if node in seen:
                continue
            seen.add(node)
            if node not in self._nodes:  # A layer within this one has those.
                self._nodes.add(node)
                node.register_prehook(enter)
            nodes += [before for before, _ in node.next_functions]


def _arrays(structure):
    return [a for a in tree.flatten(structure) if isinstance(a, torch.Tensor)]


def _group_name(args):
    """Return the name of the group among the arguments of a collective."""
    for arg in args:
        if isinstance(arg, torch.ScriptObject):  # The first one is it.
            return distributed.ProcessGroup.unbox(arg).group_name
    return next((arg for arg in reversed(args) if isinstance(arg, str)), None)


def _zeros(array, count):
    """Return zeros in the form of the rows that a process feeds."""
    if array is None:
        return None
    rows, *shape = array.shape
    dtype = keras.utils.standardize_dtype(array.dtype)
    return np.zeros((rows // count, *shape), dtype)


@contextlib.contextmanager
def _kept(variables):
    """Give variables their values back when the block ends."""
    values = [variable.value.detach().clone() for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def _without_gradient(optimizer, log) -> Iterator[list[str]]:
    """List the variables that an optimizer gets no gradient for."""
    untrained: list[str] = []
    apply = optimizer.apply

    def applying(gradients, variables=None):
        log.where = ""
        pairs = list(zip(gradients, variables or (), strict=False))
        untrained.extend(v.path for g, v in pairs if g is None)
        return apply(gradients, variables)

    object.__setattr__(optimizer, "apply", applying)
    try:
        yield untrained
    finally:
        object.__delattr__(optimizer, "apply")


def _tensor(variable):
    value = variable.value
    is_split = isinstance(value, DTensor)
    local = value.to_local() if is_split else value
    return Tensor(
        variable.path,
        tuple(value.shape),
        tuple(local.shape),
        axes_of(value) if is_split else (),
        value.numel() * value.element_size(),
        local.numel() * local.element_size(),
    )


def _check(model, distribution):
    if not isinstance(distribution, keras.distribution.ModelParallel):
        raise ValueError(
            "On PyTorch `audit` needs a `keras.distribution.ModelParallel`. "
            f"Received: {type(distribution).__name__}, whose exchanges PyTorch "
            "does not show. Use model_parallel((B, 1)) for B processes."
        )
    mesh = distribution.device_mesh.backend_mesh
    for variable in model.variables:
        layout = distribution.get_variable_layout(variable)
        wanted = layout is not None and any(axes_of(layout))
        value = variable.value
        found = value.device_mesh if isinstance(value, DTensor) else None
        if found not in ((mesh,) if wanted else (None, mesh)):
            raise ValueError(
                "The model must be made under the distribution that it runs "
                f"under. Received: '{variable.path}', which is not on the "
                "mesh. Call keras.distribution.set_distribution first, then "
                "make the model anew (load_model places a saved model)."
            )


def _failed(error, where):
    text = str(error)
    if cause := re.search(r"\x1b\[1m(.*?)\x1b\[0m", text, re.DOTALL):
        text = cause[1]  # Without what Keras adds.
    return (
        f"PyTorch fails in {where.rpartition('/')[2] or 'the loss'}: "
        f"{' '.join(text.split())[:200]}. It cannot split Keras' convolutions "
        "by channels, unless `get_layout_map` makes the layout map."
    )


def _untrained(paths):
    return (
        f"No gradient reaches {some(paths)}, which stay as they are. PyTorch "
        "cannot split Keras' convolutions by channels, unless "
        "`get_layout_map` makes the layout map; freeze what nothing uses."
    )
