"""One training run: its settings, its folder, its result."""

import contextlib
import dataclasses
import math
import os
from pathlib import Path
from typing import NamedTuple

import keras

from keras_tlgc.applications import network_builder
from keras_tlgc.applications.building import channel_axis
from keras_tlgc.costs import kept_params
from keras_tlgc.distribution import model_parallel, uneven_batches
from keras_tlgc.distribution.mesh import reserve_cpu_devices
from keras_tlgc.lab.data.image_files import describe_others
from keras_tlgc.lab.data.image_folder import ImageFolder
from keras_tlgc.lab.data.sets import DATASETS, RECIPE_OF, ImageData, load_data
from keras_tlgc.lab.folder import Recorder, RunFolder, locked
from keras_tlgc.lab.outcomes import Configuration
from keras_tlgc.lab.recipes import RECIPES, Recipe
from keras_tlgc.precision import dtype_policy
from keras_tlgc.validation import one_of, positive_int
from keras_tlgc_launcher import silent_errors

PRECISIONS = ("float32", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class Settings(Recipe):
    """All that decides the outcome of a run, except versions and backend.

    Args:
        data: name of the data set, a key of `keras_tlgc.lab.DATASETS`.
        data_dir: path of the folder that holds the data, if it is not found
            by the name alone.
        model: name of the network, as `network_builder` takes it.
        conv: its kind of convolution.
        groups: int, the number N of groups. Defaults to 4, or to 1 for
            `conv="standard"`.
        coarse_channels: int, coarse channels of each group.
        precision: dtype policy of the layers, one of `PRECISIONS`.
        seed: int, for initial weights, order of the images and augmentation.
        **recipe: the fields of `Recipe`, whose defaults are those of
            `digits()`. For another recipe:
            `Settings(**dataclasses.asdict(recipes.cifar()), ...)`.

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
        network_builder(self.model)
        one_of("precision", self.precision, PRECISIONS)
        positive_int("coarse_channels", self.coarse_channels)
        if self.groups is None:
            groups = 1 if self.conv == "standard" else 4
            object.__setattr__(self, "groups", groups)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ValueError(
                "`seed` must be an integer from 0 to 2**32 - 1. "
                f"Received: seed={self.seed!r}. Try 0."
            )

    @property
    def title(self) -> str:
        """What is trained, as plots name it."""
        what = f"{self.data}, {self.model}: {Configuration.of(self).title}"
        return f"{what}, seed {self.seed}"

    def load_data(self) -> ImageData | ImageFolder:
        """Return the images of the run, or raise what `load_data` raises."""
        return load_data(self.data, self.data_dir, self.image_size)


def with_recipe(given: dict, recipe: str | None = None) -> dict:
    """Return the given settings, completed by those of a recipe.

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
    resume: bool | None = False,
    overwrite: bool = False,
    verbose: int = 1,
    callbacks: list[keras.callbacks.Callback] | None = None,
    mesh: tuple[int, int] | None = None,
    data: ImageData | ImageFolder | None = None,
) -> Result:
    """Train a network and write model, history, configuration and curves.

    After each epoch the state of the run in the output folder is replaced as a
    whole. So a run that was killed at any moment can go on from its last
    finished epoch, to the same final state.

    Args:
        settings: the `Settings` of the run.
        output: folder to write `model.keras`, `history.csv`, `config.json`,
            `curves.png` and `times.csv` to.
        resume: bool, whether to go on with the run that the folder holds.
            `None` goes on if there is one.
        overwrite: bool, whether to replace the run that the folder holds.
            Other files in it stay as they are.
        verbose: 0, 1 or 2, as in `keras.Model.fit`.
        callbacks: more callbacks for `keras.Model.fit`.
        mesh: optional sizes of the batch and the model axis of a mesh, to
            train with `keras_tlgc.distribution.model_parallel` on JAX. It
            changes results only by rounding, and may differ when a run is
            resumed.
        data: optional images of the settings, if they are read already.

    Returns:
        A `Result`.

    Raises:
        ValueError: before anything is written, if the folder holds files and
            neither `resume` nor `overwrite` is given, if there is nothing to
            resume or the run there has other settings or numbers of images, if
            another process works in the folder, or if the settings do not fit
            the network, the data or the mesh.
    """
    folder = RunFolder(output)
    with contextlib.ExitStack() as stack:
        if mesh is not None:
            _check_batch(settings, mesh)
            # It raises on PyTorch, where a run would be one of many processes.
            reserve_cpu_devices(math.prod(mesh))
            stack.enter_context(model_parallel(mesh).scope())
            stack.enter_context(uneven_batches())
        # What the folder holds may change until it is locked.
        stack.enter_context(locked(folder.path))
        stack.enter_context(dtype_policy(settings.precision))
        if resume is None:
            resume, overwrite = folder.begun, overwrite and not folder.begun
        folder.check(dataclasses.asdict(settings), resume, overwrite)
        with silent_errors(True):  # Keras imports TensorFlow to seed it.
            keras.utils.set_random_seed(settings.seed)

        def say(text):
            if verbose:  # At once, even into a pipe, before what takes long.
                print(text, flush=True)

        if data is None:
            say(f"Reading the images of {settings.data} ...")
            data = settings.load_data()
        batches = data.train_batches(settings, settings.seed)
        say(f"Building {settings.model} ...")
        model = build_network(settings, data)
        model.compile(
            optimizer=settings.optimizer(len(batches)),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        facts = _facts(model, data)
        if resume:
            epoch = folder.restore(model, len(batches), facts)
        else:
            epoch = 0
            folder.begin(dataclasses.asdict(settings), facts)
        say(_describe(settings, facts, data))
        if not folder.finished:
            say("The first step, which may take a minute ...")
            model.fit(
                batches,
                shuffle=False,  # `Batches` shuffles.
                callbacks=[Recorder(folder, batches), *(callbacks or [])],
                validation_data=data.test_batches(settings.batch_size),
                initial_epoch=epoch,
                epochs=settings.epochs,
                verbose=verbose,
            )
            folder.finish(model, settings.title)
        # Callbacks may have ended the run earlier.
        history = folder.history(None if callbacks else settings.epochs)
        return Result(
            accuracy=history[-1]["val_accuracy"],
            parameters=facts["parameters"],
            folder=folder.path,
        )


def build_network(
    settings: Settings, data: ImageData | ImageFolder
) -> keras.Model:
    """Return the network of a run, not compiled.

    It takes images as the data set stores them: its first layer normalises.

    Raises:
        ValueError: if the settings make no network.
    """
    pixels = keras.Input(data.image_shape)
    return network_builder(settings.model)(
        conv=settings.conv,
        groups=settings.groups,
        coarse_channels=settings.coarse_channels,
        input_tensor=normalization(data.mean, data.std)(pixels),
        classes=data.classes,
    )


def normalization(mean, std) -> keras.layers.Layer:
    """Return the layer that turns each pixel into `(pixel - mean) / std`.

    Args:
        mean, std: floats, one of each for each channel.
    """
    return keras.layers.Normalization(
        channel_axis(),
        mean=list(mean),
        variance=[value**2 for value in std],
        dtype="float32",  # Half precision would round the means.
        name="normalization",
    )


def _check_batch(settings, mesh):
    if settings.batch_size % mesh[0]:
        raise ValueError(
            "The devices along the batch axis must divide the batch. "
            f"Received: batch_size={settings.batch_size}, and a mesh of "
            f"{mesh[0]}x{mesh[1]}. Use a multiple of {mesh[0]} for one, or a "
            "smaller first number for the other."
        )


def _describe(settings, facts, data):
    others = describe_others(getattr(data, "passed_over", []))
    return (
        f"{settings.model} of {settings.conv} convolutions, "
        f"N = {settings.groups}: {facts['parameters']:,} parameters. "
        f"{settings.data}: {facts['train_images']:,} training and "
        f"{facts['test_images']:,} test images. "
        f"Backend: {keras.backend.backend()}."
        + (f"\n{others}" if others else "")
    )


def _facts(model, data):
    train, test = data.counts
    return {
        "parameters": kept_params(model),
        "train_images": train,
        "test_images": test,
        "pixel_mean": data.mean,
        "pixel_std": data.std,
        "class_names": data.class_names,
    }
