"""What the processes of a distributed run must have in common."""

import zlib

import keras
import numpy as np
from keras import tree


def process_count() -> int:
    """Return how many processes take part in the run."""
    if keras.backend.backend() == "torch":
        from torch import distributed

        if not distributed.is_initialized():
            return 1
        return distributed.get_world_size()
    import jax

    return jax.process_count()


def process_index() -> int:
    """Return the number of this process among those of the run."""
    if keras.backend.backend() == "torch":
        from torch import distributed

        return distributed.get_rank() if distributed.is_initialized() else 0
    import jax

    return jax.process_index()


def data_shards(distribution) -> int:
    """Return in how many parts the processes hold a batch."""
    rows = distribution.device_mesh.shape[_batch_axis(distribution)]
    return min(rows, process_count())


def data_shard(distribution) -> int:
    """Return the number of the part of a batch that this process holds."""
    return process_index() // (process_count() // data_shards(distribution))


def _of_all(numbers: list[int]) -> np.ndarray:
    """Return the numbers of every process, a row each. All must call this."""
    if keras.backend.backend() == "torch":
        from torch import distributed

        rows: list[list[int]] = [[]] * process_count()
        distributed.all_gather_object(rows, numbers)
        return np.array(rows)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(np.array(numbers, dtype=np.uint32)))


def _batch_axis(distribution):
    mesh = distribution.device_mesh
    return mesh.axis_names.index(distribution.batch_dim_name)


def local_shards(distribution) -> int:
    """Return how many parts of a batch this process holds."""
    if keras.backend.backend() == "torch":
        return 1  # Each process has one device.
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


def spans_processes(distribution) -> bool:
    """Return whether the batch axis of a mesh spans processes."""
    axis = _batch_axis(distribution)
    return local_shards(distribution) < distribution.device_mesh.shape[axis]


def check_static_batch(data, distribution) -> None:
    """Refuse a `tf.data.Dataset` whose last batch may abort all processes."""
    spec = getattr(data, "element_spec", None)
    if spec is None or not spans_processes(distribution):
        return
    sizes = {leaf.shape[0] for leaf in tree.flatten(spec)}
    if None in sizes:
        raise ValueError(
            "Where the batch axis spans processes, all batches must have one "
            "size, or the processes abort at the last one. Received: a "
            "tf.data.Dataset with batches of unknown size. "
            "Use batch(..., drop_remainder=True)."
        )


def check_processes(arrays, length: int, distribution) -> None:
    """Raise unless all processes hold the rows that they should.

    All processes find the same, so that none waits for one that has raised.
    """
    if process_count() == 1:
        return
    checksum = 0
    for array in map(keras.ops.convert_to_numpy, arrays):
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    shard = data_shard(distribution)
    everyone = _of_all([shard, len(arrays[0]), length, checksum])
    sizes = everyone[:, 1:3].tolist()
    if any(size != sizes[0] for size in sizes):
        raise ValueError(
            "All processes must hold as many rows, in batches of one size, or "
            "they wait for each other forever. Received: (rows of a batch, "
            f"length of the data) = {sizes}, by process. Cut the data to the "
            "same length."
        )
    parts: dict[int, set[int]] = {}
    for row in everyone.tolist():
        parts.setdefault(row[0], set()).add(row[3])
    if sum(map(len, parts.values())) > len(set().union(*parts.values())):
        raise ValueError(
            "Processes that hold different parts of a batch must feed "
            "different rows. Received: the same first batch in several parts. "
            "Give each process its own rows, those of "
            "`distribution.data_shard_id`, or a global tf.data.Dataset with "
            "auto_shard_dataset=True."
        )
    if len(parts) < sum(map(len, parts.values())):
        raise ValueError(
            "Processes that share the rows of a batch must feed the same rows "
            "in the same order. Received: different first batches in the "
            f"{process_count() // len(parts)} processes along the model axis. "
            "Read the same data in each, and shuffle with the same seed."
        )


def check_rows(rows: int) -> None:
    """Raise a `ValueError` unless all processes hold as many rows of a batch.

    PyTorch believes that they do. Otherwise it waits forever, or goes on with
    a wrong size.
    """
    counts = _of_all([rows])[:, 0].tolist()
    if len(set(counts)) > 1:
        raise ValueError(
            "All processes must hold as many rows of every batch. Received: "
            f"batches of {counts} rows, by process. Give them data of the same "
            "length, in batches of one size: batch(..., drop_remainder=True)."
        )


def check_same_seed() -> None:
    """Raise a `ValueError` unless all processes draw the same weights."""
    import random

    if process_count() == 1:
        return
    # Keras seeds its initializers from Python's generator.
    state = zlib.crc32(repr(random.getstate()).encode())
    states = _of_all([state])[:, 0].tolist()
    if len(set(states)) > 1:
        raise ValueError(
            "All processes must start from the same random state, to draw the "
            f"same weights. Received: {len(set(states))} different states in "
            f"{len(states)} processes. Call keras.utils.set_random_seed with "
            "one seed in each, before GroupParallel or get_layout_map."
        )
