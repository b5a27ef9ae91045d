"""The crops of ImageNet: by picture coordinates that the pixels hold."""

import numpy as np
from PIL import Image

from keras_tlgc.lab.data.crops import center_crop, random_crop


def coordinates(height, width):
    """Return an image whose pixels are their own place, from 0 to 255."""
    y, x = np.mgrid[:height, :width]
    y, x = 255 * (y + 0.5) / height, 255 * (x + 0.5) / width
    return Image.fromarray(np.stack([y, x, x], axis=-1).round().astype("uint8"))


def array(crops):
    return np.stack([np.asarray(crop) for crop in crops]) / 255


def sides(crops):
    """Return the places where crops begin and end: top, left, bottom, right."""
    return np.stack(
        [
            crops[:, 0, :, 0].mean(1),
            crops[:, :, 0, 1].mean(1),
            crops[:, -1, :, 0].mean(1),
            crops[:, :, -1, 1].mean(1),
        ]
    )


def test_random_crops_have_the_papers_scales_and_aspects():
    image, rng = coordinates(256, 320), np.random.default_rng(1)
    crops = array([random_crop(image, 128, rng) for _ in range(400)])
    assert crops.shape == (400, 128, 128, 3)
    top, left, bottom, right = sides(crops)
    flipped = left > right
    assert 0.4 < flipped.mean() < 0.6
    # Of the image from the middle of its first pixel to that of its last.
    height = (bottom - top) * 128 / 127
    width = np.abs(right - left) * 128 / 127
    area = height * width
    assert 0.07 < area.min() < 0.15 and 0.85 < area.max() < 1.01
    assert 0.45 < area.mean() < 0.56
    inside = (height < 0.98) & (width < 0.98)  # Others are cut off at 1.
    aspect = (width * 320 / (height * 256))[inside]
    assert 0.73 < aspect.min() < 0.78 and 1.29 < aspect.max() < 1.37
    assert abs(np.corrcoef(aspect, area[inside])[0, 1]) < 0.3
    middle = (top + bottom) / 2
    assert abs(middle.mean() - 0.5) < 0.03 and middle.std() > 0.05


def test_evaluation_takes_the_centre():
    crops = array([center_crop(coordinates(256, 512), 112)])
    assert crops.shape == (1, 112, 112, 3)
    [top, left, bottom, right] = sides(crops)[:, 0]
    # 7/8 of the rows, and of the square in the middle as many columns.
    np.testing.assert_allclose(bottom - top, 7 / 8 * 111 / 112, atol=0.01)
    np.testing.assert_allclose(right - left, 7 / 16 * 111 / 112, atol=0.01)
    np.testing.assert_allclose([top + bottom, left + right], 1, atol=0.01)
