"""Which lowering is chosen, and what each reads."""

import math

import keras
import numpy as np
import pytest
from helpers import random, to_numpy
from keras import ops

from keras_tlgc.ops import (
    LOWERINGS,
    choose_lowering,
    grouped_conv,
    lowerings,
)
from keras_tlgc.ops.grouped_conv import grouped_convs

# Arguments of `choose_lowering`: lowering.
CHOICES = {
    ("jax", "cpu", (3, 3)): "slices",
    ("jax", "cpu", (1, 3)): "slices",
    ("jax", "cpu", (1, 1)): "slices",
    ("jax", "cpu", (3, 3), 2): "slices",
    # As many groups as channels: of one level, of two, of two that are narrow.
    ("jax", "cpu", (3, 3), 1): "taps",
    ("jax", "cpu", (1, 1), 1): "taps",
    ("jax", "cpu", (3, 3), 1, 1, 160, 1): "taps",
    ("jax", "cpu", (3, 3), 1, 1, 16, 1): "dense",
    ("tensorflow", "cpu", (3, 3), 1, 1, 160, 0): "slices",
    # Row mobilenet-expand1, and mobilenet-head with one coarse channel or many.
    **{
        (backend, "cpu", (1, 1), *sizes): lowering
        for backend in ("jax", "tensorflow", "torch")
        for sizes, lowering in {
            (6, 36, 4, 0): "dense",
            (6, 36, 4, 1): "dense",
            (6, None, 4, 1): "matmul",
            (80, 320, 4, 0): "matmul",
            (80, 320, 4, 1): "matmul",
            (80, 320, 4, 1, "channels_last"): "matmul",
            # Row mobilenet-project2.
            (144, 24, 4, 0): "matmul",
            (80, 320, 4, 64): "dense",
        }.items()
    },
    **{
        (backend, "cpu", (1, 1), 80, 320, 4, 1, "channels_first"): lowering
        for backend, lowering in [
            ("jax", "slices"),
            ("tensorflow", "slices"),
            ("torch", "native"),
        ]
    },
    ("jax", "cpu", (1, 1), 144, 24, 4, 1): "dense",
    ("torch", "cpu", (1, 1), 144, 24, 4, 1): "matmul",
    # Row wrn2, with two groups, and with as many coarse channels as make both
    # levels nearly as large as the dense kernel.
    ("jax", "cpu", (3, 3), 160, 160, 2, 1): "slices",
    ("tensorflow", "cpu", (3, 3), 160, 160, 2, 1): "slices",
    ("torch", "cpu", (3, 3), 160, 160, 2, 1): "native",
    ("torch", "cpu", (3, 3), 160, 160, 2, 80): "dense",
    # Row narrow3.
    ("jax", "cpu", (3, 3), 8, 8, 8, 0): "dense",
    ("jax", "cpu", (3, 3), 8, 8, 8, 1): "dense",
    ("tensorflow", "cpu", (3, 3), 8, 8, 8, 0): "slices",
    ("tensorflow", "cpu", (3, 3), 8, 8, 8, 1): "dense",
    ("tensorflow", "cpu", (3, 3)): "slices",
    ("tensorflow", "cpu", (1, 1, 1)): "slices",
    ("tensorflow", "cpu", (3, 3), 1): "slices",
    # Rows narrow1, narrow2 and narrow3, with 4 groups.
    ("torch", "cpu", (3, 3), 4, 4, 4, 0): "native",
    ("torch", "cpu", (3, 3), 4, 4, 4, 1): "dense",
    ("torch", "cpu", (3, 3), 8, 8, 4, 0): "native",
    ("torch", "cpu", (3, 3), 8, 8, 4, 1): "native",
    ("torch", "cpu", (3, 3), 16, 16, 4, 0): "native",
    ("torch", "cpu", (3, 3), 16, 16, 4, 1): "native",
    ("torch", "cpu", (3, 3)): "native",
    ("torch", "cpu", (3, 3), 1): "native",
    ("torch", "cpu", (1,)): "native",
}


