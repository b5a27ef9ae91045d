"""The meshes of the command line."""

import contextlib
import os
import re

import keras

from keras_tlgc.distribution.group_parallel import GroupParallel
from keras_tlgc.sharding.per_shard import check_can_split

# Each device of a CPU has threads of its own, so there is a limit to them.
MOST_CPU_DEVICES = 1024
# Each device takes one thread to run a step and one to start the next. If the
# pool that the devices share has fewer, they wait for each other until XLA ends
# the process.
THREADS_PER_CPU_DEVICE = 2


def parse_mesh(text: str) -> tuple[int, int]:
    """Return the sizes of batch and model axis from text such as `"2x4"`.

    Raises:
        ValueError: if the text has another form.
    """
    # Nine digits are enough for the devices of any machine.
    match = re.fullmatch(r"0*([1-9]\d{0,8})x0*([1-9]\d{0,8})", text.lower())
    if match is None:
        raise ValueError(
            "A mesh must be two positive integers with an x between them: "
            "the devices along the batch axis and along the model axis. "
            f"Received: {text!r}. Write it as in 1x4 or 2x4."
        )
    return int(match[1]), int(match[2])


def model_parallel(
    shape: tuple[int, int], virtual: bool = False
) -> GroupParallel:
    """Return the model parallelism of this package over devices of any kind.

    Args:
        shape: sizes of the mesh's axes, `"batch"` and `"model"`.
        virtual: bool, whether CPU devices may be taken if there are too few
            others, which is enough for compiling. The CPU is divided into as
            many devices as the mesh has, if this is called before JAX is used.

    Returns:
        A `GroupParallel`, which is not set yet.

    Raises:
        ValueError: if the backend cannot split a model, or there are too few
            devices. With PyTorch each device has a process of its own.
    """
    check_can_split()
    count = shape[0] * shape[1]
    if keras.backend.backend() == "jax":
        reserve_cpu_devices(count)
    elif "WORLD_SIZE" in os.environ:  # As `torchrun` sets it.
        keras.distribution.initialize()
    devices = keras.distribution.list_devices()
    if len(devices) < count and virtual:
        devices = keras.distribution.list_devices("cpu")
    if len(devices) < count:
        raise ValueError(
            "A mesh needs a device for each of its places. Received: "
            f"{shape[0]}x{shape[1]}, {count} places, and {len(devices)} "
            f"devices, {', '.join(devices[:8])}. Use a smaller mesh, or "
            + _more_devices(count)
        )
    mesh = keras.distribution.DeviceMesh(
        shape, ("batch", "model"), devices[:count]
    )
    return GroupParallel(mesh)


def _more_devices(count):
    if keras.backend.backend() == "torch":
        return f"start as many processes: torchrun --nproc-per-node {count}."
    return (
        "to try it on a CPU, set JAX_PLATFORMS=cpu, "
        f"JAX_NUM_CPU_DEVICES={count} and "
        f"NPROC={THREADS_PER_CPU_DEVICE * count}."
    )


def reserve_cpu_devices(count: int) -> None:
    """Divide the CPU into `count` devices, if JAX has not begun yet.

    The environment variable `NPROC` is set so that they get the threads that
    they need. A count above `MOST_CPU_DEVICES` is left to machines that have so
    many devices.

    Raises:
        ValueError: if the backend is not JAX.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(
            "A mesh needs the JAX backend here, the only one that divides a "
            "CPU into devices. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}. Set KERAS_BACKEND=jax."
        )
    import jax

    if count > MOST_CPU_DEVICES:
        return
    threads = os.environ.get("NPROC", "")
    given = int(threads) if threads.isdecimal() else os.cpu_count() or 1
    os.environ["NPROC"] = str(max(given, THREADS_PER_CPU_DEVICE * count))
    if jax.config.jax_num_cpu_devices < count:
        with contextlib.suppress(RuntimeError):  # JAX has its devices already.
            jax.config.update("jax_num_cpu_devices", count)
