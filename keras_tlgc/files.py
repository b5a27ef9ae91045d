"""Writing files that are whole at every moment."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file of another name, which then becomes `path`.

    Where that fails, as on a full disk, `path` is as it was.
    """
    # The suffix tells Keras the format, so the other name is a prefix.
    partial = path.with_name(f".partial-{path.name}")
    try:
        write(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    write_whole(path, lambda partial: partial.write_text(text, "utf-8"))
