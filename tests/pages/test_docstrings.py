"""Every `>>>` example of the package, run; and who must have one."""

import doctest
import functools
import importlib
import inspect
import json
import pkgutil
import re

import keras
import numpy as np
import pytest
from meshes import ON_JAX

import keras_tlgc

# They come with an extra, cli, start a process of their own, or import a
# backend.
ELSEWHERE = (
    *("keras_tlgc.cli", "keras_tlgc.launcher"),
    *("keras_tlgc.sharding.on_", "keras_tlgc.sharding.torch_"),
    "keras_tlgc.audit.trace",
)
MODULES = sorted(
    found.name
    for package in (keras_tlgc, keras_tlgc.applications)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not found.name.startswith(ELSEWHERE)
)
ON_A_MESH = {
    "keras_tlgc.audit.audit.audit",
    "keras_tlgc.distribution.following.plan",
    "keras_tlgc.distribution.group_parallel.GroupParallel",
    "keras_tlgc.distribution.layout_map.get_layout_map",
}


def examples():
    names = {"np": np, "keras": keras, "keras_tlgc": keras_tlgc}
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        module = importlib.import_module(name)
        for test in finder.find(module, name, globs=names):
            marks = [ON_JAX] if test.name in ON_A_MESH else []
            if test.examples:
                yield pytest.param(test, id=test.name, marks=marks)


def _tuple(match):
    return str(tuple(json.loads(match[1])))


class _AnyShape(doctest.OutputChecker):
    """Let a shape be a tuple, whatever class the backend gives it."""

    def check_output(self, want, got, optionflags):
        got = re.sub(r"(?:torch\.Size|TensorShape)\((\[.*?\])\)", _tuple, got)
        return super().check_output(want, got, optionflags)


@pytest.mark.parametrize("test", list(examples()))
def test_example(test):
    keras.config.set_image_data_format("channels_last")
    report = []
    runner = doctest.DocTestRunner(_AnyShape(), verbose=False)
    run = functools.partial(runner.run, test, out=report.append)
    if test.name.startswith("keras_tlgc.applications."):
        # JAX compiles random weights for a minute, and none are shown.
        keras_tlgc.valueless.without_values(run)
    else:
        run()
    assert not runner.summarize(verbose=False).failed, "".join(report)


@pytest.mark.parametrize(
    "public",
    [
        *(f"layers.{name}" for name in keras_tlgc.layers.__all__),
        *(f"applications.{name}" for name in keras_tlgc.applications.__all__),
        *("conversion.convert", "conversion.project_kernel"),
        *("costs.count_params", "costs.model_costs", "optimizers.CoupledSGD"),
        *("distribution.GroupParallel", "distribution.plan"),
        *("distribution.get_layout_map", "distribution.audit"),
        *(f"ops.{name}" for name in keras_tlgc.ops.__all__ if name.islower()),
        "folding.fold_batch_norm",
    ],
)
def test_what_is_public_has_an_example(public):
    module, name = public.split(".")
    documented = getattr(getattr(keras_tlgc, module), name)
    assert ">>> " in inspect.getdoc(documented)
