"""Networks that people have, converted: run, trained, saved and loaded."""

import keras
import numpy as np
import pytest
from exact import make_exact
from helpers import random, to_numpy
from peers import PEERS, SHAPE

import keras_tlgc

pytestmark = [
    # Of these packages, and of what they import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
GROUPS = 4


# One operation after the other, JAX compiles each for its shape; TensorFlow
# and PyTorch take longer to compile all of a network than to run it once.
COMPILE = keras.backend.backend() == "jax"


@pytest.fixture(params=PEERS)
def name(request):
    for prefix, package in (("hub_", "keras_hub"), ("cv_", "keras_cv")):
        if request.param.startswith(prefix):
            pytest.importorskip(package, reason=f"{package} is not installed")
    if COMPILE and request.param == "DenseNet121":
        pytest.skip("JAX compiles its 120 convolutions for two minutes")
    return request.param


def outputs_of(model):
    model.run_eagerly = not COMPILE
    # Images, of a sort.
    y = model.predict(255 * random(2, *SHAPE) ** 2 % 255, verbose=0)
    return keras.tree.flatten(y)


@pytest.mark.once
def test_converted_peer(name, tmp_path):
    build, convolutions, converted = PEERS[name]
    model = build()
    for variable in model.weights:
        if "moving_variance" in variable.path:  # So that signals live on.
            variable.assign(np.full(variable.shape, 0.1))
    make_exact(model, GROUPS)
    expected = outputs_of(model)

    new, report = keras_tlgc.convert(model, GROUPS)

    assert len(report.rows) == convolutions
    assert len(report.converted) == converted
    assert max(row.error for row in report.converted) < 1e-6
    given = outputs_of(new)
    for mine, theirs in zip(given, expected, strict=True):
        scale = np.abs(theirs).max()
        assert scale > 1e-6
        np.testing.assert_allclose(mine / scale, theirs / scale, atol=1e-3)

    path = tmp_path / "model.keras"
    new.save(path)
    loaded = keras.saving.load_model(path, compile=False)
    assert type(loaded) is type(new)
    for mine, theirs in zip(outputs_of(loaded), given, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)

    train_a_step(new)


def train_a_step(model):
    before = [to_numpy(v) for v in model.trainable_variables]
    targets = keras.tree.map_structure(
        lambda y: np.ones((4, *y.shape[1:]), "float32"), model.output
    )
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=COMPILE)
    model.fit(random(4, *SHAPE), targets, batch_size=4, verbose=0)
    changed = [
        not np.array_equal(to_numpy(v), old)
        for v, old in zip(model.trainable_variables, before, strict=True)
    ]
    assert np.mean(changed) > 0.9


def test_a_task_of_kerashub_keeps_what_it_is(tmp_path):
    keras_hub = pytest.importorskip("keras_hub", reason="not installed")
    task = PEERS["hub_resnet_classifier"][0]()
    make_exact(task, GROUPS)

    new, report = keras_tlgc.convert(task, GROUPS)

    assert type(new) is keras_hub.models.ResNetImageClassifier
    backbone = task.backbone.name
    assert report.rows[0].name.startswith(f"{backbone}/")
    assert f"'{backbone}' is a functional model now" in report.summary
    [expected], [given] = outputs_of(task), outputs_of(new)
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-4)
    new.save_to_preset(str(tmp_path / "preset"))
    loaded = keras_hub.models.ImageClassifier.from_preset(
        str(tmp_path / "preset")
    )
    assert type(loaded) is type(new)
    np.testing.assert_allclose(outputs_of(loaded)[0], given, rtol=1e-5)
