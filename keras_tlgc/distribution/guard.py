"""What Keras' trainer on JAX lacks on a mesh.

With Keras 3.15 a batch that the mesh cannot split fails amid an epoch, with an
error of JAX; after `evaluate` and `predict` the model has lost its weights.
Processes that are fed different rows train different models, silently.
"""

import contextlib
import functools
import zlib
from collections.abc import Iterator

import keras
import numpy as np
from keras import tree

METHODS = ("fit", "evaluate", "predict")


class _Run:
    """What is true of the calls that are under way."""

    is_first_batch = True
    data_length = 0
    replicates_uneven = False


@contextlib.contextmanager
def uneven_batches() -> Iterator[None]:
    """Let `fit`, `evaluate` and `predict` take batches the mesh cannot split.

    Within the block, a batch whose size the batch axis does not divide, as the
    last one of an epoch, is not split: every row of the mesh computes all of
    it. So each sample counts once, and losses, metrics, batch statistics and
    predictions are those of one device; nothing is padded or left out. It
    holds for arrays, `keras.utils.PyDataset`, `tf.data` and PyTorch loaders.

    Raises:
        ValueError: from `fit`, `evaluate` or `predict`, if the batch axis
            spans processes: each of them then holds other rows.

    Example:

    ```python
    with keras_tlgc.distribution.uneven_batches():
        model.fit(x, y, batch_size=128, validation_data=(x_test, y_test))
    ```
    """
    install()
    before, _Run.replicates_uneven = _Run.replicates_uneven, True
    try:
        yield
    finally:
        _Run.replicates_uneven = before


def install() -> None:
    """Guard `fit`, `evaluate` and `predict` of Keras models on a mesh.

    Only calls under a `keras.distribution` are concerned. They raise a
    `ValueError` before the step if the mesh cannot split a batch, if model or
    optimizer were made outside of the distribution, or if processes are fed
    different rows; and after any error the model holds its weights.
    """
    if keras.backend.backend() != "jax":
        return
    from keras.src.backend.jax import trainer

    if hasattr(trainer._distribute_data, "__wrapped__"):
        return
    # Private, but the one place that all batches pass.
    trainer._distribute_data = _checked(trainer._distribute_data)
    for name in METHODS:
        setattr(keras.Model, name, _guarded(getattr(keras.Model, name)))


def check_on_mesh(model: keras.Model, distribution) -> None:
    """Raise a `ValueError` unless model and optimizer are on the mesh."""
    mesh = set(distribution.device_mesh.backend_mesh.devices.flat)
    model_count = len(model.variables)
    for index, variable in enumerate(state_of(model)):
        value = variable._value
        if value is not None and set(value.sharding.device_set) != mesh:
            owner = "model" if index < model_count else "optimizer"
            raise ValueError(
                f"The {owner} must be made under the distribution that it "
                f"runs under. Received: '{variable.path}' on "
                f"{len(value.sharding.device_set)} of the mesh's "
                f"{len(mesh)} devices. Call "
                "keras.distribution.set_distribution first, then make the "
                f"{owner} anew (load_model places a saved model)."
            )


def state_of(model: keras.Model) -> list[keras.Variable]:
    """Return the variables of a model, then those of its optimizer."""
    optimizer = getattr(model, "optimizer", None)  # None, or not compiled.
    slots = optimizer.variables if optimizer is not None else []
    return [*model.variables, *slots]


def _guarded(method):
    @functools.wraps(method)
    def guarded(self, x=None, *args, **kwargs):
        distribution = keras.distribution.distribution()
        if distribution is None:
            return method(self, x, *args, **kwargs)
        check_on_mesh(self, distribution)
        for data in (x, kwargs.get("validation_data")):
            _check_static_batch(data, distribution)
        _Run.is_first_batch, _Run.data_length = True, _length(x)
        # Once a step has run, these are donated: they take no memory.
        state = [*state_of(self), *self.metrics_variables]
        values = [(v, v._value) for v in state]
        try:
            return method(self, x, *args, **kwargs)
        except BaseException:
            self.jax_state_sync()
            for variable, value in values:
                if variable._value is None:
                    variable._value = value
            raise

    return guarded


