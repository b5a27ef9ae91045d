import collections
import gzip
import os
import pickle

import keras
import numpy as np
import pytest

from keras_tlgc.lab import Batches, load_data
from keras_tlgc.lab.data import published, sets
from keras_tlgc.lab.data.batches import shift


def test_batches_depend_on_seed_and_epoch_alone():
    x = np.arange(10)
    one, two = (Batches(x, x, 4, seed=3) for _ in range(2))
    two.set_epoch(5)
    two.set_epoch(0)
    first = [one[i][0].tolist() for i in range(len(one))]
    assert first == [two[i][0].tolist() for i in range(len(two))]
    assert len(first) == 2  # The tail of 2 is left out...
    one.set_epoch(1)
    assert first != [one[i][0].tolist() for i in range(len(one))]
    seen = set()
    for epoch in range(20):
        one.set_epoch(epoch)
        seen.update(np.concatenate([one[i][1] for i in range(2)]).tolist())
    assert seen == set(range(10))  # ...another one each epoch.


def test_split_is_stratified_and_fixed():
    y = np.repeat([0, 1, 2], [10, 20, 30])
    x = np.arange(60)
    x_train, y_train, x_test, y_test = sets._stratified_split(x, y)
    assert np.bincount(y_test).tolist() == [2, 4, 6]
    assert np.bincount(y_train).tolist() == [8, 16, 24]
    assert sorted([*x_train, *x_test]) == x.tolist()
    np.testing.assert_array_equal(sets._stratified_split(x, y)[2], x_test)


def test_mnist5k():
    digits = load_data("mnist5k")
    images = (28, 28, 1)
    if keras.config.image_data_format() == "channels_first":
        images = (1, 28, 28)
    assert digits.x_train.shape == (4000, *images)
    assert digits.x_test.shape == (1000, *images)
    assert digits.pixels_test.dtype == np.uint8
    assert digits.pixels_test.max() == 255
    assert np.bincount(digits.y_test).tolist() == [100] * 10
    assert digits.classes == 10
    # Those that a conversion is fitted on are of all classes.
    sample = digits.sample(500).reshape(500, -1).tolist()
    train = digits.pixels_train.reshape(4000, -1).tolist()
    found = digits.y_train[[train.index(image) for image in sample]]
    assert np.bincount(found, minlength=10).min() > 30
    assert abs(digits.x_train.mean()) < 1e-4
    assert abs(digits.x_train.std() - 1) < 1e-4


def in_keras_format(images):
    if keras.config.image_data_format() == "channels_first":
        return np.moveaxis(images, -1, 1)
    return images


def in_channels_last(images):
    if keras.config.image_data_format() == "channels_first":
        return np.moveaxis(images, 1, -1)
    return images


@pytest.fixture(params=["channels_last", "channels_first"])
def data_format(request):
    keras.config.set_image_data_format(request.param)  # conftest undoes it.


def shifted(count=16000, size=6):
    """Shift images whose pixels say where they are; return them, by pixel."""
    image = 1 + np.arange(size * size, dtype="float32").reshape(size, size)
    images = np.stack([image, -image], axis=-1)[None].repeat(count, 0)
    before = images.copy()
    new = shift(in_keras_format(images), np.random.default_rng(0))
    np.testing.assert_array_equal(images, before)  # It is left alone.
    return images[0], in_channels_last(new)


@pytest.mark.usefixtures("data_format")
def test_shifted_images_are_crops_of_padded_ones():
    image, new = shifted()
    padded = np.zeros((14, 14, 2), "float32")
    padded[4:-4, 4:-4] = image
    crops = {
        padded[i : i + 6, j : j + 6][:, ::step].tobytes(): (i, j, step)
        for i in range(9)
        for j in range(9)
        for step in (1, -1)
    }
    seen = collections.Counter(crops[one.tobytes()] for one in new)
    # Of 16,000 images, 99 are expected of each of the 162 crops, +-10.
    assert len(seen) == 162
    assert min(seen.values()) > 50 and max(seen.values()) < 150


