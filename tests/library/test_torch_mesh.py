"""Groups over several processes of PyTorch, with Keras 3.16 or newer."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import torch_mesh
from processes import torchrun

from keras_tlgc.distribution import get_layout_map, model_parallel
from keras_tlgc.sharding.per_shard import can_split

ON_TORCH = pytest.mark.backends("torch", reason="JAX has tests of its own")
SPLITS = pytest.mark.skipif(
    not can_split(), reason="Keras before 3.16 has no meshes on PyTorch"
)


@ON_TORCH
@SPLITS
@pytest.mark.parametrize(
    "processes, runs",
    [
        (
            2,
            [
                "1x2:wrn:two_level:float32",
                "1x2:wrn:two_level:mixed_bfloat16",
                "1x2:mobile:two_level:float32",
                "2x1:mobile:group:float32",
                "1x2:wrn:balanced:float32",
                "1x2:layers:standard:float32",
            ],
        ),
        (4, ["2x2:wrn:two_level:float32"]),
    ],
)
def test_same_as_one_process(tmp_path, processes, runs):
    torchrun(processes, torch_mesh.__file__, tmp_path, *runs)
    one = {}
    for number, run in enumerate(runs):
        mesh, what = run.split(":", 1)
        if what not in one:
            one[what] = torch_mesh.trained(*what.split(":"))
        model, expected = one[what]
        tolerance = 2e-2 if "bfloat16" in what else 1e-6
        devices = int(mesh.split("x")[1])
        seen = set()
        for process in range(processes):
            found = np.load(tmp_path / f"{number}.{process}.npz")
            for name in ("loss", "weights", "accuracy", "evaluate"):
                if tolerance > 1e-6 and name in ("accuracy", "evaluate"):
                    continue  # One image may be on the other side.
                np.testing.assert_allclose(
                    found[name], expected[name], atol=tolerance, err_msg=run
                )
            np.testing.assert_allclose(
                found["predict"],
                expected["predict"][found["rows"]],
                atol=10 * tolerance,
                err_msg=run,
            )
            held, whole = found["held"]
            np.testing.assert_array_equal(held * devices, whole)
            if mesh == "1x2" and "standard" not in what:
                # Those of each layer, and the sum of the logits.
                names = [w.name for w in model.weights]
                gathers = names.count("coarse_kernel")
                sums = 2 * names.count("balance_kernel") + 1
                expected_kinds = [gathers, gathers, sums]
                assert found["exchanges"].tolist() == expected_kinds
            seen.update(found["rows"].tolist())
        assert seen == set(range(torch_mesh.ROWS))
        saved = keras.saving.load_model(tmp_path / f"{number}.keras")
        weights = np.concatenate([w.ravel() for w in saved.get_weights()])
        np.testing.assert_array_equal(weights, found["weights"], err_msg=run)


@ON_TORCH
@pytest.mark.skipif(can_split(), reason="this Keras has meshes on PyTorch")
def test_older_keras_is_named():
    with pytest.raises(ValueError, match=r"PyTorch with Keras 3\.16 or newer"):
        model_parallel((1, 2))
    mesh = keras.distribution.DeviceMesh(
        (1, 2), ("batch", "model"), ["cpu:0", "cpu:1"]
    )
    with pytest.raises(ValueError, match=r"install keras>=3\.16"):
        get_layout_map(mesh)


@ON_TORCH
@SPLITS
def test_a_process_for_each_device():
    with pytest.raises(ValueError, match=r"torchrun --nproc-per-node 4"):
        model_parallel((2, 2))


@ON_TORCH
@SPLITS
def test_example(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "multi_host.py"
    path = tmp_path / "run.weights.h5"
    printed = torchrun(2, example, "--checkpoint", path, "--epochs", 1)
    losses = re.findall(r'"loss": \[([\d.]+)\]', printed)
    assert len(losses) == 2
    assert losses[0] == losses[1]
    assert path.exists()
