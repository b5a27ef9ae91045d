"""The models that commands load, and the files that they write."""

import os
import zipfile
from pathlib import Path

import keras

from keras_tlgc.rewrite.copying import one_line


def check_target(name: str, path: Path | None, *suffixes: str) -> None:
    """Raise a `ValueError`, before long work, if a file cannot be written.

    Args:
        name: name of the option or argument, for the message.
        path: path of the file, or None if none is wanted.
        *suffixes: the allowed suffixes. Without these, all are allowed.
    """
    if path is None:
        return
    if (
        path.is_dir()
        or not path.parent.is_dir()
        or not os.access(path.parent, os.W_OK)
        or (suffixes and path.suffix.lower() not in suffixes)
    ):
        kinds = f" with the suffix {' or '.join(suffixes)}" if suffixes else ""
        raise ValueError(
            f"{name} must be a file{kinds} in a folder that can be written. "
            f"Received: {path}. Name another file."
        )


def load(path: Path, **options) -> keras.Model:
    """Load a model, or raise one line on what is wrong with the file."""
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
