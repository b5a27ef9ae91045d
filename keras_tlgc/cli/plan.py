"""`keras-tlgc plan`: predict the time of a step on several devices."""

import functools

import typer

from keras_tlgc.applications.convolutions import CONVOLUTIONS
from keras_tlgc.audit.plan import Machine, predict
from keras_tlgc.audit.step import compile_network
from keras_tlgc.cli import options as shared
from keras_tlgc.cli.printing import show
from keras_tlgc.distribution import model_parallel
from keras_tlgc.distribution.mesh import reserve_cpu_devices
from keras_tlgc.lab import paper
from keras_tlgc.lab.tables import markdown_table
from keras_tlgc.validation import one_of, positive_int

COLUMNS = ["Network", "Type", "Devices", "TFLOP", "GB", "GB moved"]
COLUMNS += ["seconds", "of it moving", "paper"]


OPTIONS = {
    "model": (str, f"Network to plan, as {shared.NETWORK_NAMES}."),
    "batch_size": (int, "Samples in a batch, over all devices.", 128),
    "peak": (float, "TFLOP/s that a device attains.", 28.0),
    "memory": (float, "GB/s of a device's own memory.", 672.0),
    "bandwidth": (float, "GB/s that a device receives from others.", 12.0),
    "latency": (float, "Microseconds that an exchange takes.", 20.0),
}
OF_A_NETWORK = {
    "conv": (
        str,
        "Kinds of convolution, as group,two_level.",
        "standard,two_level",
    ),
    "devices": (str, "Numbers of devices; as many groups.", "1,2,4,8"),
}


@shared.takes(
    OPTIONS | shared.MARKDOWN, {shared.NETWORK: OF_A_NETWORK | shared.SIZES}
)
def plan(context: typer.Context, options):
    """Predict the time of a train step on several devices: a model.

    JAX only. Operations and bytes are read from the program compiled for that
    many devices; the rest are the four numbers given, and nothing overlaps.
    Without --model: the networks of the paper's Table 2, beside its times. The
    defaults are a Titan RTX, the paper's GPU, on PCI Express 3; its 28 TFLOP/s
    are what the first row of Table 2 attains.
    """
    if options.model is None:
        shared.refuse(context, [shared.NETWORK], "without --model")
        rows: list[tuple[str, str, int, float | None]] = [
            (f"wrn-28-{row.width}", row.conv, row.devices, row.seconds)
            for row in paper.WALL_CLOCKS
        ]
    else:
        rows = [
            (options.model, one_of("conv", kind, CONVOLUTIONS), count, None)
            for kind in options.conv.split(",")
            for count in shared.numbers("devices", options.devices)
        ]
    machine = Machine(
        peak=_positive("peak", options.peak) * 1e12,
        memory=_positive("memory", options.memory) * 1e9,
        bandwidth=_positive("bandwidth", options.bandwidth) * 1e9,
        latency=_positive("latency", options.latency) / 1e6,
    )
    positive_int("batch_size", options.batch_size)
    for _, _, count, _ in rows:
        positive_int("devices", count)
    reserve_cpu_devices(max(count for _, _, count, _ in rows))
    cells = [_cells(*row, options, machine) for row in rows]
    print(
        f"A model, not a measurement: each device attains {options.peak:g} "
        f"TFLOP/s, {options.memory:g} GB/s of its memory, "
        f"{options.bandwidth:g} GB/s from others and {options.latency:g} us "
        "for each exchange; nothing overlaps. "
        f"Batch {options.batch_size}.\n"
    )
    show(markdown_table(COLUMNS, cells, ["Network", "Type"]), options.markdown)


def _positive(name, value):
    if not 0 < value < float("inf"):
        raise ValueError(
            f"--{name} must be a positive, finite number. "
            f"Received: {value}. Leave it out for a Titan RTX."
        )
    return value


def _cells(name, conv, devices, seconds, options, machine):
    """Return the row of a network on this number of devices."""
    step = compile_network(
        functools.partial(
            shared.builder(name, options), conv=conv, groups=devices
        ),
        model_parallel((1, devices), virtual=True),
        options.batch_size,
    )
    predicted = predict(step, machine)
    return (
        name,
        CONVOLUTIONS[conv].label,
        str(devices),
        f"{step.flops / 1e12:.3f}",
        f"{step.bytes_accessed / 1e9:.1f}",
        f"{predicted.moved_bytes / 1e9:.3f}",
        f"{predicted.total:.3f}",
        f"{predicted.exchange:.3f}",
        "" if seconds is None else f"{seconds:.3f}",
    )
