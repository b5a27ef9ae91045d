"""How images are cropped and resized, for training and for evaluation."""

import math

import numpy as np
from PIL import Image
from PIL.Image import Resampling, Transpose

# For evaluation, images are resized to this times the size of their crop.
LARGER = 256 / 224


def random_crop(
    image: Image.Image, size: int, rng: np.random.Generator
) -> Image.Image:
    """Return a random crop of an image, to train on ImageNet (Section 4).

    This is the paper's scale and aspect ratio augmentation. The crop has 8 to
    100% of the image's area, lies at a random place, and is 3/4 to 4/3 as wide
    as high where the image is large enough for that. It is resized, and flipped
    half of the time. The result has `size` rows and columns.
    """
    area = rng.uniform(0.08, 1) * image.width * image.height
    aspect = rng.uniform(3 / 4, 4 / 3)
    width = min(math.sqrt(area * aspect), image.width)
    height = min(math.sqrt(area / aspect), image.height)
    left = rng.uniform(0, image.width - width)
    top = rng.uniform(0, image.height - height)
    crop = _resized(image, size, (left, top, left + width, top + height))
    if rng.random() < 0.5:
        return crop.transpose(Transpose.FLIP_LEFT_RIGHT)
    return crop


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the middle of an image, to evaluate on ImageNet.

    As in the paper, it is the middle 224x224 pixels of the image after its
    shorter side was resized to 256. Other sizes are in proportion.
    """
    side = min(image.size) / LARGER
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return _resized(image, size, (left, top, left + side, top + side))


def _resized(image, size, box):
    return image.resize((size, size), Resampling.BILINEAR, box)
