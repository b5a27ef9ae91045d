"""The commands of `keras-tlgc`. `keras_tlgc_launcher` starts them."""

import dataclasses
import functools
import os
import re
import shlex
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any

import keras
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from keras_tlgc import __version__, applications, paper, training
from keras_tlgc.applications.building import image_input
from keras_tlgc.applications.convolutions import CONVOLUTIONS, pair
from keras_tlgc.benchmark import (
    RUNS,
    SHAPES,
    benchmark_layers,
    benchmark_networks,
    markdown,
    write_rows,
)
from keras_tlgc.conversion import convert as convert_model
from keras_tlgc.conversion import largest_divisor
from keras_tlgc.conversion.tracing import one_line
from keras_tlgc.costs import count_params, model_costs
from keras_tlgc.distribution import audit as audit_model
from keras_tlgc.distribution import audit_network, model_parallel
from keras_tlgc.distribution.mesh import parse_mesh, reserve_cpu_devices
from keras_tlgc.distribution.plan import Machine, predict
from keras_tlgc.distribution.step import compile_network
from keras_tlgc.files import write_whole
from keras_tlgc.training import Comparison, RunFolder, Settings
from keras_tlgc.validation import LARGEST, at_most, one_of, positive_int
from keras_tlgc_launcher import fail

# How NumPy and the backends say it, in errors of many types.
LACKS_MEMORY = re.compile(
    r"MemoryError|out of memory|RESOURCE_EXHAUSTED|ResourceExhausted|"
    r"allocate memory|size calculation overflowed"
)
MOST_CLASSES = MOST_SAMPLES = 1_000_000

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
        return fail(
            f"{error.format_message()} Received: {received}. Try --help."
        )
    except (ValueError, OSError) as error:
        return fail(error)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if not LACKS_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise
        return fail(
            "The network and its batches must fit into memory. "
            f"Received: {one_line(error)} ... Use a smaller network, smaller "
            "batches, or more devices."
        )


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


RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help=f"How to train, one of {', '.join(training.RECIPES)}: that of the "
        "data if not given. The options from --epochs to --image-size change "
        "it.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    _option(_help("data", f"Data set, one of {', '.join(training.DATASETS)}")),
]
DataDir = Annotated[
    Path | None,
    _option(
        "Folder that holds the data: cifar-10-batches-py or cifar-100-python, "
        "or train/CLASS/ and val/CLASS/ with images."
    ),
]
Model = Annotated[
    str | None,
    _option(_help("model", f"Network, as {', '.join(training.NETWORKS)}")),
]
Epochs = Annotated[int | None, _option("Passes over the training images.")]
BatchSize = Annotated[int | None, _option("Images in a batch.")]
LearningRate = Annotated[float | None, _option("Initial rate.")]
Drops = Annotated[
    str | None,
    _option(
        "Shares of the epochs after which the rate falls to a tenth, as "
        "0.3,0.6,0.8."
    ),
]
Momentum = Annotated[float | None, _option("Momentum.")]
WeightDecay = Annotated[
    float | None, _option("Weight decay, coupled as in PyTorch.")
]
Augmentation = Annotated[
    str | None,
    _option(
        "What training images go through, one of "
        f"{', '.join(training.AUGMENTATIONS)}."
    ),
]
ImageSize = Annotated[
    int | None, _option("Side of the square images, in pixels.")
]
Precision = Annotated[
    str | None,
    _option(
        _help("precision", f"Dtypes, one of {', '.join(training.PRECISIONS)}")
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
    recipe: RecipeName = None,
    data: Data = None,
    data_dir: DataDir = None,
    model: Model = None,
    conv: Annotated[
        str | None, _option(_help("conv", f"Convolution, one of {KINDS}"))
    ] = None,
    groups: Annotated[
        int | None,
        _option(
            "Number N of groups, a divisor of the network's channels: 4 if not "
            "given."
        ),
    ] = None,
    coarse_channels: Annotated[
        int | None,
        _option(
            _help(
                "coarse_channels", "Coarse channels of each group, of two_level"
            )
        ),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    drops: Drops = None,
    momentum: Momentum = None,
    weight_decay: WeightDecay = None,
    augmentation: Augmentation = None,
    image_size: ImageSize = None,
    precision: Precision = None,
    seed: Annotated[
        int | None,
        _option(
            _help("seed", "Seed of initial weights, image order, augmentation")
        ),
    ] = None,
    mesh: Annotated[
        str | None,
        _option(
            "Devices along the batch axis and along the model axis, as 1x4, "
            "on JAX. The second must divide the groups."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the folder's run.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder's run.")
    ] = False,
):
    """Train a network on images; write model, history, config and curves."""
    given = _given(locals(), resume)
    settings = Settings.from_dict(given)
    folder = output or Path("runs") / (
        f"{settings.data}-{settings.model}-{settings.conv}-n{settings.groups}"
    )
    if resume:
        settings = Settings.from_dict({**RunFolder(folder).settings(), **given})
    result = training.train(
        settings,
        folder,
        resume,
        overwrite,
        mesh=None if mesh is None else parse_mesh(mesh),
    )
    print(f"Held-out accuracy: {result.accuracy:.2%}. In {result.folder}:")
    _print_files(training.FILES)


@app.command()
def compare(
    output: Annotated[
        Path | None,
        _option(
            "Folder for the results, new or empty: runs/compare, runs/paper "
            "with --config, runs/smoke with --smoke."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        _option(
            "TOML file of an experiment, as those in examples/paper, in place "
            "of the options from --conv to --precision."
        ),
    ] = None,
    is_smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            help="With --config: try all of it in minutes, on generated "
            "images, with one epoch of small networks.",
        ),
    ] = False,
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
    coarse_channels: Annotated[
        str | None,
        _option("Coarse channels of each group, of two_level, as 1,2,4: 1."),
    ] = None,
    seeds: Annotated[
        str | None, _option("Seeds, a run for each: 0,1,2 if not given.")
    ] = None,
    recipe: RecipeName = None,
    data: Data = None,
    data_dir: DataDir = None,
    model: Model = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    drops: Drops = None,
    momentum: Momentum = None,
    weight_decay: WeightDecay = None,
    augmentation: Augmentation = None,
    image_size: ImageSize = None,
    precision: Precision = None,
    model_parallel: Annotated[
        bool,
        typer.Option(
            "--model-parallel",
            help="Spread each run of N groups over N devices, on JAX.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the folder's comparison."),
    ] = False,
):
    """Train kinds of convolution with one recipe, and tabulate their errors."""
    if config is not None:
        _compare_config(**locals())
        return
    if is_smoke:
        raise ValueError(
            "--smoke is for an experiment's file. Received: it alone. "
            "Name a file with --config."
        )
    output = output or Path("runs/compare")
    given = _given(locals(), resume, without=training.VARIED)
    lists: dict[str, Any] = {}
    if convs is not None:
        lists["convs"] = convs.split(",")
    if groups is not None:
        lists["groups"] = _integers("groups", groups)
    if coarse_channels is not None:
        lists["coarse_channels"] = _integers("coarse-channels", coarse_channels)
    if seeds is not None:
        lists["seeds"] = _integers("seeds", seeds)
    base = training.stored_comparison(output) if resume else Comparison()
    comparison = dataclasses.replace(
        base,
        **lists,
        recipe={**base.recipe, **given},
        model_parallel=base.model_parallel or model_parallel,
    )
    rows = training.compare(comparison, output, resume)
    print(training.table(rows))
    print(f"In {output}:")
    _print_files(training.COMPARISON_FILES)
    _check_failures(rows)


def _compare_config(
    config, output, is_smoke, data_dir, model_parallel, resume, **others
):
    """Run the experiment of a file."""
    if is_smoke and data_dir is not None:
        raise ValueError(
            "--smoke generates its images. "
            f"Received: --data-dir '{data_dir}' too. Leave one of them out."
        )
    if given := [name for name, value in others.items() if value is not None]:
        raise ValueError(
            "An experiment's file says all that is compared. "
            f"Received: {_options(given)} beside --config. "
            "Change a copy of the file."
        )
    experiment = training.read_experiment(config)
    output = output or Path("runs/smoke" if is_smoke else "runs/paper")
    parts = experiment.parts
    if model_parallel:
        parts = [
            dataclasses.replace(part, model_parallel=True) for part in parts
        ]
    experiment = dataclasses.replace(experiment, parts=tuple(parts))
    with tempfile.TemporaryDirectory() as images:
        if is_smoke:
            experiment = training.smoke(experiment, Path(images))
        rows = training.run_experiment(experiment, output, data_dir, resume)
    report = output / f"{experiment.name}.md"
    print(report.read_text("utf-8"))
    print(f"In {report}; the runs are beside it.")
    _check_failures(rows)


def _check_failures(rows):
    if failed := sum(bool(row.failure) for row in rows):
        raise ValueError(
            f"{failed} of {len(rows)} runs failed; results.csv says why. "
            "--resume tries those again that did not come to their end."
        )


def _given(options, resume, without=()):
    """Return the settings that the user has given, by recipe or by name."""
    names = {field.name for field in dataclasses.fields(Settings)}
    given = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in options.items()
        if name in names.difference(without) and value is not None
    }
    if "drops" in given:
        given["drops"] = _numbers("drops", given["drops"], float)
    if options["recipe"] is None and resume:  # A run that goes on has one.
        return given
    return training.with_recipe(given, options["recipe"])


def _integers(name, text):
    return _numbers(name, text, int)


def _numbers(name, text, kind):
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        kinds, example = {
            int: ("integers", "2,4,8"),
            float: ("numbers", "0.3,0.6,0.8"),
        }[kind]
        raise ValueError(
            f"--{name} must be {kinds} with commas between them. "
            f"Received: {text!r}. Write them as in {example}."
        ) from error


def _print_files(files):
    table = Table.grid(padding=(0, 2))
    for name, content in files.items():
        table.add_row(f"  {name}", content)
    Console().print(table)


NetworkDepth = Annotated[int | None, _option("Layers of a WideResNet.")]
NetworkWidth = Annotated[
    int | None, _option("Widening factor of a WideResNet.")
]
Alpha = Annotated[float | None, _option("Width of a MobileNetV2.")]
Classes = Annotated[int | None, _option("Number of classes.")]


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
    depth: NetworkDepth = None,
    width: NetworkWidth = None,
    alpha: Alpha = None,
    classes: Classes = None,
    image_size: ImageSize = None,
):
    """Count the paper's parameters, or what a network of your choice costs.

    Without options: every number of parameters in the paper's Tables 1 to 4
    beside that of our networks. With --model: parameters, multiply-adds and
    activation bytes of one image. No weights are allocated.
    """
    given = {k: v for k, v in locals().items() if v is not None}
    if model is None:
        _check_no_network(
            "The options of params need a network to count.", given
        )
        _print_paper()
    else:
        _print_costs(**given)


