"""Image files of every kind, as a viewer shows them."""

import numpy as np
import pytest
from PIL import Image

from keras_tlgc.lab.data import image_files

ROTATED = 6  # In EXIF: turn it to the right to see it upright.


def quarters(mode="RGB"):
    """An image, higher than wide, of four grey quarters."""
    pixels = np.kron([[0, 80], [160, 240]], np.ones((12, 8)))
    return Image.fromarray(pixels.astype("uint8")).convert(mode)


@pytest.mark.parametrize("kind", image_files.SUFFIXES)
def test_image_files(tmp_path, kind):
    path = tmp_path / f"image{kind.upper()}"
    image = quarters()
    image.save(path, quality=95) if kind == ".webp" else image.save(path)
    pixels = image_files.read_image(path)
    assert pixels.shape == (24, 16, 3) and pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels, np.asarray(image), atol=8)
    grey = image_files.read_image(path, channels=1)
    np.testing.assert_allclose(grey[..., 0], pixels[..., 0], atol=1)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_orientation_that_a_camera_noted(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    path = tmp_path / f"image.{kind}"
    quarters().transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    np.testing.assert_allclose(
        image_files.read_image(path), np.asarray(quarters()), atol=8
    )


def test_pixels_of_other_depths(tmp_path):
    sixteen = np.asarray(quarters("L")).astype("uint16") * 257
    Image.fromarray(sixteen).save(tmp_path / "16.png")
    np.testing.assert_array_equal(
        image_files.read_image(tmp_path / "16.png"), np.asarray(quarters())
    )
    Image.fromarray(np.zeros((2, 2), "float32")).save(tmp_path / "32.tif")
    with pytest.raises(
        ValueError, match=r"32\.tif.*decoded \(its pixels have 3"
    ):
        image_files.read_image(tmp_path / "32.tif")
