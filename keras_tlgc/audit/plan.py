"""A prediction of the time that a train step takes, and of what limits it."""

from typing import NamedTuple

from keras_tlgc.audit.step import Step


class Machine(NamedTuple):
    """The rates that a device attains.

    Attributes:
        peak: float, operations a second (FLOP/s).
        memory: float, bytes of its own memory a second.
        bandwidth: float, bytes from other devices a second.
        latency: float, seconds that each exchange takes, however few its bytes.
    """

    peak: float
    memory: float
    bandwidth: float
    latency: float


class Prediction(NamedTuple):
    """Seconds that a train step takes, by a model, not a measurement.

    Attributes:
        compute: float, for the operations.
        memory: float, for reading and writing the device's own memory.
        exchange: float, for bytes from other devices, and latency.
        moved_bytes: int, the bytes that a device receives from others.
    """

    compute: float
    memory: float
    exchange: float
    moved_bytes: int

    @property
    def total(self) -> float:
        """All seconds, one after the other: nothing is assumed to overlap."""
        return self.compute + self.memory + self.exchange


def predict(step: Step, machine: Machine) -> Prediction:
    """Predict the seconds of a compiled train step on P equal devices.

    Operations and bytes are those that the compiler counts for one device (on
    a CPU, where other operations may be fused than on a GPU); exchanges are
    the program's collectives.

    Args:
        step: the `Step`, compiled for a mesh of P devices.
        machine: the `Machine` that describes each device.

    Returns:
        A `Prediction`.
    """
    moved = step.collectives
    moved_bytes = sum(collective.bytes for collective in moved)
    times = sum(collective.times for collective in moved)
    return Prediction(
        compute=step.flops / machine.peak,
        memory=step.bytes_accessed / machine.memory,
        exchange=moved_bytes / machine.bandwidth + times * machine.latency,
        moved_bytes=moved_bytes,
    )
