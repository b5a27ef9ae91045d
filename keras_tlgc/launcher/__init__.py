"""Entry point of the command line, installed as `keras_tlgc_launcher`.

It is a package of its own, since importing anything below `keras_tlgc` imports
Keras, and with it the backend, which must be chosen and checked first.
"""

import contextlib
import importlib.util
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

BACKENDS = ("jax", "tensorflow", "torch")
INTERRUPTED = 128 + signal.SIGINT  # As a shell says it.


def main() -> None:
    """Run the command line; exit with 2 and one line on bad input."""
    # An exception lets unfinished files be removed on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        os.environ["KERAS_BACKEND"] = choose_backend()
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        # Keras imports TensorFlow beside other backends too.
        with silent_errors(_installed("tensorflow")):
            from keras_tlgc.cli import run

        status = run()
    except KeyboardInterrupt:  # The backend was being imported.
        status = INTERRUPTED
    except ValueError as error:
        fail(error)
    except ModuleNotFoundError as error:
        fail(
            f"The command line needs the package {error.name!r}, which is not "
            "installed. Install it: pip install 'keras-tlgc[cli]'."
        )
    if status == INTERRUPTED:
        print("keras-tlgc: interrupted", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(status)  # JAX may crash when Python ends after an interrupt.
    sys.exit(status)


@contextlib.contextmanager
def silent_errors(silent: bool) -> Iterator[None]:
    """Discard what is written to standard error, by libraries in C too.

    When TensorFlow is imported, it writes several lines at any log level, which
    would bury the command's own. Exceptions are raised as usual.
    """
    if not silent:
        yield
        return
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def fail(error: object) -> NoReturn:
    """Print one line on standard error and exit with status 2.

    With KERAS_TLGC_DEBUG=1 the traceback of the exception that is being handled
    is printed before it.
    """
    if os.environ.get("KERAS_TLGC_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    line = " ".join(str(error).split())
    print(f"keras-tlgc: error: {line}", file=sys.stderr)
    sys.exit(2)


def choose_backend() -> str:
    """Return the backend that KERAS_BACKEND or Keras' configuration names.

    Where neither names one that is installed, the first installed one is
    taken; an explicit KERAS_BACKEND must be installed.
    """
    wanted = os.environ.get("KERAS_BACKEND")
    if wanted:
        if wanted not in BACKENDS:
            raise ValueError(
                f"KERAS_BACKEND must be one of {list(BACKENDS)}. "
                f"Received: KERAS_BACKEND={wanted}. Set one of these, or none."
            )
        if not _installed(wanted):
            raise ValueError(
                "KERAS_BACKEND must be an installed package. "
                f"Received: KERAS_BACKEND={wanted}, which is not installed. "
                f"Install it: pip install 'keras-tlgc[{wanted}]'."
            )
        return wanted
    for backend in (_configured(), *BACKENDS):
        if backend in BACKENDS and _installed(backend):
            return backend
    raise ValueError(
        "Keras needs a backend. Received: none of "
        f"{list(BACKENDS)} is installed. "
        "Install one: pip install 'keras-tlgc[jax]'."
    )


def _configured():
    """Return the backend in Keras' configuration file, or None."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    try:
        return json.loads((Path(home) / "keras.json").read_text())["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # Keras writes this file if it is missing.


def _installed(package):
    return importlib.util.find_spec(package) is not None
