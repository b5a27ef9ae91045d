"""`keras-tlgc audit`: show what a train step moves between devices."""

import functools
import math
import multiprocessing
import os
import socket
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import keras
import typer

from keras_tlgc.audit import Audit, audit_network
from keras_tlgc.audit import audit as audit_model
from keras_tlgc.audit.report import report_lines
from keras_tlgc.cli import options as shared
from keras_tlgc.cli.models import load
from keras_tlgc.cli.printing import show
from keras_tlgc.distribution import model_parallel
from keras_tlgc.distribution.mesh import parse_mesh
from keras_tlgc.lab.tables import markdown_table
from keras_tlgc.sharding.per_shard import check_can_split
from keras_tlgc.validation import positive_int

OPTIONS = {
    "model": (
        str,
        f"Network, as {shared.NETWORK_NAMES}, or the path of a .keras file.",
        "wrn-28-10",
    ),
    "mesh": (
        str,
        "Devices along the batch axis and along the model axis.",
        "1x4",
    ),
    "batch_size": (int, "Samples in a batch, over all devices.", 128),
}
OF_A_NETWORK = {
    "conv": (str, f"Convolution, one of {shared.KINDS}.", "two_level"),
    "groups": (
        int,
        "Number N of groups: as many as devices that split them.",
    ),
    "coarse_channels": (int, f"{shared.COARSE_CHANNELS}.", 1),
}


@shared.takes(
    OPTIONS | shared.MARKDOWN, {shared.NETWORK: OF_A_NETWORK | shared.SIZES}
)
def audit(context: typer.Context, options):
    """Show what a train step moves between devices.

    On JAX this is read from the compiled program, for parts of the CPU where
    there are too few devices; no weights are allocated and nothing is trained.
    With PyTorch and Keras 3.16, processes of this machine run a step on zeros.
    Ends with status 1 if anything moves that should not.
    """
    is_file = options.model.endswith(".keras")
    if is_file:
        shared.refuse(context, [shared.NETWORK], "beside a .keras file")
    else:
        shared.refuse_options_of_kinds(context, [options.conv])
        shared.builder(options.model, options)  # Raises if there is none.
    positive_int("batch_size", options.batch_size)
    shape = parse_mesh(options.mesh)
    check_can_split()
    if keras.backend.backend() == "torch":
        result = _on_processes(shape, options)
    else:
        result = _audited(shape, options)
    text = "\n".join(report_lines(result, _table))
    show(text, options.markdown, ["axis", "shape"])
    if not result.ok:
        raise typer.Exit(1)


def _audited(shape, options) -> Audit:
    distribution = model_parallel(shape, virtual=True)
    if options.model.endswith(".keras"):
        with distribution.scope():
            model = load(Path(options.model))
            return audit_model(model, options.batch_size)
    build = functools.partial(
        shared.builder(options.model, options),
        conv=options.conv,
        groups=shape[1] if options.groups is None else options.groups,
        coarse_channels=options.coarse_channels,
    )
    return audit_network(build, distribution, options.batch_size)


def _on_processes(shape, options) -> Audit:
    """Audit in processes of this machine, one for each device."""
    import torch

    count = math.prod(shape)
    if torch.cuda.device_count() < count:
        os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # As `torchrun` does.
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context) as pool:
        # Each waits for the others, so that none gets the work of two.
        audits = [
            pool.submit(_in_process, rank, count, port, shape, options)
            for rank in range(count)
        ]
        return audits[0].result()


def _in_process(rank, count, port, shape, options):
    os.environ.update(
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(count),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
    )
    keras.utils.set_random_seed(0)  # As in the other processes.
    return _audited(shape, options)


def _table(lines):
    columns, *rows = lines
    texts = [name for name in columns if name != "bytes"]
    return markdown_table(columns, rows, texts)
