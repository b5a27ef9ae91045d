"""The audit: what it reads from sound programs, and that it finds each trap."""

import math
from collections import Counter

import keras
import numpy as np
import pytest
from audited import SPARSE, model_around, on_model, two_level
from helpers import to_numpy
from meshes import ON_JAX, compiled, data_parallel, images, model_parallel
from networks import small

from keras_tlgc import layers
from keras_tlgc.applications import MobileNetV2, WideResNet
from keras_tlgc.audit import audit, audit_network
from keras_tlgc.audit.step import compile_network
from keras_tlgc.distribution import get_layout_map
from keras_tlgc.layers import base_group_conv
from keras_tlgc.sharding.per_shard import Peers

pytestmark = ON_JAX


# --- sound programs


@pytest.mark.parametrize("mesh", [(1, 4), (2, 2)])
def test_two_level_layer_moves_its_coarse_channels(mesh):
    model_parallel(*mesh)
    model = model_around(two_level(coarse_channels=3))
    result = audit(model, 8)
    assert result.ok
    assert "OK: nothing moves but what is expected." in str(result)
    rows, devices = 8 // mesh[0], mesh[1]
    coarse = rows * 4 * 4 * (4 * 3)  # 4x4 positions, N = 4 groups, r = 3.
    expected = {
        "all-gather": (rows, 4, 4, 12),
        "reduce-scatter": (rows, 4, 4, 12 // devices),
    }
    for kind, shape in expected.items():
        (row,) = [row for row in result.rows if row.kind == kind]
        assert (row.layer, row.role) == ("conv", "coarse")
        assert row.axes == ("model",)
        assert math.prod(row.shape) == math.prod(shape)
        assert row.bytes == 4 * coarse * (devices - 1) // devices
        assert result.formula[kind] == row.bytes
    kernel = model.get_layer("conv").kernel
    flops = 2 * rows * 4 * 4 * math.prod(kernel.shape) // devices
    assert result.hiding == {"conv": flops / result.formula["all-gather"]}
    assert "While coarse channels arrive, G can run: " in str(result)
    (logits,) = [row for row in result.rows if row.role == "outputs"]
    assert (logits.kind, logits.shape) == ("all-reduce", (rows, 10))
    assert on_model(result).total() == 3


def test_what_one_device_holds():
    model_parallel(1, 4)
    model = model_around(two_level())
    model.compile(keras.optimizers.Adam(), "sparse_categorical_crossentropy")
    result = audit(model, 8)
    sizes = [v.shape for v in model.trainable_variables]
    whole = 10  # The head's bias.
    assert result.params == sum(map(math.prod, sizes))
    assert result.local_params == (result.params - whole) // 4 + whole
    assert result.whole == [f"{model.name}/predictions/bias"]
    slots = 2 * 4 * (result.params - whole)  # Two of float32, by variable.
    assert result.optimizer_bytes - slots == 2 * 4 * whole + 8
    assert result.local_optimizer_bytes == slots // 4 + 2 * 4 * whole + 8
    assert result.temporary_bytes > 0
    text = str(result)
    assert f"{result.local_params:,} of {result.params:,}" in text
    assert "Whole on every device" in text


def test_flops_are_a_share_of_those_of_one_device():
    """Of standard convolutions, which run as one kernel on any device."""
    flops = {
        count: audit_network(
            lambda: WideResNet(10, 1, input_shape=(8, 8, 3)),
            model_parallel(1, count),
            8,
        ).flops
        for count in (1, 4)
    }
    assert flops[4] == pytest.approx(flops[1] / 4, rel=0.05)


@pytest.mark.parametrize(
    ("build", "conv", "policy"),
    [
        (WideResNet, "group", "mixed_bfloat16"),
        (WideResNet, "two_level", "float32"),
        (MobileNetV2, "two_level", "float32"),
    ],
)
def test_networks(request, build, conv, policy):
    """A full WideResNet, and each kind of block of a MobileNetV2."""
    if build is MobileNetV2:
        request.getfixturevalue("few_stages")
    keras.config.set_dtype_policy(policy)
    result = audit_network(
        lambda: small(build, conv, groups=4, input_shape=(32, 32, 3)),
        model_parallel(2, 2),
        8,
    )
    assert result.ok, str(result)
    count = {WideResNet: 8, MobileNetV2: 5}[build] * (conv == "two_level")
    assert on_model(result) == Counter(
        {"all-gather": count, "reduce-scatter": count, "all-reduce": 1}
    )
    moved = {
        kind: sum(row.bytes for row in result.rows if row.kind == kind)
        for kind in result.formula
    }
    assert moved == result.formula


def test_naive_model_parallelism(few_stages):
    """A standard convolution gathers all of its input."""
    result = audit_network(lambda: small(WideResNet), model_parallel(1, 2), 8)
    assert result.ok
    gathered = {
        row.layer: row.shape for row in result.rows if row.kind == "all-gather"
    }
    assert gathered["stage1_block1_conv2"] == (8, 8, 8, 16)
    assert result.bytes("input") > 100_000
    assert result.formula == {"all-gather": 0, "reduce-scatter": 0}


@pytest.mark.parametrize("lowering", ["native", "slices"])
@pytest.mark.parametrize(
    "cls", [layers.GroupConv2D, layers.TwoLevelGroupConv2D]
)
def test_data_parallel_gathers_nothing(cls, lowering):
    data_parallel(4)
    layer = cls(16, 3, groups=4, lowering=lowering, use_bias=False)
    result = audit(model_around(layer), 8)
    assert result.ok, str(result)
    assert {row.kind for row in result.rows} == {"all-reduce"}


def test_data_of_the_user():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = model_around(two_level())

        def call(self, x):
            return self.body(x)

    model_parallel(1, 2)
    model = compiled(Net())
    model.build((8, 8, 8, 3))
    with pytest.raises(ValueError, match="Pass a batch as `data="):
        audit(model, 8)
    assert audit(model, 8, data=images(8)).ok


def test_network_and_model_agree(few_stages):
    distribution = model_parallel(2, 2)

    def build():
        return small(WideResNet, "two_level", groups=4)

    unbuilt = audit_network(build, distribution, 8)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model = build()
    model.compile(optimizer, "sparse_categorical_crossentropy")
    assert unbuilt == audit(model, 8)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((2, 2, 1), ("batch", "model", "x")),
        ((2, 1, 2), ("model", "x", "batch")),
    ],
    ids=str,
)
def test_mesh_with_a_third_axis(shape, names):
    devices = keras.distribution.list_devices()[:4]
    mesh = keras.distribution.DeviceMesh(shape, names, devices)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(
            layout_map=get_layout_map(mesh), batch_dim_name="batch"
        )
    )
    result = audit(model_around(two_level()), 8)
    assert result.ok
    assert result.model_axis == "model"
    assert on_model(result) == {
        "all-gather": 1,
        "reduce-scatter": 1,
        "all-reduce": 1,
    }


