"""`keras-tlgc export`: deploy a saved model to another runtime."""

import functools
import os
import tempfile
from pathlib import Path
from typing import Annotated, NamedTuple

import keras
import numpy as np
import typer

from keras_tlgc import lab
from keras_tlgc.cli.models import check_target, load
from keras_tlgc.cli.options import (
    DATA_DIR,
    MARKDOWN,
    exporting,
    in_memory,
    refuse,
    takes,
)
from keras_tlgc.cli.printing import show
from keras_tlgc.lab import exported
from keras_tlgc.lab.tables import markdown_table
from keras_tlgc.rewrite import deploy
from keras_tlgc.timing import times_in_turns
from keras_tlgc.validation import one_of

# Of the outputs' norm. Integers of 8 bits round to a 256th at each layer.
TOLERANCE = {False: 1e-3, True: 0.25}
IMAGES = 8  # How many random images are run if --data gives none.
CALIBRATION = 128  # How many inputs the ranges of integers are taken from.

OPTIONS = {
    "against": (Path, "A model's file that is exported too, to compare with."),
    "data": (
        str,
        "A .npy file of inputs, or a data set, one of "
        f"{', '.join(lab.DATASETS)}, whose accuracy is printed. Random inputs "
        "are run if not given.",
    ),
    "int8": (
        bool,
        "With --data: integers of 8 bits instead of floats, with ranges from "
        f"{CALIBRATION} inputs: those of the file, or training images.",
    ),
    "measure": (
        bool,
        "Time the forms of each layer, on Keras' backend, as for a folder.",
    ),
    "smallest": (bool, "Take the form of the fewest weights of each layer."),
    "overwrite": (bool, "Replace OUT."),
}


class Inputs(NamedTuple):
    """What exported models are run on.

    Attributes:
        x: the inputs.
        labels: their labels, if known.
        calibration: the inputs from which the ranges of integers are taken, or
            None for floats.
    """

    x: np.ndarray
    labels: np.ndarray | None = None
    calibration: np.ndarray | None = None


@takes(OPTIONS | DATA_DIR | MARKDOWN)
def export(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="IN.keras", help="The model's file.")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="OUT.onnx, OUT.tflite, or a folder for a SavedModel.",
        ),
    ],
    *,
    options,
):
    """Write a saved model in plain layers, for another runtime.

    Runs it there, prints size and time, and fails if the outputs differ from
    those of Keras.
    """
    _check_target(target, options.overwrite)
    if options.data is None:
        refuse(context, ["int8", "data_dir"], "without --data")
    if options.data not in lab.DATASETS:
        refuse(context, ["data_dir"], "without a data set")
    model = load(source, compile=False)
    inputs = _inputs(model, options)
    # TensorFlow runs a SavedModel as it runs Keras.
    measured = options.measure or not (target.suffix or options.smallest)
    how = {"measure": measured, "smallest": options.smallest}
    plain = deploy(model, **how)
    _write(plain, target, inputs.calibration)
    written = _compare(model, target, inputs)
    rows = [(source.name, target)]
    with tempfile.TemporaryDirectory() as folder:
        if options.int8:
            rows = [(f"{source.name}, int8", target)]
            path = Path(folder, f"floats{target.suffix}")
            exported.write(plain, path)
            rows.insert(0, (source.name, path))
        if options.against is not None:
            original = load(options.against, compile=False)
            path = Path(folder, f"original{target.suffix}")
            exported.write(deploy(original, **how), path)
            rows.insert(0, (options.against.name, path))
        cells = _timed(rows, inputs.x[:1])
        columns = ["model", "MB", "1 thread, ms", "ratio", "all threads, ms"]
        columns += ["ratio "]
        if inputs.labels is not None:
            columns += ["accuracy, %"]
            for row, (_, path) in zip(cells, rows, strict=True):
                row.append(f"{_accuracy(path, inputs):.2f}")
    show(markdown_table(columns, cells, ["model"]), options.markdown)
    print(written)


