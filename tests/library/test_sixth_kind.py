"""A kind of layer that the package does not know: one class and one row."""

import keras
import numpy as np
import pytest
from helpers import outputs, random, to_numpy
from keras import ops
from meshes import ON_JAX, compiled, is_split, model_parallel
from oracle import two_level_group_conv

from keras_tlgc import variables
from keras_tlgc.applications.convolutions import Kind
from keras_tlgc.audit import audit
from keras_tlgc.costs import model_costs
from keras_tlgc.lab.benchmark import benchmark_layers, layers
from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.layers.plain import PlainConv, plain_conv
from keras_tlgc.ops import grouped_conv
from keras_tlgc.rewrite import convert, deploy, fold_batch_norm

MEAN_KERNEL = variables.Role(
    (variables.INPUTS, variables.GROUPS),
    is_kernel=True,
    is_coarse=True,
    scales_outputs=True,
)
GROUPS, CHANNELS, FILTERS = 4, 8, 16
FINE, COARSE = 9 * CHANNELS // GROUPS * FILTERS, GROUPS * FILTERS


@keras.saving.register_keras_serializable(package="test_sixth_kind")
class MeanGroupConv2D(BaseGroupConv):
    """A group convolution whose groups tell each other their means."""

    rank = 2

    def build_coarse_level(self, channels):
        self.mean_kernel = self.add_weight(
            name="mean_kernel", shape=(self.groups, self.filters)
        )

    @property
    def sharded_kernels(self):
        return [*super().sharded_kernels, self.mean_kernel]

    @property
    def gathered_channels(self):
        return self.groups

    def group_op(self, padding):
        def convolve(inputs, kernels, groups, peers):
            fine = grouped_conv(
                inputs, kernels[0], groups, **self.window(padding)
            )
            shape = (*ops.shape(inputs)[:-1], groups, -1)
            means = ops.mean(ops.reshape(inputs, shape), axis=-1)
            means = peers.gather(means) if peers else means
            return fine + ops.matmul(means, kernels[1])

        return convolve

    def plain_forms(self, sizes):
        means = np.full((1, 1, CHANNELS // GROUPS, GROUPS), GROUPS / CHANNELS)
        coarse = ops.convert_to_tensor(self.mean_kernel)[None, None]
        fine = plain_conv(self, "fine", self.kernel, sizes, GROUPS)
        means = PlainConv("means", means, GROUPS)
        return [[[fine], [means, PlainConv("coarse", coarse)]]]


@pytest.fixture(autouse=True)
def _one_row(monkeypatch):
    monkeypatch.setitem(variables.ROLES, "mean_kernel", MEAN_KERNEL)


def mean_conv(**options):
    return MeanGroupConv2D(
        FILTERS, 3, padding="same", groups=GROUPS, name="sixth", **options
    )


def network(**options):
    return keras.Sequential(
        [
            keras.Input((6, 6, CHANNELS)),
            mean_conv(**options),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation="softmax", name="predictions"),
        ]
    )


def randomised():
    model = network()
    for i, variable in enumerate(model.variables):
        variable.assign(np.abs(random(*variable.shape, seed=i)) + 0.1)
    return model


def test_computed():
    layer, x = mean_conv(use_bias=False), random(2, 5, 5, CHANNELS)
    layer.build(x.shape)
    y = outputs(layer, x)
    kernel, mean_kernel = map(to_numpy, layer.weights)
    means = np.full((1, 1, CHANNELS // GROUPS, GROUPS), GROUPS / CHANNELS)
    expected = two_level_group_conv(
        *(x, kernel, None, means, mean_kernel), groups=GROUPS, padding="same"
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_counted():
    costs = model_costs(network)
    head, norm = 10 * FILTERS + 10, 2 * FILTERS
    assert costs.coarse_params == COARSE
    assert costs.params == FINE + FILTERS + COARSE + norm + head
    assert costs.params_per_processor == costs.params - 3 * (
        (FINE + FILTERS + COARSE) // GROUPS
    )
    assert costs.multiply_adds == 36 * (FINE + COARSE) + 10 * FILTERS
    outputs_of = 36 * (FILTERS + GROUPS + FILTERS) + FILTERS + 10
    assert costs.activation_bytes == 4 * outputs_of


def test_folded():
    model, x = randomised(), random(2, 6, 6, CHANNELS)
    folded = fold_batch_norm(model)
    assert "norm" not in [layer.name for layer in folded.layers]
    np.testing.assert_allclose(outputs(folded, x), outputs(model, x), atol=1e-5)


def test_deployed():
    model, x = randomised(), random(2, 6, 6, CHANNELS)
    plain = deploy(model)
    names = [layer.name for layer in plain.get_layer("sixth").layers]
    assert {"sixth_fine", "sixth_means", "sixth_coarse"} < {*names}
    np.testing.assert_allclose(outputs(plain, x), outputs(model, x), atol=1e-5)


class WithCall(MeanGroupConv2D):
    def call(self, inputs):
        return ops.square(super().call(inputs))


class WithUnknownVariable(MeanGroupConv2D):
    def build_coarse_level(self, channels):
        super().build_coarse_level(channels)
        self.shift = self.add_weight(name="shift", shape=(self.filters,))


@pytest.mark.parametrize("cls", [WithCall, WithUnknownVariable])
def test_what_is_unknown_is_not_folded(cls):
    model = keras.Sequential(
        [
            keras.Input((6, 6, CHANNELS)),
            cls(FILTERS, 3, groups=GROUPS),
            keras.layers.BatchNormalization(name="norm"),
        ]
    )
    assert "norm" in [layer.name for layer in fold_batch_norm(model).layers]


def test_what_computes_something_else_is_not_deployed():
    conv = WithCall(FILTERS, 3, groups=GROUPS, name="other")
    model = keras.Sequential([keras.Input((6, 6, CHANNELS)), conv])
    with pytest.raises(
        ValueError, match=r"must know how.*'other', WithCall\. Define `plain_f"
    ):
        deploy(model)


def test_saved(tmp_path):
    model, x = randomised(), random(2, 6, 6, CHANNELS)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(loaded, x), outputs(model, x))


def test_kept_and_counted_by_a_conversion():
    model = keras.Sequential(
        [
            keras.Input((6, 6, CHANNELS)),
            mean_conv(),
            keras.layers.Conv2D(FILTERS, 3),
        ]
    )
    [row, _] = convert(model, groups=GROUPS, verbose=0).report.rows
    assert row.reason == "it is a group convolution already"
    assert row.multiply_adds == 36 * (FINE + COARSE)


def test_benchmarked(monkeypatch):
    kind = Kind(MeanGroupConv2D, ("groups",), "Means")
    monkeypatch.setitem(layers.KINDS, "mean", kind)
    shape = layers.Shape(6, CHANNELS, FILTERS, 3)
    monkeypatch.setitem(layers.SHAPES, "tiny", shape)
    monkeypatch.setattr(layers, "attained", lambda dtype: (1e9, 1e9))
    [[standard, row]] = benchmark_layers(
        ["tiny"], ["mean"], [GROUPS], batch_size=2, rounds=3
    )
    assert (row.label, row.error) == ("Means", "")
    assert row.ms > 0
    assert row.limit == pytest.approx((FINE + COARSE) / (GROUPS * FINE))
    assert standard.limit == 1


@ON_JAX
@pytest.mark.parametrize("rank", [None, 2], ids=["plain", "lora"])
def test_laid_out_and_audited(rank):
    model_parallel(2, 2)
    model = compiled(network(lora_rank=rank))
    layer = model.get_layer("sixth")
    for variable in layer.weights:
        assert is_split(variable), variable.path
    result = audit(model, 8)
    assert result.ok, str(result)
    coarse = [row for row in result.rows if row.role == "coarse"]
    entries = 4 * 36 * GROUPS  # Of the 4 rows of a device.
    received = 4 * entries // 2
    # Nothing is scattered, since the images need no gradient.
    assert {row.kind: row.bytes for row in coarse} == {"all-gather": received}
    assert result.formula["all-gather"] == received
