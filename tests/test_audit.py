"""The audit: what it reads from sound programs, and that it finds each trap."""

import math
from collections import Counter

import keras
import numpy as np
import pytest
from meshes import (
    ON_JAX,
    compiled,
    data_parallel,
    images,
    model_parallel,
)
from networks import few_stages, small  # noqa: F401

from keras_tlgc import layers
from keras_tlgc.applications import MobileNetV2, WideResNet
from keras_tlgc.distribution import audit, audit_network
from keras_tlgc.distribution.hlo import collectives, mesh_axes
from keras_tlgc.distribution.plan import Machine, predict
from keras_tlgc.distribution.step import Step, compile_network
from keras_tlgc.layers import base_group_conv

pytestmark = ON_JAX


def network(middle):
    """Return a model around a layer; `stem_conv` and head have known names."""
    return compiled(
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.Conv2D(16, 3, use_bias=False, name="stem_conv"),
                keras.layers.BatchNormalization(name="stem_bn"),
                middle,
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(
                    10, activation="softmax", name="predictions"
                ),
            ]
        )
    )


def two_level(**options):
    return layers.TwoLevelGroupConv2D(
        16, 3, groups=4, use_bias=False, name="conv", **options
    )


def on_model(result):
    return Counter(row.kind for row in result.rows if row.axes == ("model",))


# --- sound programs


@pytest.mark.parametrize("mesh", [(1, 4), (2, 2)])
def test_two_level_layer_moves_its_coarse_channels(mesh):
    model_parallel(*mesh)
    result = audit(network(two_level(coarse_channels=3)), 8)
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
    (logits,) = [row for row in result.rows if row.role == "logits"]
    assert (logits.kind, logits.shape) == ("all-reduce", (rows, 10))
    assert on_model(result).total() == 3


def test_what_one_device_holds():
    model_parallel(1, 4)
    model = network(two_level())
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


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("conv", ["group", "two_level"])
@pytest.mark.parametrize("build", [WideResNet, MobileNetV2])
def test_networks(build, conv, policy):
    """The full networks, forward and backward, in both precisions."""
    keras.config.set_dtype_policy(policy)
    result = audit_network(
        lambda: small(build, conv, groups=4, input_shape=(32, 32, 3)),
        model_parallel(2, 2),
        8,
    )
    assert result.ok, str(result)
    count = {WideResNet: 8, MobileNetV2: 33}[build] * (conv == "two_level")
    assert on_model(result) == Counter(
        {"all-gather": count, "reduce-scatter": count, "all-reduce": 1}
    )
    moved = {
        kind: sum(row.bytes for row in result.rows if row.kind == kind)
        for kind in result.formula
    }
    assert moved == result.formula


def test_naive_model_parallelism(few_stages):  # noqa: F811
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
    result = audit(network(layer), 8)
    assert result.ok, str(result)
    assert {row.kind for row in result.rows} == {"all-reduce"}


def test_data_of_the_user():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = network(two_level())

        def call(self, x):
            return self.body(x)

    model_parallel(1, 2)
    model = compiled(Net())
    model.build((8, 8, 8, 3))
    with pytest.raises(ValueError, match="Pass a batch as `data="):
        audit(model, 8)
    assert audit(model, 8, data=images(8)).ok


def test_network_and_model_agree(few_stages):  # noqa: F811
    distribution = model_parallel(2, 2)

    def build():
        return small(WideResNet, "two_level", groups=4)

    unbuilt = audit_network(build, distribution, 8)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model = build()
    model.compile(optimizer, "sparse_categorical_crossentropy")
    assert unbuilt == audit(model, 8)


# --- traps


def test_native_grouped_convolution():
    """XLA gathers input and kernel, and every device computes all of it."""
    model_parallel(1, 4, {"(.*/)?native/kernel": (None, None, None, "model")})
    layer = keras.layers.Conv2D(16, 3, groups=4, use_bias=False, name="native")
    assert_not_ok(audit(network(layer), 8), "native")


def test_sliced_convolution_without_shards(monkeypatch):
    monkeypatch.setattr(base_group_conv, "per_shard", whole)
    model_parallel(1, 4)
    result = audit(network(two_level(lowering="slices")), 8)
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
    result = audit(network(two_level()), 8)
    assert_not_ok(result, "conv")
    assert any("batch" in row.axes for row in result.unexpected)


def test_data_parallel_native_convolution():
    data_parallel(4)
    layer = keras.layers.Conv2D(16, 3, groups=4, use_bias=False, name="native")
    result = audit(network(layer), 8)
    assert_not_ok(result, "native")
    assert "all-gather" in {row.kind for row in result.unexpected}


def test_rule_that_matches_outputs():
    model_parallel(1, 2, {".*bn.*": ("model",)})
    result = audit(network(two_level()), 8)
    assert_not_ok(result, "stem_bn")
    (warning,) = result.warnings
    assert "'.*bn.*'" in warning
    assert "stem_bn/output" in warning
    assert warning in str(result)


def test_rule_that_is_meant_for_an_output():
    model_parallel(
        1, 2, {"(.*/)?stem_bn/output": ("batch", None, None, "model")}
    )
    assert audit(network(two_level()), 8).ok


def test_rule_that_matches_nothing():
    model_parallel(1, 2, {"convolution/kernel": (None, None, None, "model")})
    result = audit(network(two_level()), 8)
    assert not result.ok
    assert not result.unexpected
    assert "'convolution/kernel'" in result.warnings[0]
    assert "matches no variable" in result.warnings[0]
    assert str(result).endswith("NOT OK: mend the layout map.")


