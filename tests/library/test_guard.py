"""Batches a mesh cannot split, and what Keras leaves behind after an error."""

import threading

import keras
import numpy as np
import pytest
from helpers import to_numpy
from meshes import (
    ON_JAX,
    compiled,
    data_parallel,
    device_mesh,
    images,
    model_parallel,
)

from keras_tlgc import layers
from keras_tlgc.distribution import (
    GroupParallel,
    get_layout_map,
    guard,
    save,
    uneven_batches,
)

SIZE = 21  # With batches of 8: 8, 8 and 5.


def network():
    keras.utils.set_random_seed(0)
    return compiled(
        keras.Sequential(
            [
                keras.Input((6, 6, 3)),
                keras.layers.Conv2D(8, 3, use_bias=False, name="stem_conv"),
                keras.layers.BatchNormalization(),
                layers.TwoLevelGroupConv2D(8, 3, groups=4),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(5, activation="softmax", name="predictions"),
            ]
        )
    )


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y, size):
        super().__init__()
        self.x, self.y, self.size = x, y, size

    def __len__(self):
        return -(-len(self.x) // self.size)

    def __getitem__(self, index):
        part = slice(index * self.size, (index + 1) * self.size)
        return self.x[part], self.y[part]


def tf_data(x, y, size):
    tf = pytest.importorskip("tensorflow", reason="tf.data needs TensorFlow")
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


def torch_loader(x, y, size):
    torch = pytest.importorskip("torch", reason="loaders need PyTorch")
    data = torch.utils.data.TensorDataset(
        torch.from_numpy(x), torch.from_numpy(y)
    )
    return torch.utils.data.DataLoader(data, batch_size=size)


LOADERS = {
    "arrays": None,
    "PyDataset": Batches,
    "tf.data": tf_data,
    "torch": torch_loader,
}


def train(model, loader):
    """Fit, evaluate and predict with a last batch of 5 or 3 samples."""
    x, y = images(SIZE, (6, 6, 3), classes=5)
    if loader is None:
        fitted = model.fit(
            x,
            y,
            batch_size=8,
            epochs=2,
            shuffle=False,
            verbose=0,
            validation_data=(x[:7], y[:7]),
            validation_batch_size=4,
        )
        evaluated = model.evaluate(x, y, batch_size=8, verbose=0)
        predicted = model.predict(x[:7], batch_size=4, verbose=0)
    else:
        fitted = model.fit(
            loader(x, y, 8),
            epochs=2,
            shuffle=False,
            verbose=0,
            validation_data=loader(x[:7], y[:7], 4),
        )
        evaluated = model.evaluate(loader(x, y, 8), verbose=0)
        predicted = model.predict(loader(x[:7], y[:7], 4), verbose=0)
    weights = [to_numpy(v) for v in model.trainable_variables]
    return fitted.history, evaluated, predicted, weights


@ON_JAX
@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_uneven_batches_count_once(loader):
    """Losses, metrics, batch statistics and weights are those of one device."""
    one = train(network(), loader)
    model_parallel(2, 2)
    with uneven_batches():
        history, *others = train(network(), loader)
    assert history.keys() == one[0].keys()
    for name, values in history.items():
        np.testing.assert_allclose(values, one[0][name], atol=1e-5)
    np.testing.assert_allclose(others[0], one[1], atol=1e-5)
    np.testing.assert_allclose(others[1], one[2], atol=1e-5)
    for a, b in zip(others[2], one[3], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@ON_JAX
def test_a_single_sample():
    x, y = images(1, (6, 6, 3), classes=5)
    expected = network().predict(x, verbose=0)
    model_parallel(4, 2)
    model = network()
    with uneven_batches():
        np.testing.assert_allclose(
            model.predict(x, verbose=0), expected, atol=1e-5
        )
        assert np.isfinite(model.train_on_batch(x, y)).all()


CALLS = {
    "fit, first batch": lambda m, x, y: m.fit(x[:7], y[:7], verbose=0),
    "fit, last batch": lambda m, x, y: m.fit(x, y, batch_size=8, verbose=0),
    "fit, validation": lambda m, x, y: m.fit(
        x[:8], y[:8], validation_data=(x[:7], y[:7]), batch_size=4, verbose=0
    ),
    "evaluate, first batch": lambda m, x, y: m.evaluate(
        x[:7], y[:7], verbose=0
    ),
    "evaluate, last batch": lambda m, x, y: m.evaluate(
        x, y, batch_size=8, verbose=0
    ),
    "predict, first batch": lambda m, x, y: m.predict(x[:1], verbose=0),
    "predict, last batch": lambda m, x, y: m.predict(
        x, batch_size=8, verbose=0
    ),
    "PyDataset": lambda m, x, y: m.evaluate(Batches(x, y, 8), verbose=0),
    "one batch": lambda m, x, y: m.train_on_batch(x[:3], y[:3]),
}


@ON_JAX
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_indivisible_batches_are_refused(call):
    model_parallel(2, 2)
    model = network()
    x, y = images(SIZE, (6, 6, 3), classes=5)
    before = [to_numpy(v) for v in model.variables]
    with pytest.raises(ValueError, match="must split every batch evenly") as e:
        call(model, x, y)
    assert "2 devices along the axis 'batch'" in str(e.value)
    assert "uneven_batches()" in str(e.value)
    after = [to_numpy(v) for v in model.variables]
    assert [v.shape for v in after] == [v.shape for v in before]
    model.fit(x[:8], y[:8], verbose=0)  # It still trains,
    assert np.isfinite(model.evaluate(x[:8], y[:8], verbose=0)).all()
    assert model.predict(x[:8], verbose=0).shape == (8, 5)


@ON_JAX
def test_weights_after_an_error_of_the_user():
    class Stop(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            raise RuntimeError("stopped")

    model_parallel(1, 2)
    model = network()
    x, y = images(8, (6, 6, 3), classes=5)
    before = [to_numpy(v) for v in model.trainable_variables]
    with pytest.raises(RuntimeError, match="stopped"):
        model.evaluate(x, y, batch_size=4, verbose=0, callbacks=[Stop()])
    for a, b in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(to_numpy(a), b)


@ON_JAX
def test_meshes_without_batch_axis_take_any_size():
    model_parallel(1, 4)
    x, y = images(7, (6, 6, 3), classes=5)
    assert network().fit(x, y, batch_size=4, verbose=0).history


@ON_JAX
def test_made_outside_of_the_distribution():
    x, y = images(8, (6, 6, 3), classes=5)
    model = network()
    optimizer = keras.optimizers.SGD()
    model_parallel(2, 2)
    for method in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match="The model must be made under"):
            method(x, y, verbose=0)
    with pytest.raises(ValueError, match=r"'.*stem_conv/kernel' on 1 of the"):
        model.predict(x, verbose=0)
    with pytest.raises(ValueError, match="The optimizer must be made under"):
        compiled(network(), optimizer).fit(x, y, verbose=0)
    model_of_this_mesh = network()
    model_parallel(1, 4)
    with pytest.raises(ValueError, match=r"'model': 2\}, not \{'batch': 1,"):
        model_of_this_mesh.fit(x, y, verbose=0)
    keras.distribution.set_distribution(None)
    assert model.predict(x, verbose=0).shape == (8, 5)


@ON_JAX
def test_calls_without_a_distribution_are_left_alone():
    model_parallel(2, 2)
    keras.distribution.set_distribution(None)
    x, y = images(5, (6, 6, 3), classes=5)
    model = network()
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()
    assert model.predict(x, verbose=0).shape == (5, 5)


METHODS = ("fit", "evaluate", "predict")


@ON_JAX
def test_keras_is_left_alone_but_under_ours():
    """Neither by what gives a map, nor once the distribution is unset."""

    def state():
        return [vars(keras.Model).get(name) for name in METHODS]

    plain = state()
    get_layout_map(device_mesh(2, 2))
    ours = GroupParallel(device_mesh(2, 2))
    assert state() == plain
    with ours.scope():
        guarded = state()
        assert all(a != b for a, b in zip(guarded, plain, strict=True))
        with uneven_batches():
            assert state() == guarded
        assert state() == guarded
    assert state() == plain
    keras.distribution.set_distribution(ours)  # Once more.
    assert state() != plain
    data_parallel(2)
    assert state() == plain
    with uneven_batches():
        assert state() != plain
    assert state() == plain


@ON_JAX
def test_another_thread_does_not_end_the_guard():
    model_parallel(2, 2)
    guarded = vars(keras.Model)["fit"]

    def elsewhere():
        with GroupParallel(device_mesh(1, 2)).scope():
            pass

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert vars(keras.Model)["fit"] is guarded


@ON_JAX
def test_a_keras_without_a_private_name(monkeypatch):
    """It warns, and trains as Keras alone does."""

    def gone(wrap):
        raise AttributeError("no attribute '_distribute_data'")

    monkeypatch.setattr(guard, "wrap_batches", gone)
    with pytest.warns(UserWarning, match="On this Keras, batches that a mesh"):
        model_parallel(2, 2)
    x, y = images(8, (6, 6, 3), classes=5)
    assert network().fit(x, y, verbose=0).history["loss"]


@ON_JAX
def test_steps_that_are_compiled_together():
    """Keras 3.16 stacks their batches."""

    def trained():
        model = network()
        model.compile(
            "sgd", "sparse_categorical_crossentropy", steps_per_execution=2
        )
        x, y = images(SIZE, (6, 6, 3), classes=5)
        fitted = model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        return fitted.history["loss"]

    one = trained()
    model_parallel(2, 2)
    with uneven_batches():
        np.testing.assert_allclose(trained(), one, atol=1e-5)
    with pytest.raises(ValueError, match="must split every batch evenly"):
        trained()


@ON_JAX
def test_a_refused_first_batch_of_a_model_that_is_not_built():
    """What the call made, such as slots and metrics, is there all the same."""
    model_parallel(2, 2)
    inner = network()
    model = compiled(keras.Sequential(inner.layers))
    model.compile(keras.optimizers.Adam(), model.loss, metrics=["accuracy"])
    x, y = images(8, (6, 6, 3), classes=5)
    for _ in range(2):
        with pytest.raises(ValueError, match="must split every batch evenly"):
            model.fit(x[:7], y[:7], verbose=0)
    assert model.fit(x, y, verbose=0).history["accuracy"]


def test_uneven_batches_without_a_mesh():
    """On every backend the block may stand around any call."""
    x, y = images(5, (6, 6, 3), classes=5)
    with uneven_batches():
        assert network().fit(x, y, verbose=0).history["loss"]


# --- saving


MESHES = [(1, 4), (2, 2), None]


@ON_JAX
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
@pytest.mark.parametrize("after", MESHES)
@pytest.mark.parametrize("before", MESHES)
def test_saved_under_one_mesh_loads_under_another(
    tmp_path, before, after, suffix
):
    x, y = images(8, (6, 6, 3), classes=5)
    path = tmp_path / f"model{suffix}"

    def on(mesh):
        keras.distribution.set_distribution(None)
        if mesh is not None:
            model_parallel(*mesh)

    on(before)
    model = network()
    model.fit(x, y, verbose=0)
    save(model, path)
    saved = [
        to_numpy(v) for v in [*model.variables, *model.optimizer.variables]
    ]
    on(after)
    if suffix == ".keras":
        loaded = keras.saving.load_model(path)
    else:
        loaded = network()
        loaded.optimizer.build(loaded.trainable_variables)
        loaded.load_weights(path)
    state = [*loaded.variables, *loaded.optimizer.variables]
    for variable, value in zip(state, saved, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)
    count = 1 if after is None else after[0] * after[1]
    assert len(loaded.variables[0].value.sharding.device_set) == count
    assert np.isfinite(loaded.fit(x, y, verbose=0).history["loss"]).all()


def test_save_is_atomic_and_checks_its_arguments(tmp_path):
    path = tmp_path / "model.keras"
    model = network()
    save(model, path)
    whole = path.read_bytes()

    def fail(partial):
        partial.write_bytes(b"half")
        raise OSError("disk full")

    model.save = fail
    with pytest.raises(OSError, match="disk full"):
        save(model, path)
    assert path.read_bytes() == whole
    with pytest.raises(ValueError, match="must be one of"):
        save(model, tmp_path / "model.txt")
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="needs a model that has weights"):
        save(unbuilt, path)
    uncompiled = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    save(uncompiled, tmp_path / "model.weights.h5")