def _options(names):
    """Return the names of options as the user writes them."""
    written = [name.replace("_", "-") for name in names]
    return ", ".join(f"--{'conv' if n == 'convs' else n}" for n in written)


def _check_no_network(rule, given):
    """Raise a `ValueError` if options of a network are given without one."""
    if given:
        raise ValueError(
            f"{rule} Received: {_options(given)} without --model. "
            "Name a network with --model."
        )


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
    build = _builder(model, image_size, options)
    rows = []
    chosen = CONVOLUTIONS if convs is None else convs.split(",")
    at_most("coarse_channels", positive_int("coarse_channels", coarse_channels))
    for conv, n in pair(chosen, _integers("groups", groups)):
        kind = CONVOLUTIONS[conv]
        coarse = coarse_channels if "coarse_channels" in kind.options else 1
        arguments = {"conv": conv, "groups": n, "coarse_channels": coarse}
        costs = model_costs(functools.partial(build, **arguments))
        rows.append((kind.label, n, costs))

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


def _builder(model, image_size, options):
    """Return what builds the named network with options of the command."""
    build = getattr(applications, one_of("model", model, applications.__all__))
    if image_size is not None:
        at_most("image_size", positive_int("image_size", image_size))
    for name, value in options.items():
        at_most(name, value, MOST_CLASSES if name == "classes" else LARGEST)

    def build_with_options(**arguments):
        if image_size is not None:
            arguments["input_tensor"] = image_input(None, None, image_size)
        try:
            return build(**options, **arguments)
        except TypeError as error:
            raise ValueError(
                "The options must be arguments of the network. "
                f"Received: {error}. Leave out what {model} does not take."
            ) from error

    return build_with_options


