"""`keras-tlgc train --mesh`, `audit` and `plan`."""

import re

import keras
import numpy as np
import pytest
from commands import error_of, output_of, rows_of
from helpers import run_python
from meshes import ON_JAX, compiled
from networks import few_stages  # noqa: F401
from tiny import (
    Interrupt,
    assert_same_run,
    settings,
    tiny_run,  # noqa: F401  A fixture.
)

from keras_tlgc import cli, lab
from keras_tlgc.applications import WideResNet
from keras_tlgc.distribution import save
from keras_tlgc.distribution.mesh import parse_mesh
from keras_tlgc.lab import paper
from keras_tlgc.sharding.per_shard import can_split

SMALL = ["--model", "wrn-10-1", "--image-size", "8"]


def run_of(folder):
    history = lab.RunFolder(folder).history()
    model = keras.saving.load_model(folder / "model.keras")
    return history, model.get_weights()


def assert_near(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.fixture(autouse=True)
def _eight_devices():
    """Begin with JAX's devices made: a command may else make more."""
    if keras.backend.backend() == "jax":
        keras.distribution.list_devices()


# --- train


@ON_JAX
@pytest.mark.real_network
@pytest.mark.usefixtures("tiny_run", "few_stages")
def test_runs_on_any_mesh_and_goes_on_on_another(tmp_path):
    """Interrupted amid an epoch, it repeats that epoch, on another mesh."""
    chosen = settings(conv="two_level", groups=2, epochs=3)
    straight, other = tmp_path / "straight", tmp_path / "other"
    lab.train(chosen, straight, verbose=0)
    with pytest.raises(Interrupt.Kill):
        lab.train(
            chosen, other, verbose=0, callbacks=[Interrupt(1, 2)], mesh=(1, 2)
        )
    assert keras.distribution.distribution() is None
    assert [row["epoch"] for row in lab.RunFolder(other).history()] == [0]
    with pytest.raises(Interrupt.Kill):
        lab.train(
            chosen,
            other,
            resume=True,
            verbose=0,
            callbacks=[Interrupt(1)],
            mesh=(4, 2),
        )
    lab.train(chosen, other, resume=True, verbose=0)
    assert_near(run_of(other), run_of(straight))


@ON_JAX
@pytest.mark.real_network
@pytest.mark.usefixtures("tiny_run", "few_stages")
def test_recipe_precision_mesh_and_resume_combine(tmp_path):
    chosen = settings(
        groups=2,
        epochs=2,
        precision="mixed_bfloat16",
        augmentation="shifts",
        weight_decay=5e-4,
        seed=1,
    )
    mesh = {"mesh": (2, 2), "verbose": 0}
    lab.train(chosen, tmp_path / "whole", **mesh)
    with pytest.raises(Interrupt.Kill):
        lab.train(
            chosen, tmp_path / "killed", callbacks=[Interrupt(1, 2)], **mesh
        )
    lab.train(chosen, tmp_path / "killed", resume=True, **mesh)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert keras.config.dtype_policy().name == "float32"


# More steps at once than XLA starts before it waits for the first.
MANY_STEPS = """
import jax
from jax.sharding import NamedSharding, PartitionSpec
from keras_tlgc.distribution import model_parallel

mesh = model_parallel((1, 4)).device_mesh.backend_mesh
columns = PartitionSpec(None, "model")

@jax.jit
@jax.shard_map(mesh=mesh, in_specs=columns, out_specs=columns)
def step(x):
    whole = jax.lax.all_gather(x, "model", axis=1, tiled=True)
    return (whole @ whole.T / 300)[:, : x.shape[1]]

x = jax.device_put(jax.numpy.ones((256, 256)), NamedSharding(mesh, columns))
for _ in range(500):
    x = step(x)
print(x.block_until_ready().shape)
"""


@ON_JAX
@pytest.mark.parametrize("there", ["0", "4"])
def test_devices_of_a_cpu_do_not_wait_forever(there):
    printed = run_python(
        MANY_STEPS, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=there, NPROC="1"
    )
    assert printed.split() == ["(256,", "256)"]


REFUSALS = [
    ("train --mesh 4", "A mesh must be two positive integers"),
    ("train --mesh 1x8", "must divide the groups"),
    ("train --mesh 4x1", "must divide the batch. Received: batch_size=50"),
    ("train --mesh 1x9", "9 places, and 8 devices"),
    ("audit --conv dense", "`conv` must be one of"),
    ("audit --batch-size 7 --mesh 2x2", "must divide the batch"),
    ("audit --model none.keras", "none.keras, which does not exist"),
    ("plan --peak 0", "--peak must be a positive, finite number"),
    ("plan --model WideResNet --devices 0", "`devices` must be"),
    ("plan --model WideResNet --conv dense", "`conv` must be one"),
    ("plan --model WideResNet --devices 9", "9 places, and 8 devices"),
]


@ON_JAX
@pytest.mark.parametrize(("command", "message"), REFUSALS)
def test_refusals(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, *command.split())
    assert not list(tmp_path.iterdir())


def test_sizes_of_a_mesh():
    assert parse_mesh("2x4") == (2, 4)
    assert parse_mesh("1X16") == (1, 16)


BEFORE_MESHES = pytest.mark.skipif(
    can_split(), reason="this Keras has meshes on PyTorch"
)


@pytest.mark.backends("torch", reason="JAX has what they need")
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["audit"], marks=BEFORE_MESHES),
        ["plan"],
        ["train", "--mesh", "1x2"],
    ],
    ids=str,
)
def test_other_backends(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert "A mesh needs the JAX backend" in error_of(capsys, *arguments)
    assert not list(tmp_path.iterdir())


# --- audit


@ON_JAX
def test_audit(capsys, few_stages):  # noqa: F811
    text = output_of(capsys, "audit", "--mesh", "2x2", *SMALL)
    assert "mesh batch 2 x model 2" in text
    assert re.search(r"\| stage2_block1_conv2 +\| all-gather ", text)
    assert text.endswith("OK: nothing moves but what is expected.\n")


@ON_JAX
def test_audit_fails_where_more_moves(capsys, monkeypatch, few_stages):  # noqa: F811
    real = cli.audit.model_parallel

    def with_a_rule(*arguments, **options):
        distribution = real(*arguments, **options)
        distribution._layout_map[".*bn1.*"] = ("model",)
        return distribution

    monkeypatch.setattr(cli.audit, "model_parallel", with_a_rule)
    text = output_of(capsys, "audit", "--mesh", "1x2", *SMALL, status=1)
    assert "The rule '.*bn1.*' of the layout map matches outputs" in text
    assert "NOT OK: " in text


@ON_JAX
def test_audit_of_a_saved_model(tmp_path, capsys, few_stages):  # noqa: F811
    path = tmp_path / "model.keras"
    network = WideResNet(
        10, 1, conv="two_level", groups=4, input_shape=(8, 8, 3)
    )
    compiled(network).optimizer.build(network.trainable_variables)
    save(network, path)
    arguments = ["audit", "--model", str(path), "--batch-size", "8"]
    text = output_of(capsys, *arguments)
    assert "batch 8, mesh batch 1 x model 4" in text


# --- plan


@ON_JAX
def test_plan(capsys, few_stages):  # noqa: F811
    text = output_of(
        capsys,
        *["plan", *SMALL, "--devices", "1,2"],
        *["--conv", "standard,two_level", "--peak", "0.001"],
    )
    assert "A model, not a measurement: each device attains 0.001" in text
    rows = rows_of(text)
    assert [row[1] for row in rows] == ["SC", "SC", "GC-2L", "GC-2L"]
    seconds = [float(row[6]) for row in rows]
    assert seconds[1] < seconds[0]  # Two devices halve the operations,
    assert seconds[3] < 0.75 * seconds[1]  # and two groups once more.


@ON_JAX
def test_plan_of_the_paper(capsys, monkeypatch, few_stages):  # noqa: F811
    small = [paper.WALL_CLOCKS[1]._replace(width=1)]
    monkeypatch.setattr(paper, "WALL_CLOCKS", small)
    text = output_of(capsys, "plan", "--batch-size", "8")
    assert "wrn-28-1" in text
    assert f"{small[0].seconds:.3f}" in text


def test_times_of_the_paper():
    first = paper.WALL_CLOCKS[0]
    assert first.seconds == pytest.approx((49 + 43 / 60) * 3600 / 78_000)
    assert {row.devices for row in paper.WALL_CLOCKS} == {1, 2, 4}