def _checked(distribute_data):
    @functools.wraps(distribute_data)
    def checked(data, layouts=None):
        distribution = keras.distribution.distribution()
        if distribution is None:
            return distribute_data(data, layouts)
        arrays = [a for a in tree.flatten(data) if a is not None]
        if _Run.is_first_batch:
            _Run.is_first_batch = False
            _check_processes(arrays, distribution)
        shards = _local_shards(distribution)
        if all(len(array) % shards == 0 for array in arrays):
            return distribute_data(data, layouts)
        if _Run.replicates_uneven and not _spans_processes(distribution):
            return _replicate(data, distribution)
        raise ValueError(_uneven(len(arrays[0]), shards, distribution))

    return checked


def _uneven(rows, shards, distribution):
    where = f"{shards} devices along the axis '{distribution.batch_dim_name}'"
    if _spans_processes(distribution):
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


def _batch_axis(distribution):
    mesh = distribution.device_mesh
    return mesh.axis_names.index(distribution.batch_dim_name)


def _local_shards(distribution):
    """Return how many parts of a batch this process holds."""
    import jax

    devices = np.moveaxis(
        distribution.device_mesh.backend_mesh.devices,
        _batch_axis(distribution),
        0,
    )
    return sum(
        any(
            device.process_index == jax.process_index()
            for device in np.ravel(row)
        )
        for row in devices
    )


def _spans_processes(distribution):
    axis = _batch_axis(distribution)
    return _local_shards(distribution) < distribution.device_mesh.shape[axis]


def _check_static_batch(data, distribution):
    """Refuse a `tf.data.Dataset` whose tail would end all processes."""
    spec = getattr(data, "element_spec", None)
    if spec is None or not _spans_processes(distribution):
        return
    sizes = {leaf.shape[0] for leaf in tree.flatten(spec)}
    if None in sizes:
        raise ValueError(
            "Where the batch axis spans processes, all batches must have one "
            "size, or the processes abort at the last one. Received: a "
            "tf.data.Dataset with batches of unknown size. "
            "Use batch(..., drop_remainder=True)."
        )


def _check_processes(arrays, distribution):
    """Raise unless all processes hold the rows that they should."""
    import jax

    if jax.process_count() == 1:
        return
    from jax.experimental.multihost_utils import process_allgather

    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    shard = distribution.data_shard_id
    size = [len(arrays[0]), _Run.data_length]
    mine = np.array([shard, *size, checksum], dtype=np.uint32)
    everyone = np.asarray(process_allgather(mine))
    sizes = everyone[:, 1:3].tolist()
    if any(size != sizes[0] for size in sizes):
        raise ValueError(
            "All processes must hold as many rows, in batches of one size, or "
            "they wait for each other forever. Received: (rows of a batch, "
            f"length of the data) = {sizes}, by process. Cut the data to the "
            "same length."
        )
    same = everyone[everyone[:, 0] == shard]
    others = everyone[everyone[:, 0] != shard]
    if checksum in others[:, 3].tolist():
        raise ValueError(
            "Processes that hold different parts of a batch must feed "
            "different rows. Received: the same first batch in several parts. "
            "Give each process its own rows, those of "
            "`distribution.data_shard_id`, or a global tf.data.Dataset with "
            "auto_shard_dataset=True."
        )
    if len(set(same[:, 3].tolist())) > 1:
        raise ValueError(
            "Processes that share the rows of a batch must feed the same rows "
            "in the same order. Received: different first batches in the "
            f"{len(same)} processes along the model axis. Read the same data "
            "in each, and shuffle with the same seed."
        )


def _length(data):
    """Return the length of arrays or of a data set, 0 if it is unknown."""
    try:
        return len(tree.flatten(data)[0])
    except (TypeError, IndexError):
        return 0


def check_same_seed() -> None:
    """Raise a `ValueError` unless all processes draw the same weights."""
    import random

    import jax

    if jax.process_count() == 1:
        return
    from jax.experimental.multihost_utils import process_allgather

    # Keras seeds its initializers from Python's generator.
    state = zlib.crc32(repr(random.getstate()).encode())
    states = np.asarray(process_allgather(np.uint32(state))).tolist()
    if len(set(states)) > 1:
        raise ValueError(
            "All processes must start from the same random state, to draw the "
            f"same weights. Received: {len(set(states))} different states in "
            f"{len(states)} processes. Call keras.utils.set_random_seed with "
            "one seed in each, before get_layout_map."
        )