def test_batches_are_augmented_by_seed_epoch_and_index():
    x = np.random.default_rng(0).normal(size=(40, 6, 6, 1)).astype("float32")
    x = in_keras_format(x)

    def batches(seed):
        return Batches(x, np.arange(40), 10, seed, shift)

    one, two = batches(3), batches(3)
    np.testing.assert_array_equal(one[2][0], two[2][0])
    two.set_epoch(1)
    two.set_epoch(0)
    np.testing.assert_array_equal(one[2][0], two[2][0])
    # The same images, moved otherwise.
    plain = Batches(x, np.arange(40), 10, 3)
    np.testing.assert_array_equal(one[0][1], plain[0][1])
    assert not np.array_equal(one[0][0], plain[0][0])
    draws = []
    for epoch in (0, 1):
        one.set_epoch(epoch)
        for index in (0, 1):
            one.augment = lambda x, rng: draws.append(rng.random())
            one[index]
    assert len(set(draws)) == 4


def test_batches_in_order_hold_all():
    batches = Batches(np.arange(10), np.arange(10), 4)
    assert [batches[i][0].tolist() for i in range(len(batches))] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


def cifar_images(count, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype="uint8")


def write_cifar(path, images, labels, key):
    """Write a file as CIFAR's authors do, pickled by Python 2."""
    rows = np.moveaxis(images, -1, 1).reshape(len(images), -1)
    path.parent.mkdir(exist_ok=True)
    content = {b"data": rows, key: list(labels), b"batch_label": b"a batch"}
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.fixture
def cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    for i in range(1, 6):
        write_cifar(
            folder / f"data_batch_{i}",
            cifar_images(20, i),
            [*range(10)] * 2,
            b"labels",
        )
    write_cifar(
        folder / "test_batch", cifar_images(10, 6), range(10), b"labels"
    )
    return tmp_path


def test_a_folder_may_be_named_as_people_do(cifar10, monkeypatch):
    whole = load_data("cifar10", cifar10).x_test
    monkeypatch.setenv("HOME", str(cifar10))
    monkeypatch.setenv("USERPROFILE", str(cifar10))
    for name in ("~", str(cifar10 / "cifar-10-batches-py")):
        np.testing.assert_array_equal(load_data("cifar10", name).x_test, whole)


def test_classes_that_only_the_test_images_have(cifar10):
    for i in range(1, 6):
        path = cifar10 / "cifar-10-batches-py" / f"data_batch_{i}"
        write_cifar(path, cifar_images(8, i), range(8), b"labels")
    assert load_data("cifar10", cifar10).classes == 10


@pytest.mark.usefixtures("data_format")
def test_cifar10_from_a_folder(cifar10):
    loaded = load_data("cifar10", cifar10)
    assert loaded.counts == (100, 10) and loaded.classes == 10
    assert loaded.y_train.tolist() == [*range(10)] * 10
    x = in_channels_last(loaded.x_train)
    assert x.shape == (100, 32, 32, 3) and x.dtype == np.float32
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-3)
    pixels = in_channels_last(loaded.x_test) * loaded.std + loaded.mean
    np.testing.assert_allclose(pixels, cifar_images(10, 6), atol=1e-3)
    stored = in_channels_last(loaded.pixels_test)
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, cifar_images(10, 6))
    assert loaded.class_names[loaded.y_test[3]] == "cat"


