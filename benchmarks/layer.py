"""Forward and gradients of one layer: ours against what Keras has.

    KERAS_BACKEND=jax python benchmarks/layer.py

prints one row a case for the current backend. Every ratio is between two
layers measured in turn in this run: machines are noisy, ratios less so. On
JAX and TensorFlow the step is compiled by XLA, as `model.fit` does.
"""

import argparse
import statistics
import time

import keras
import numpy as np

from keras_tlgc.layers import GroupConv2D, TwoLevelGroupConv2D
from keras_tlgc.ops import choose_lowering
from keras_tlgc.ops.grouped_conv import device_of

# Image size, channels in and out, kernel size, groups.
CASES = [
    (16, 320, 3, 4),
    (16, 320, 3, 16),
    (32, 160, 3, 4),
    (32, 160, 3, 16),
    (8, 640, 3, 4),
    (8, 640, 3, 16),
    (8, 640, 3, 64),
    (14, 384, 1, 4),
    (14, 384, 1, 16),
]
COLUMNS = [
    "case",
    "N",
    "lowering",
    "ours (ms)",
    "Keras groups / ours",
    "standard / ours",
    "two-level / ours",
    "compile ours (s)",
    "compile two-level (s)",
    "compile Keras groups (s)",
]


def step_of(layer, x):
    """Return a function that runs forward and all gradients, and waits."""
    layer.build(x.shape)
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def loss(variables, x):
            y, _ = layer.stateless_call(variables, [], x)
            return (y * y).sum()

        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
        variables = [v.value for v in layer.trainable_variables]
        return lambda: jax.block_until_ready(gradients(variables, x))
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def gradients(x):
            variables = [v.value for v in layer.trainable_variables]
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
                loss = tf.reduce_sum(y * y)
            return tape.gradient(loss, [x, *variables])

        return lambda: [g.numpy() for g in gradients(x)[1:]]

    x.requires_grad_()

    def gradients():
        layer.zero_grad()
        x.grad = None
        y = layer(x)
        (y * y).sum().backward()

    return gradients


def measure(steps, repeats):
    """Return median seconds and first-call seconds of each step, in turns."""
    first, times = {}, {name: [] for name in steps}
    for name, step in steps.items():
        begin = time.perf_counter()
        step()
        first[name] = time.perf_counter() - begin
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(t) for name, t in times.items()}
    return medians, {name: first[name] - medians[name] for name in steps}


def row_of(case, batch_size, repeats):
    size, channels, kernel_size, groups = case
    x = np.random.default_rng(0).normal(size=(batch_size, size, size, channels))
    x = keras.ops.convert_to_tensor(x.astype("float32"))
    common = {
        "padding": "same",
        "use_bias": False,
        "data_format": "channels_last",
    }
    conv2d = keras.layers.Conv2D
    layers = {
        "ours": GroupConv2D(channels, kernel_size, groups=groups, **common),
        "two": TwoLevelGroupConv2D(
            channels, kernel_size, groups=groups, **common
        ),
        "keras": conv2d(channels, kernel_size, groups=groups, **common),
        "standard": conv2d(channels, kernel_size, **common),
    }
    steps = {name: step_of(layer, x) for name, layer in layers.items()}
    seconds, compiling = measure(steps, repeats)
    lowering = choose_lowering(
        keras.backend.backend(), device_of(x), (kernel_size,) * 2
    )
    return [
        f"{size}x{size}x{channels}, {kernel_size}x{kernel_size}",
        f"{groups}",
        lowering,
        f"{1000 * seconds['ours']:.1f}",
        *(
            f"{seconds[name] / seconds['ours']:.2f}"
            for name in ("keras", "standard", "two")
        ),
        *(f"{compiling[name]:.1f}" for name in ("ours", "two", "keras")),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--cases", type=int, default=len(CASES), help="only the first ones"
    )
    options = parser.parse_args()
    print(
        f"{keras.backend.backend()}, Keras {keras.__version__}, forward and "
        f"gradients, float32, batch {options.batch_size}\n"
    )
    print_row(COLUMNS)
    print_row(["---"] * len(COLUMNS))
    for case in CASES[: options.cases]:
        print_row(row_of(case, options.batch_size, options.repeats))


def print_row(cells):
    print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
