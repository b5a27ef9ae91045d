"""One training run: its settings, its folder, its result."""

import dataclasses
import math
import os
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import keras

from keras_tlgc.applications import WideResNet
from keras_tlgc.costs import kept_params
from keras_tlgc.distribution import model_parallel, uneven_batches
from keras_tlgc.training.data import DATASETS, Batches, ImageData, load_data
from keras_tlgc.training.folder import RunFolder
from keras_tlgc.validation import one_of, positive_int


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides the outcome of a run, but for versions and backend.

    Args:
        data: name of the data set, a key of `keras_tlgc.training.DATASETS`.
        depth: int, layers of the WideResNet.
        width: int, its widening factor.
        conv: its kind of convolution.
        groups: int, the number N of groups. Defaults to 4, or to 1 for
            `conv="standard"`.
        coarse_channels: int, coarse channels of each group.
        epochs: int, passes over the training images.
        batch_size: int, images in a batch.
        learning_rate: float, the initial rate. It is divided by 10 after 30%,
            60% and 80% of the epochs, as in the paper's CIFAR recipe.
        seed: int, for initial weights and order of the images.

    Raises:
        ValueError: if a value is out of its range.
    """

    data: str = "mnist5k"
    depth: int = 10
    width: int = 2
    conv: str = "two_level"
    groups: int | None = None
    coarse_channels: int = 1
    epochs: int = 10
    batch_size: int = 50
    learning_rate: float = 0.1
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
        one_of("data", self.data, DATASETS)
        if self.groups is None:
            groups = 1 if self.conv == "standard" else 4
            object.__setattr__(self, "groups", groups)
        positive_int("epochs", self.epochs)
        positive_int("batch_size", self.batch_size)
        if not isinstance(self.learning_rate, Real) or not (
            0 < self.learning_rate < math.inf
        ):
            raise ValueError(
                "`learning_rate` must be a positive, finite number. "
                f"Received: learning_rate={self.learning_rate!r}. Try 0.1."
            )
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ValueError(
                "`seed` must be an integer from 0 to 2**32 - 1. "
                f"Received: seed={self.seed!r}. Try 0."
            )


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
    """Train a WideResNet and write model, history, configuration and curves.

    After each epoch the state of the run is replaced in the output folder as
    a whole, so that a run which was killed at any moment goes on from its last
    finished epoch, to the same final state.

    Args:
        settings: the `Settings` of the run.
        output: folder to write `model.keras`, `history.csv`, `config.json`
            and `curves.png` to.
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
            resume or it has other settings, or if the settings do not fit the
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
    keras.utils.set_random_seed(settings.seed)
    data = load_data(settings.data)
    batches = Batches(
        data.x_train, data.y_train, settings.batch_size, settings.seed
    )
    model = _compiled_model(settings, data, len(batches))
    if resume:
        epoch = folder.restore(model, len(batches))
    else:
        epoch = 0
        folder.begin(dataclasses.asdict(settings), _facts(model, data))
    if verbose:
        print(_describe(settings, model, data))

    if not folder.finished:
        history, checkpoint = folder.callbacks()
        try:
            model.fit(
                batches,
                validation_data=(data.x_test, data.y_test),
                validation_batch_size=settings.batch_size,
                initial_epoch=epoch,
                epochs=settings.epochs,
                shuffle=False,  # `Batches` shuffles.
                verbose=verbose,
                callbacks=[
                    keras.callbacks.LambdaCallback(
                        on_epoch_begin=lambda epoch, _: batches.set_epoch(epoch)
                    ),
                    history,
                    checkpoint,
                    *(callbacks or []),
                ],
            )
        finally:
            history.on_train_end()  # An interrupted `fit` leaves it open.
        folder.finish(model)
    return Result(
        accuracy=folder.history()[-1]["val_accuracy"],
        parameters=kept_params(model),
        folder=folder.path,
    )


def build_network(settings: Settings, data: ImageData) -> keras.Model:
    """Return the network of a run, not compiled.

    Raises:
        ValueError: if the settings make no network.
    """
    return WideResNet(
        settings.depth,
        settings.width,
        conv=settings.conv,
        groups=settings.groups,
        coarse_channels=settings.coarse_channels,
        input_shape=data.x_train.shape[1:],
        classes=data.classes,
    )


def _check_batch(settings, mesh):
    if settings.batch_size % mesh[0]:
        raise ValueError(
            "The devices along the batch axis must divide the batch. "
            f"Received: batch_size={settings.batch_size}, and a mesh of "
            f"{mesh[0]}x{mesh[1]}. Use a multiple of {mesh[0]} for one, or a "
            "smaller first number for the other."
        )


def _compiled_model(settings, data, steps_per_epoch):
    model = build_network(settings, data)
    rate = _step_decay(settings.learning_rate, settings.epochs, steps_per_epoch)
    model.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=0.9),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def _step_decay(rate, epochs, steps_per_epoch):
    """Divide the rate by 10 after 30%, 60% and 80% of the epochs."""
    last_steps = [
        round(share * epochs) * steps_per_epoch - 1 for share in (0.3, 0.6, 0.8)
    ]
    rates = [rate, rate / 10, rate / 100, rate / 1000]
    return keras.optimizers.schedules.PiecewiseConstantDecay(last_steps, rates)


def _describe(settings, model, data: ImageData):
    return (
        f"WideResNet-{settings.depth}-{settings.width} of {settings.conv} "
        f"convolutions, N = {settings.groups}: "
        f"{kept_params(model):,} parameters. "
        f"{settings.data}: {len(data.x_train):,} training and "
        f"{len(data.x_test):,} test images. "
        f"Backend: {keras.backend.backend()}."
    )


def _facts(model, data: ImageData):
    return {
        "parameters": kept_params(model),
        "train_images": len(data.x_train),
        "test_images": len(data.x_test),
        "pixel_mean": data.mean,
        "pixel_std": data.std,
    }