Network = Annotated[
    str,
    typer.Option(
        "--model",
        help=f"Network, one of {', '.join(applications.__all__)}, or the path "
        "of a .keras file.",
    ),
]


@app.command()
def audit(
    model: Network = "WideResNet",
    mesh: Annotated[
        str,
        typer.Option(
            help="Devices along the batch axis and along the model axis."
        ),
    ] = "1x4",
    batch_size: Annotated[
        int, typer.Option(help="Samples in a batch, over all devices.")
    ] = 128,
    conv: Annotated[
        str, typer.Option(help=f"Convolution, one of {KINDS}.")
    ] = "two_level",
    groups: Annotated[
        int | None,
        _option("Number N of groups: as many as devices that split them."),
    ] = None,
    coarse_channels: Annotated[
        int | None, _option("Coarse channels of each group, of two_level.")
    ] = None,
    depth: NetworkDepth = None,
    width: NetworkWidth = None,
    alpha: Alpha = None,
    classes: Classes = None,
    image_size: ImageSize = None,
    rule: Annotated[
        list[str] | None,
        _option(
            "A rule to add to the layout map, as '.*stem/kernel=,,,model'; "
            "can be given several times."
        ),
    ] = None,
):
    """Show what a train step moves between devices, from the compiled program.

    JAX only. No weights are allocated and nothing is trained: where there are
    too few devices the program is compiled for parts of the CPU. Ends with
    status 1 if anything moves that should not.
    """
    options = _given_options(
        depth=depth, width=width, alpha=alpha, classes=classes
    )
    _batch_size(batch_size)
    shape = parse_mesh(mesh)
    distribution = model_parallel(shape, virtual=True)
    for text in rule or []:
        pattern, axes = _rule(text)
        distribution._layout_map[pattern] = axes
    if model.endswith(".keras"):
        _check_no_options(options, groups=groups, image_size=image_size)
        with distribution.scope():
            result = audit_model(_load(Path(model)), batch_size)
    else:
        arguments = _convolution_options(
            conv, shape[1] if groups is None else groups, coarse_channels
        )
        build = _builder(model, image_size, options)
        result = audit_network(
            functools.partial(build, **arguments), distribution, batch_size
        )
    print(result)
    if not result.ok:
        raise typer.Exit(1)


def _batch_size(value):
    at_most("batch_size", positive_int("batch_size", value), MOST_SAMPLES)


def _given_options(**options):
    return {k: v for k, v in options.items() if v is not None}


def _convolution_options(conv, groups, coarse_channels):
    kind = CONVOLUTIONS[one_of("conv", conv, CONVOLUTIONS)]
    options = {"groups": groups, "coarse_channels": coarse_channels}
    given = {k: options[k] for k in kind.options if options[k] is not None}
    for name, value in given.items():
        at_most(name, value)
    return {"conv": conv, **given}


def _check_no_options(options, **more):
    if given := {**options, **_given_options(**more)}:
        raise ValueError(
            "A saved model has its own network. "
            f"Received: {_options(given)} beside a .keras file. "
            "Leave them out."
        )


def _rule(text):
    pattern, equals, names = text.rpartition("=")
    axes = tuple(axis or None for axis in names.split(","))
    if (
        not equals
        or not _is_regular_expression(pattern)
        or not {None, "batch", "model"}.issuperset(axes)
        or max(axes.count("batch"), axes.count("model")) > 1
    ):
        raise ValueError(
            "--rule must be a regular expression, = and axes of the mesh with "
            f"commas between them, each at most once. Received: {text!r}. "
            "Write it as in '.*stem/kernel=,,,model'."
        )
    return pattern, axes