@pytest.mark.parametrize(
    "case, convolutions", [("one pass", 1), ("two", 2), ("a channel each", 2)]
)
def test_the_input_is_read_once_where_that_pays(
    case, convolutions, monkeypatch
):
    m = 1 if case == "a channel each" else 4
    if m == 1 and keras.backend.backend() != "torch":
        convolutions = 1
    convolved = []

    def conv(*args, **kwargs):
        convolved.append(args)
        return original(*args, **kwargs)

    original = lowerings.conv
    monkeypatch.setattr(lowerings, "conv", conv)
    window = (1, 1) if case == "two" else (3, 3)
    kernels = [ops.convert_to_tensor(random(*window, m, n)) for n in (8, 2)]
    x = ops.convert_to_tensor(random(1, 5, 5, 2 * m))
    grouped_convs(x, kernels, 2, lowering="native")
    assert len(convolved) == convolutions


@pytest.mark.parametrize("m", [1, 16])
@pytest.mark.parametrize("groups", [2, 16, 17, 40])
def test_slices_are_at_most_16(groups, m, monkeypatch):
    convolved = []

    def conv(inputs, kernel, **window):
        convolved.append(inputs.shape[-1])
        return original(inputs, kernel, **window)

    original = lowerings.conv
    monkeypatch.setattr(lowerings, "conv", conv)
    x = ops.convert_to_tensor(random(1, 2, groups * m))
    kernel = ops.convert_to_tensor(random(1, m, groups))
    grouped_conv(x, kernel, groups, lowering="slices")
    assert 1 <= len(convolved) <= 16
    assert sum(convolved) == groups * m
    # Wide groups share a slice only where there are too many of them.
    if m == 16:
        assert convolved[0] == -(-groups // 16) * m


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch's memory formats"
)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_inputs_with_the_channels_last_are_not_copied(rank):
    import torch

    x = ops.convert_to_tensor(random(2, *[6] * rank, 8))
    kernel = ops.convert_to_tensor(random(*[3] * rank, 4, 8))
    window = {"padding": "same", "data_format": "channels_last"}
    with torch.profiler.profile(record_shapes=True) as profile:
        y = grouped_conv(x, kernel, 2, lowering="native", **window)
    sizes = [
        math.prod(event.input_shapes[0])
        for event in profile.events()
        if event.name == "aten::clone"
    ]
    assert sizes == [kernel.numel()]
    assert y.is_contiguous()


def device(tensor):
    if keras.backend.backend() == "torch":
        return tensor.device.type
    return keras.distribution.list_devices()[0].split(":")[0].lower()


@pytest.mark.parametrize("m, kernel_size", [(2, (1, 1)), (128, (3, 3))])
def test_auto_is_the_chosen_lowering(m, kernel_size):
    x = ops.convert_to_tensor(random(2, 5, 5, 2 * m))
    kernel = ops.convert_to_tensor(random(*kernel_size, m, 2 * m, seed=1))
    lowering = choose_lowering(
        keras.backend.backend(), device(x), kernel_size, m, m, 2
    )
    assert (lowering == "dense") == (m == 2)
    auto = grouped_conv(x, kernel, 2)
    chosen = grouped_conv(x, kernel, 2, lowering=lowering)
    np.testing.assert_array_equal(to_numpy(auto), to_numpy(chosen))


@pytest.mark.parametrize("arguments, lowering", CHOICES.items())
def test_choose_lowering(arguments, lowering):
    assert choose_lowering(*arguments) == lowering


@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
@pytest.mark.parametrize("device", ["cuda", "gpu", "tpu", "meta"])
@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3)])
def test_choose_lowering_off_the_cpu(backend, device, kernel_size):
    assert choose_lowering(backend, device, kernel_size, 1, 1) == "native"


def test_names_of_lowerings():
    assert LOWERINGS == (
        "auto",
        "native",
        "slices",
        "matmul",
        "taps",
        "dense",
    )
