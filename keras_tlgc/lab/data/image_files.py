"""Image files: which ones are read, and how."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (
    ".bmp",
    ".gif",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
)
KINDS = ", ".join(SUFFIXES)


def read_image(
    path: str | os.PathLike,
    channels: int = 3,
    crop: Callable[[Image.Image], Image.Image] = lambda image: image,
) -> np.ndarray:
    """Return the pixels of an image file as a viewer shows it.

    An orientation that a camera noted (EXIF) is applied, 16 bits become 8, and
    an animation counts as its first picture.

    Returns:
        Array of uint8, of shape `(height, width, channels)`, with 3 channels
        for colours or 1 for grey.

    Raises:
        ValueError: if the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            # If the orientation cannot be read, the image stays as it is.
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(image, in_place=True)
            cut = crop(_converted(image, channels))
            return np.asarray(cut).reshape(*cut.size[::-1], channels)
    except Exception as error:  # Whatever damaged files raise.
        reason = str(error).split(" image file ")[0]  # Without the name.
        raise ValueError(
            f"Image files must be whole, and of the kinds {KINDS}. Received: "
            f"{str(path)!r}, which cannot be decoded ({reason}). Mend "
            "it, or delete it and begin again."
        ) from error


def _converted(image, channels):
    if image.mode.startswith("I;16"):  # Pillow would cut off above 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, where 8 or 16 are read")
    if image.mode == "P":  # A palette may hold transparent colours.
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def image_files(folder: Path) -> tuple[list[str], list[str]]:
    """Return the images in a folder, and the files of other kinds there."""
    images: list[str] = []
    others: list[str] = []
    for entry in shown(folder):
        if entry.is_file():
            is_image = entry.name.lower().endswith(SUFFIXES)
            (images if is_image else others).append(entry.path)
    return images, others


def labelled_files(
    folder: Path,
) -> tuple[list[str], np.ndarray, np.ndarray, list[str]]:
    """Return the images in the `CLASS/` subfolders of a folder.

    Returns:
        The names of the classes, the paths of the images, their labels, and
        the paths of files of other kinds.

    Raises:
        ValueError: if there are none, or a class has none.
    """
    classes = [entry for entry in shown(folder) if entry.is_dir()]
    paths, labels, empty, others = [], [], [], []
    for label, entry in enumerate(classes):
        files, passed_over = image_files(Path(entry.path))
        paths += files
        labels += [label] * len(files)
        others += passed_over
        if not files:
            empty.append(entry.path)
    if paths and empty:
        raise ValueError(
            f"Every class must have images, {KINDS}. "
            f"Received: {empty[0]!r}, which holds none. "
            "Convert its files, or remove the folder."
        )
    if not paths:
        what = "holds no images" if folder.is_dir() else "does not exist"
        raise ValueError(
            "Images must be in a subfolder for each class, as in "
            f"CLASS/IMAGE.jpg. Received: {str(folder)!r}, which {what}. "
            "Sort them into folders of their classes, those of ImageNet's "
            "ILSVRC2012_img_val.tar too."
        )
    names = [entry.name for entry in classes]
    return names, np.array(paths), np.array(labels, "int32"), others


def shown(folder: Path) -> list[os.DirEntry]:
    """Return what a folder holds, sorted by name, without hidden files."""
    entries = os.scandir(folder) if os.path.isdir(folder) else ()
    return sorted(
        (entry for entry in entries if not entry.name.startswith(".")),
        key=lambda entry: entry.name,
    )


def describe_others(others: list[str]) -> str:
    """Return a sentence on files of other kinds, or an empty string."""
    if not others:
        return ""
    return (
        f"Passed over: {len(others):,} files that are not of the kinds "
        f"{KINDS}, such as {others[0]!r}."
    )