def _is_regular_expression(text):
    try:
        return bool(re.compile(text).pattern)
    except (re.error, RecursionError, OverflowError):
        return False


@app.command()
def plan(
    model: Annotated[
        str | None,
        _option(f"Network to plan: {', '.join(applications.__all__)}."),
    ] = None,
    convs: Annotated[
        str,
        typer.Option("--conv", help="Kinds of convolution, as group,two_level"),
    ] = "standard,two_level",
    devices: Annotated[
        str, typer.Option(help="Numbers of devices; as many groups.")
    ] = "1,2,4,8",
    batch_size: Annotated[
        int, typer.Option(help="Samples in a batch, over all devices.")
    ] = 128,
    depth: NetworkDepth = None,
    width: NetworkWidth = None,
    alpha: Alpha = None,
    classes: Classes = None,
    image_size: ImageSize = None,
    peak: Annotated[
        float, typer.Option(help="TFLOP/s that a device attains.")
    ] = 28.0,
    memory: Annotated[
        float, typer.Option(help="GB/s of a device's own memory.")
    ] = 672.0,
    bandwidth: Annotated[
        float, typer.Option(help="GB/s that a device receives from others.")
    ] = 12.0,
    latency: Annotated[
        float, typer.Option(help="Microseconds that an exchange takes.")
    ] = 20.0,
):
    """Predict the time of a train step on several devices: a model.

    JAX only. Operations and bytes are read from the program compiled for that
    many devices; the rest are the four numbers given, and nothing overlaps.
    Without --model: the networks of the paper's Table 2, beside its times. The
    defaults are a Titan RTX, the paper's GPU, on PCI Express 3; its 28 TFLOP/s
    are what the first row of Table 2 attains.
    """
    numbers = {
        "peak": peak * 1e12,
        "memory": memory * 1e9,
        "bandwidth": bandwidth * 1e9,
        "latency": latency / 1e6,
    }
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise ValueError(
                f"--{name} must be a positive, finite number. "
                f"Received: {locals()[name]}. Leave it out for a Titan RTX."
            )
    options = _given_options(
        depth=depth, width=width, alpha=alpha, classes=classes
    )
    _batch_size(batch_size)
    if model is None:
        _check_no_network(
            "The options of plan need a network.",
            {**options, **_given_options(image_size=image_size)},
        )
        rows: list[tuple] = [
            (
                f"WideResNet-28-{row.width}",
                row.conv,
                row.devices,
                functools.partial(applications.WideResNet, 28, row.width),
                row.seconds,
            )
            for row in paper.WALL_CLOCKS
        ]
    else:
        build = _builder(model, image_size, options)
        rows = [
            (model, one_of("conv", conv, CONVOLUTIONS), count, build, None)
            for conv in convs.split(",")
            for count in _integers("devices", devices)
        ]
    reserve_cpu_devices(max(count for _, _, count, _, _ in rows))
    _print_plan(rows, batch_size, Machine(**numbers))


def _print_plan(rows, batch_size, machine):
    columns = ["TFLOP", "GB", "GB moved", "seconds", "of which moving", "paper"]
    table = Table(
        "Network",
        "Type",
        "Devices",
        *(Column(name, justify="right") for name in columns),
    )
    for name, conv, count, build, seconds in rows:
        arguments = _convolution_options(conv, count, None)
        step = compile_network(
            functools.partial(build, **arguments),
            model_parallel((1, positive_int("devices", count)), virtual=True),
            batch_size,
        )
        predicted = predict(step, machine)
        moved = predicted.moved_bytes
        table.add_row(
            name,
            CONVOLUTIONS[conv].label,
            str(count),
            f"{step.flops / 1e12:.3f}",
            f"{step.bytes_accessed / 1e9:.1f}",
            f"{moved / 1e9:.3f}",
            f"{predicted.total:.3f}",
            f"{predicted.exchange:.3f}",
            "" if seconds is None else f"{seconds:.3f}",
        )
    print(
        f"A model, not a measurement: each device attains "
        f"{machine.peak / 1e12:g} TFLOP/s, {machine.memory / 1e9:g} GB/s of "
        f"its memory, {machine.bandwidth / 1e9:g} GB/s from others and "
        f"{machine.latency * 1e6:g} us for each exchange; nothing overlaps. "
        f"Batch {batch_size}."
    )
    Console(width=max(Console().width, 110)).print(table)


