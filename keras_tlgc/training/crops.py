"""The crops of the paper's ImageNet recipe, by KerasCV."""

from collections.abc import Callable
from typing import NamedTuple

import keras

from keras_tlgc.validation import positive_int


class Crops(NamedTuple):
    """How images are cropped: functions for `tf.data.Dataset.map`.

    Each takes an image, of shape `(height, width, 3)` and of any dtype, or a
    batch of images of one shape, and returns float32 of shape `(..., size,
    size, 3)` in the same range.
    """

    training: Callable
    evaluation: Callable


def imagenet_crops(size: int = 224, seed: int | None = None) -> Crops:
    """Return the crops for training on ImageNet and for evaluation.

    For training: scale and aspect ratio augmentation (Section 4 of the paper),
    a crop of 8 to 100% of the image's area at a random place, 3/4 to 4/3 as
    wide as high where the image is large enough for that, resized to `size`
    and flipped half of the time. For evaluation: the centre crop of an image
    resized to 256 pixels for 224.

    Args:
        size: integer, height and width of the crops in pixels.
        seed: integer, for the same crops again; different ones if not given.

    Returns:
        A pair `(training, evaluation)` of functions of images.

    Raises:
        ValueError: if `size` is no positive integer, or KerasCV is not
            installed.
    """
    positive_int("size", size)
    try:
        import tensorflow as tf
        from keras_cv.core import UniformFactorSampler
        from keras_cv.layers import RandomCropAndResize
    except ModuleNotFoundError as error:
        raise ValueError(
            "The crops of ImageNet need KerasCV and TensorFlow. "
            f"Received: {error}. Install them: "
            "pip install 'keras-tlgc[cv,tensorflow]'."
        ) from error
    # Whatever Keras is set to for the network.
    plain = {"data_format": "channels_last", "dtype": "float32"}
    # Of one seed, KerasCV's areas and aspect ratios would be the same draws.
    other = None if seed is None else seed + 1
    aspect = UniformFactorSampler(3 / 4, 4 / 3, other)

    class Crop(RandomCropAndResize):
        def get_random_transformation(self, image=None, **options):
            # To KerasCV, a crop of the image's own shape has the aspect 1.
            height, width, _ = tf.unstack(tf.cast(tf.shape(image), "float32"))
            of_image = width / height
            self.aspect_ratio_factor = lambda: aspect() / of_image
            return super().get_random_transformation(image=image, **options)

    crop = Crop(
        (size, size),
        crop_area_factor=UniformFactorSampler(0.08, 1.0, seed),
        aspect_ratio_factor=aspect,
        seed=seed,
        dtype="float32",
    )
    flip = keras.layers.RandomFlip("horizontal", seed=seed, **plain)
    larger = round(size * 256 / 224)
    resize = keras.layers.Resizing(
        larger, larger, crop_to_aspect_ratio=True, **plain
    )
    center = keras.layers.CenterCrop(size, size, **plain)
    return Crops(
        lambda images: flip(crop(images, training=True), training=True),
        lambda images: center(resize(images)),
    )
