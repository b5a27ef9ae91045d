"""`lowering="auto"` asks a file that `tune` wrote, if the user names it."""

import json

import keras
import numpy as np
import pytest
from clocks import network, written
from helpers import random, to_numpy
from meshes import ON_JAX

import keras_tlgc
from keras_tlgc.layers import GroupConv1D, GroupConv2D
from keras_tlgc.layers.asking import tuned_lowering
from keras_tlgc.ops import lowerings, tuned, use_tuned


@pytest.fixture(autouse=True)
def _no_file(monkeypatch):
    monkeypatch.delenv(tuned.VARIABLE, raising=False)
    monkeypatch.setattr(tuned, "_answer", tuned._UNREAD)


def computed_by(monkeypatch):
    """Return the list of the lowerings that compute something."""
    seen = []

    def spied(name, function):
        def compute(*args, **kwargs):
            seen.append(name)
            return function(*args, **kwargs)

        return compute

    for name, function in lowerings._FUNCTIONS.items():
        monkeypatch.setitem(lowerings._FUNCTIONS, name, spied(name, function))
    return seen


@pytest.mark.parametrize("by", ["variable", "argument"])
def test_auto_asks_the_file_that_is_named(by, monkeypatch, tmp_path):
    path = tmp_path / "tuned.json"
    written(monkeypatch, path, network(), 2)
    model, x = network(), random(2, 8, 8, 8)
    seen = computed_by(monkeypatch)
    use_tuned(None)
    before = to_numpy(model(x))
    assert "slices" not in seen
    if by == "variable":
        monkeypatch.setenv(tuned.VARIABLE, str(path))
        monkeypatch.setattr(tuned, "_answer", tuned._UNREAD)
    else:
        use_tuned(path)
    seen.clear()
    after = to_numpy(model(x))
    assert {*seen} == {"slices"}
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    # Another batch does not ask, nor a layer with a lowering of its own.
    seen.clear()
    model(random(3, 8, 8, 8))
    assert "slices" not in seen
    model.get_layer("a").lowering = "native"
    model(x)
    assert "native" in seen


@pytest.mark.once
def test_rows_are_merged(monkeypatch, tmp_path):
    path = tmp_path / "tuned.json"
    model = network()
    written(monkeypatch, path, model, 2)
    written(monkeypatch, path, model, 4, "native")
    written(monkeypatch, path, model, 2, "taps")
    found = [(row.call.batch_size, row.lowering) for row in tuned.read(path)]
    assert found == [(2, "taps")] * 2 + [(4, "native")] * 2
    # TensorFlow may trace for any batch.
    use_tuned(path)
    [call, *_] = [row.call for row in tuned.read(path)]
    for batch, lowering in [(2, "taps"), (3, "auto"), (None, "native")]:
        asked = call._replace(batch_size=batch)
        assert tuned.asked(asked, None) == lowering


@pytest.mark.once
def test_a_train_step_comes_before_a_forward_pass(monkeypatch, tmp_path):
    path = tmp_path / "tuned.json"
    written(monkeypatch, path, network(), 2)
    rows = tuned.read(path)
    tuned.write(path, [rows[0]._replace(training=False, lowering="taps")])
    assert len(tuned.read(path)) == 3
    use_tuned(path)
    assert tuned.asked(rows[0].call, None) == "slices"


@pytest.mark.once
def test_causal_windows_are_found_again(monkeypatch, tmp_path):
    def causal():
        conv = GroupConv1D(8, 3, padding="causal", groups=2, name="a")
        return keras.Sequential([keras.Input((6, 8)), conv])

    path = tmp_path / "tuned.json"
    written(monkeypatch, path, causal(), 2, "taps")
    [row] = tuned.read(path)
    assert (row.call.size, row.call.padding) == ((8,), "valid")
    use_tuned(path)
    seen = computed_by(monkeypatch)
    causal()(random(2, 6, 8))
    assert seen == ["taps"]


@ON_JAX
def test_a_mesh_asks_for_one_device_and_takes_no_dense():
    asked = []

    def answer(call, layer):
        asked.append(call.batch_size)
        return "dense"

    devices = keras.distribution.list_devices()[:2]
    mesh = keras.distribution.DataParallel(devices=devices)
    keras.distribution.set_distribution(mesh)
    layer = GroupConv2D(8, 1, groups=2, data_format="channels_last")
    x = random(4, 3, 3, 8)
    layer.build(x.shape)
    with tuned.answered_by(answer):
        assert tuned_lowering(layer, keras.ops.array(x), "valid") == "auto"
        with pytest.raises(ValueError, match="tuned on one device"):
            keras_tlgc.tune(network(), 2)
    assert asked == [2]


@pytest.mark.once
@pytest.mark.parametrize(
    "content, message",
    [
        (None, "must be one that can be read.* Name one in KERAS_TLGC_TUNED"),
        ("{", r"as `keras_tlgc.tune` writes it.*JSONDecodeError"),
        ("[]", "of format None. Delete it"),
        ('{"format": 2, "rows": []}', "reads: 1.*of format 2"),
        ('{"format": 1}', "KeyError: 'rows'"),
        ('{"format": 1, "rows": [{"lowering": "magic"}]}', "'magic'"),
        ('{"format": 1, "rows": [{"lowering": "auto"}]}', "KeyError: 'call'"),
    ],
)
def test_bad_files(content, message, tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    if content is not None:
        path.write_text(content)
        # Nothing is measured that could not be written.
        with pytest.raises(ValueError, match=message):
            keras_tlgc.tune(network(), 2, path=path)
    with pytest.raises(ValueError, match=message):
        use_tuned(path)
    monkeypatch.setenv(tuned.VARIABLE, str(path))
    with pytest.raises(ValueError, match=message):
        network()(random(2, 8, 8, 8))


@pytest.mark.once
def test_a_file_of_another_machine_warns(monkeypatch, tmp_path):
    path = tmp_path / "tuned.json"
    written(monkeypatch, path, network(), 2)
    content = json.loads(path.read_text())
    for row in content["rows"]:
        row["machine"]["device"] = "abacus"
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="has no row for .* Call `keras_tlgc"):
        use_tuned(path)
    assert tuned.asked(tuned.read(path)[0].call, None) == "auto"
