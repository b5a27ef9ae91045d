"""Layers fitted on data: the original comes back, or as much as can be."""

import keras
import numpy as np
import pytest
from converting import assert_converts, assert_same_outputs, conv, two
from helpers import random, to_numpy
from keras import layers

import keras_tlgc
from keras_tlgc.rewrite import fitting, samples, streams
from keras_tlgc.rewrite.images import Images
from keras_tlgc.rewrite.patches import Sampler

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(
    ("rank", "options"),
    [
        (1, {"kernel_size": 3, "padding": "causal", "dilation_rate": 2}),
        (1, {"kernel_size": 4, "padding": "same", "strides": 2}),
        (2, {"kernel_size": (3, 2), "padding": "same", "strides": 2}),
        (2, {"kernel_size": 3, "dilation_rate": 2}),
        (2, {"kernel_size": 1, "strides": 3, "padding": "same"}),
        (3, {"kernel_size": 2, "padding": "same"}),
    ],
    ids=str,
)
def test_patches_are_what_windows_cover(rank, options, data_format):
    if data_format == "channels_first" and keras.backend.backend() != "torch":
        pytest.skip("a convolution on a CPU needs channels last")
    layer = CONVOLUTIONS[rank - 1](
        4, data_format=data_format, bias_initializer="normal", **options
    )
    sizes = (7, 6, 5)[:rank]
    shape = (3, *sizes) if data_format == "channels_first" else (*sizes, 3)
    x = random(2, *shape)
    outputs = to_numpy(layer(x))
    for most in (5, 10**6):
        sampler = Sampler(layer, x, most, np.random.default_rng(0))
        pixels = sampler.pixels(outputs)
        assert len(pixels) == 2 * min(most, outputs[0].size // 4)
        np.testing.assert_allclose(
            samples.outputs_of(layer, sampler.patches(x)),
            pixels,
            rtol=1e-4,
            atol=1e-5,
        )


def network():
    """Return a network with all that a fit has to take into account."""
    inner = keras.Sequential(
        [
            keras.Input((6, 6, 8)),
            conv(name="inner", activation="relu"),
            layers.BatchNormalization(),
        ]
    )
    x = keras.Input((6, 6, 8))
    y = conv(name="stem", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    z = conv(name="a", use_bias=False)(y)
    z = layers.ReLU()(layers.BatchNormalization()(z))
    z = layers.BatchNormalization()(conv(name="b", use_bias=False)(z))
    y = layers.ReLU()(layers.Add()([z, conv(8, 1, name="side")(y)]))
    y = inner(y) + y
    return keras.Model(x, conv(8, 1, name="last")(y))


def zeroed(model):
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    for variable in new.trainable_variables:
        if variable.name in ("kernel", "bias"):
            variable.assign(0 * variable)
    return new


def test_a_dense_refit_comes_back(monkeypatch):
    model = network()
    for variable in model.weights:
        if variable.name in ("beta", "moving_mean"):
            variable.assign(random(*variable.shape, seed=1))
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(0.5 + random(*variable.shape, seed=2) ** 2)
    new = zeroed(model)
    convolutions = [
        part for part in new._flatten_layers() if hasattr(part, "kernel_size")
    ]
    names = {part.name: part for part in model._flatten_layers()}
    originals = {
        id(part): names[part.name]
        for part in new._flatten_layers()
        if part.name in names
    }

    def refit(self, layer, form):
        moments = self.moments()
        dense, _ = moments.refit(0 * self.kernel.reshape(-1, 8), 1e-9)
        dense = dense / self.scale
        layer.kernel.assign(dense.reshape(layer.kernel.shape))
        patch, target = self.sums.means
        if layer.use_bias:
            layer.bias.assign(target - patch @ dense)
        return samples.Fitted(0.0, True)

    monkeypatch.setattr(samples.Samples, "fit", refit)
    images = Images(model, random(64, 6, 6, 8, seed=3))
    fit = fitting.Fit(
        new, originals, dict.fromkeys(map(id, convolutions), ""), images
    )
    found = fit.run(iter)
    assert len(found) == len(convolutions) == 6
    assert_same_outputs(new, model, 1e-4)


@pytest.mark.once
def test_large_values_are_held_as_halves(monkeypatch):
    for scale in (0.0, 1e-30, 1.0, 1e30):
        x = np.float32(scale) * random(50, 4)
        half = streams.Half.of(x)
        np.testing.assert_allclose(
            streams.whole(half), x, rtol=1e-3, atol=1e-6 * scale
        )
        assert half.values.nbytes == x.nbytes / 2
    model, x = network(), images_like_real(40, 6, 6, 8)
    expected, _ = keras_tlgc.convert(model, 2, data=x)
    monkeypatch.setattr(streams, "HELD", 0)
    new, _ = keras_tlgc.convert(model, 2, data=x)
    assert 0 < error_of(new, expected, x) < 1e-4


def error_of(new, model, x):
    y, y_new = (to_numpy(m(x)) for m in (model, new))
    return np.mean((y - y_new) ** 2) / np.var(y)


def images_like_real(count, *shape, seed=0):
    """Return data whose channels are correlated, as those of features are."""
    mix = random(shape[-1] // 2, shape[-1], seed=9)
    return random(count, *shape[:-1], shape[-1] // 2, seed=seed) @ mix


@pytest.mark.parametrize("form", ["two_level", "group"])
def test_a_fit_keeps_more_than_a_projection(form):
    model = network()
    x = images_like_real(80, 6, 6, 8)
    fitted, report = keras_tlgc.convert(model, 2, form, data=x)
    projected, _ = keras_tlgc.convert(model, 2, form)
    again, _ = keras_tlgc.convert(model, 2, form, data=x)
    unseen = images_like_real(40, 6, 6, 8, seed=1)
    assert error_of(fitted, model, unseen) < 0.5 * error_of(
        projected, model, unseen
    )
    for one, other in zip(fitted.weights, again.weights, strict=True):
        np.testing.assert_allclose(
            to_numpy(one), to_numpy(other), rtol=1e-4, atol=1e-5
        )
    assert all(0 <= row.output_error < 1 for row in report.converted)
    assert report.columns[5:7] == ("kernel error", "output error")
    cells = report.cells[0]
    assert cells[6] == f"{report.rows[0].output_error:.3f}"


@pytest.mark.once
def test_what_loses_nothing_stays():
    model = network()
    model.get_layer("stem").kernel.assign(0 * model.get_layer("stem").kernel)
    names = ["stem", "a", "b", "side", "sequential", "inner", "last"]
    x = random(8, 6, 6, 8)
    _, report = keras_tlgc.convert(model, 2, data=x, where="stem")
    assert report.converted[0].output_error == 0  # A layer of zeros.
    assert report.converted[0].name in names
    model = keras.Sequential(
        [
            keras.Input((8, 8, 8)),
            conv(name="a", strides=2, activation="relu"),
            layers.BatchNormalization(),
            conv(16, name="b"),
        ]
    )
    _, report = assert_converts(model, ["a", "b"], data=random(32, 8, 8, 8))
    assert max(row.output_error for row in report.converted) < 1e-6


@pytest.mark.once
def test_shared_layers_inputs_and_time():
    a = keras.Input((3, 6, 6, 8), name="a")
    b = keras.Input((6, 6, 8), name="b")
    shared = conv(name="shared", activation="relu")
    norm = layers.BatchNormalization()
    inner = keras.Sequential([keras.Input((6, 6, 8)), conv(name="c")])
    x = layers.TimeDistributed(inner, name="t")(a)
    x = layers.TimeDistributed(conv(name="d"), name="u")(x)
    x = keras.ops.mean(x, axis=1)
    x = norm(shared(x)) + norm(shared(norm(shared(b))))
    model = keras.Model({"a": a, "b": b}, conv(8, 1, name="last")(x))
    data = {
        "a": images_like_real(40, 3, 6, 6, 8),
        "b": images_like_real(40, 6, 6, 8),
    }
    fitted, report = keras_tlgc.convert(model, 2, data=data)
    assert len(report.converted) == 4
    assert all(0 < row.output_error < 1 for row in report.converted)
    projected, _ = keras_tlgc.convert(model, 2)
    assert error_of(fitted, model, data) < 0.7 * error_of(
        projected, model, data
    )
    as_list = [data["a"], data["b"]]
    model = keras.Model([a, b], model.output)
    again, _ = keras_tlgc.convert(model, 2, data=as_list)
    assert error_of(again, model, as_list) < 0.5


class Batches(keras.utils.PyDataset):
    """Batches of five, as tuples of arrays or as arrays alone."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return 4

    def __getitem__(self, i):
        parts = tuple(x[5 * i : 5 * i + 5] for x in self.arrays)
        return parts if len(parts) > 1 else parts[0]


def kinds_of_data(x, y):
    """Yield what `predict` takes on any backend and on this one."""
    yield from (Batches(x), Batches(x, y), Batches(x, y, y / 20))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        for arrays in (x, (x, y), (x, y, y / 20)):
            yield tf.data.Dataset.from_tensor_slices(arrays).batch(5)
    if keras.backend.backend() == "torch":
        import torch

        for arrays in ((x,), (x, y), (x, y, y / 20)):
            pairs = torch.utils.data.TensorDataset(*map(torch.tensor, arrays))
            yield torch.utils.data.DataLoader(pairs, batch_size=5)


def test_kinds_of_data():
    model = two()
    x, y = images_like_real(20, 8, 8, 16), np.arange(20)
    expected, _ = keras_tlgc.convert(model, 2, data=x)
    for data in kinds_of_data(x, y):
        np.testing.assert_array_equal(Images(model, data).arrays[0], x)
        new, _ = keras_tlgc.convert(model, 2, data=data)
        assert_same_outputs(new, expected, 1e-5)


@pytest.mark.once
def test_scores_and_what_is_said():
    model = keras.Sequential(
        [*two().layers, layers.GlobalAveragePooling2D(), layers.Softmax()]
    )
    x = images_like_real(50, 8, 8, 16)
    labels = to_numpy(model(x)).argmax(-1)
    _, report = keras_tlgc.convert(model, 4, data=x, evaluate=labels)
    assert report.score == 1
    assert 0 <= report.new_score <= 1
    assert f"; score 1 -> {report.new_score:.4g}" in report.summary
    _, report = keras_tlgc.convert(
        model, 4, evaluate=lambda model: model.count_params()
    )
    assert (report.score, report.new_score) == (
        report.params,
        report.new_params,
    )
    # Two images of random pixels say nothing of others.
    model = keras.Sequential([keras.Input((4, 4, 32)), conv(32, name="c")])
    new, report = keras_tlgc.convert(model, 4, data=random(2, 4, 4, 32))
    assert "1 layers have seen fewer positions than a filter" in report.summary
    assert all(np.isfinite(to_numpy(v)).all() for v in new.weights)


@pytest.mark.once
def test_images_that_no_longer_tell_keep_projected_kernels():
    model = keras.Sequential([keras.Input((4, 4, 32)), conv(32, name="c")])
    x = np.zeros((10, 4, 4, 32), "float32")
    new, report = keras_tlgc.convert(model, 4, data=x)
    expected, _ = keras_tlgc.convert(model, 4)
    assert "1 layers keep their projected kernels" in report.summary
    np.testing.assert_array_equal(
        to_numpy(new.layers[0].kernel), to_numpy(expected.layers[0].kernel)
    )


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "random"}, "`weights` must be 'project' with `data`"),
        ({"data": np.ones((1, 8, 8, 16))}, "at least 2 inputs of the model"),
        ({"data": np.full((4, 8, 8, 16), np.nan)}, "values from nan to nan"),
        ({"data": np.full((4, 8, 8, 16), 1e30)}, r"layer 'first'.*range of"),
        ({"evaluate": np.arange(3)}, "`evaluate` must be a function of a"),
        ({"evaluate": np.ones(4)}, "an integer label for each"),
    ],
)
def test_bad_input(options, message):
    options = {"data": np.ones((4, 8, 8, 16)), **options}
    with pytest.raises(ValueError, match=message):
        keras_tlgc.convert(two(), 2, **options)


@pytest.mark.once
def test_masks_are_refused():
    x = keras.Input((6, 8))
    y = layers.ReLU()(layers.Masking()(x))
    model = keras.Model(x, [layers.Conv1D(8, 3)(x), y])
    with pytest.raises(ValueError, match="must hand on no masks"):
        keras_tlgc.convert(model, 2, data=np.ones((4, 6, 8)))
