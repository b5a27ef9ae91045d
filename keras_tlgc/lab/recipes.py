"""How the paper trains its networks, as data that can be changed."""

import dataclasses
import math
from collections.abc import Callable

import keras

from keras_tlgc.optimizers import CoupledSGD
from keras_tlgc.validation import one_of, positive_int

AUGMENTATIONS = {
    "none": "none: the images as they are",
    "shifts": "4 black pixels on each side, a random crop of the former size, "
    "flipped half of the time",
    "crops": "8 to 100% of the image's area, 3/4 to 4/3 as wide as high, "
    "resized, flipped half of the time; evaluation on the centre",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever the network and the data.

    It is trained by stochastic gradient descent with `CoupledSGD`, whose weight
    decay applies to all trainable variables, including normalisation and
    biases, as in PyTorch.

    Args:
        epochs: int, passes over the training images.
        batch_size: int, images in a batch, over all devices. Images that do not
            fill a batch are left out; in each epoch these are others.
        learning_rate: float, the initial rate.
        drops: numbers from 0 to 1 in ascending order: the shares of the epochs
            after which the rate is divided by 10. It is divided between two
            epochs, at the place nearest to each share, and only once at each
            place. So in a run of 2 epochs it is divided after the first,
            whatever the shares, and in a run of 1 epoch never.
        momentum: float, from 0 to below 1.
        weight_decay: float; the weights times this are added to the gradients.
        augmentation: how the training images are changed, a key of
            `AUGMENTATIONS`.
        image_size: int, height and width in pixels of images from files.
            Others keep their size.

    Raises:
        ValueError: if a value is out of its range.

    Example:

    >>> import dataclasses
    >>> from keras_tlgc.lab import recipes
    >>> shorter = dataclasses.replace(recipes.cifar(), epochs=20)
    >>> shorter.drops
    (0.3, 0.6, 0.8)
    """

    epochs: int = 10
    batch_size: int = 50
    learning_rate: float = 0.1
    drops: tuple[float, ...] = (0.3, 0.6, 0.8)
    momentum: float = 0.9
    weight_decay: float = 0.0
    augmentation: str = "none"
    image_size: int = 224

    def __post_init__(self):
        if not isinstance(self.drops, list | tuple):
            raise ValueError(
                "`drops` must be a list of numbers. "
                f"Received: drops={self.drops!r}. Write it as in (0.3, 0.6)."
            )
        object.__setattr__(self, "drops", tuple(self.drops))
        for name in ("epochs", "batch_size", "image_size"):
            positive_int(name, getattr(self, name))
        _number("learning_rate", self.learning_rate, above=0)
        _number("momentum", self.momentum, below=1)
        _number("weight_decay", self.weight_decay)
        for drop in self.drops:
            _number("drops", drop, above=0, below=1)
        if list(self.drops) != sorted(set(self.drops)):
            raise ValueError(
                "`drops` must ascend. "
                f"Received: drops={self.drops}. Sort them, each once."
            )
        one_of("augmentation", self.augmentation, AUGMENTATIONS)

    def optimizer(self, steps_per_epoch: int) -> keras.optimizers.Optimizer:
        """Return the optimizer, with its schedule of rates.

        Args:
            steps_per_epoch: int, batches in an epoch.
        """
        rate = self.learning_rate
        if epochs := self._drop_epochs():
            rate = keras.optimizers.schedules.PiecewiseConstantDecay(
                # The rate changes with the step after a boundary.
                [epoch * steps_per_epoch - 1 for epoch in epochs],
                [rate / 10**i for i in range(len(epochs) + 1)],
            )
        return CoupledSGD(
            rate,
            momentum=float(self.momentum),
            weight_decay=self.weight_decay or None,
        )

    def _drop_epochs(self) -> list[int]:
        """Return after how many epochs the rate falls, each number once."""
        last = self.epochs - 1
        nearest = (round(share * self.epochs) for share in self.drops)
        return sorted({min(max(1, n), last) for n in nearest} - {0})


def digits() -> Recipe:
    """Return the recipe for a small network on the digits, in minutes."""
    return Recipe()


def cifar() -> Recipe:
    """Return the paper's recipe for CIFAR-10 and CIFAR-100 (Section 4).

    It has 200 epochs of batches of 128, and momentum 0.9. The rate starts at
    0.1 and is divided by 10 after 60, 120 and 160 epochs. The value of the
    weight decay could not be checked against the paper's text: 5e-4 is that of
    Wide Residual Networks.
    """
    return Recipe(
        epochs=200,
        batch_size=128,
        weight_decay=5e-4,
        augmentation="shifts",
        image_size=32,
    )


def imagenet() -> Recipe:
    """Return the paper's recipe for ImageNet (Section 4).

    It is `cifar()`, except that the rate is divided by 10 after 30 and 60
    epochs, and images are cropped at random scales and aspect ratios. The
    number of epochs and the weight decay could not be checked against the
    paper's text: 90 and 1e-4 are those of the implementation that the paper
    names for the crops.
    """
    return Recipe(
        epochs=90,
        batch_size=128,
        drops=(1 / 3, 2 / 3),
        weight_decay=1e-4,
        augmentation="crops",
        image_size=224,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": digits,
    "cifar": cifar,
    "imagenet": imagenet,
}


def _number(name, value, above=-math.inf, below=math.inf):
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (0 <= value < below and value > above)
    ):
        rule = "above 0" if above == 0 else "of at least 0"
        rule += f" and below {below}" if below < math.inf else ""
        raise ValueError(
            f"`{name}` must be a finite number {rule}. "
            f"Received: {name}={value!r}. Pass such a number."
        )
