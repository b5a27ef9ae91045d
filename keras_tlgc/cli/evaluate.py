"""The commands `evaluate` and `predict`, for a trained model."""

import functools
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from keras_tlgc import lab
from keras_tlgc.cli.models import check_target, load
from keras_tlgc.cli.options import takes
from keras_tlgc.cli.printing import shows_bars
from keras_tlgc.files import write_text, write_whole
from keras_tlgc.lab.evaluation import (
    Classifier,
    files_in,
    plot_confusion,
    predictions,
)
from keras_tlgc.validation import positive_int

ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="Folder of a finished run, or a .keras file."
    ),
]
OPTIONS = {
    "data": (
        str,
        "Data set whose test images are taken, one of "
        f"{', '.join(lab.DATASETS)}: that of the run if not given.",
    ),
    "data_dir": (Path, "Folder that holds the data."),
    "batch_size": (int, "Images in a batch.", 50),
}
CONFUSION = {
    "confusion": (
        Path,
        "Picture to write of which classes are taken for which, as "
        "confusion.png.",
    ),
}
OUTPUT = {
    "output": (Path, "File to write or to replace.", Path("predictions.csv"))
}


@takes(OPTIONS | CONFUSION)
def evaluate(
    model: ModelPath,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER",
            help="Folder with images in a subfolder for each class, in the "
            "place of a data set.",
            show_default=False,
        ),
    ] = None,
    *,
    options,
):
    """Print a trained model's accuracy on images whose classes are known."""
    check_target("--confusion", options.confusion, ".png", ".pdf", ".svg")
    classifier, images, scores = _scores(model, folder, options)
    accuracy = np.mean(scores.argmax(-1) == images.y)
    print(f"Accuracy: {accuracy:.2%} of {len(scores):,} images.")
    if options.confusion is not None:
        names = [classifier.name(i) for i in range(classifier.classes)]
        write_whole(
            options.confusion,
            lambda path: plot_confusion(images.y, scores, names, path),
        )
        print(f"Written: {options.confusion}")


@takes(OPTIONS | OUTPUT)
def predict(
    model: ModelPath,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGES...",
            help="Image files, and folders of them, in the place of a data "
            "set.",
            show_default=False,
        ),
    ] = None,
    *,
    options,
):
    """Write a CSV of the classes that a trained model sees in images."""
    check_target("--output", options.output, ".csv")
    classifier, images, scores = _scores(model, paths, options)
    text = predictions(classifier, images, scores)
    # Names that are not UTF-8 are written with the bytes that the system has.
    write_text(options.output, text, errors="surrogateescape")
    print(f"Written: {options.output}, {len(scores):,} predictions.")


def _scores(model, paths, options):
    """Return the classifier, the images and what it makes of them."""
    size = positive_int("batch_size", options.batch_size)
    if paths and (options.data or options.data_dir):
        raise ValueError(
            "Images are named once. Received: paths, and --data or "
            "--data-dir. Leave one of the two out."
        )
    files = files_in(paths) if isinstance(paths, list) else None
    classifier = Classifier(model, functools.partial(load, compile=False))
    if isinstance(paths, Path):
        images = classifier.labelled_images(paths, size)
    elif files:
        images = classifier.images(files, size)
    else:
        folder = options.data_dir and str(options.data_dir)
        images = classifier.test_images(options.data, folder, size)
    return classifier, images, classifier.scores(images, int(shows_bars()))
