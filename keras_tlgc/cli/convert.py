"""`keras-tlgc convert`: make a saved model lighter."""

import functools
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from keras_tlgc import lab
from keras_tlgc.cli.models import check_target, load
from keras_tlgc.cli.options import (
    COARSE_CHANNELS,
    MARKDOWN,
    exporting,
    in_memory,
    refuse,
    takes,
)
from keras_tlgc.cli.printing import show, shows_bars
from keras_tlgc.distribution.mesh import parse_mesh
from keras_tlgc.files import write_whole
from keras_tlgc.lab import exported
from keras_tlgc.lab.tables import markdown_table
from keras_tlgc.rewrite import convert as convert_model
from keras_tlgc.rewrite import distill, largest_divisor
from keras_tlgc.rewrite.pricing import COSTS
from keras_tlgc.validation import one_of, positive_int


def _in_onnxruntime(model):
    with exporting():
        return exported.in_onnxruntime(model)


RUNTIMES = {"keras": None, "onnxruntime": _in_onnxruntime}

OPTIONS = {
    "groups": (int, "Number N of groups."),
    "up_to": (
        int,
        "Instead of --groups: each layer gets as many groups as divide its "
        "channels and filters, up to this number.",
    ),
    "multiple_of": (
        int,
        "With --up-to: the devices of a mesh's model axis, which are to divide "
        "the groups.",
    ),
    "conv": (
        str,
        "two_level, group for one level, low_rank or balanced.",
        "two_level",
    ),
    "coarse_channels": (int, f"{COARSE_CHANNELS}.", 1),
    "budget": (
        float,
        "Instead of these: the share of the cost of all convolutions that is "
        "left, such as 0.4. What each becomes is chosen so that least is lost "
        "on --data.",
    ),
    "of": (
        str,
        f"With --budget: what it is a share of, {', '.join(COSTS[:-1])} or "
        f"{COSTS[-1]}. The time is that of one image.",
        COSTS[0],
    ),
    "runtime": (
        str,
        "With --of time: where each layer is timed, keras, which is Keras on "
        "this backend, or onnxruntime, on one thread.",
        "keras",
    ),
    "mesh": (
        str,
        "With --budget: devices along batch and model axis, such as 1x4. Those "
        "of the model axis are to divide the groups. --of exchange needs it.",
    ),
    "dense": (
        bool,
        "Convert Dense layers too, except those that make the outputs, which "
        "--where has to name.",
    ),
    "where": (str, "Regular expression for the names of what to convert."),
    "weights": (
        str,
        "project, for kernels close to the trained ones, or random.",
        "project",
    ),
    "data": (
        str,
        "Data set on whose training images the new layers are fitted, one of "
        f"{', '.join(lab.DATASETS)}; the accuracy on its test images is "
        "printed.",
    ),
    "data_dir": (Path, "Folder of --data."),
    "images": (int, "With --data: how many images.", 512),
    "finetune": (
        int,
        "With --data: for how many epochs the new model is then trained to "
        "give the outputs of the old one on all training images. No labels are "
        "used.",
    ),
    "dry_run": (bool, "Print the table and write nothing."),
    "overwrite": (bool, "Replace OUT.keras."),
    "no_safe_mode": (
        bool,
        "Run the code of Lambda layers that IN.keras holds. Only for files "
        "that you trust.",
    ),
}


