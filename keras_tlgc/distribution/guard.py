"""What Keras' trainers lack on a mesh.

On JAX, with Keras 3.15, a batch that the mesh cannot split fails in the middle
of an epoch, with an error of JAX. If this happens in `evaluate` or `predict`,
the model loses its weights. On JAX and PyTorch, processes that are fed
different rows silently train different models.
"""

import contextlib
import functools
import threading
import warnings
import weakref
from collections.abc import Iterator

import keras
import numpy as np
from keras import tree

from keras_tlgc._keras import (
    layout_map_of,
    replace_attribute,
    store_value,
    stored_layout,
    stored_value,
    sync_state,
    wrap_batches,
    wrap_purge,
    wrap_set_distribution,
)
from keras_tlgc.distribution.processes import (
    check_processes,
    check_rows,
    check_static_batch,
    local_shards,
    process_count,
    spans_processes,
)
from keras_tlgc.sharding.per_shard import can_split

METHODS = ("fit", "evaluate", "predict")


class _Run:
    """What is true of the calls that are under way."""

    is_first_batch = False
    data_length = 0
    # Whether all batches are those of arrays of that length.
    has_arrays = False
    replicates_uneven = False
    # The variables that a model let go of, with their values.
    kept: list | None = None


class _Guard:
    """Who needs Keras to be guarded, and how to leave it as it was."""

    def __init__(self):
        # The layout maps of the distributions of this package, by their ids.
        self.maps = weakref.WeakValueDictionary()
        # Threads that such a distribution is set in, and blocks.
        self.users = set()
        self.undo = []
        self.unwatch = None


_GUARD = _Guard()


def watch(layout_map) -> None:
    """Guard Keras while a distribution with a layout map of ours is set.

    Args:
        layout_map: the `GroupLayoutMap`. Nothing is watched once it is gone.
    """
    if not can_split():
        return
    _GUARD.maps[id(layout_map)] = layout_map
    if _GUARD.unwatch is None:
        with _warning_of_gaps():
            _GUARD.unwatch = wrap_set_distribution(_watched)


def _watched(set_attribute):
    @functools.wraps(set_attribute)
    def watched(name, value):
        set_attribute(name, value)
        if name == "distribution":
            _react()

    return watched


def _react():
    """Guard Keras, or leave it alone, by the distribution that is set now."""
    if is_ours(keras.distribution.distribution()):
        _enter(threading.get_ident())
        return
    _leave(threading.get_ident())
    if _GUARD.unwatch and not _GUARD.maps:
        _GUARD.unwatch()
        _GUARD.unwatch = None


def is_ours(distribution) -> bool:
    """Return whether a distribution has a layout map of this package."""
    layout_map = layout_map_of(distribution)
    return (
        layout_map is not None and _GUARD.maps.get(id(layout_map)) is layout_map
    )


def _enter(user):
    if not _GUARD.users:
        wraps = [(wrap_batches, _checked)]
        if keras.backend.backend() == "jax":
            wraps.append((wrap_purge, _kept))
        for name in METHODS:
            wrap = functools.partial(replace_attribute, keras.Model, name)
            wraps.append((wrap, _guarded))
        for wrap, wrapper in wraps:
            with _warning_of_gaps():
                _GUARD.undo.append(wrap(wrapper))
    _GUARD.users.add(user)


def _leave(user):
    _GUARD.users.discard(user)
    while _GUARD.undo and not _GUARD.users:
        _GUARD.undo.pop()()


@contextlib.contextmanager
def _warning_of_gaps():
    """Warn if this Keras lacks what is to be wrapped."""
    try:
        yield
    except (AttributeError, ImportError) as error:
        warnings.warn(
            "On this Keras, batches that a mesh cannot split, and what else "
            "goes wrong in fit, evaluate or predict, may stay unseen, raise "
            f"errors of JAX and cost a model its weights: {error}. Keras "
            f"{keras.__version__} is newer than this version of keras-tlgc.",
            stacklevel=4,
        )


@contextlib.contextmanager
def uneven_batches() -> Iterator[None]:
    """Let `fit`, `evaluate` and `predict` take batches the mesh cannot split.

    Within the block, a batch whose size the batch axis does not divide, such as
    the last one of an epoch, is not split: every row of the mesh computes all
    of it. So each sample counts once, and losses, metrics, batch statistics and
    predictions are those of one device; nothing is padded or left out. This
    works with arrays, `keras.utils.PyDataset`, `tf.data` and PyTorch loaders.
    It is for JAX. On PyTorch each process computes the rows it is fed, however
    many, and the block changes nothing.

    Raises:
        ValueError: from `fit`, `evaluate` or `predict`, if the batch axis
            spans processes: each of them then holds other rows.

    Example:

    ```python
    with keras_tlgc.distribution.uneven_batches():
        model.fit(x, y, batch_size=128, validation_data=(x_test, y_test))
    ```
    """
    block = object()
    if keras.backend.backend() == "jax":
        _enter(block)
    before, _Run.replicates_uneven = _Run.replicates_uneven, True
    try:
        yield
    finally:
        _Run.replicates_uneven = before
        _leave(block)


def check_on_mesh(model: keras.Model, distribution) -> None:
    """Raise a `ValueError` unless model and optimizer are on the mesh."""
    model_count = len(model.variables)
    for index, variable in enumerate(state_of(model)):
        where = _elsewhere(variable, distribution.device_mesh)
        if where is None:
            continue
        owner = "model" if index < model_count else "optimizer"
        raise ValueError(
            f"The {owner} must be made under the distribution that it "
            f"runs under. Received: '{variable.path}' {where}. Call "
            "keras.distribution.set_distribution first, then make the "
            f"{owner} anew (load_model places a saved model)."
        )