def _check_target(target: Path, overwrite: bool) -> None:
    one_of("the suffix of OUT", target.suffix, exported.FORMATS)
    if target.suffix:
        check_target("OUT", target, target.suffix)
    if target.exists() and not overwrite:
        raise ValueError(
            f"OUT must not exist yet. Received: {target}. Name another one, or "
            "--overwrite it."
        )


def _write(
    plain: keras.Model, target: Path, calibration: np.ndarray | None
) -> None:
    with exporting():
        exported.write(plain, target, calibration)


def _inputs(model: keras.Model, options) -> Inputs:
    """Return the inputs to run: of a file, of a data set, or random ones."""
    shape = model.input_shape
    if not isinstance(shape, tuple) or None in shape[1:]:
        raise ValueError(
            "The model must have one input, of a fixed size. Received: "
            f"'{model.name}' with input_shape={shape}. Build it with such an "
            "input, or call `keras_tlgc.deploy` and `export` in Python."
        )
    if options.data is None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(IMAGES, *shape[1:])).astype("float32")
        return Inputs(x)
    if options.data in lab.DATASETS:
        data = in_memory(options.data, options.data_dir)
        x, labels = data.pixels_test, np.ravel(data.y_test)
        calibration = data.sample(CALIBRATION)
    else:
        if not Path(options.data).exists():
            one_of("data", options.data, ["A FILE.npy", *lab.DATASETS])
        x, labels = np.load(options.data), None
        calibration = x
    if x.shape[1:] != shape[1:] or not len(x):
        raise ValueError(
            f"--data must hold inputs of shape {(None, *shape[1:])}. Received: "
            f"{options.data} of shape {x.shape}. Save inputs of the model's "
            "size."
        )
    calibration = calibration[:CALIBRATION].astype("float32")
    return Inputs(
        x.astype("float32"), labels, calibration if options.int8 else None
    )


def _timed(rows: list, x: np.ndarray) -> list[list[str]]:
    """Return the cells of files, each with its ratios to the first."""
    cells = [[name, f"{exported.size(path) / 1e6:.2f}"] for name, path in rows]
    for threads in (1, os.cpu_count() or 1):
        if threads == 1 and not rows[0][1].suffix:
            times = None  # TensorFlow's threads are set when it starts.
        else:
            runs = [exported.runner(path, threads) for _, path in rows]
            times = times_in_turns([functools.partial(run, x) for run in runs])
        for i, row in enumerate(cells):
            row += [f"{times[i]:.2f}" if times else ""]
            row += [f"{times[i] / times[0]:.2f}" if times and i else ""]
    return cells


def _outputs(path: Path, x: np.ndarray) -> np.ndarray:
    run = exported.runner(path, 1)
    return np.concatenate([run(x[i : i + 1]) for i in range(len(x))])


def _accuracy(path: Path, inputs: Inputs) -> float:
    found = _outputs(path, inputs.x).argmax(-1)
    return 100 * float(np.mean(found == inputs.labels))


def _compare(model: keras.Model, path: Path, inputs: Inputs) -> str:
    """Tell how outputs differ, or raise if it is by more than rounding."""
    x = inputs.x[:CALIBRATION]
    expected = model.predict(x, verbose=0)
    difference = _norm(_outputs(path, x) - expected)
    share = difference / max(_norm(expected), float(np.finfo("float32").tiny))
    has_integers = inputs.calibration is not None
    if not share <= TOLERANCE[has_integers]:
        raise ValueError(
            "The exported model must give the outputs of Keras. Received: a "
            f"difference of {share:.2g} of the outputs' norm. Do not use "
            f"{path}, and report this with the model."
        )
    return (
        f"Written: {path}. Its outputs for {len(x)} inputs differ from those "
        f"of Keras by {share:.2g} of their norm."
    )


def _norm(values: np.ndarray) -> float:
    return float(np.linalg.norm(values.astype("float64")))
