"""The options that several commands share, and how their values are read."""

import contextlib
import functools
import inspect
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import keras
import typer

from keras_tlgc import lab
from keras_tlgc.applications import network_builder
from keras_tlgc.applications.building import image_input
from keras_tlgc.applications.convolutions import CONVOLUTIONS, Kind
from keras_tlgc.applications.registry import NETWORKS
from keras_tlgc.validation import one_of, positive_int

# Panels of --help. A command refuses the options of a panel that it ignores.
NETWORK = "Options of a network"
LAYERS = "Options of layers"
RECIPE = "Data, network and recipe"
LISTS = "What is compared"
NETWORK_NAMES = ", ".join(NETWORKS)
KINDS = ", ".join(CONVOLUTIONS)
COARSE_CHANNELS = "Coarse channels of each group, of " + " and ".join(
    conv
    for conv, kind in CONVOLUTIONS.items()
    if "coarse_channels" in kind.options
)


def _else(setting: str, text: str) -> str:
    """Return a help text that ends with the default of a setting."""
    return f"{text}: {getattr(lab.Settings, setting)} if not given."


# Options of several commands, as `takes` takes them.
MARKDOWN = {
    "markdown": (
        bool,
        "Print tables in Markdown to a terminal too, and not only to a file or "
        "a pipe.",
    )
}
SIZES = {
    "classes": (int, "Number of classes."),
    "image_size": (int, "Side of the square images, in pixels."),
}
DATA_DIR = {
    "data_dir": (
        Path,
        "Folder that holds the data: cifar-10-batches-py or cifar-100-python, "
        "or train/CLASS/ and val/CLASS/ with images.",
    )
}
SETTINGS = {
    "recipe": (
        str,
        f"How to train, one of {', '.join(lab.RECIPES)}: that of the data if "
        "not given. The options from --epochs to --image-size change it.",
    ),
    "data": (
        str,
        _else("data", f"Data set, one of {', '.join(lab.DATASETS)}"),
    ),
    "model": (str, _else("model", f"Network, as {NETWORK_NAMES}")),
    "epochs": (int, "Passes over the training images."),
    "batch_size": (int, "Images in a batch."),
    "learning_rate": (float, "Initial rate."),
    "drops": (
        str,
        "Shares of the epochs after which the rate falls to a tenth, as "
        "0.3,0.6,0.8.",
    ),
    "momentum": (float, "Momentum."),
    "weight_decay": (float, "Weight decay, coupled as in PyTorch."),
    "augmentation": (
        str,
        "What training images go through, one of "
        f"{', '.join(lab.AUGMENTATIONS)}.",
    ),
    "image_size": (int, "Side in pixels of the images from a folder."),
    "precision": (
        str,
        _else("precision", f"Dtypes, one of {', '.join(lab.PRECISIONS)}"),
    ),
}
OF_ONE_RUN = {
    "conv": (str, _else("conv", f"Convolution, one of {KINDS}")),
    "groups": (
        int,
        "Number N of groups, a divisor of the network's channels: 4 if not "
        "given.",
    ),
    "coarse_channels": (
        int,
        _else("coarse_channels", COARSE_CHANNELS),
    ),
    "seed": (
        int,
        _else("seed", "Seed of initial weights, image order, augmentation"),
    ),
}


def takes(
    options: Mapping[str, tuple], panels: Mapping[str, Mapping] | None = None
) -> Callable[[Any], Any]:
    """Return a decorator that gives a command its argument `options`.

    The attributes of `options` are the values, None for an option that is not
    given and has no default. A `bool` is a flag.

    Args:
        options: name, and in a tuple type, help and default, if there is one.
        panels: more of these, by their panel of `--help`.
    """
    parameters = [
        _parameter(name, panel, *about)
        for panel, members in [(None, options), *(panels or {}).items()]
        for name, about in members.items()
    ]

    def decorate(command):
        def run(**given):
            taken = {p.name: given.pop(p.name) for p in parameters}
            return command(**given, options=SimpleNamespace(**taken))

        signature = inspect.signature(command)
        *own, _ = signature.parameters.values()
        functools.update_wrapper(run, command)
        run.__signature__ = signature.replace(parameters=own + parameters)
        return run

    return decorate


