"""Generated images in the files of CIFAR and ImageNet, to try a run on."""

import pickle
from pathlib import Path

import keras
import numpy as np

SAMPLES = ("cifar10", "cifar100", "folder")  # The data that these are.
TRAIN, TEST = 40, 16  # Images of CIFAR.
CLASSES = "n01440764", "n02102040"  # Folders, as ImageNet names them.


def write_samples(folder: Path) -> None:
    """Write a few images of noise as CIFAR-10, CIFAR-100 and ImageNet.

    Args:
        folder: path of an empty folder, to write `cifar-10-batches-py`,
            `cifar-100-python`, `train` and `val` to.
    """
    rng = np.random.default_rng(0)
    batches = {f"data_batch_{i}": TRAIN // 5 for i in range(1, 6)}
    cifar10 = folder / "cifar-10-batches-py"
    _write_cifar(cifar10, {**batches, "test_batch": TEST}, b"labels", 10, rng)
    cifar100 = folder / "cifar-100-python"
    counts = {"train": TRAIN, "test": TEST}
    _write_cifar(cifar100, counts, b"fine_labels", 100, rng)
    for part, count in {"train": 8, "val": 4}.items():
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                keras.utils.save_img(
                    folder / part / name / f"{i}.jpg",
                    rng.integers(0, 256, (60, 80, 3)),
                    data_format="channels_last",
                    scale=False,
                )


def _write_cifar(folder, counts, label, classes, rng):
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in counts.items():
        labels = rng.integers(0, classes, count)
        labels[-1] = classes - 1  # The last class tells how many there are.
        content = {
            b"data": rng.integers(0, 256, (count, 3072), "uint8"),
            label: labels.tolist(),
        }
        with open(folder / name, "wb") as file:
            pickle.dump(content, file)
