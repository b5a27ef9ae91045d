"""The commands of `keras-tlgc`. `keras_tlgc_launcher` starts them.

Each command has a module; `options` holds the options that several share.
"""

import shlex
import sys
from typing import Annotated

import typer

from keras_tlgc import __version__
from keras_tlgc.cli import (
    audit,
    benchmark,
    compare,
    convert,
    evaluate,
    export,
    params,
    plan,
    train,
    tune,
)
from keras_tlgc_launcher import INTERRUPTED, fail

# Options of version 0.1.0 whose values the name of a network now holds.
RETIRED = {"--depth", "--width", "--alpha"}

app = typer.Typer(
    name="keras-tlgc",
    help="Two-level group convolution for Keras 3.",
    epilog="KERAS_TLGC_DEBUG=1 shows where an error comes from.",
    no_args_is_help=True,
    add_completion=False,
)
for command in (
    train.train,
    evaluate.evaluate,
    evaluate.predict,
    compare.compare,
    params.params,
    audit.audit,
    plan.plan,
    benchmark.benchmark,
    tune.tune,
    convert.convert,
    export.export,
):
    app.command()(command)


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    Bad input ends it with status 2 and one line on standard error.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return app(given, standalone_mode=False) or 0
    except typer.TyperException as error:
        rule, remedy = error.format_message(), "Try --help."
        if RETIRED.intersection(a.partition("=")[0] for a in given):
            rule = error.message  # Without a guess at another option.
            remedy = (
                "Write the network's numbers into its name: --model wrn-28-10 "
                "for --depth 28 --width 10, mobilenetv2-1.0 for --alpha 1.0."
            )
        received = shlex.join(given)
        return fail(f"{rule.rstrip('.')}. Received: {received}. {remedy}")
    except (ValueError, OSError) as error:
        return fail(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.")
    ] = False,
):
    if version:
        print(__version__)
        raise typer.Exit
