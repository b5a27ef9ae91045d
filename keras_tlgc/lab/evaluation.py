"""The accuracy of a trained model, and its predictions for images."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from matplotlib.figure import Figure
from PIL import ImageOps
from PIL.Image import Resampling
from scipy.special import softmax

from keras_tlgc.applications.building import channel_axis
from keras_tlgc.lab.data.batches import Batches
from keras_tlgc.lab.data.crops import center_crop
from keras_tlgc.lab.data.image_files import image_files, labelled_files
from keras_tlgc.lab.data.image_folder import FileBatches
from keras_tlgc.lab.data.sets import load_data
from keras_tlgc.lab.folder import CONFIG, MODEL, RunFolder
from keras_tlgc.lab.run import Settings, normalization

NORMALISE = (keras.layers.Normalization, keras.layers.Rescaling)


class Classifier:
    """A trained model, with what the files of its run say about it.

    Args:
        path: path of a run's folder or of a `.keras` file. A file beside a
            run's `config.json` is taken for the model of that run, or for one
            made from it.
        load: function that loads a model from a path.

    Raises:
        ValueError: if there is no such model, or it gives no class scores for
            images.
    """

    def __init__(self, path: Path, load=keras.saving.load_model):
        folder = path if path.is_dir() else path.parent
        path = path / MODEL if path.is_dir() else path
        if not path.exists():
            raise ValueError(
                "A model must be the folder of a finished run or a .keras "
                f"file. Received: {str(path)!r}, which does not exist. "
                "Finish the run with `keras-tlgc train --resume`, or name "
                "another."
            )
        self.model = load(path)
        self.settings: Settings | None = None
        self.class_names: list[str] | None = None
        _check_classifies(self.model, path)
        if (folder / CONFIG).exists():
            run = RunFolder(folder)
            facts = run.facts()
            self.settings = Settings.from_dict(run.settings())
            self.class_names = facts.get("class_names")
            if not any(isinstance(x, NORMALISE) for x in self.model.layers):
                # Models of version 0.1.0 take images that are normalised.
                pixels = keras.Input(self.model.inputs[0].shape[1:])
                self.model = keras.Sequential(
                    [
                        pixels,
                        normalization(facts["pixel_mean"], facts["pixel_std"]),
                        self.model,
                    ]
                )
        self.image_shape = tuple(self.model.inputs[0].shape[1:])
        self.classes = self.model.outputs[0].shape[-1]

    def name(self, label: int) -> str:
        """Return the name of a class, or its number where it has none."""
        return self.class_names[label] if self.class_names else str(label)

    def test_images(
        self, data: str | None, data_dir: str | None, batch_size: int
    ) -> Batches:
        """Return the test images of a data set, by default that of the run.

        Raises:
            ValueError: if the data are not known, or do not fit the model.
        """
        own = self.settings
        if data is None and own is not None:
            data, data_dir = own.data, data_dir or own.data_dir
        if data is None:
            raise ValueError(
                "The images must be known. Received: a model without the "
                "config.json of its run beside it. Name images, or a data set "
                "with --data."
            )
        # Height or width, in either data format.
        images = load_data(data, data_dir, self.image_shape[1])
        if images.image_shape != self.image_shape:
            raise ValueError(
                "The images must have the shape that the model takes. "
                f"Received: {images.image_shape} of data='{data}', and a "
                f"model of {self.image_shape}. Choose other data."
            )
        batches = images.test_batches(batch_size)
        batches.y = self._labels(np.asarray(batches.y), images.class_names)
        return batches

    def labelled_images(self, folder: Path, batch_size: int) -> Batches:
        """Return the images in the `CLASS/` subfolders of a folder.

        Raises:
            ValueError: if there are none, or their classes are not the model's.
        """
        names, paths, labels, _ = labelled_files(folder)
        return self.images(paths, batch_size, self._labels(labels, names))

    def images(
        self,
        paths: Sequence[str] | np.ndarray,
        batch_size: int,
        labels: np.ndarray | None = None,
    ) -> Batches:
        """Return images of files, of the size that the model takes.

        Raises:
            ValueError: if these can be neither grey nor in colours.
        """
        height, width, channels = self.image_shape
        if channel_axis() == 1:
            channels, height, width = self.image_shape
        if channels not in (1, 3):
            raise ValueError(
                "Image files have 1 channel or 3. Received: a model of "
                f"images of shape {self.image_shape}. Name a data set with "
                "--data."
            )

        def crop(image, rng):
            if self.settings is not None and self.settings.data == "folder":
                return center_crop(image, height)
            return ImageOps.fit(image, (width, height), Resampling.BILINEAR)

        labels = np.zeros(len(paths), int) if labels is None else labels
        return FileBatches(
            np.array(paths), labels, batch_size, crop=crop, channels=channels
        )

    def scores(self, images: Batches, verbose: int = 0) -> np.ndarray:
        """Return the probability of each class for each image."""
        scores = self.model.predict(images, verbose=verbose)
        scores = np.asarray(scores, "float32")
        is_positive = scores.min() >= 0
        if not is_positive or not np.allclose(scores.sum(-1), 1, atol=1e-2):
            return softmax(scores, axis=-1)  # They are logits.
        return scores

    def _labels(self, labels, names):
        """Return labels as the model numbers the classes."""
        if names and self.class_names:
            if unknown := sorted(set(names) - set(self.class_names)):
                raise ValueError(
                    "The classes must be among those of the model. Received: "
                    f"{', '.join(unknown[:5])}; the model "
                    f"knows {', '.join(self.class_names[:5])} "
                    "... Name the folders alike."
                )
            numbers = np.array([self.class_names.index(name) for name in names])
            return numbers[labels]
        count = len(names) if names else labels.max() + 1
        if count > self.classes or (names and count < self.classes):
            raise ValueError(
                "The data must have the classes of the model. Received: "
                f"{count} classes, and a model of {self.classes}. Choose other "
                "data."
            )
        self.class_names = self.class_names or names
        return labels


def files_in(paths: list[Path]) -> list[str]:
    """Return the files among these paths, and all images in and below folders.

    Raises:
        ValueError: if a path is not there, or there are no images.
    """
    found: list[str] = []
    for path in paths:
        if not path.exists():
            raise ValueError(
                "Images must be files, or folders of files. Received: "
                f"{str(path)!r}, which does not exist. Name another."
            )
        if path.is_file():
            found.append(str(path))
        for folder, folders, _ in os.walk(path):
            folders.sort()
            found += image_files(Path(folder))[0]
    if not found:
        raise ValueError(
            "There must be an image to look at. Received: "
            f"{', '.join(repr(str(path)) for path in paths)}, without any. "
            "Name files, or a folder of some."
        )
    return found


def _check_classifies(model, path):
    inputs, outputs = (
        [tuple(tensor.shape) for tensor in getattr(model, name, None) or []]
        for name in ("inputs", "outputs")
    )
    if (
        [len(shape) for shape in inputs] != [4]
        or None in inputs[0][1:]
        or [len(shape) for shape in outputs] != [2]
        or outputs[0][1] < 2
    ):
        raise ValueError(
            "A model must take images of one size, and give a score for each "
            f"class. Received: {str(path)!r}, from {inputs} to "
            f"{outputs}. Name another, or use it in Python."
        )


def plot_confusion(
    labels: np.ndarray, scores: np.ndarray, names: list[str], path: Path
) -> None:
    """Write a picture of which classes are taken for which.

    `scores` has a row for each image and a column for each class.
    """
    # This is imported here since it takes a second, and only this needs it.
    from sklearn.metrics import ConfusionMatrixDisplay

    is_large = len(names) > 30
    size = 9 if is_large else 2.5 + 0.35 * len(names)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay.from_predictions(
        labels,
        scores.argmax(-1),
        labels=range(len(names)),
        display_labels=names,
        include_values=not is_large,
        xticks_rotation="vertical",
        cmap="Blues",
        ax=axes,
        text_kw={"fontsize": 7},
    )
    if is_large:
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=120)


def predictions(classifier: Classifier, images: Batches, scores) -> str:
    """Return a CSV of file (or number), predicted class and probability."""
    are_files = isinstance(images, FileBatches)
    names = images.x if are_files else range(len(scores))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "class", "probability"))
    for name, row in zip(names, scores, strict=True):
        label = int(row.argmax())
        writer.writerow((name, classifier.name(label), f"{row[label]:.4f}"))
    return text.getvalue()
