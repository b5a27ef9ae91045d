"""What runs on several devices on TensorFlow and PyTorch.

Their own tools for data parallelism do: `tf.distribute` under `fit`, and
DistributedDataParallel around a model in a loop.
"""

import json
import runpy

import keras
import numpy as np
import pytest
from helpers import run_python
from processes import free_port, together, torchrun

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="tf.distribute is TensorFlow's",
)
on_torch = pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="DistributedDataParallel is PyTorch's",
)
# The processes of one test build the same network and data from these lines.
COMMON = """
import sys
import numpy as np
import keras
from keras_tlgc.layers import GroupConv2D, TwoLevelGroupConv2D

BATCH = 8


def network(kind, synchronized=False):
    keras.utils.set_random_seed(0)
    normalisation = [keras.layers.BatchNormalization(synchronized=synchronized)]
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            *(normalisation if kind == "normalised" else []),
            GroupConv2D(64, 3, groups=4, activation="relu"),
            TwoLevelGroupConv2D(64, 3, groups=4, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )


def images(count):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, 8, 8, 3)).astype("float32")
    return x, rng.integers(0, 3, count)

"""

MIRRORED = (
    COMMON
    + """
import contextlib
import pathlib
import tensorflow as tf

[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
folder, *runs = sys.argv[1:]
x, y = images(22)


def train(run):
    with contextlib.nullcontext() if run == "one" else strategy.scope():
        model = network("normalised", synchronized=run == "two")
        model.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    history = model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=2,
        shuffle=False,
        verbose=0,
    ).history
    path = pathlib.Path(folder, f"{run}.keras")
    model.save(path)
    np.savez(
        path.with_suffix(".npz"),
        history=np.array([history["loss"], history["accuracy"]]),
        evaluate=model.evaluate(x, y, batch_size=BATCH, verbose=0),
        predict=model.predict(x, batch_size=BATCH, verbose=0),
        reloaded=keras.saving.load_model(path)(x, training=False),
        weights=np.concatenate([w.ravel() for w in model.get_weights()]),
    )


for run in runs:
    train(run)
"""
)


