import contextlib
import json

import keras
import numpy as np
import pytest
from helpers import random, run_python
from networks import EVERY_KIND, small

from keras_tlgc import layers
from keras_tlgc.applications import MobileNetV2, WideResNet
from keras_tlgc.costs import Costs, count_params, kept_params, model_costs
from keras_tlgc.lab import paper


@pytest.mark.once
@pytest.mark.parametrize(
    "count", paper.COUNTS, ids=lambda c: "-".join(map(str, c[:4]))
)
def test_parameters_of_the_paper(count):
    assert count.ours() == count.printed


@pytest.mark.once
def test_every_row_of_the_papers_tables_is_there():
    rows = [
        sum(c.table == table for c in paper.COUNTS) for table in (1, 2, 3, 4)
    ]
    assert rows == [18, 9, 32, 13]


@pytest.mark.once
def test_a_wrong_number_is_seen():
    assert paper.COUNTS[0]._replace(printed="36.5M").ours() == "36.5M"
    assert paper.COUNTS[0]._replace(printed="36.49M").ours() == "36.48M"


@EVERY_KIND
def test_count_params_equals_the_model(conv):
    model = small(WideResNet, conv)
    count = count_params(lambda: small(WideResNet, conv))
    assert type(count) is int
    assert count == kept_params(model)
    stored = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert (count < stored) == (conv == "learnable")
    if conv != "learnable":
        assert count == stored