@app.command()
def benchmark(
    model: Annotated[
        str | None,
        _option(
            "Network to time, instead of layers: "
            f"{', '.join(applications.__all__)}."
        ),
    ] = None,
    shapes: Annotated[
        str | None,
        _option(
            "Shapes of layers, or beginnings of their names: wrn if not "
            f"given, of {', '.join(SHAPES)}."
        ),
    ] = None,
    convs: Annotated[
        str | None,
        typer.Option(
            "--conv",
            help=f"Kinds of convolution beside standard: {KINDS}, and for "
            "layers keras, which is Conv2D(groups=N). keras, group and "
            "two_level, those that a network can have, if not given.",
            show_default=False,
        ),
    ] = None,
    groups: Annotated[str, typer.Option(help="Numbers of groups.")] = "4,16",
    lowerings: Annotated[
        str | None,
        _option(
            "How our layers are computed: auto if not given, native, slices, "
            "matmul."
        ),
    ] = None,
    runs: Annotated[
        str, typer.Option(help=f"What to time, of {', '.join(RUNS)}.")
    ] = "training",
    dtypes: Annotated[
        str, typer.Option("--dtype", help="float32 and bfloat16.")
    ] = "float32",
    data_format: Annotated[
        str, typer.Option(help="channels_last or channels_first.")
    ] = "channels_last",
    batch_size: Annotated[int, typer.Option(help="Images in a batch.")] = 16,
    jit_compile: Annotated[
        bool | None,
        _option("Whether to compile the steps: as Keras does if not given."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(help="How often each is timed, in turns.")
    ] = 7,
    depth: NetworkDepth = None,
    width: NetworkWidth = None,
    alpha: Alpha = None,
    classes: Classes = None,
    image_size: ImageSize = None,
    output: Annotated[
        Path | None, _option("CSV file for all that was measured.")
    ] = None,
):
    """Time convolutions, or networks of them, against the standard one.

    Prints Markdown tables. `limit` is the ratio of the operations, which the
    time's ratio `to SC` would attain if nothing else took time.
    """
    _batch_size(batch_size)
    if output is not None:
        _check_file("--output", output)
    common = {
        "groups": _integers("groups", groups),
        "runs": runs.split(","),
        "dtypes": dtypes.split(","),
        "batch_size": batch_size,
        "jit_compile": "auto" if jit_compile is None else jit_compile,
        "rounds": rounds,
    }
    if convs is not None:
        common["convs"] = convs.split(",")
    options = _given_options(
        depth=depth, width=width, alpha=alpha, classes=classes
    )
    for_layers = _given_options(shapes=shapes, lowerings=lowerings)
    if model is None:
        _check_no_network(
            "The options of a network need one to time.",
            {**options, **_given_options(image_size=image_size)},
        )
        chosen = {k: v.split(",") for k, v in for_layers.items()}
        results = benchmark_layers(data_format=data_format, **chosen, **common)
    else:
        if for_layers:
            raise ValueError(
                "The options of layers are not for networks. "
                f"Received: {_options(for_layers)} beside --model. "
                "Leave them out."
            )
        one_of("data_format", data_format, ["channels_last", "channels_first"])
        keras.config.set_image_data_format(data_format)
        build = _builder(model, image_size, options)
        count_params(build)  # Raises what each row would say else.
        results = benchmark_networks(model, build, **common)
    rows = []
    for some in results:
        rows += some
        print(f"{markdown(some)}\n", flush=True)
        if output is not None:
            write_rows(rows, output)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN.keras", help="The model's file.")
    ],
    target: Annotated[
        Path | None,
        typer.Argument(metavar="OUT.keras", help="The new model's file."),
    ] = None,
    groups: Annotated[int | None, _option("Number N of groups.")] = None,
    up_to: Annotated[
        int | None,
        _option(
            "Instead of --groups: each layer gets as many groups as divide its "
            "channels and filters, up to this number."
        ),
    ] = None,
    conv: Annotated[
        str, typer.Option(help="two_level, or group for one level.")
    ] = "two_level",
    coarse_channels: Annotated[
        int, typer.Option(help="Coarse channels of each group, of two_level.")
    ] = 1,
    where: Annotated[
        str | None,
        _option("Regular expression for the names of what to convert."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="project, for kernels close to the trained ones, or random."
        ),
    ] = "project",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the table and write nothing."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT.keras.")
    ] = False,
    no_safe_mode: Annotated[
        bool,
        typer.Option(
            "--no-safe-mode",
            help="Run the code of Lambda layers that IN.keras holds. Only for "
            "files that you trust.",
        ),
    ] = False,
):
    """Turn the convolutions of a saved model into two-level group convolutions.

    Prints what became of each convolution, and why some were kept.
    """
    rule: Any
    if groups is not None and up_to is None:
        rule = groups
    elif up_to is not None and groups is None:
        rule = largest_divisor(up_to)
    else:
        raise ValueError(
            "The number of groups must be given once. Received: "
            f"--groups {groups} and --up-to {up_to}. Pass one of the two."
        )
    at_most("coarse_channels", positive_int("coarse_channels", coarse_channels))
    checked = None if dry_run else _checked_target(target, overwrite)
    model = _load(source, compile=False, safe_mode=not no_safe_mode)
    console = Console(stderr=True)
    progress = functools.partial(
        track,
        description="Projecting",
        console=console,
        transient=True,
        disable=not console.is_terminal,  # Else it leaves an empty line.
    )
    new, report = convert_model(
        model,
        rule,
        conv,
        coarse_channels,
        where,
        weights,
        track=progress,
    )
    table = Table(*(Column(name, overflow="fold") for name in report.columns))
    for cells in report.cells:
        table.add_row(*cells)
    Console(width=max(Console().width, 140)).print(table)
    print(report.summary)
    if checked is not None:
        write_whole(checked, new.save)
        print(f"Written: {checked}, {checked.stat().st_size / 1e6:.1f} MB.")