def _elsewhere(variable, mesh):
    """Return where a variable is, or `None` if it is on the mesh."""
    value, layout = stored_value(variable), stored_layout(variable)
    if value is None:
        return None
    made_on = getattr(layout, "device_mesh", None)
    if made_on is None:  # Keras before 3.15 keeps the layout of JAX.
        made_on = getattr(layout, "mesh", None)
    found = getattr(made_on, "backend_mesh", made_on)
    if found is not None and found != mesh.backend_mesh:
        sizes, wanted = _sizes(found), _sizes(mesh.backend_mesh)
        return f"on the mesh {sizes}, not {wanted}"
    if keras.backend.backend() == "torch":
        return "on no mesh" if layout is None else None
    devices = set(mesh.backend_mesh.devices.flat)
    if (held_by := set(value.sharding.device_set)) != devices:
        return f"on {len(held_by)} of the mesh's {len(devices)} devices"
    return None


def _sizes(mesh):
    """Return the sizes of the axes of a mesh of JAX or PyTorch, by name."""
    if hasattr(mesh, "mesh_dim_names"):
        return dict(zip(mesh.mesh_dim_names, mesh.shape, strict=True))
    return dict(mesh.shape)


def state_of(model: keras.Model) -> list[keras.Variable]:
    """Return the variables of a model, then those of its optimizer."""
    optimizer = getattr(model, "optimizer", None)  # None, or not compiled.
    slots = optimizer.variables if optimizer is not None else []
    return [*model.variables, *slots]


def _active():
    """Return the distribution that is set, if its calls are guarded."""
    distribution = keras.distribution.distribution()
    if is_ours(distribution) or _Run.replicates_uneven:
        return distribution
    return None


def _guarded(method):
    @functools.wraps(method)
    def guarded(self, x=None, *args, **kwargs):
        distribution = _active()
        if distribution is None:
            return method(self, x, *args, **kwargs)
        check_on_mesh(self, distribution)
        for data in (x, kwargs.get("validation_data")):
            check_static_batch(data, distribution)
        _Run.is_first_batch, _Run.data_length = True, _length(x)
        before = _Run.kept, _Run.has_arrays
        _Run.kept, _Run.has_arrays = [], _are_arrays(x)
        try:
            return method(self, x, *args, **kwargs)
        except BaseException:
            sync_state(self)
            for variable, value in _Run.kept or ():
                if stored_value(variable) is None:
                    store_value(variable, value)
            raise
        finally:
            _Run.kept, _Run.has_arrays = before

    return guarded


def _kept(purge):
    @functools.wraps(purge)
    def kept(self, *args, **kwargs):
        # The step donates these arrays, so keeping them takes no memory.
        if _Run.kept is not None:
            state = [*state_of(self), *self.metrics_variables]
            values = [(v, stored_value(v)) for v in state]
            _Run.kept = [pair for pair in values if pair[1] is not None]
        return purge(self, *args, **kwargs)

    return kept


def _checked(distribute_data):
    @functools.wraps(distribute_data)
    def checked(data, *args, is_super_batch=False, **kwargs):
        if is_super_batch:  # Several batches, stacked. Keras before 3.16 has
            kwargs["is_super_batch"] = True  # no such argument.
        distribution = _active()
        if distribution is None:
            return distribute_data(data, *args, **kwargs)
        arrays = [a for a in tree.flatten(data) if a is not None]
        if _Run.is_first_batch:
            _Run.is_first_batch = False
            check_processes(arrays, _Run.data_length, distribution)
        elif _may_differ():
            check_rows(arrays[0].shape[0])
        shards = local_shards(distribution)
        rows = [a.shape[is_super_batch] for a in arrays]
        if all(count % shards == 0 for count in rows):
            return distribute_data(data, *args, **kwargs)
        if _Run.replicates_uneven and not spans_processes(distribution):
            return _replicate(data, distribution)
        raise ValueError(_uneven(rows[0], shards, distribution))

    return checked


def _may_differ():
    """Return whether processes of PyTorch may hold batches of unlike sizes."""
    if keras.backend.backend() != "torch" or process_count() == 1:
        return False
    is_call = _Run.kept is not None  # And no `train_on_batch`, as of `audit`.
    return is_call and not _Run.has_arrays


def _uneven(rows, shards, distribution):
    where = f"{shards} devices along the axis '{distribution.batch_dim_name}'"
    if spans_processes(distribution):
        return (
            "Each process must split its rows of every batch over its devices. "
            f"Received: a batch of {rows} rows, and {where} in this process. "
            "Leave an uneven last batch out: batch(..., drop_remainder=True)."
        )
    return (
        "The mesh must split every batch evenly, the last one too. "
        f"Received: a batch of {rows} rows, and {where}. Run within "
        "keras_tlgc.distribution.uneven_batches(), which computes such a "
        f"batch whole, or use batches and data sets of a multiple of {shards}."
    )


def _replicate(data, distribution):
    import jax

    mesh = distribution.device_mesh.backend_mesh
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(
            whole, np.asarray(array)
        ),
        data,
    )


def _length(data):
    """Return the length of arrays or of a data set, 0 if it is unknown."""
    try:
        return len(tree.flatten(data)[0])
    except (TypeError, IndexError):
        return 0


def _are_arrays(data):
    return all(hasattr(leaf, "shape") for leaf in tree.flatten(data))
