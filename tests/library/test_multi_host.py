"""Several processes: the example, and what they must have in common."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from meshes import ON_JAX
from processes import free_port, together

from keras_tlgc.sharding.per_shard import can_split

EXAMPLE = Path(__file__).parents[2] / "examples" / "multi_host.py"


def start(commands, devices):
    """Run commands at the same time; return what each prints at last."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    printed = together(commands, environment)
    return [json.loads(out.splitlines()[-1]) for out in printed]


def example(checkpoint, *options, processes=1, devices=1):
    """Run the example; return the losses that every process prints."""
    address = f"127.0.0.1:{free_port()}"
    command = [EXAMPLE, "--checkpoint", checkpoint, *options]
    command += ["--coordinator", address, "--processes", processes]
    results = start(
        [[*command, "--process-id", i] for i in range(processes)], devices
    )
    assert [result["process"] for result in results] == [*range(processes)]
    assert all(result["loss"] == results[0]["loss"] for result in results)
    return results[0]["loss"]


@ON_JAX
def test_same_as_one_process(tmp_path):
    """Groups on two processes, then their run goes on, on another mesh."""
    straight = example(tmp_path / "straight.weights.h5")
    assert len(straight) == 2
    path = tmp_path / "run.weights.h5"
    begun = example(path, "--epochs", "1", processes=2)
    np.testing.assert_allclose(begun, straight[:1], atol=1e-5)
    assert not list(tmp_path.glob(".partial*"))

    # Now the batch is split over the processes, the groups within each.
    two = example(path, "--resume", "--mesh", "2x2", processes=2, devices=2)
    np.testing.assert_allclose(two, straight[1:], atol=1e-5)


ERRORS = """
import json, sys
from types import SimpleNamespace
import keras, numpy as np
from keras_tlgc.distribution import get_layout_map, save, uneven_batches
from keras_tlgc.layers import TwoLevelGroupConv1D

address, process, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
keras.distribution.initialize(address, 2, process)
devices = keras.distribution.list_devices()
errors = {}

def note(name, call):
    try:
        call()
        errors[name] = "no error"
    except ValueError as error:
        errors[name] = str(error)

def mesh(*shape):
    return keras.distribution.DeviceMesh(shape, ("batch", "model"), devices)

def distribute(*shape):
    layout_map = get_layout_map(mesh(*shape))
    layout_map["predictions/output"] = (None, None)
    keras.distribution.set_distribution(keras.distribution.ModelParallel(
        layout_map=layout_map, batch_dim_name="batch", auto_shard_dataset=False
    ))

def network(groups=4):
    inputs = keras.Input((6, 8))
    x = TwoLevelGroupConv1D(8, 3, groups=groups)(inputs)
    x = keras.layers.GlobalAveragePooling1D()(x)
    outputs = keras.layers.Dense(2, name="predictions")(x)
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    return model

class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows = 4 + index * process
        return x[mine][:rows], y[mine][:rows]

keras.utils.set_random_seed(process)
note("seeds", lambda: get_layout_map(mesh(1, len(devices))))
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(16, 6, 8)), rng.normal(size=(16, 2))
fit = dict(batch_size=4, verbose=0, shuffle=False)

alone = network()
distribute(1, len(devices))
note("made before", lambda: alone.fit(x, y, **fit))
note("groups", lambda: network(groups=1))
spanning = network()
note("other rows", lambda: spanning.fit(x + process, y, **fit))
rows = 4 + 2 * process
note("other sizes", lambda: spanning.fit(x[:rows], y[:rows], **fit))
note("sound", lambda: spanning.fit(x, y, **fit))
note("saved", lambda: save(spanning, path))

distribute(len(devices), 1)
note("other mesh", lambda: spanning.fit(x, y, **fit))
spanning = network()
note("same rows", lambda: spanning.fit(x, y, **fit))
mine = slice(8 * process, 8 * process + 8)
if keras.backend.backend() == "torch":
    note("later rows", lambda: spanning.fit(Batches(), verbose=0))
note("uneven", lambda: spanning.fit(x[mine][:3], y[mine][:3], **fit))
with uneven_batches():
    note("uneven too", lambda: spanning.fit(x[mine][:3], y[mine][:3], **fit))
data = SimpleNamespace(element_spec=(SimpleNamespace(shape=(None, 6, 8)),))
note("tf.data", lambda: spanning.fit(data))
note("sound too", lambda: spanning.fit(x[mine], y[mine], **fit))
predicted = spanning.predict(x[mine], verbose=0)
print(json.dumps([errors, predicted.shape]), flush=True)
if keras.backend.backend() == "torch":
    import torch

    torch.distributed.destroy_process_group()
"""

EXPECTED = {
    "seeds": "All processes must start from the same random state",
    "made before": "The model must be made under the distribution",
    "groups": "The devices along the model axis must divide the groups",
    "other rows": "must feed the same rows in the same order",
    "other sizes": "= [[4, 4], [4, 6]], by process",
    "sound": "no error",
    "saved": "no error",
    "other mesh": "on the mesh {'batch': 1, 'model':",
    "same rows": "must feed different rows",
    "uneven": "Each process must split its rows of every batch",
    "uneven too": "Leave an uneven last batch out",
    "tf.data": "all batches must have one size",
    "sound too": "no error",
}
# A process has one device, so that it has any number of rows to itself.
ON_TORCH = {
    "later rows": "must hold as many rows of every batch. Received: batches of "
    "[4, 5] rows",
    "uneven": "no error",
    "uneven too": "no error",
}


@pytest.mark.skipif(not can_split(), reason="this Keras has no meshes here")
def test_what_processes_must_have_in_common(tmp_path):
    is_torch = keras.backend.backend() == "torch"
    expected = EXPECTED | ON_TORCH if is_torch else EXPECTED
    script, path = tmp_path / "errors.py", tmp_path / "model.keras"
    script.write_text(ERRORS)
    address = f"127.0.0.1:{free_port()}"
    results = start([[script, address, i, path] for i in range(2)], devices=2)
    for errors, predicted in results:
        assert errors.keys() == expected.keys()
        for name, text in expected.items():
            assert text in errors[name], name
        # JAX has the whole batch in every process.
        assert predicted == [8 if is_torch else 16, 2]
    model = keras.saving.load_model(path)  # Written once, by the first.
    assert model.count_params() > 0
    assert [p.name for p in tmp_path.iterdir() if p != script] == [path.name]