# --- what runs before and after


def test_audit_does_not_see_what_ran_before():
    """JAX would return the step that `fit` traced, without calling a layer."""
    model_parallel(2, 2)
    model = model_around(two_level())
    first = audit(model, 8)
    assert first.ok
    x, y = images(8)
    model.fit(x, y, verbose=0)
    for _ in range(2):
        assert audit(model, 8) == first


def test_audit_does_not_change_what_runs_after():
    """Weights, slots, metrics and seeds; the user may still freeze layers."""

    def train(audited):
        keras.utils.set_random_seed(0)
        model_parallel(2, 2)
        optimizer = keras.optimizers.Adam()
        dropout = keras.layers.Dropout(0.5)
        own_call = dropout.call = dropout.call  # As tools that wrap calls do.
        model = model_around(dropout)
        model.compile(optimizer, SPARSE, metrics=["accuracy"])
        if audited:
            audit(model, 8)
        assert dropout.call is own_call
        model.get_layer("stem_conv").trainable = False
        model.compile(optimizer, SPARSE, metrics=["accuracy"])
        x, y = images(16)
        histories = []
        for _ in range(2):
            fitted = model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
            histories.append(fitted.history)
            if audited:
                audit(model, 8)
        next_model = keras.layers.Dense(4)
        next_model.build((2, 4))
        state = [*model.variables, *optimizer.variables, next_model.kernel]
        return histories, [to_numpy(v) for v in state]

    expected, state = train(audited=False)
    found, found_state = train(audited=True)
    assert found == expected
    for a, b in zip(found_state, state, strict=True):
        np.testing.assert_array_equal(a, b)