def test_cifar100_from_a_folder(tmp_path):
    folder = tmp_path / "cifar-100-python"
    labels = [*range(100)]
    write_cifar(folder / "train", cifar_images(100, 0), labels, b"fine_labels")
    write_cifar(folder / "test", cifar_images(100, 1), labels, b"fine_labels")
    loaded = load_data("cifar100", str(tmp_path))
    assert loaded.classes == 100 and loaded.counts == (100, 100)
    assert loaded.y_test.tolist() == labels


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_from_keras(monkeypatch, name):
    def load():
        x, y = cifar_images(20, 0), np.arange(20)[:, None] % 10
        return (x, y), (x[:10], y[:10])

    monkeypatch.setattr(getattr(keras.datasets, name), "load_data", load)
    loaded = load_data(name)
    assert loaded.counts == (20, 10)
    assert loaded.y_test.tolist() == [*range(10)]


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A folder with files in the format of MNIST, of 20 and 10 images."""
    monkeypatch.setattr(published, "DEBIAN_FASHION", tmp_path / "no package")
    for part, count in (("train", 20), ("t10k", 10)):
        images = bytes(16) + bytes(range(count)) * 784
        labels = bytes(8) + bytes(i % 10 for i in range(count))
        for name, content in (("images-idx3", images), ("labels-idx1", labels)):
            path = tmp_path / f"{part}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(content))
    return tmp_path


def test_fashion_mnist(fashion, monkeypatch):
    def load():
        x = np.zeros((20, 28, 28), "uint8")
        return (x, np.arange(20) % 10), (x[:10], np.arange(10))

    def check(loaded):
        assert loaded.counts == (20, 10) and loaded.classes == 10
        assert sorted(loaded.image_shape) == [1, 28, 28]
        assert loaded.class_names[loaded.y_test[9]] == "ankle_boot"

    check(loaded := load_data("fashion_mnist", fashion))
    assert loaded.pixels_test.reshape(-1)[:11].tolist() == [*range(10), 0]
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", load)
    check(load_data("fashion_mnist"))
    monkeypatch.setattr(published, "DEBIAN_FASHION", fashion)
    check(load_data("fashion_mnist"))

    path = fashion / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(8) + bytes([10] * 10)))
    with pytest.raises(
        ValueError, match=r"four files.*t10k images.*not 0 to 9.*Get them from"
    ):
        load_data("fashion_mnist", fashion)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"BadGzipFile"):
        load_data("fashion_mnist", fashion)


def test_cifar_that_cannot_be_downloaded(monkeypatch):
    def load():
        raise OSError("URL fetch failure")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", load)
    with pytest.raises(
        ValueError, match=r"Keras' cache.*URL fetch failure.*--data-dir"
    ):
        load_data("cifar10")


PIXELS = np.zeros((2, 3072), "uint8")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    "content, text",
    [
        (pickle.dumps(Evil(), 2), r"it holds (posix|nt)\.mkdir"),
        (b"", r"EOFError"),
        (b"not a pickle", r"cannot be read"),
        (pickle.dumps({b"data": np.zeros((2, 3072))}, 2), r"b'labels'"),
        *(
            (pickle.dumps({b"data": x, b"labels": y}, 2), text)
            for x, y, text in [
                (PIXELS, [0], r"2 images, labels \(1,\)"),
                (PIXELS, [0, 10], "labels that are not 0 to 9"),
                (PIXELS, [-1, 1], "labels that are not 0 to 9"),
            ]
        ),
    ],
    ids=range(7),
)
def test_damaged_cifar(cifar10, monkeypatch, content, text):
    monkeypatch.chdir(cifar10)
    path = cifar10 / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"Python version.*data_batch_3.*{text}.*Get it from"
    ):
        load_data("cifar10", cifar10)
    assert not (cifar10 / "evil").exists()


def test_a_channel_that_never_varies(cifar10):
    for path in (cifar10 / "cifar-10-batches-py").iterdir():
        content = pickle.loads(path.read_bytes(), encoding="bytes")
        content[b"data"][:, :1024] = 7
        path.write_bytes(pickle.dumps(content, 2))
    loaded = load_data("cifar10", cifar10)
    assert (loaded.mean[0], loaded.std[0]) == (7, 1)
    axis = loaded.image_shape.index(3) + 1
    for images in (loaded.x_train, loaded.x_test):
        assert np.isfinite(images).all()
        assert not images.take(0, axis).any()


def test_a_folder_for_data_that_have_none(tmp_path):
    with pytest.raises(ValueError, match=r"'mnist5k'` has no folder"):
        load_data("mnist5k", tmp_path)


def test_generated_images():
    images = load_data("generated-cifar100")
    assert images.counts == (16, 8) and images.classes == 100
    assert sorted(images.image_shape) == [3, 32, 32]


def test_crops_are_for_files():
    from keras_tlgc.lab import Recipe

    digits = load_data("mnist5k")
    with pytest.raises(ValueError, match=r"'crops' needs images from files"):
        digits.train_batches(Recipe(augmentation="crops"), 0)
    [first, *_] = digits.train_batches(Recipe(augmentation="shifts"), 0)
    assert first[0].shape == (50, *digits.image_shape)
    assert first[0].dtype == np.uint8 and first[0][0].min() == 0
    assert set(np.unique(first[0])) <= set(np.unique(digits.pixels_train))