@takes(OPTIONS | MARKDOWN)
def convert(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="IN.keras", help="The model's file.")
    ],
    target: Annotated[
        Path | None,
        typer.Argument(metavar="OUT.keras", help="The new model's file."),
    ] = None,
    *,
    options,
):
    """Turn the convolutions of a saved model into two-level group convolutions.

    Prints what became of each convolution, and why some were kept.
    """
    chosen = _chosen(context, options)
    _check(context, options, target)
    data = None
    fit: dict[str, Any] = {}
    if options.data is not None:
        data = in_memory(options.data, options.data_dir)
        evaluate = functools.partial(_accuracy, data)
        fit = {"data": data.sample(options.images), "evaluate": evaluate}
    model = load(source, compile=False, safe_mode=not options.no_safe_mode)
    new, report = convert_model(
        model,
        where=options.where,
        dense=options.dense,
        weights=options.weights,
        verbose="auto" if shows_bars() else 0,
        **chosen,
        **fit,
    )
    texts = ["convolution", "layer", "kept, because"]
    table = markdown_table(report.columns, report.cells, texts)
    show(table, options.markdown, spare=["layer"])
    print(report.summary)
    if data is not None and options.finetune is not None:
        distill(
            new,
            model,
            data.pixels_train,
            epochs=options.finetune,
            verbose=1 if shows_bars() else 2,
        )
        print(f"Fine-tuned: score {evaluate(new):.4g}.")
    if target is not None and not options.dry_run:
        write_whole(target, new.save)
        print(f"Written: {target}, {target.stat().st_size / 1e6:.1f} MB.")


def _accuracy(data: lab.ImageData, model) -> float:
    found = model.predict(data.pixels_test, verbose=0).argmax(-1)
    return np.mean(found == np.ravel(data.y_test))


def _chosen(context: typer.Context, options) -> dict[str, Any]:
    """Return what `convert` takes to know what layers become."""
    uniform = ["groups", "up_to", "multiple_of", "conv", "coarse_channels"]
    if options.budget is not None:
        refuse(context, uniform, "with --budget")
        one_of("runtime", options.runtime, RUNTIMES)
        if options.of != "time":
            refuse(context, ["runtime"], f"with --of {options.of}")
        mesh = options.mesh
        return {
            "budget": options.budget,
            "of": options.of,
            "mesh": None if mesh is None else parse_mesh(mesh),
            "runtime": RUNTIMES[options.runtime],
        }
    refuse(context, ["of", "mesh", "runtime"], "without --budget")
    if options.conv in ("group", "balanced"):
        refuse(context, ["coarse_channels"], f"with --conv {options.conv}")
    return {
        "groups": _rule(options),
        "conv": options.conv,
        "coarse_channels": positive_int(
            "coarse_channels", options.coarse_channels
        ),
    }


def _rule(options) -> Any:
    """Return how many groups each layer gets, as `convert` takes it."""
    groups, up_to = options.groups, options.up_to
    if options.multiple_of is not None and up_to is None:
        raise ValueError(
            "--multiple-of must go with --up-to. Received: --multiple-of "
            f"{options.multiple_of} alone. Pass --up-to too, or leave it out."
        )
    if (groups is None) == (up_to is None):
        raise ValueError(
            "The number of groups must be given once. Received: "
            f"--groups {groups} and --up-to {up_to}. Pass one of the two, or "
            "--budget."
        )
    if up_to is None:
        return groups
    multiple_of = 1 if options.multiple_of is None else options.multiple_of
    return largest_divisor(up_to, multiple_of)


def _check(context: typer.Context, options, target: Path | None) -> None:
    """Raise a `ValueError` for what would do nothing or replace a file."""
    if options.dry_run:
        refuse(context, ["finetune"], "with --dry-run")
    if options.data is None:
        unread = ["data_dir", "images", "finetune"]
        refuse(context, unread, "without --data")
    positive_int("images", options.images)
    if options.finetune is not None:
        positive_int("finetune", options.finetune)
    if options.dry_run and target is None:
        refuse(context, ["overwrite"], "without OUT.keras")
    else:
        _check_target(target, options.overwrite)


def _check_target(path: Path | None, overwrite: bool) -> None:
    if path is None:
        raise ValueError(
            "OUT.keras must be given. Received: none. Name a file, or pass "
            "--dry-run."
        )
    check_target("OUT.keras", path, ".keras")
    if path.exists() and not overwrite:
        raise ValueError(
            f"OUT.keras must not exist yet. Received: {path}. "
            "Name another file, or --overwrite it."
        )