def _check_file(name: str, path: Path) -> None:
    """Raise before long work whose result could not be written."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"{name} must be a file in a folder that can be written. "
            f"Received: {path}. Name another file."
        )


def _checked_target(path: Path | None, overwrite: bool) -> Path:
    """Raise before a long conversion whose result could not be written."""
    if path is None or path.suffix != ".keras" or not path.parent.is_dir():
        raise ValueError(
            "OUT.keras must be a file of this suffix in a folder that exists. "
            f"Received: {path}. Name one, or pass --dry-run."
        )
    _check_file("OUT.keras", path)
    if path.exists() and not overwrite:
        raise ValueError(
            f"OUT.keras must not exist yet. Received: {path}. "
            "Name another file, or --overwrite it."
        )
    return path


def _load(path, **options):
    """Load a model, whatever is wrong with the file told in one line."""
    if not zipfile.is_zipfile(path):
        what = "which is not one" if path.exists() else "which does not exist"
        raise ValueError(
            "A model must be a .keras file that `model.save` wrote. Received: "
            f"{path}, {what}. Save the model so."
        )
    try:
        return keras.saving.load_model(path, **options)
    except Exception as error:  # Whatever a foreign file raises.
        if "safe_mode=False" in str(error):
            raise ValueError(
                f"A model must hold no code. Received: {path}, with the code "
                "of a Lambda layer. If you trust it, pass --no-safe-mode to "
                "convert."
            ) from error
        raise ValueError(
            "A model must be one that Keras can load. Received: "
            f"{path}: {one_line(error)} ... Install the packages that its "
            "layers are from, or load it in Python and call "
            "`keras_tlgc.convert`."
        ) from error
