"""`keras-tlgc benchmark`: measure times."""

from pathlib import Path
from typing import Any

import typer

from keras_tlgc.cli import options as shared
from keras_tlgc.cli.models import check_target
from keras_tlgc.cli.printing import show
from keras_tlgc.costs import count_params
from keras_tlgc.lab.benchmark import (
    RUNS,
    SHAPES,
    benchmark_layers,
    benchmark_networks,
    write_rows,
)
from keras_tlgc.lab.benchmark import markdown as as_markdown
from keras_tlgc.lab.benchmark.layers import KINDS as KINDS_OF_LAYERS
from keras_tlgc.lab.benchmark.layers import WITH_LOWERING
from keras_tlgc.ops import LOWERINGS

# Columns that a narrow terminal can do without. The CSV file has them all.
SPARE = ["GFLOP", "images/s", "least..most", "peak (MB)", "compile (s)"]


OPTIONS = {
    "model": (
        str,
        f"Network to time, instead of layers, as {shared.NETWORK_NAMES}.",
    ),
    "conv": (
        str,
        f"Kinds of convolution beside standard: {shared.KINDS}, and for layers "
        "keras, which is Conv2D(groups=N). keras, group and two_level, those "
        "that a network can have, if not given.",
    ),
    "groups": (str, "Numbers of groups.", "4,16"),
    "coarse_channels": (int, f"{shared.COARSE_CHANNELS}.", 1),
    "runs": (str, f"What to time, of {', '.join(RUNS)}.", "training"),
    "dtype": (str, "float32 and bfloat16.", "float32"),
    "data_format": (str, "channels_last or channels_first.", "channels_last"),
    "batch_size": (int, "Images in a batch.", 16),
    "jit_compile": (
        bool | None,  # With a --no- form, which a flag has not.
        "Whether to compile the steps: as Keras does if not given.",
    ),
    "rounds": (int, "How often each is timed, in turns.", 7),
    "output": (Path, "CSV file for all that was measured."),
}
OF_LAYERS = {
    "shapes": (
        str,
        "Shapes of layers, or beginnings of their names: wrn if not given, of "
        f"{', '.join(SHAPES)}.",
    ),
    "lowerings": (
        str,
        "How our layers are computed: auto if not given, of "
        f"{', '.join(LOWERINGS)}.",
    ),
}


@shared.takes(
    OPTIONS | shared.MARKDOWN,
    {shared.LAYERS: OF_LAYERS, shared.NETWORK: shared.SIZES},
)
def benchmark(context: typer.Context, options):
    """Time convolutions, or networks of them, against the standard one.

    `limit` is the ratio of the operations, which the
    time's ratio `to SC` would attain if nothing else took time.
    """
    check_target("--output", options.output)
    common: dict[str, Any] = {
        "groups": shared.numbers("groups", options.groups),
        "coarse_channels": options.coarse_channels,
        "runs": options.runs.split(","),
        "dtypes": options.dtype.split(","),
        "data_format": options.data_format,
        "batch_size": options.batch_size,
        "jit_compile": "auto"
        if options.jit_compile is None
        else options.jit_compile,
        "rounds": options.rounds,
    }
    if options.conv is not None:
        common["convs"] = options.conv.split(",")
        shared.refuse_options_of_kinds(
            context, common["convs"], KINDS_OF_LAYERS
        )
        if not set(WITH_LOWERING).intersection(common["convs"]):
            shared.refuse(context, ["lowerings"], f"with --conv {options.conv}")
    if options.model is None:
        shared.refuse(context, [shared.NETWORK], "without --model")
        if options.shapes is not None:
            common["shapes"] = options.shapes.split(",")
        if options.lowerings is not None:
            common["lowerings"] = options.lowerings.split(",")
        results = benchmark_layers(**common)
    else:
        shared.refuse(context, [shared.LAYERS], "beside --model")
        build = shared.builder(options.model, options)
        count_params(build)  # Raises what would fail in each row.
        results = benchmark_networks(options.model, build, **common)
    rows = []
    for some in results:
        rows += some
        show(f"{as_markdown(some)}\n", options.markdown, SPARE)
        if options.output is not None:
            write_rows(rows, options.output)
