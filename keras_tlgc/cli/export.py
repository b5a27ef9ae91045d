"""`keras-tlgc export`: deploy a saved model to another runtime."""

import functools
import os
import tempfile
from pathlib import Path
from typing import Annotated

import keras
import numpy as np
import typer

from keras_tlgc.cli.models import check_target, load
from keras_tlgc.cli.options import MARKDOWN, takes
from keras_tlgc.cli.printing import show
from keras_tlgc.lab import exported
from keras_tlgc.lab.tables import markdown_table
from keras_tlgc.rewrite import deploy
from keras_tlgc.validation import one_of

TOLERANCE = 1e-3  # Of the largest output.
IMAGES = 8  # How many random images are run if --data gives none.

OPTIONS = {
    "against": (Path, "A model's file that is exported too, to compare with."),
    "data": (Path, "A .npy file of inputs. Random ones are run if not given."),
    "measure": (bool, "Time the forms of each layer, on Keras' backend."),
    "overwrite": (bool, "Replace OUT."),
}


@takes(OPTIONS | MARKDOWN)
def export(
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
    model = load(source, compile=False)
    x = _inputs(model, options.data)
    plain = deploy(model, measure=options.measure)
    _write(plain, target)
    written = _compare(model, target, x)
    rows = [(source.name, target)]
    with tempfile.TemporaryDirectory() as folder:
        if options.against is not None:
            original = load(options.against, compile=False)
            path = Path(folder, f"original{target.suffix}")
            exported.write(deploy(original, measure=options.measure), path)
            rows.insert(0, (options.against.name, path))
        cells = _timed(rows, x[:1])
    columns = ["model", "MB", "1 thread, ms", "ratio", "all threads, ms"]
    show(
        markdown_table([*columns, "ratio "], cells, ["model"]), options.markdown
    )
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


def _write(plain: keras.Model, target: Path) -> None:
    try:
        exported.write(plain, target)
    except ImportError as error:
        jax = "-jax" if keras.backend.backend() == "jax" else ""
        raise ValueError(
            "Exporting needs packages of other formats. Received: "
            f"{str(error).splitlines()[0]} "
            f"Run pip install 'keras-tlgc[export{jax}]'."
        ) from error


def _inputs(model: keras.Model, data: Path | None) -> np.ndarray:
    """Return the inputs to run, those of a file or random ones."""
    shape = model.input_shape
    if not isinstance(shape, tuple) or None in shape[1:]:
        raise ValueError(
            "The model must have one input, of a fixed size. Received: "
            f"'{model.name}' with input_shape={shape}. Build it with such an "
            "input, or call `keras_tlgc.deploy` and `export` in Python."
        )
    if data is None:
        rng = np.random.default_rng(0)
        return rng.normal(size=(IMAGES, *shape[1:])).astype("float32")
    x = np.load(data)
    if x.shape[1:] != shape[1:] or not len(x):
        raise ValueError(
            f"--data must hold inputs of shape {(None, *shape[1:])}. Received: "
            f"{data} of shape {x.shape}. Save inputs of the model's size."
        )
    return x.astype("float32")


def _timed(rows: list, x: np.ndarray) -> list[list[str]]:
    """Return the cells of files, each with its ratios to the first."""
    cells = [[name, f"{exported.size(path) / 1e6:.2f}"] for name, path in rows]
    for threads in (1, os.cpu_count() or 1):
        if threads == 1 and not rows[0][1].suffix:
            times = None  # TensorFlow's threads are set when it starts.
        else:
            runs = [exported.runner(path, threads) for _, path in rows]
            times = exported.times_in_turns(
                [functools.partial(run, x) for run in runs]
            )
        for i, row in enumerate(cells):
            row += [f"{times[i]:.2f}" if times else ""]
            row += [f"{times[i] / times[0]:.2f}" if times and i else ""]
    return cells


def _compare(model: keras.Model, path: Path, x: np.ndarray) -> str:
    """Tell the largest difference, or raise if it is more than rounding."""
    expected = model.predict(x, verbose=0)
    run = exported.runner(path, 1)
    y = np.concatenate([run(x[i : i + 1]) for i in range(len(x))])
    difference = float(np.abs(y - expected).max())
    largest = float(np.abs(expected).max())
    if not difference <= TOLERANCE * largest:
        raise ValueError(
            "The exported model must give the outputs of Keras. Received: a "
            f"difference of {difference:.2g} for outputs up to {largest:.2g}. "
            f"Do not use {path}, and report this with the model."
        )
    return (
        f"Written: {path}. Its outputs for {len(x)} inputs differ by at most "
        f"{difference:.2g}, and are up to {largest:.2g}."
    )
