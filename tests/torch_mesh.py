"""What several processes of PyTorch train, for test_torch_mesh.py.

The tests import this and train in one process; `torchrun` runs it with the
folder of the results, then runs such as `2x1:wrn:two_level:float32`.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers

from keras_tlgc.applications import MobileNetV2, WideResNet, mobilenet_v2

ROWS, BATCH = 32, 16


def network(name, conv):
    """Return a compiled network; its weights are the same in every process."""
    keras.utils.set_random_seed(0)
    options = {"conv": conv, "classes": 4, "input_shape": (8, 8, 3)}
    if conv != "standard":
        options["groups"] = 4
    if name == "mobile":
        stages = mobilenet_v2.STAGES
        try:
            mobilenet_v2.STAGES = [(1, 16, 1, 1), (2, 24, 2, 2)]
            mobilenet_v2.HEAD, head = 64, mobilenet_v2.HEAD
            # Masks of dropout differ from mesh to mesh.
            model = MobileNetV2(0.5, dropout=0.0, **options)
        finally:
            mobilenet_v2.STAGES, mobilenet_v2.HEAD = stages, head
    elif name == "layers":
        model = of_keras()
    else:
        model = WideResNet(10, 1, **options)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def of_keras():
    """Return a network with each kind of convolution that Keras has."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, name="stem"),
            layers.Conv2DTranspose(8, 3, strides=2, name="transposed"),
            layers.SeparableConv2D(8, 3, name="separable"),
            layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise"),
            layers.Conv2D(4, 3, name="last"),  # Split by inputs.
            layers.GlobalAveragePooling2D(),
            layers.Softmax(),
        ],
        name="net",
    )


def trained(name, conv, policy, parts=1, part=0):
    """Train with one of some parts of each batch; return model and arrays."""
    keras.config.set_dtype_policy(policy)
    model = network(name, conv)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 8, 8, 3)).astype("float32")
    y = rng.integers(0, 4, ROWS)
    rows = np.arange(ROWS).reshape(-1, parts, BATCH // parts)[:, part].ravel()
    data = {"x": x[rows], "y": y[rows], "batch_size": BATCH // parts}
    history = model.fit(**data, epochs=2, shuffle=False, verbose=0).history
    results = {
        "loss": np.array(history["loss"]),
        "accuracy": np.array(history["accuracy"]),
        "evaluate": np.array(model.evaluate(**data, verbose=0)),
        # NumPy's files have no bfloat16.
        "predict": model.predict(x[rows], verbose=0).astype("float32"),
        "weights": np.concatenate([w.ravel() for w in model.get_weights()]),
        "rows": rows,
    }
    return model, results


def is_split(variable):
    """Tell whether each device must hold its own part of a kernel."""
    if variable.path.startswith("net/"):
        return variable.name.endswith("kernel")
    return variable.name in ("group_kernel", "balance_kernel")


def exchanges(model, rows):
    """Count all-gathers, reduce-scatters and all-reduces of a train step.

    Without those of the metrics, which Keras adds up by other means.
    """
    from keras.src.backend.torch import distribution_lib
    from torch.distributed.tensor.debug import CommDebugMode

    batch = np.zeros((rows, 8, 8, 3), "float32"), np.zeros(rows, int)
    # It counts what `DTensor` does, so Keras' own mode must lie above it.
    distribution_lib.deactivate_dtensor_promotion()
    with CommDebugMode() as mode:
        distribution_lib.activate_dtensor_promotion()
        model.train_on_batch(*batch)
        distribution_lib.deactivate_dtensor_promotion()
    found = {str(name): n for name, n in mode.get_comm_counts().items()}
    kinds = "all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"
    return [found.get(f"c10d_functional.{kind}", 0) for kind in kinds]


def main(folder, *runs):
    import torch

    from keras_tlgc.distribution import model_parallel, save

    for number, run in enumerate(runs):
        keras.utils.set_random_seed(0)
        mesh, *what = run.split(":")
        sizes = tuple(map(int, mesh.split("x")))
        distribution = model_parallel(sizes)
        distribution.auto_shard_dataset = False
        if what[0] == "layers":
            distribution.follow(network(*what[:2]))
        keras.distribution.set_distribution(distribution)
        model, results = trained(*what, sizes[0], distribution.data_shard_id)
        file = Path(folder, f"{number}.{torch.distributed.get_rank()}.npz")
        kernels = [v.value for v in model.variables if is_split(v)]
        held = [kernel.to_local().numel() for kernel in kernels]
        save(model, Path(folder, f"{number}.keras"))
        np.savez(
            file,
            **results,
            held=[held, [kernel.numel() for kernel in kernels]],
            exchanges=exchanges(model, BATCH // sizes[0]),
        )
        keras.distribution.set_distribution(None)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
