"""What two processes of PyTorch audit, for test_torch_audit.py.

`torchrun` runs this with the file for the results of the first process.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
from torch_mesh import BATCH, network

from keras_tlgc.audit import audit
from keras_tlgc.distribution import model_parallel

# Keras' own example, from the docstring of `keras.distribution.ModelParallel`.
RULES = {
    ".*conv2d.*kernel": (None, None, None, "model"),
    ".*conv2d.*bias": ("model",),
}


def plain_distribution(sizes):
    """Return Keras' own model parallelism, with the rules of its example."""
    mesh = keras.distribution.DeviceMesh(
        sizes, ("batch", "model"), keras.distribution.list_devices()
    )
    layout_map = keras.distribution.LayoutMap(mesh)
    for rule, axes in RULES.items():
        layout_map[rule] = axes
    return keras.distribution.ModelParallel(
        layout_map=layout_map, batch_dim_name="batch"
    )


def convolution():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="conv2d"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, activation="softmax", name="head"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        "sparse_categorical_crossentropy",
    )
    return model


class Idle(keras.layers.Layer):
    """A layer with a weight that nothing uses."""

    def build(self, shape):
        self.idle = self.add_weight(shape=(2,), name="idle")

    def call(self, x):
        return x


def unused():
    model = keras.Sequential(
        [keras.Input((4,)), Idle(name="unused"), keras.layers.Dense(4)]
    )
    model.compile("sgd", "mse")
    return model


def refusal(distribution, model):
    keras.distribution.set_distribution(distribution)
    try:
        audit(model, BATCH)
    except ValueError as error:
        return str(error)
    finally:
        keras.distribution.set_distribution(None)


def audited(distribution, build):
    """Audit a new model; return what the test looks at."""
    keras.distribution.set_distribution(distribution)
    model = build()
    before = model.get_weights()
    result = audit(model, BATCH)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not model.optimizer.built
    keras.distribution.set_distribution(None)
    return {
        "ok": result.ok,
        "rows": [row._asdict() for row in result.rows],
        "formula": result.formula,
        "warnings": result.warnings,
        "text": str(result),
    }


def main(path):
    from torch import distributed

    keras.distribution.initialize()
    keras.utils.set_random_seed(0)
    results = {}
    # Before `get_layout_map` is called, which mends this.
    plain = plain_distribution((1, 2))
    results["rule 1x2"] = audited(plain, convolution)
    alone = convolution()
    results["made before"] = refusal(plain, alone)
    results["data parallel"] = refusal(keras.distribution.DataParallel(), alone)
    results["unused"] = audited(model_parallel((1, 2)), unused)
    for sizes in ((1, 2), (2, 1)):
        name = f"two_level {sizes[0]}x{sizes[1]}"
        results[name] = audited(
            model_parallel(sizes), lambda: network("wrn", "two_level")
        )
    if distributed.get_rank() == 0:
        Path(path).write_text(json.dumps(results))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
