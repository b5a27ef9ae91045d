"""Whether `deploy` finds the fastest form of a layer, in onnxruntime.

    OMP_NUM_THREADS=1 KERAS_BACKEND=torch python benchmarks/forms.py

times each plain form of two-level layers of the sizes that networks have, one
input on one thread, in turns. Around a layer there is a 1x1 convolution on each
side, since onnxruntime keeps channels in blocks from one to the next. Their
time is taken off. It prints the milliseconds of each form, and at the end the
geometric means over all layers of the form that `deploy` chooses, to the dense
one and to the best.
"""

import functools
import pathlib
import tempfile

import keras
import numpy as np

from keras_tlgc.lab import exported
from keras_tlgc.layers import TwoLevelGroupConv2D
from keras_tlgc.rewrite.forms import of_least
from keras_tlgc.rewrite.plain import built
from keras_tlgc.timing import times_in_turns

# Pixels along an axis, channels, filters and window.
SHAPES = [
    *[(32, 160, 160, 3), (16, 320, 320, 3), (8, 640, 640, 3)],
    *[(56, 64, 64, 3), (28, 128, 128, 3), (14, 256, 256, 3), (7, 512, 512, 3)],
    *[(32, 32, 32, 3), (16, 64, 64, 3), (8, 128, 128, 3)],
    *[(32, 96, 96, 3), (14, 192, 192, 3)],
    *[(56, 64, 256, 1), (56, 256, 64, 1), (28, 512, 128, 1), (28, 128, 512, 1)],
    *[(14, 1024, 256, 1), (14, 256, 1024, 1), (7, 512, 2048, 1)],
    *[(14, 96, 576, 1), (14, 576, 96, 1), (28, 192, 32, 1), (28, 32, 192, 1)],
    *[(7, 960, 160, 1), (7, 160, 960, 1), (7, 320, 1280, 1)],
]
LEAST = 0.05  # Milliseconds that are added: shorter times are noise.


def times(size, channels, layer, forms):
    """Return the milliseconds of a layer in each form."""
    inputs = keras.Input((size, size, 16))
    before = keras.layers.Conv2D(channels, 1, activation="relu")(inputs)
    parts = [
        keras.layers.Identity(),
        *(built(layer, f, "linear") for f in forms),
    ]
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for i, part in enumerate(parts):
            x = keras.layers.ReLU()(part(before))
            model = keras.Model(inputs, keras.layers.Conv2D(16, 1)(x))
            path = pathlib.Path(folder, f"{i}.onnx")
            exported.write(model, path)
            x = np.ones((1, size, size, 16), "float32")
            runs.append(functools.partial(exported.runner(path, 1), x))
        nothing, *found = times_in_turns(runs, 15)
    return np.maximum(np.array(found) - nothing, 0) + LEAST


def main():
    to_dense, to_best = [], []
    for size, channels, filters, window in SHAPES:
        for groups in (2, 4, 8, 16, 32):
            if channels % groups or filters % groups or channels // groups < 2:
                continue
            layer = TwoLevelGroupConv2D(
                filters, window, padding="same", groups=groups, use_bias=False
            )
            layer.build((None, size, size, channels))
            forms = layer.plain_forms((size, size))
            ms = times(size, channels, layer, forms)
            found = of_least(weights=False)(layer, forms, None)
            [chosen] = [i for i, form in enumerate(forms) if form is found]
            to_dense.append(ms[chosen] / ms[-1])
            to_best.append(ms[chosen] / ms.min())
            print(size, channels, filters, window, groups, ms.round(2), chosen)
    means = (np.exp(np.mean(np.log(x))) for x in (to_dense, to_best))
    print(f"{len(to_dense)} layers, chosen to dense and to the best:", end=" ")
    print(*(f"{mean:.2f}" for mean in means), f"worst {max(to_dense):.2f}")


if __name__ == "__main__":
    main()
