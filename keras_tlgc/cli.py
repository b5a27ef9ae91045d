"""The commands of `keras-tlgc`. `keras_tlgc_launcher` starts them."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from keras_tlgc import __version__, training
from keras_tlgc.training import RunFolder, Settings
from keras_tlgc_launcher import fail

app = typer.Typer(
    name="keras-tlgc",
    help="Two-level group convolution for Keras 3.",
    no_args_is_help=True,
    add_completion=False,
)


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    Bad input ends it with status 2 and one line on standard error.
    """
    try:
        return app(arguments, standalone_mode=False) or 0
    except typer.TyperException as error:
        received = shlex.join(sys.argv[1:] if arguments is None else arguments)
        fail(f"{error.format_message()} Received: {received}. Try --help.")
    except (ValueError, OSError) as error:
        fail(error)
    except (KeyboardInterrupt, typer.Abort):
        return 130


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.")
    ] = False,
):
    if version:
        print(__version__)
        raise typer.Exit


def _help(setting, text):
    return f"{text}: {getattr(Settings, setting)} if not given."


def _option(help):
    return typer.Option(help=help, show_default=False)


@app.command()
def train(
    output: Annotated[
        Path | None,
        _option(
            "Folder for the results, new or empty. By default named after the "
            "settings, below runs/."
        ),
    ] = None,
    data: Annotated[str | None, _option(_help("data", "Data set"))] = None,
    depth: Annotated[
        int | None, _option(_help("depth", "Layers of the WideResNet"))
    ] = None,
    width: Annotated[
        int | None, _option(_help("width", "Widening factor of the WideResNet"))
    ] = None,
    conv: Annotated[
        str | None,
        _option(_help("conv", "Convolution: standard, group or two_level")),
    ] = None,
    groups: Annotated[
        int | None,
        _option("Number N of groups, a divisor of 16: 4 if not given."),
    ] = None,
    coarse_channels: Annotated[
        int | None,
        _option(_help("coarse_channels", "Coarse channels of each group")),
    ] = None,
    epochs: Annotated[
        int | None, _option(_help("epochs", "Passes over the training images"))
    ] = None,
    batch_size: Annotated[
        int | None, _option(_help("batch_size", "Images in a batch"))
    ] = None,
    learning_rate: Annotated[
        float | None,
        _option(
            _help(
                "learning_rate",
                "Initial rate; a tenth after 30, 60 and 80% of the epochs",
            )
        ),
    ] = None,
    seed: Annotated[
        int | None,
        _option(_help("seed", "Seed of initial weights and image order")),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the folder's run.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder's run.")
    ] = False,
):
    """Train a WideResNet on images; write model, history, config and curves."""
    options = dict(locals())
    given = {
        field.name: options[field.name]
        for field in dataclasses.fields(Settings)
        if options[field.name] is not None
    }
    settings = Settings.from_dict(given)
    folder = output or Path("runs") / (
        f"{settings.data}-wrn-{settings.depth}-{settings.width}"
        f"-{settings.conv}-n{settings.groups}"
    )
    if resume:
        settings = Settings.from_dict({**RunFolder(folder).settings(), **given})
    result = training.train(settings, folder, resume, overwrite)
    print(f"Held-out accuracy: {result.accuracy:.2%}. In {result.folder}:")
    table = Table.grid(padding=(0, 2))
    for name, content in training.FILES.items():
        table.add_row(f"  {name}", content)
    Console().print(table)