def test_audit_of_an_optimizer_that_no_config_describes():
    class Own(keras.optimizers.SGD):
        def __init__(self, needed):
            super().__init__(0.1, momentum=needed)

    model_parallel(1, 2)
    model = model_around(two_level())
    model.compile(Own(0.9), "sparse_categorical_crossentropy")
    assert audit(model, 8).ok
    assert model.optimizer.built


# --- traps


def test_native_grouped_convolution():
    """XLA gathers input and kernel, and every device computes all of it."""
    model_parallel(1, 4, {"(.*/)?native/kernel": (None, None, None, "model")})
    layer = keras.layers.Conv2D(16, 3, groups=4, use_bias=False, name="native")
    assert_not_ok(audit(model_around(layer), 8), "native")


def test_sliced_convolution_without_shards(monkeypatch):
    monkeypatch.setattr(base_group_conv, "per_shard", whole)
    model_parallel(1, 4)
    result = audit(model_around(two_level(lowering="slices")), 8)
    assert_not_ok(result, "conv")


def test_only_the_model_axis_is_manual(monkeypatch):
    """XLA gathers the batch at every layer."""
    import jax

    shard_map = jax.shard_map

    def partial(compute, mesh, in_specs, out_specs):
        def without_batch(spec):
            return jax.sharding.PartitionSpec(
                *[None if name == "batch" else name for name in spec]
            )

        return shard_map(
            compute,
            mesh=mesh,
            in_specs=tuple(map(without_batch, in_specs)),
            out_specs=without_batch(out_specs),
            axis_names={"model"},
        )

    monkeypatch.setattr(jax, "shard_map", partial)
    model_parallel(2, 2)
    result = audit(model_around(two_level()), 8)
    assert_not_ok(result, "conv")
    assert any("batch" in row.axes for row in result.unexpected)


def test_data_parallel_native_convolution():
    data_parallel(4)
    layer = keras.layers.Conv2D(16, 3, groups=4, use_bias=False, name="native")
    result = audit(model_around(layer), 8)
    assert_not_ok(result, "native")
    assert "all-gather" in {row.kind for row in result.unexpected}


def test_rule_that_matches_outputs():
    model_parallel(1, 2, {".*bn.*": ("model",)})
    result = audit(model_around(two_level()), 8)
    assert_not_ok(result, "stem_bn")
    (warning,) = result.warnings
    assert "'.*bn.*'" in warning
    assert "stem_bn/output" in warning
    assert warning in " ".join(str(result).split())


def test_rule_that_is_meant_for_an_output():
    model_parallel(
        1, 2, {"(.*/)?stem_bn/output": ("batch", None, None, "model")}
    )
    assert audit(model_around(two_level()), 8).ok


def test_rule_that_matches_nothing():
    model_parallel(1, 2, {"convolution/kernel": (None, None, None, "model")})
    result = audit(model_around(two_level()), 8)
    assert not result.ok
    assert not result.unexpected
    assert "'convolution/kernel'" in result.warnings[0]
    assert "matches no variable" in result.warnings[0]
    assert str(result).endswith("NOT OK: mend the layout map.")


def test_stem_kept_whole():
    """Its gradient is put together from all devices."""
    model_parallel(1, 2, {"(.*/)?stem_conv/kernel": (None,)})
    result = audit(model_around(two_level()), 8)
    assert_not_ok(result, None)
    assert any("stem_conv/kernel" in name for name in result.whole)


def assert_not_ok(result, layer):
    assert not result.ok
    assert result.unexpected
    if layer is not None:
        assert any(layer in row.layer for row in result.unexpected)
    assert "NOT EXPECTED" in str(result)
    assert "NOT OK: " in str(result)


def whole(compute, inputs, kernels, groups, channel_axis):
    """What `per_shard` does without a mesh."""
    values = [keras.ops.convert_to_tensor(kernel) for kernel in kernels]
    alone = Peers(gather=keras.ops.copy, add_up=keras.ops.copy)
    return compute(inputs, values, groups, alone)


# --- without a mesh


def test_compile_without_a_mesh():
    step = compile_network(
        lambda: WideResNet(10, 1, input_shape=(8, 8, 3)), None, 4
    )
    assert step.flops > 0
    assert not step.collectives
    assert np.isfinite(step.bytes_accessed)
