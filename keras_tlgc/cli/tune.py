"""`keras-tlgc tune`: find the fastest lowerings on the machine at hand."""

from pathlib import Path
from typing import Annotated, Any

import keras
import typer

from keras_tlgc import tuning
from keras_tlgc.cli import options as shared
from keras_tlgc.cli.models import check_target, load
from keras_tlgc.cli.printing import show
from keras_tlgc.lab.benchmark.rows import DTYPES
from keras_tlgc.lab.tables import markdown_table
from keras_tlgc.ops.tuned import VARIABLE
from keras_tlgc.precision import dtype_policy
from keras_tlgc.timing import ROUNDS
from keras_tlgc.validation import one_of, positive_int

OPTIONS = {
    "batch_size": (int, "Samples in a batch on one device.", 8),
    "forward": (bool, "Time the forward pass alone, for inference."),
    "rounds": (int, "How often each lowering is timed, in turns.", ROUNDS),
    "output": (
        Path,
        "JSON file for what was measured, in place of what it holds on the "
        f"same. {VARIABLE} names it to whatever is to be as fast.",
    ),
    "model": (
        str,
        f"Network to tune, instead of a file, as {shared.NETWORK_NAMES}.",
    ),
}
OF_A_NETWORK = {
    "conv": (str, f"Convolution, one of {shared.KINDS}.", "two_level"),
    "groups": (int, "Number N of groups.", 4),
    "coarse_channels": (int, f"{shared.COARSE_CHANNELS}.", 1),
    "dtype": (str, "float32 or bfloat16.", "float32"),
}


@shared.takes(
    OPTIONS | shared.MARKDOWN, {shared.NETWORK: OF_A_NETWORK | shared.SIZES}
)
def tune(
    context: typer.Context,
    source: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL.keras]", help="The model's file."),
    ] = None,
    *,
    options,
):
    """Time how layers can be computed, and note what is fastest here.

    Prints for each kind of layer, and for the whole step, the time with the
    chosen lowering relative to that with `auto`. The model's file stays as it
    is: with --output, layers take from there what was chosen.
    """
    check_target("--output", options.output)
    model = _model(context, source, options)
    report = tuning.tune(
        model,
        options.batch_size,
        training=not options.forward,
        input_shape=_input_shape(model, options.image_size),
        path=options.output,
        rounds=options.rounds,
    )
    texts = ["layers", "work", "auto ->", "others", "because"]
    table = markdown_table(report.columns, report.cells, texts)
    show(table, options.markdown, spare=["others", "work"])
    print(report.summary)
    if options.output is not None:
        print(f"Written: {options.output}. {VARIABLE} names it to layers.")


def _model(context: typer.Context, source, options) -> keras.Model:
    if (source is None) == (options.model is None):
        raise ValueError(
            "What to tune must be given once. Received: "
            f"{source} and --model {options.model}. Name a .keras file, or a "
            f"network as {shared.NETWORK_NAMES}."
        )
    if source is not None:
        ignored = [*OF_A_NETWORK, "classes"]
        shared.refuse(context, ignored, "beside MODEL.keras")
        return load(source)
    shared.refuse_options_of_kinds(context, [options.conv])
    build = shared.builder(options.model, options)
    taken: dict[str, Any] = {
        name: positive_int(name, getattr(options, name))
        for name in ("groups", "coarse_channels")
    }
    with dtype_policy(DTYPES[one_of("dtype", options.dtype, DTYPES)]):
        return build(conv=options.conv, **taken)


def _input_shape(model: keras.Model, side: int | None):
    """Return the shape of the images of a side that was given."""
    if side is None:
        return None
    sizes = [positive_int("image_size", side)] * 2
    first = keras.config.image_data_format() == "channels_first"
    channels = model.inputs[0].shape[1 if first else -1]
    return (channels, *sizes) if first else (*sizes, channels)