def _parameter(name, panel, kind, help, default=None):
    is_flag = kind is bool
    option = typer.Option(
        *(["--" + name.replace("_", "-")] if is_flag else []),
        help=help,
        show_default=default is not None,
        rich_help_panel=panel,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if is_flag else default,
        annotation=Annotated[kind if is_flag else kind | None, option],
    )


def refuse(context: typer.Context, names: Collection[str], where: str) -> None:
    """Raise a `ValueError` if an option is given that would do nothing.

    Args:
        context: context of the command.
        names: names of parameters, and of panels, that nothing reads.
        where: in which case they do nothing, in the words of the message.
    """
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if {parameter.name, getattr(parameter, "rich_help_panel", None)}
        & set(names)
        and (source := context.get_parameter_source(parameter.name))
        and source.name == "COMMANDLINE"
    ]
    if given:
        raise ValueError(
            "Every option must change what the command does. "
            f"Received: {', '.join(given)} {where}. "
            "Leave out the one or the other, or see --help."
        )


def refuse_options_of_kinds(
    context: typer.Context,
    convs: Iterable[str],
    kinds: Mapping[str, Kind] = CONVOLUTIONS,
) -> None:
    """Raise a `ValueError` if an option is given that none of `convs` takes."""
    convs = [conv for conv in convs if one_of("conv", conv, kinds)]
    taken = {option for conv in convs for option in kinds[conv].options}
    unused = {"groups", "coarse_channels"} - taken
    if "groups" in unused:
        unused.add("model_parallel")  # It means a device for each group.
    refuse(context, unused, f"with --conv {','.join(convs)}")


def refuse_image_size(context: typer.Context, data: str) -> None:
    """Raise a `ValueError` if a size is given for images of a fixed size."""
    if data != "folder":
        refuse(context, ["image_size"], f"with --data {data}")


def given_settings(
    options: Any, names: Iterable[str], resume: bool
) -> dict[str, Any]:
    """Return the settings among `names` that are given, or of a recipe."""
    given = {
        name: str(value) if isinstance(value, Path) else value
        for name in names
        if (value := getattr(options, name)) is not None
    }
    recipe = given.pop("recipe", None)
    if "drops" in given:
        given["drops"] = numbers("drops", given["drops"], float)
    if recipe is None and resume:  # A run that goes on has its own.
        return given
    return lab.with_recipe(given, recipe)


def numbers(name: str, text: str, kind: type = int) -> list:
    """Return the numbers in an option's text, integers by default."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        kinds = "integers, as in 2,4,8" if kind is int else "as in 0.3,0.6"
        raise ValueError(
            f"--{name} must be numbers with commas between them, {kinds}. "
            f"Received: {text!r}. Write them so."
        ) from error


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Tell which extra to install if a package of another format is missing."""
    try:
        yield
    except ImportError as error:
        jax = "-jax" if keras.backend.backend() == "jax" else ""
        raise ValueError(
            "Exporting needs packages of other formats. Received: "
            f"{str(error).splitlines()[0]} "
            f"Run pip install 'keras-tlgc[export{jax}]'."
        ) from error


def in_memory(name: str, directory: Path | None) -> lab.ImageData:
    """Return a data set, or raise a `ValueError` unless memory holds it."""
    data = lab.load_data(name, directory)
    if not isinstance(data, lab.ImageData):
        raise ValueError(
            "--data must be a data set that is held in memory. Received: "
            f"--data {name}. Call `keras_tlgc.convert` or `deploy` in Python."
        )
    return data


def builder(model: str, sizes: Any) -> Callable[..., keras.Model]:
    """Return the function that builds the named network in `SIZES`.

    It takes all options of a kind of convolution, and passes on those that the
    kind has.
    """
    build = network_builder(model)

    def build_for_sizes(conv="two_level", **options):
        kind = CONVOLUTIONS[one_of("conv", conv, CONVOLUTIONS)]
        taken = {k: v for k, v in options.items() if k in kind.options}
        if sizes.classes is not None:
            taken["classes"] = sizes.classes
        if sizes.image_size is not None:
            side = positive_int("image_size", sizes.image_size)
            taken["input_tensor"] = image_input(None, None, side)
        return build(conv=conv, **taken)

    return build_for_sizes