def test_layer_without_a_rule():
    """Its gradient is put together from all devices."""
    distribution = model_parallel(1, 2)
    rule = next(r for r in distribution._layout_map if "stem_conv" in r)
    del distribution._layout_map[rule]
    result = audit(network(two_level()), 8)
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
    return compute(inputs, values, groups, gather=lambda coarse: coarse)


# --- errors


def test_bad_audits():
    model = compiled(
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    )
    with pytest.raises(ValueError, match="needs a distribution"):
        audit(model, 8)
    model_parallel(2, 2)
    with pytest.raises(ValueError, match="must be made under the distrib"):
        audit(model, 8)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="that is built and compiled"):
        audit(model, 8)
    with pytest.raises(ValueError, match="must divide the batch"):
        audit(compiled(model), 7)
    with pytest.raises(ValueError, match="`batch_size` must be a positive"):
        audit(model, 0)
    free = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    with pytest.raises(ValueError, match="sizes of a batch must be known"):
        audit(compiled(free), 8)


# --- reading programs

LINE = "  %x = {result} {kind}(%y), channel_id=1, {groups}, metadata={{{name}}}"


def read(result, kind, groups, name='op_name="jit(step)/a/dot"', count=8):
    line = LINE.format(result=result, kind=kind, groups=groups, name=name)
    return collectives(f"HloModule m\n{line}\n", count)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("model",)),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("batch",)),
        ("replica_groups={}", ("batch", "model")),
        ("replica_groups=[2,4]<=[8]", ("model",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("batch",)),
        ("replica_groups=[1,8]<=[8]", ("batch", "model")),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ("model",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", ("batch",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", ("batch", "model")),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}",
            ("batch",),
        ),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}",
            ("model",),
        ),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", ("model",)),
    ],
)
def test_axes_of_groups(groups, axes):
    kind = "collective-permute" if "pairs" in groups else "all-reduce"
    (found,) = read("f32[2,3]{1,0}", kind, groups)
    assert mesh_axes(found.groups, (2, 4), ("batch", "model")) == axes


def test_groups_of_one_device_move_nothing():
    assert not read("f32[2]{0}", "all-reduce", "replica_groups={{0},{1}}")
    assert not read(
        "f32[2]{0}", "all-reduce", "replica_groups=mesh['a'=8,'b'=1] {'b'}"
    )


@pytest.mark.parametrize(
    ("kind", "result", "received"),
    [
        ("all-gather", "f32[8,6]{1,0}", 8 * 6 * 4 * 3 // 4),
        ("reduce-scatter", "bf16[2,6]{1,0}", 2 * 6 * 2 * 3),
        ("all-reduce", "f32[10]{0}", 2 * 10 * 4 * 3 // 4),
        ("all-to-all", "s8[16]{0}", 12),
        ("collective-permute", "f64[5]{0}", 40),
    ],
)
def test_bytes_received(kind, result, received):
    (found,) = read(result, kind, "replica_groups=[2,4]<=[8]")
    assert found.bytes == received
    assert found.kind == kind


def test_several_arrays_and_asynchronous_starts():
    groups = "replica_groups=[2,4]<=[8]"
    name = 'op_name="jit(s)/(jvp(a)/dot:transpose(jvp(b))/dot)"'
    both = read(
        "(f32[2]{0}, /*index=1*/f32[3,4]{1,0})", "all-reduce", groups, name
    )
    assert [c.shape for c in both] == [(2,), (3, 4)]
    assert ["(a)" in c.op_name for c in both] == [True, False]
    (gather,) = read("(f32[2]{0}, f32[8]{0})", "all-gather-start", groups)
    assert gather.shape == (8,)
    (permute,) = read(
        "(f32[2]{0}, f32[3]{0}, u32[], u32[])",
        "collective-permute-start",
        "source_target_pairs={{0,1},{1,0}}",
    )
    assert permute.shape == (3,)
    (reduce,) = read("f32[]", "all-reduce-start", groups, name="")
    assert (reduce.shape, reduce.elements, reduce.op_name) == ((), 1, "")


def test_unknown_groups():
    with pytest.raises(ValueError, match="must be given in a known form"):
        read("f32[2]", "all-reduce", "replica_groups=@mesh<axis>")
    with pytest.raises(ValueError, match="must be given in a known form"):
        read("f32[2]", "all-reduce", "replica_groups=mesh['a'=8] {'a':(1)2}")


# --- predictions


def test_prediction():
    distribution = model_parallel(1, 4)
    text = LINE.format(
        result="f32[8,4]",
        kind="all-gather",
        groups="replica_groups=[1,4]<=[4]",
        name="",
    )
    step = Step(distribution, text, [], [], [], [], [], 6e12, 3e9, 0)
    machine = Machine(peak=2e12, memory=1e9, bandwidth=48.0, latency=0.5)
    predicted = predict(step, machine)
    assert predicted == (3.0, 3.0, 96 / 48 + 0.5, 96)
    assert predicted.total == 8.5


def test_compile_without_a_mesh():
    step = compile_network(
        lambda: WideResNet(10, 1, input_shape=(8, 8, 3)), None, 4
    )
    assert step.flops > 0
    assert not collectives(step.text, 1)
    assert np.isfinite(step.bytes_accessed)