def assert_close(one, two, names):
    for name in names:
        np.testing.assert_allclose(
            two[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name
        )


@on_tensorflow
def test_mirrored_strategy_trains_as_one_device(tmp_path):
    # BatchNormalization(synchronized=True) has the statistics of the batch. The
    # last batch has 6 images, 3 for each device. What fails here fails with
    # Conv2D as well: `jit_compile=True`, `steps_per_execution=2`, and a batch
    # of 1 image where channels change, since on a CPU TensorFlow's convolution
    # of no image, the other device's, returns the channels that it got. It has
    # a process of its own, since devices are split before TensorFlow starts.
    run_python(MIRRORED, tmp_path, "one", "two")
    one, two = (np.load(tmp_path / f"{run}.npz") for run in ("one", "two"))
    assert_close(one, two, one)
    assert one["history"][0, -1] < one["history"][0, 0] - 0.01


WORKERS = (
    COMMON
    + """
import tensorflow as tf

folder, name = sys.argv[1:]
strategy = tf.distribute.get_strategy()
if name != "one":
    # It finds the others in TF_CONFIG, before all else that uses TensorFlow.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
x, y = images(16)
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = (
    tf.data.experimental.AutoShardPolicy.DATA
)
data = strategy.experimental_distribute_dataset(data.with_options(options))
with strategy.scope():
    first, *others = network("convolutions").layers
    normalisation = keras.layers.BatchNormalization(synchronized=True)
    model = keras.Sequential([first, normalisation, *others])
    model.build((None, 8, 8, 3))
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    optimizer.build(model.trainable_variables)
error_of = keras.losses.SparseCategoricalCrossentropy(
    from_logits=True, reduction=None
)


def on_one_worker(x, y):
    with tf.GradientTape() as tape:
        # Gradients are added up, so each worker has a part of the mean.
        loss = tf.reduce_sum(error_of(y, model(x, training=True))) / BATCH
    weights = [v.value for v in model.trainable_variables]
    optimizer.apply(tape.gradient(loss, weights), model.trainable_variables)
    return loss


@tf.function
def step(batch):
    loss = strategy.run(on_one_worker, args=batch)
    return strategy.reduce("SUM", loss, axis=None)


np.savez(
    f"{folder}/{name}.npz",
    losses=[step(batch) for _ in range(2) for batch in data],
    weights=np.concatenate([w.ravel() for w in model.get_weights()]),
    predict=model(x, training=False),
    images=x,
)
if name == "0":
    model.save(f"{folder}/{name}.keras")  # Without the others.
if name != "one":
    with strategy.scope():
        model.compile("sgd", error_of)
    try:
        model.fit(x, y, batch_size=BATCH, verbose=0)
    except ValueError as error:
        assert "PerReplica" in str(error), error
    else:
        raise AssertionError("Keras trains on several workers now: say so.")
"""
)


@on_tensorflow
def test_workers_train_as_one_process(tmp_path, monkeypatch):
    """In a loop: `fit` fails in Keras, see keras-team/keras#20585."""
    script = tmp_path / "train.py"
    script.write_text(WORKERS)
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    cluster = {"cluster": {"worker": addresses}}
    together(
        [[script, tmp_path, i] for i in range(2)],
        *(
            {"TF_CONFIG": json.dumps(cluster | {"task": task})}
            for task in [{"type": "worker", "index": i} for i in range(2)]
        ),
    )
    monkeypatch.setattr("sys.argv", [str(script), str(tmp_path), "one"])
    runpy.run_path(script)
    one, first, second = (
        dict(np.load(tmp_path / f"{name}.npz")) for name in ("one", "0", "1")
    )
    assert_close(one, first, one)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert one["losses"][-1] < one["losses"][0] - 0.01
    model = keras.saving.load_model(tmp_path / "0.keras")
    predicted = model.predict(one["images"], verbose=0)
    assert_close(one, {"predict": predicted}, ["predict"])


PARALLEL = (
    COMMON
    + """
import os
import pathlib
import torch
import torch.distributed as dist

folder = sys.argv[1]
x, y = images(22)


def train(kind, name, rank, ranks):
    model = parallel = network(kind)
    if ranks > 1:
        # Training starts from the weights of the first process.
        model.set_weights([w + rank for w in model.get_weights()])
        parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.05, momentum=0.9)
    losses = []
    for first in [*range(0, len(x), BATCH)] * 2:
        share = slice(first + rank, min(first + BATCH, len(x)), ranks)
        logits = parallel(torch.from_numpy(x[share]), training=True)
        loss = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(y[share])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss = loss.detach()
        if ranks > 1:
            dist.all_reduce(loss)
        losses.append(float(loss) / ranks)
    path = pathlib.Path(folder, f"{kind}_{name}.keras")
    model.save(path)
    weights = [v.numpy().ravel() for v in model.trainable_variables]
    np.savez(
        path.with_suffix(".npz"),
        losses=losses,
        weights=np.concatenate(weights),
        # `predict` of Keras 3.16 would make all processes one model.
        predict=model(torch.from_numpy(x), training=False).detach(),
        images=x,
    )


kinds = ("convolutions", "normalised")
if os.environ["RANK"] == "0":
    for kind in kinds:
        train(kind, "one", 0, 1)
dist.init_process_group("gloo")
rank = dist.get_rank()
for kind in kinds:
    train(kind, f"rank_{rank}", rank, dist.get_world_size())
dist.destroy_process_group()
"""
)


@on_torch
def test_distributed_data_parallel_trains_as_one_process(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(PARALLEL)
    torchrun(2, script, tmp_path)

    def found(kind):
        names = [f"{kind}_{name}.npz" for name in ("one", "rank_0", "rank_1")]
        return [dict(np.load(tmp_path / name)) for name in names]

    one, first, second = found("convolutions")
    assert_close(one, first, one)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert one["losses"][-1] < one["losses"][0] - 0.01
    # The model in it is an ordinary one: what it saves loads anywhere.
    model = keras.saving.load_model(tmp_path / "convolutions_rank_1.keras")
    predicted = model.predict(one["images"], verbose=0)
    assert_close(one, {"predict": predicted}, ["predict"])

    # The processes share gradients and nothing else: each normalises by the
    # statistics of its own images, and ends with moving statistics of its own.
    one, first, second = found("normalised")
    assert np.isfinite(first["losses"]).all()
    np.testing.assert_array_equal(first["weights"], second["weights"])
    assert np.abs(one["weights"] - first["weights"]).max() > 1e-4
    assert np.abs(first["predict"] - second["predict"]).max() > 1e-4
