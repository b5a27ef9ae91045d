"""The meshes of the command line."""

import contextlib
import os
import re

import keras

from keras_tlgc.distribution.layout_map import get_layout_map

# A device of a CPU has threads of its own.
MOST_CPU_DEVICES = 1024
# Each takes one to run a step and one to start the next. If the pool that they
# share has fewer, they wait for each other until XLA ends the process.
THREADS_PER_CPU_DEVICE = 2


def parse_mesh(text: str) -> tuple[int, int]:
    """Return the sizes of batch and model axis from text as `"2x4"`.

    Raises:
        ValueError: if it is no such text.
    """
    # No more digits than a machine could have devices.
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
) -> keras.distribution.ModelParallel:
    """Return the model parallelism of this package over a mesh.

    Args:
        shape: sizes of the mesh's axes, `"batch"` and `"model"`.
        virtual: bool, whether CPU devices will do where there are too few
            others, as for compiling. A CPU is divided into as many devices as
            the mesh has, if this is called before JAX is used.

    Returns:
        A `keras.distribution.ModelParallel`, not set.

    Raises:
        ValueError: if the backend is not JAX or there are too few devices.
    """
    count = shape[0] * shape[1]
    reserve_cpu_devices(count)
    devices = keras.distribution.list_devices()
    if len(devices) < count and virtual:
        devices = keras.distribution.list_devices("cpu")
    if len(devices) < count:
        raise ValueError(
            "A mesh needs a device for each of its places. Received: "
            f"{shape[0]}x{shape[1]}, {count} places, and {len(devices)} "
            f"devices, {', '.join(devices[:8])}. Use a smaller mesh, or, to "
            "try it on a CPU, set JAX_PLATFORMS=cpu, "
            f"JAX_NUM_CPU_DEVICES={count} and "
            f"NPROC={THREADS_PER_CPU_DEVICE * count}."
        )
    mesh = keras.distribution.DeviceMesh(
        shape, ("batch", "model"), devices[:count]
    )
    return keras.distribution.ModelParallel(
        layout_map=get_layout_map(mesh), batch_dim_name="batch"
    )


def reserve_cpu_devices(count: int) -> None:
    """Divide the CPU into so many devices, if JAX has not begun yet.

    They get the threads that they need, by the environment variable `NPROC`.
    More than `MOST_CPU_DEVICES` are left to machines that have them.

    Raises:
        ValueError: if the backend is not JAX.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(
            "A mesh needs the JAX backend, the only one that Keras splits "
            "models over devices with. Received: "
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
