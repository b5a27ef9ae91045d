"""Files from another backend, and from before."""

import importlib.util
import os
import pathlib

import keras
import numpy as np
import pytest
from cases import BACKEND, OTHER_BACKENDS, assert_near
from exchange import exchange_load, exchange_save
from helpers import run_python

import keras_tlgc

# Saved by keras-tlgc 0.1.0 with Keras 3.15.1 on PyTorch: all kinds of layers
# with random weights, a converted network after a step, and their outputs.
DATA = pathlib.Path(__file__).parents[1] / "data"


LOAD_ELSEWHERE = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
if sys.argv[4] == "torch":
    import torch  # Before keras, as conftest.py does.
import exchange
assert exchange.BACKEND == sys.argv[4] != sys.argv[3]
exchange.exchange_load(pathlib.Path(sys.argv[2]), sys.argv[3])
print("loaded")
"""


@pytest.mark.parametrize("other", OTHER_BACKENDS)
def test_models_load_on_another_backend(other, tmp_path):
    if importlib.util.find_spec(other) is None:
        pytest.skip(f"{other} is not installed beside {BACKEND}")
    exchange_save(tmp_path)
    printed = run_python(
        LOAD_ELSEWHERE,
        pathlib.Path(__file__).parents[1],
        tmp_path,
        BACKEND,
        other,
        KERAS_BACKEND=other,
    )
    assert printed.split()[-1] == "loaded"


@pytest.mark.skipif(
    "KERAS_TLGC_EXCHANGE" not in os.environ,
    reason="KERAS_TLGC_EXCHANGE names no folder that backends share",
)
def test_models_load_from_other_backends():
    folder = pathlib.Path(os.environ["KERAS_TLGC_EXCHANGE"])
    folder.mkdir(parents=True, exist_ok=True)
    exchange_save(folder)
    for saved in folder.glob("*.npz"):
        exchange_load(folder, saved.stem)


# From before


@pytest.mark.skipif(
    tuple(map(int, keras.__version__.split(".")[:2])) < (3, 15),
    reason="0.1.0 needed Keras 3.15, whose files older ones cannot read",
)
@pytest.mark.parametrize("name", ["two_level", "learnable", "converted"])
def test_files_of_version_0_1_0(name):
    """Outputs, and an optimizer that goes on, of files as users have them."""
    model = keras.saving.load_model(DATA / f"{name}.keras")
    with np.load(DATA / f"{name}.npz") as saved:
        x, y = saved["x"], saved["y"]
    assert np.std(y) > 0.01
    assert_near(model.predict(x, verbose=0), y)
    if name == "converted":
        assert type(model.optimizer) is keras_tlgc.optimizers.CoupledSGD
        assert int(model.optimizer.iterations) == 1
        model.fit(x, np.array([0, 1]), verbose=0)
        assert int(model.optimizer.iterations) == 2
