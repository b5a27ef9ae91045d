"""The audit over two processes of PyTorch, with Keras 3.16 or newer."""

import json
import math
from collections import Counter

import keras
import pytest
import torch_audit
from commands import rows_of, run
from test_torch_mesh import ON_TORCH, SPLITS, torchrun

from keras_tlgc.audit import audit
from keras_tlgc.sharding.per_shard import can_split

# Coarse channels that a layer of WRN-10-1 on 8x8 images exchanges: the number
# of its groups at each position of its outputs.
GROUPS = 4
POSITIONS = {
    "stage1_block1_conv1": 64,
    "stage1_block1_conv2": 64,
    "stage2_block1_conv1": 16,
    "stage2_block1_conv2": 16,
    "stage2_block1_shortcut": 16,
    "stage3_block1_conv1": 4,
    "stage3_block1_conv2": 4,
    "stage3_block1_shortcut": 4,
}


@pytest.fixture(scope="module")
def audits(tmp_path_factory):
    path = tmp_path_factory.mktemp("audits") / "audits.json"
    torchrun(2, torch_audit.__file__, path)
    return json.loads(path.read_text())


@ON_TORCH
@SPLITS
def test_two_level_network(audits):
    """Each layer gathers N r channels, and scatters their gradients."""
    found = audits["two_level 1x2"]
    assert found["ok"], found["text"]
    rows = {(row["layer"], row["kind"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 2 * len(POSITIONS) + 1
    received = 0
    for layer, positions in POSITIONS.items():
        entries = torch_audit.BATCH * positions * GROUPS
        for kind, share in (("all-gather", 1), ("reduce-scatter", 2)):
            row = rows[layer, kind]
            assert (row["role"], row["axes"]) == ("coarse", ["model"])
            assert math.prod(row["shape"]) * share == entries
            assert row["bytes"] == 4 * entries // 2
        received += 4 * entries // 2
    assert found["formula"] == dict.fromkeys(
        ("all-gather", "reduce-scatter"), received
    )
    logits = rows["predictions", "all-reduce"]
    assert (logits["role"], logits["shape"]) == ("outputs", [16, 4])


@ON_TORCH
@SPLITS
def test_batch_axis(audits):
    """Sums of gradients are expected, gathering a batch is not."""
    found = audits["two_level 2x1"]
    assert {tuple(row["axes"]) for row in found["rows"]} == {("batch",)}
    kinds = Counter(
        row["kind"] for row in found["rows"] if row["role"].startswith("grad")
    )
    assert set(kinds) == {"all-reduce", "reduce-scatter", "all-gather"}
    unexpected = {row["layer"] for row in found["rows"] if not row["role"]}
    assert all("_bn" in layer for layer in unexpected), unexpected


@ON_TORCH
@SPLITS
def test_rule_of_keras_for_convolutions(audits):
    found = audits["rule 1x2"]
    assert not found["ok"]
    (warning,) = found["warnings"]
    assert warning.startswith("PyTorch fails in conv2d: ")
    assert "unless `get_layout_map` makes the layout map" in warning
    assert "NOT OK" in found["text"]


@ON_TORCH
@SPLITS
def test_variable_without_a_gradient(audits):
    found = audits["unused"]
    (warning,) = found["warnings"]
    assert "/unused/idle, which stay as they are" in warning
    assert not found["ok"]


@ON_TORCH
@SPLITS
def test_bad_audits(audits):
    assert audits["data parallel"].startswith(
        "On PyTorch `audit` needs a `keras.distribution.ModelParallel`. "
        "Received: DataParallel"
    )
    assert "must be made under the distribution" in audits["made before"]


@ON_TORCH
@pytest.mark.skipif(can_split(), reason="this Keras has meshes on PyTorch")
def test_older_keras_is_named():
    with pytest.raises(ValueError, match=r"PyTorch with Keras 3\.16 or newer"):
        audit(keras.Sequential([keras.layers.Dense(2)]), 8)


@ON_TORCH
@SPLITS
def test_command():
    ended = run(
        *["audit", "--mesh", "1x2", "--model", "wrn-10-1"],
        *["--image-size", "8", "--batch-size", "8"],
        GLOO_SOCKET_IFNAME="lo",
    )
    assert ended.returncode == 0, ended.stderr
    assert len(rows_of(ended.stdout)) == 2 * len(POSITIONS) + 1
    assert ended.stdout.endswith("OK: nothing moves but what is expected.\n")