@pytest.mark.once
def test_kept_parameters_are_those_of_equal_groups():
    layer = layers.LearnableGroupConv2D(8, 3, groups=4)
    layer.build((None, 5, 5, 12))
    layer.input_selection.assign(np.eye(4)[np.arange(12) % 4])
    layer.output_selection.assign(np.eye(4)[np.arange(8) // 2])
    assert kept_params(layer) == layer.count_kept_params()
    model = keras.Sequential([keras.Input((5, 5, 12)), layer])
    assert kept_params(model) == layer.count_kept_params()
    layer.trainable = False
    assert kept_params(model) == 0


@pytest.mark.once
def test_costs_by_hand():
    def build():
        return keras.Sequential(
            [
                keras.Input((5, 5, 8)),
                layers.TwoLevelGroupConv2D(4, 3, groups=2, coarse_channels=3),
                keras.layers.DepthwiseConv2D(2, use_bias=False),
                keras.layers.ReLU(),
                layers.LearnableGroupConv2D(6, 1, groups=2, use_bias=False),
                keras.layers.Flatten(),
                keras.layers.Dense(10),
            ]
        )

    fine, restriction, coarse = 9 * 4 * 4, 9 * 4 * 6, 6 * 4
    two_level = fine + 4 + restriction + coarse
    depthwise, kept, dense = 4 * 4, 4 * 6 // 2, 24 * 10
    assert model_costs(build) == Costs(
        params=two_level + depthwise + kept + dense + 10,
        stored_params=two_level + depthwise + 24 + 2 * 10 + dense + 10,
        params_per_processor=two_level // 2
        + depthwise
        + kept // 2
        + dense
        + 10,
        coarse_params=restriction + coarse,
        multiply_adds=9 * (fine + restriction + coarse)
        + 4 * depthwise
        + 4 * kept
        + dense,
        activation_bytes=4 * (9 * (4 + 6) + 4 * 4 + 4 * 4 + 24 + 24 + 10),
    )


@pytest.mark.once
def test_kept_parameters_of_shared_and_wrapped_layers():
    layer = layers.LearnableGroupConv2D(4, 1, groups=2, use_bias=False)
    inputs = keras.Input((5, 5, 4))
    inner = keras.Model(inputs, layer(inputs))
    model = keras.Model(inputs, layer(inner(inputs)))
    assert kept_params(model) == 4 * 4 // 2
    wrapped = keras.layers.TimeDistributed(
        layers.LearnableGroupConv2D(4, 1, groups=2, use_bias=False)
    )
    wrapped.build((None, 3, 5, 5, 4))
    assert kept_params(wrapped) == 4 * 4 // 2


@pytest.mark.once
def test_costs_of_a_frozen_network():
    def build():
        model = small(WideResNet, "two_level")
        model.trainable = False
        return model

    costs = model_costs(build)
    assert costs.params == costs.coarse_params == 0
    trained = model_costs(lambda: small(WideResNet, "two_level"))
    assert costs.activation_bytes == trained.activation_bytes


@pytest.mark.once
def test_costs_of_a_layer_called_twice():
    def build(times):
        x = inputs = keras.Input((5, 5, 4))
        layer = layers.GroupConv2D(4, 1, groups=2)
        for _ in range(times):
            x = layer(x)
        return keras.Model(inputs, x)

    once, twice = (model_costs(lambda n=n: build(n)) for n in (1, 2))
    assert twice == once._replace(
        multiply_adds=2 * once.multiply_adds,
        activation_bytes=2 * once.activation_bytes,
    )


@pytest.mark.once
def test_only_calls_within_the_model_count():
    def whole():
        model = keras.Sequential()
        for part in (
            keras.Input((5, 5, 4)),
            keras.layers.Conv2D(4, 3),
            keras.layers.ReLU(),
            keras.layers.Dense(2),
        ):
            model.add(part)  # Calls all parts before it once more.
        return model

    costs = model_costs(whole)
    assert costs.multiply_adds == 9 * (9 * 4 * 4 + 4 * 2)
    assert costs.activation_bytes == 4 * 9 * (4 + 4 + 2)

    def headless():
        return keras.Sequential([keras.Input((5, 5, 4)), *whole().layers[:-1]])

    assert model_costs(headless).multiply_adds == 9 * 9 * 4 * 4


@pytest.mark.once
def test_costs_of_outputs_of_any_form():
    def build():
        inputs = keras.Input((5, 5, 8))
        x = keras.layers.Conv2D(8, 1, groups=4, dtype="mixed_bfloat16")(inputs)
        mean = keras.layers.Lambda(
            lambda x: keras.ops.mean(x, axis=(1, 2, 3)), output_shape=()
        )(x)
        parts = keras.layers.Lambda(
            lambda x: [x[..., :2], x[..., 2:]],
            output_shape=[(5, 5, 2), (5, 5, 6)],
        )(x)
        return keras.Model(inputs, [mean, *parts])

    costs = model_costs(build)
    assert costs.params == 8 * 2 + 8
    assert costs.params_per_processor == (8 * 2 + 8) // 4
    assert costs.multiply_adds == 25 * 8 * 2
    assert costs.activation_bytes == 2 * 25 * 8 + 4 * (1 + 25 * 8)


def test_costs_of_transposed_and_separable_convolutions():
    def build(layer):
        return keras.Sequential([keras.Input((5, 5, 4)), layer(6, 3)])

    transposed, separable = (
        model_costs(lambda layer=layer: build(layer)).multiply_adds
        for layer in (
            keras.layers.Conv2DTranspose,
            keras.layers.SeparableConv2D,
        )
    )
    assert transposed == 5 * 5 * (9 * 4 * 6)  # Each input meets the kernel.
    assert separable == 3 * 3 * (9 * 4 + 4 * 6)


def test_costs_with_lora():
    def build(rank):
        model = keras.Sequential(
            [keras.Input((5, 5, 4)), keras.layers.Conv2D(8, 3)]
        )
        if rank:
            model.layers[0].enable_lora(rank)
        return model

    plain, lora = (model_costs(lambda r=r: build(r)) for r in (0, 2))
    assert lora.multiply_adds == plain.multiply_adds == 9 * 9 * 4 * 8


def test_counting_does_not_change_the_next_model():
    def start(count):
        keras.utils.set_random_seed(3)
        if count:
            model_costs(lambda: small(WideResNet, "two_level"))
        layer = keras.layers.Dense(3)
        layer.build((None, 4))
        return keras.ops.convert_to_numpy(layer.kernel)

    np.testing.assert_array_equal(start(True), start(False))


@pytest.mark.once
def test_costs_do_not_depend_on_the_data_format():
    last = model_costs(lambda: small(MobileNetV2, "two_level"))
    keras.config.set_image_data_format("channels_first")
    assert model_costs(lambda: small(MobileNetV2, "two_level")) == last


@pytest.mark.once
def test_activations_in_half_precision_take_half_the_bytes():
    full = model_costs(lambda: small(WideResNet))
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = model_costs(lambda: small(WideResNet))
    assert half.activation_bytes == full.activation_bytes / 2
    assert half.params == full.params


@pytest.mark.once
def test_costs_errors():
    with pytest.raises(
        ValueError,
        match=r"Costs depend on the sizes of all outputs.*'input_layer'.*"
        r"None.*fixed `input_shape`",
    ):
        model_costs(lambda: small(WideResNet, input_shape=(None, None, 3)))
    with pytest.raises(
        ValueError,
        match=r"Multiply-adds are counted for.*'mine', LSTM.*Use `count",
    ):
        model_costs(
            lambda: keras.Sequential(
                [keras.Input((3, 4)), keras.layers.LSTM(2, name="mine")]
            )
        )
    with pytest.raises(
        ValueError,
        match=r"functional or Sequential, and built. Received: Sequential. Use",
    ):
        model_costs(lambda: keras.Sequential([keras.layers.Dense(2)]))


def test_count_params_of_a_layer():
    layer = keras.layers.Dense(3)

    def build():
        layer.build((None, 4))
        return layer

    assert count_params(build) == 15


@pytest.mark.once
def test_count_params_propagates_errors():
    with pytest.raises(ValueError, match="`depth` must be 6 b"):
        count_params(lambda: WideResNet(11))
    with pytest.raises(ZeroDivisionError):
        count_params(lambda: 1 / 0)


def test_count_params_leaves_nothing_behind():
    keras.utils.clear_session(free_memory=False)
    assert keras.layers.Dense(1).name == "dense"

    def build():
        for _ in range(3):
            keras.layers.Dense(1)
        return small(WideResNet)

    count_params(build)
    with contextlib.suppress(ZeroDivisionError):
        count_params(lambda: [small(WideResNet), 1 / 0])
    assert keras.layers.Dense(1).name == "dense_1"
    # Variables have values again.
    model = small(WideResNet)
    model.compile("sgd", "sparse_categorical_crossentropy")
    history = model.fit(random(2, 8, 8, 3), np.array([0, 1]), verbose=0)
    assert np.isfinite(history.history["loss"]).all()


COUNT_LARGE = """
import json, resource
import keras
from keras_tlgc.applications import WideResNet
from keras_tlgc.costs import count_params

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

count_params(lambda: WideResNet(10, 1))  # What a backend loads lazily.
before = peak()
count = count_params(lambda: WideResNet(28, 80))
print(json.dumps([count, peak() - before]))
"""


def test_count_params_allocates_nothing():
    count, megabytes = json.loads(run_python(COUNT_LARGE).splitlines()[-1])
    assert count > 2.3e9  # 9.3 GB in float32.
    assert megabytes < 300
