"""Train one network over several processes, with the groups split over them.

Each process holds the weights of its own groups. In each layer the processes
exchange the coarse channels and nothing else. On one machine, two processes:

    export JAX_PLATFORMS=cpu
    python examples/multi_host.py --processes 2 --process-id 0 &
    python examples/multi_host.py --processes 2 --process-id 1

On two hosts, with the address of the first, which the others must reach:

    python examples/multi_host.py --coordinator HOST0:9876 --processes 2 \
        --process-id 0    # and, on the other host, 1

On PyTorch, with Keras 3.16 or newer, each device has a process of its own.
Either start each by the commands above, with KERAS_BACKEND=torch, or all those
of a host by

    torchrun --nproc-per-node 2 examples/multi_host.py

examples/containers/ has a compose file, a SLURM script, and a script that runs
two hosts' worth of processes on one machine.

Every process prints its losses, which must agree; docs/distribution.md says
what else the processes must have in common.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

from keras_tlgc.applications import WideResNet
from keras_tlgc.distribution import GroupParallel, save

CLASSES = 4


def main():
    args = parse_arguments()
    # PyTorch has no mesh without this, not even one of a single process.
    if args.processes > 1 or keras.backend.backend() == "torch":
        # Before anything else that uses the backend. What `torchrun` has set
        # comes first.
        keras.distribution.initialize(
            args.coordinator, args.processes, args.process_id
        )
    # The same weights and the same order of rows in every process.
    keras.utils.set_random_seed(args.seed)

    devices = keras.distribution.list_devices()  # Those of all processes.
    rows, columns = args.mesh or (1, len(devices))
    mesh = keras.distribution.DeviceMesh(
        (rows, columns), ("batch", "model"), devices
    )
    # `rows_of_this_process` shards the data.
    distribution = GroupParallel(mesh, auto_shard_dataset=False)
    keras.distribution.set_distribution(distribution)

    model = WideResNet(
        10,
        1,
        conv="two_level",
        groups=args.groups,
        input_shape=(8, 8, 3),
        classes=CLASSES,
    )
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    first_epoch = restore(model, args) if args.resume else 0

    x, y = rows_of_this_process(distribution, *images(), args.batch_size)
    history = model.fit(
        x,
        y,
        batch_size=args.batch_size // distribution.num_data_shards,
        shuffle=False,
        initial_epoch=first_epoch,
        epochs=args.epochs,
        verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(
                # All processes call it; the first one writes.
                on_epoch_end=lambda epoch, logs: save(model, args.checkpoint)
            )
        ],
    ).history
    print(json.dumps({"process": args.process_id, **history}), flush=True)


def images():
    """Return 64 noisy images; their class is the quarter that is brighter."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, 64)
    x = rng.normal(size=(64, 8, 8, 3)).astype("float32")
    for image, label in zip(x, y, strict=True):
        image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 1
    return x, y


def rows_of_this_process(distribution, x, y, batch_size):
    """Return the rows of each batch that this process holds.

    Processes that hold groups of one model need the same rows; processes of
    different replicas of the model need different ones.
    """
    parts = distribution.num_data_shards
    part = distribution.data_shard_id
    size = batch_size // parts
    rows = np.arange(len(x)).reshape(-1, parts, size)[:, part].ravel()
    return x[rows], y[rows]


def restore(model, args):
    """Load weights and optimizer, on any mesh; return the epochs done."""
    model.optimizer.build(model.trainable_variables)
    model.load_weights(args.checkpoint)
    steps_per_epoch = 64 // args.batch_size
    return int(model.optimizer.iterations) // steps_per_epoch


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--coordinator", default="127.0.0.1:9876")
    # `torchrun` sets these two variables.
    processes, rank = os.environ.get("WORLD_SIZE", 1), os.environ.get("RANK", 0)
    parser.add_argument("--processes", type=int, default=int(processes))
    parser.add_argument("--process-id", type=int, default=int(rank))
    parser.add_argument(
        "--mesh",
        type=lambda text: tuple(map(int, text.split("x"))),
        help="devices along batch and model axis, as 2x2; 1xALL by default",
    )
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("multi_host.weights.h5")
    )
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
