"""The crops of ImageNet: by picture coordinates that the pixels hold."""

import sys

import numpy as np
import pytest

from keras_tlgc.training import imagenet_crops

pytestmark = [  # Of KerasCV, and of what it imports.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def coordinates(height, width):
    """Return an image whose pixels are their own place, from 0 to 1."""
    y, x = np.mgrid[:height, :width]
    y, x = (y + 0.5) / height, (x + 0.5) / width
    return np.stack([y, x, x], axis=-1).astype("float32")


def mapped(function, image, count):
    """Return what a pipeline makes of an image, again and again."""
    tf = pytest.importorskip("tensorflow", reason="KerasCV needs it for data")
    data = tf.data.Dataset.from_tensors(image).repeat(count).map(function)
    return np.stack(list(data.as_numpy_iterator()))


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
    pytest.importorskip("keras_cv", reason="the crops are KerasCV's")
    crops = mapped(
        imagenet_crops(32, seed=1).training, coordinates(64, 80), 400
    )
    assert crops.shape == (400, 32, 32, 3) and crops.dtype == np.float32
    top, left, bottom, right = sides(crops)
    flipped = left > right
    assert 0.4 < flipped.mean() < 0.6
    # Of the image from the middle of its first pixel to that of its last.
    height = (bottom - top) * 64 / 63
    width = np.abs(right - left) * 80 / 79
    area = height * width
    assert 0.07 < area.min() < 0.15 and 0.85 < area.max() < 1.01
    assert 0.45 < area.mean() < 0.56
    inside = (height < 0.99) & (width < 0.99)  # Others are cut off at 1.
    aspect = (width * 80 / (height * 64))[inside]
    assert 0.74 < aspect.min() < 0.78 and 1.29 < aspect.max() < 1.35
    assert abs(np.corrcoef(aspect, area[inside])[0, 1]) < 0.3
    middle = (top + bottom) / 2
    assert abs(middle.mean() - 0.5) < 0.03 and middle.std() > 0.05


def test_evaluation_takes_the_centre():
    pytest.importorskip("keras_cv", reason="the crops are KerasCV's")
    evaluation = imagenet_crops(28).evaluation
    crops = mapped(evaluation, coordinates(64, 128), 2)
    assert crops.shape == (2, 28, 28, 3)
    np.testing.assert_array_equal(crops[0], crops[1])
    [top, left, bottom, right] = sides(crops)[:, 0]
    # 28 of 32 rows, and of the square in the middle as many columns.
    np.testing.assert_allclose(bottom - top, 27 / 32, atol=0.01)
    np.testing.assert_allclose(right - left, 27 / 64, atol=0.01)
    np.testing.assert_allclose([top + bottom, left + right], 1, atol=0.01)


def test_bad_crops(monkeypatch):
    with pytest.raises(ValueError, match="`size` must be a positive integer"):
        imagenet_crops(0)
    monkeypatch.setitem(sys.modules, "keras_cv.layers", None)
    with pytest.raises(ValueError, match="crops of ImageNet need KerasCV and"):
        imagenet_crops()
