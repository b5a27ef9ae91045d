"""The commands of `keras-tlgc`. `keras_tlgc_launcher` starts them."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from keras_tlgc import __version__, applications, paper, training
from keras_tlgc.applications.building import image_input
from keras_tlgc.applications.convolutions import CONVOLUTIONS, pair
from keras_tlgc.costs import model_costs
from keras_tlgc.training import Comparison, RunFolder, Settings
from keras_tlgc.validation import one_of, positive_int
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


Data = Annotated[str | None, _option(_help("data", "Data set"))]
Depth = Annotated[
    int | None, _option(_help("depth", "Layers of the WideResNet"))
]
Width = Annotated[
    int | None, _option(_help("width", "Widening factor of the WideResNet"))
]
CoarseChannels = Annotated[
    int | None,
    _option(
        _help("coarse_channels", "Coarse channels of each group, of two_level")
    ),
]
Epochs = Annotated[
    int | None, _option(_help("epochs", "Passes over the training images"))
]
BatchSize = Annotated[
    int | None, _option(_help("batch_size", "Images in a batch"))
]
LearningRate = Annotated[
    float | None,
    _option(
        _help(
            "learning_rate",
            "Initial rate; a tenth after 30, 60 and 80% of the epochs",
        )
    ),
]
KINDS = ", ".join(CONVOLUTIONS)


@app.command()
def train(
    output: Annotated[
        Path | None,
        _option(
            "Folder for the results, new or empty. By default named after the "
            "settings, below runs/."
        ),
    ] = None,
    data: Data = None,
    depth: Depth = None,
    width: Width = None,
    conv: Annotated[
        str | None, _option(_help("conv", f"Convolution, one of {KINDS}"))
    ] = None,
    groups: Annotated[
        int | None,
        _option("Number N of groups, a divisor of 16: 4 if not given."),
    ] = None,
    coarse_channels: CoarseChannels = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
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
    given = _given(locals())
    settings = Settings.from_dict(given)
    folder = output or Path("runs") / (
        f"{settings.data}-wrn-{settings.depth}-{settings.width}"
        f"-{settings.conv}-n{settings.groups}"
    )
    if resume:
        settings = Settings.from_dict({**RunFolder(folder).settings(), **given})
    result = training.train(settings, folder, resume, overwrite)
    print(f"Held-out accuracy: {result.accuracy:.2%}. In {result.folder}:")
    _print_files(training.FILES)


@app.command()
def compare(
    output: Annotated[
        Path, _option("Folder for the results, new or empty: runs/compare.")
    ] = Path("runs/compare"),
    convs: Annotated[
        str | None,
        typer.Option(
            "--conv",
            help=f"Kinds of convolution, as group,two_level: {KINDS}.",
            show_default=False,
        ),
    ] = None,
    groups: Annotated[
        str | None, _option("Numbers of groups: 2,4,8,16 if not given.")
    ] = None,
    seeds: Annotated[
        str | None, _option("Seeds, a run for each: 0,1,2 if not given.")
    ] = None,
    data: Data = None,
    depth: Depth = None,
    width: Width = None,
    coarse_channels: CoarseChannels = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the folder's comparison."),
    ] = False,
):
    """Train kinds of convolution with one recipe, and tabulate their errors."""
    recipe = _given(locals(), without=training.VARIED)
    lists = {}
    if convs is not None:
        lists["convs"] = convs.split(",")
    if groups is not None:
        lists["groups"] = _integers("groups", groups)
    if seeds is not None:
        lists["seeds"] = _integers("seeds", seeds)
    base = training.stored_comparison(output) if resume else Comparison()
    comparison = dataclasses.replace(
        base, **lists, recipe={**base.recipe, **recipe}
    )
    rows = training.compare(comparison, output, resume)
    print(training.table(rows))
    print(f"In {output}:")
    _print_files(training.COMPARISON_FILES)
    if failed := sum(bool(row.failure) for row in rows):
        raise ValueError(
            f"{failed} of {len(rows)} runs failed; results.csv says why. "
            "--resume tries those again that did not come to their end."
        )


def _given(options, without=()):
    """Return the options that are settings and that the user has given."""
    return {
        field.name: options[field.name]
        for field in dataclasses.fields(Settings)
        if field.name not in without and options[field.name] is not None
    }


def _integers(name, text):
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"--{name} must be integers with commas between them. "
            f"Received: {text!r}. Write them as in 2,4,8."
        ) from error


def _print_files(files):
    table = Table.grid(padding=(0, 2))
    for name, content in files.items():
        table.add_row(f"  {name}", content)
    Console().print(table)


@app.command()
def params(
    model: Annotated[
        str | None,
        _option(f"Network to count: {', '.join(applications.__all__)}."),
    ] = None,
    convs: Annotated[
        str | None,
        typer.Option(
            "--conv",
            help="Kinds of convolution, as group,two_level. All by default.",
            show_default=False,
        ),
    ] = None,
    groups: Annotated[
        str | None, _option("Numbers of groups, as 2,4,8: 4 by default.")
    ] = None,
    coarse_channels: Annotated[
        int | None, _option("Coarse channels of each group, of two_level.")
    ] = None,
    depth: Annotated[int | None, _option("Layers of a WideResNet.")] = None,
    width: Annotated[
        int | None, _option("Widening factor of a WideResNet.")
    ] = None,
    alpha: Annotated[float | None, _option("Width of a MobileNetV2.")] = None,
    classes: Annotated[int | None, _option("Number of classes.")] = None,
    image_size: Annotated[
        int | None, _option("Side of the square images, in pixels.")
    ] = None,
):
    """Count the paper's parameters, or what a network of your choice costs.

    Without options: every number of parameters in the paper's Tables 1 to 4
    beside that of our networks. With --model: parameters, multiply-adds and
    activation bytes of one image. No weights are allocated.
    """
    given = {k: v for k, v in locals().items() if v is not None}
    if model is None:
        if given:
            raise ValueError(
                "The options of params need a network to count. "
                f"Received: {_options(given)} without --model. "
                "Name a network with --model."
            )
        _print_paper()
    else:
        _print_costs(**given)


def _options(names):
    """Return the names of options as the user writes them."""
    written = [name.replace("_", "-") for name in names]
    return ", ".join(f"--{'conv' if n == 'convs' else n}" for n in written)


def _print_paper():
    console = Console()
    yes, no = "✓✗" if console.encoding.startswith("utf") else "yn"
    table = Table("Table", "Network", "Type", "N", "Ours", "Paper", "")
    differing = 0
    for count in paper.COUNTS:
        ours = count.ours()
        differing += ours != count.printed
        table.add_row(
            str(count.table),
            count.network,
            CONVOLUTIONS[count.conv].label,
            str(count.groups),
            ours,
            count.printed,
            yes if ours == count.printed else no,
        )
    console.print(table)
    print(f"{len(paper.COUNTS) - differing} of {len(paper.COUNTS)} agree.")


# Column: attribute of `keras_tlgc.costs.Costs`.
COSTS = {
    "Parameters": "params",
    "per processor": "params_per_processor",
    "coarse": "coarse_params",
    "Multiply-adds": "multiply_adds",
    "Activation bytes": "activation_bytes",
}


def _print_costs(
    model, convs=None, groups="4", coarse_channels=1, image_size=None, **options
):
    build = getattr(applications, one_of("model", model, applications.__all__))
    if image_size is not None:
        options["input_tensor"] = image_input(
            None, None, positive_int("image_size", image_size)
        )
    rows = []
    chosen = CONVOLUTIONS if convs is None else convs.split(",")
    positive_int("coarse_channels", coarse_channels)
    for conv, n in pair(chosen, _integers("groups", groups)):
        kind = CONVOLUTIONS[conv]
        coarse = coarse_channels if "coarse_channels" in kind.options else 1
        arguments = dict(options, conv=conv, groups=n, coarse_channels=coarse)
        rows.append((kind.label, n, _costs(model, build, arguments)))

    numbers = [Column(name, justify="right") for name in ("N", *COSTS)]
    table = Table("Type", *numbers)
    for label, n, costs in rows:
        counts = [f"{getattr(costs, name):,}" for name in COSTS.values()]
        table.add_row(label, str(n), *counts)
    Console(width=max(Console().width, 100)).print(table)
    for label, n, costs in rows:
        if costs.stored_params != costs.params:
            print(
                f"{label}, N = {n}, stores {costs.stored_params:,} parameters."
            )


def _costs(model, build, arguments):
    try:
        return model_costs(lambda: build(**arguments))
    except TypeError as error:
        raise ValueError(
            "The options must be arguments of the network. "
            f"Received: {error}. Leave out what {model} does not take."
        ) from error
