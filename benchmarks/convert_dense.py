"""What mixers and transformers keep when their `Dense` layers are converted.

    OMP_NUM_THREADS=1 KERAS_BACKEND=torch python benchmarks/convert_dense.py

trains an MLP-Mixer and a transformer of two blocks each on 4,000 MNIST digits,
in patches of 4x4 pixels, for each seed. Then it converts them with
`keras_tlgc.convert(dense=True)`, fitted on unlabelled training images, and
trains nothing after that. The table has the accuracy on 1,000 held-out digits
(%) and, in parentheses, the share of the multiply-adds of all `Dense` layers
and convolutions. The classifier is kept.
"""

import argparse

import keras
from keras import layers, ops

import keras_tlgc
from keras_tlgc.lab import load_data

TOKENS, WIDTH = 49, 64
CONVERSIONS = {
    "group, N = 4, projected": {"groups": 4, "conv": "group"},
    "group, N = 4": {"groups": 4, "conv": "group", "data": True},
    "two levels, N = 4, projected": {"groups": 4},
    "two levels, N = 4": {"groups": 4, "data": True},
    "low rank 16": {
        "groups": 1,
        "conv": "low_rank",
        "coarse_channels": 16,
        "data": True,
    },
    "budget 0.5": {"budget": 0.5, "data": True},
    "budget 0.25": {"budget": 0.25, "data": True},
}


def feed_forward(x, width, name):
    """Return what two `Dense` layers make of the last axis."""
    outputs = x.shape[-1]
    x = layers.Dense(width, activation="gelu", name=f"{name}_expand")(x)
    return layers.Dense(outputs, name=f"{name}_project")(x)


def mixing(x, name):
    """Return the tokens, mixed by a feed-forward part over their axis."""
    y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
    y = layers.Permute((2, 1))(feed_forward(y, 2 * WIDTH, name))
    return layers.Add()([x, y])


def attention(x, name):
    """Return the tokens, mixed by attention."""
    y = layers.LayerNormalization()(x)
    y = layers.MultiHeadAttention(4, WIDTH // 4, name=name)(y, y)
    return layers.Add()([x, y])


def network(mix):
    """Return a network of two blocks whose tokens are mixed by `mix`."""
    inputs = keras.Input((28, 28, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(WIDTH, 4, strides=4, name="patches")(x)
    x = layers.Reshape((TOKENS, WIDTH))(x)
    places = ops.cumsum(ops.ones_like(x[..., 0]), axis=1) - 1
    embedded = layers.Embedding(TOKENS, WIDTH)(ops.cast(places, "int32"))
    x = layers.Add()([x, embedded])
    for i in range(2):
        x = mix(x, f"mix{i}")
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, feed_forward(y, 4 * WIDTH, f"feed{i}")])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10, name="classes")(x))


def score(model, data):
    """Return the accuracy on held-out images in percent."""
    found = model.predict(data.pixels_test, verbose=0).argmax(-1)
    return 100 * (found == data.y_test.ravel()).mean()


def trained(mix, data, epochs, seed):
    """Return a network, trained on the labels."""
    keras.utils.set_random_seed(seed)
    model = network(mix)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(2e-3, epochs * 63)
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(data.pixels_train, data.y_train, 64, epochs, verbose=0)
    return model


def main():
    """Print a row for each conversion."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument(
        "--seeds", type=lambda text: [*map(int, text.split(","))], default=[0]
    )
    options = parser.parse_args()
    data = load_data("mnist5k")
    images = data.sample(options.images)
    for mix in (mixing, attention):
        for seed in options.seeds:
            model = trained(mix, data, options.epochs, seed)
            found = f"{score(model, data):.1f}"
            print(f"| {mix.__name__}, seed {seed} | {found} |", flush=True)
            for name, given in CONVERSIONS.items():
                given = given | ({"data": images} if "data" in given else {})
                new, report = keras_tlgc.convert(
                    model, dense=True, verbose=0, **given
                )
                rows = report.rows
                left = sum(row.new_multiply_adds for row in rows)
                left /= sum(row.multiply_adds for row in rows)
                found = f"{score(new, data):.1f} ({left:.2f})"
                print(f"| {name} | {found} |", flush=True)


if __name__ == "__main__":
    main()
