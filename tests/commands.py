"""Commands, run in this process or in one of their own."""

import re
import subprocess
import sys

import pytest
from helpers import users_environment

from keras_tlgc import cli

COMMAND = [sys.executable, "-c", "import keras_tlgc_launcher as l; l.main()"]


def run(*arguments, **environment):
    """Run the command line in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=users_environment(**environment),
    )


def output_of(capsys, *arguments, status=0):
    """Return what a command prints in this process."""
    capsys.readouterr()
    assert cli.run(list(map(str, arguments))) == status
    return capsys.readouterr().out


def error_of(capsys, *arguments):
    """Return the one line that bad input prints, in this process.

    Any other exception, which would be a traceback, fails the test.
    """
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli.run(list(map(str, arguments)))
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("keras-tlgc: error: ")
    # Lines on what begins are allowed, such as "Reading the images ...".
    assert all(line.endswith(" ...") for line in captured.out.splitlines())
    return line


def rows_of(text):
    """Return the cells of the rows of a table in Markdown."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in s[1:-1].split("|")] for s in lines[2:]]


def squeezed(text):
    """Return the text without the spaces that only align columns."""
    return re.sub(" +", " ", text)
