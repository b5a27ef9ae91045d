"""One training run: its settings, its folder, its result."""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import keras

from keras_tlgc.costs import kept_params
from keras_tlgc.distribution import model_parallel, uneven_batches
from keras_tlgc.precision import dtype_policy
from keras_tlgc.training.data import DATASETS, RECIPE_OF, ImageData, load_data
from keras_tlgc.training.folder import RunFolder, locked
from keras_tlgc.training.image_folder import ImageFolder
from keras_tlgc.training.networks import network_builder
from keras_tlgc.training.recipes import RECIPES, Recipe
from keras_tlgc.validation import at_most, one_of, positive_int

PRECISIONS = ("float32", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class Settings(Recipe):
    """All that decides the outcome of a run, but for versions and backend.

    Args:
        data: name of the data set, a key of `keras_tlgc.training.DATASETS`.
        data_dir: path of the folder that holds the data, if it is not found
            by the name alone.
        model: name of the network, as `network_builder` takes it.
        conv: its kind of convolution.
        groups: int, the number N of groups. Defaults to 4, or to 1 for
            `conv="standard"`.
        coarse_channels: int, coarse channels of each group.
        precision: dtype policy of the layers, one of `PRECISIONS`.
        seed: int, for initial weights, order of the images and augmentation.
        **recipe: the fields of `Recipe`. Those of another recipe than
            `digits()`: `Settings(**dataclasses.asdict(recipes.cifar()), ...)`.

    Raises:
        ValueError: if a value is out of its range.
    """

    data: str = "mnist5k"
    data_dir: str | None = None
    model: str = "wrn-10-2"
    conv: str = "two_level"
    groups: int | None = None
    coarse_channels: int = 1
    precision: str = "float32"
    seed: int = 0

    @classmethod
    def from_dict(cls, values: dict) -> "Settings":
        """Return settings from a dict, as `config.json` holds them."""
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(values) - names:
            raise ValueError(
                f"Settings must be among {sorted(names)}. "
                f"Received: {sorted(unknown)}. Remove them."
            )
        return cls(**values)

    def __post_init__(self):
        super().__post_init__()
        one_of("data", self.data, DATASETS)
        if not isinstance(self.data_dir, str | None):
            raise ValueError(
                "`data_dir` must be the path of a folder, as a string. "
                f"Received: data_dir={self.data_dir!r}. Pass one, or None."
            )
        network_builder(self.model)
        one_of("precision", self.precision, PRECISIONS)
        at_most(
            "coarse_channels",
            positive_int("coarse_channels", self.coarse_channels),
        )
        if self.groups is None:
            groups = 1 if self.conv == "standard" else 4
            object.__setattr__(self, "groups", groups)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ValueError(
                "`seed` must be an integer from 0 to 2**32 - 1. "
                f"Received: seed={self.seed!r}. Try 0."
            )

    def load_data(self) -> ImageData | ImageFolder:
        """Return the images of the run. Raises as `load_data`."""
        return load_data(self.data, self.data_dir, self.image_size)


def with_recipe(given: dict, recipe: str | None = None) -> dict:
    """Return the given settings, with those of a recipe for all others.

    Args:
        given: dict of some `Settings`.
        recipe: name of a recipe, or None for that of the data.

    Raises:
        ValueError: if there is no recipe of that name.
    """
    if recipe is None:
        recipe = RECIPE_OF.get(str(given.get("data")), "digits")
    make = RECIPES[one_of("recipe", recipe, RECIPES)]
    return {**dataclasses.asdict(make()), **given}


class Result(NamedTuple):
    """The outcome of a run: held-out accuracy, parameters and folder."""

    accuracy: float
    parameters: int
    folder: Path


def train(
    settings: Settings,
    output: str | os.PathLike,
    resume: bool = False,
    overwrite: bool = False,
    verbose: int = 1,
    callbacks: list[keras.callbacks.Callback] | None = None,
    mesh: tuple[int, int] | None = None,
) -> Result:
    """Train a network and write model, history, configuration and curves.

    After each epoch the state of the run is replaced in the output folder as
    a whole, so that a run which was killed at any moment goes on from its last
    finished epoch, to the same final state.

    Args:
        settings: the `Settings` of the run.
        output: folder to write `model.keras`, `history.csv`, `config.json`,
            `curves.png` and `times.csv` to.
        resume: bool, whether to go on with the run that the folder holds.
        overwrite: bool, whether to replace the run that the folder holds.
            Other files in it are left alone.
        verbose: 0, 1 or 2, as in `keras.Model.fit`.
        callbacks: more callbacks for `keras.Model.fit`.
        mesh: optional sizes of the batch and the model axis of a mesh, to
            train with `keras_tlgc.distribution.model_parallel` on JAX. It
            changes no result but by rounding, and may differ when a run is
            resumed.

    Returns:
        A `Result`.

    Raises:
        ValueError: before anything is written, if the folder holds files and
            neither `resume` nor `overwrite` is given, if there is nothing to
            resume or it has other settings or numbers of images, if another
            process works in the folder, or if the settings do not fit the
            network, the data or the mesh.
    """
    if mesh is not None:
        _check_batch(settings, mesh)
        with model_parallel(mesh).scope(), uneven_batches():
            return train(
                settings, output, resume, overwrite, verbose, callbacks
            )
    folder = RunFolder(output)
    folder.check(dataclasses.asdict(settings), resume, overwrite)
    with dtype_policy(settings.precision):
        keras.utils.set_random_seed(settings.seed)
        data = settings.load_data()
        batches = data.train_batches(settings, settings.seed)
        model = _compiled_network(settings, data, len(batches))
        facts = _facts(model, data)
        # Callbacks may end it earlier.
        epochs = None if callbacks else settings.epochs
        with locked(folder.path):
            epoch = 0
            if resume:
                epoch = folder.restore(model, len(batches), facts, epochs)
            else:
                folder.begin(dataclasses.asdict(settings), facts)
            if verbose:
                print(_describe(settings, model, data))
            if not folder.finished:
                _fit(
                    model,
                    batches,
                    folder,
                    callbacks or [],
                    validation_data=data.test_batches(settings.batch_size),
                    initial_epoch=epoch,
                    epochs=settings.epochs,
                    verbose=verbose,
                )
    return Result(
        accuracy=folder.history(epochs)[-1]["val_accuracy"],
        parameters=kept_params(model),
        folder=folder.path,
    )


def build_network(
    settings: Settings, data: ImageData | ImageFolder
) -> keras.Model:
    """Return the network of a run, not compiled.

    Raises:
        ValueError: if the settings make no network.
    """
    return network_builder(settings.model)(
        conv=settings.conv,
        groups=settings.groups,
        coarse_channels=settings.coarse_channels,
        input_shape=data.image_shape,
        classes=data.classes,
    )


def _compiled_network(settings, data, steps_per_epoch):
    model = build_network(settings, data)
    model.compile(
        optimizer=settings.optimizer(steps_per_epoch),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def _check_batch(settings, mesh):
    if settings.batch_size % mesh[0]:
        raise ValueError(
            "The devices along the batch axis must divide the batch. "
            f"Received: batch_size={settings.batch_size}, and a mesh of "
            f"{mesh[0]}x{mesh[1]}. Use a multiple of {mesh[0]} for one, or a "
            "smaller first number for the other."
        )


def _fit(model, batches, folder, callbacks, **options):
    history, *others = folder.callbacks()
    order = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, _: batches.set_epoch(epoch)
    )
    try:
        model.fit(
            batches,
            shuffle=False,  # `Batches` shuffles.
            callbacks=[order, history, *others, *callbacks],
            **options,
        )
    finally:
        history.on_train_end()  # An interrupted `fit` leaves it open.
    folder.finish(model)


def _describe(settings, model, data):
    train, test = data.counts
    return (
        f"{settings.model} of {settings.conv} convolutions, "
        f"N = {settings.groups}: {kept_params(model):,} parameters. "
        f"{settings.data}: {train:,} training and {test:,} test images. "
        f"Backend: {keras.backend.backend()}."
    )


def _facts(model, data):
    train, test = data.counts
    return {
        "parameters": kept_params(model),
        "train_images": train,
        "test_images": test,
        "pixel_mean": data.mean,
        "pixel_std": data.std,
    }
