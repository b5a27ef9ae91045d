"""Where the time of a train step goes, operation by operation, on PyTorch.

    KERAS_BACKEND=torch python benchmarks/operations.py --model MobileNetV2 \
        --conv two_level --groups 4 --batch-size 8
"""

import argparse

import keras
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from keras_tlgc import applications


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="WideResNet28x10")
    parser.add_argument("--conv", default="two_level")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rows", type=int, default=12)
    options = parser.parse_args()
    build = getattr(applications, options.model)
    model = build(conv=options.conv, groups=options.groups)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        "sparse_categorical_crossentropy",
    )
    x = np.zeros((options.batch_size, *model.inputs[0].shape[1:]), "float32")
    y = np.zeros(options.batch_size, "int32")
    model.train_on_batch(x, y)
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        model.train_on_batch(x, y)
    table = profiled.key_averages().table(
        sort_by="self_cpu_time_total",
        row_limit=options.rows,
        max_name_column_width=40,
    )
    print(table)


if __name__ == "__main__":
    main()
