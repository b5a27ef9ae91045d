"""Writing files that are whole at every moment."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file of another name, which then becomes `path`.

    If that fails, as on a full disk, `path` stays as it was.
    """
    # The suffix tells Keras the format, so the other name is a prefix.
    partial = path.with_name(f".partial-{path.name}")
    try:
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        _remove(partial)
        raise OSError(
            f"'{path}' cannot be written ({error}). Free some space, or "
            "choose another folder. What was written before is whole."
        ) from error
    except BaseException:
        _remove(partial)
        raise


def reserve(path: Path, size: int) -> None:
    """Write an empty file; raise an `OSError` if the disk lacks `size` bytes.

    This is done before HDF5 writes, which may end the process if it cannot.
    """
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):  # Not on macOS and Windows.
            os.posix_fallocate(file.fileno(), 0, size)


def _remove(path):
    with contextlib.suppress(OSError):  # The first error is the one to tell.
        path.unlink()


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a text file as a whole, with `errors` as `open` takes them."""
    write_whole(path, lambda partial: partial.write_text(text, "utf-8", errors))
