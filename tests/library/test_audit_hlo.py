"""The audit: reading the text of compiled programs."""

import pytest
from meshes import ON_JAX, model_parallel

from keras_tlgc.audit.hlo import collectives, mesh_axes
from keras_tlgc.audit.plan import Machine, predict
from keras_tlgc.audit.step import Step

pytestmark = ON_JAX

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
        ("all-gather", "f8e4m3b11fnuz[16]{0}", 12),
        ("all-gather", "s4[16]{0}", 6),
        ("all-gather", "pred[16]{0}", 12),
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


def test_names_that_are_joined():
    groups = "replica_groups=[2,4]<=[8]"
    name = 'op_name="jit(s)/(jvp(a)/(q/dot:(k:v)/dot):f(b)/add)"'
    result = "(f32[2]{0}, f32[2]{0}, f32[2]{0})"
    assert [c.op_name for c in read(result, "all-reduce", groups, name)] == [
        "jit(s)/jvp(a)/q/dot",
        "jit(s)/jvp(a)/(k:v)/dot",
        "jit(s)/f(b)/add",
    ]


def test_loops_are_counted():
    """Each runs what it calls as often as it turns, within other loops too."""
    reduce = (
        "  %r = f32[2]{0} all-reduce(%y), replica_groups=[2,4]<=[8], "
        "to_apply=%sum"
    )
    loop = (
        "  %w = (s32[]) while(%t), condition=%c, body=%{body}, "
        'backend_config={{"known_trip_count":{{"n":"{n}"}}}}'
    )
    text = "\n".join(
        [
            *("%inner.1 (p: f32[2]) -> f32[2] {", reduce, "}"),
            *("%outer (p: f32[2]) -> f32[2] {", reduce, "}"),
            loop.format(body="inner.1", n=3),
            *("%open (p: f32[2]) -> f32[2] {", reduce, "}"),
            *("ENTRY %main (p: f32[2]) -> f32[2] {", reduce, "}"),
            loop.format(body="outer", n=5),
            "  %w = (s32[]) while(%t), condition=%c, body=%open",
        ]
    )
    found = collectives(text, 8)
    assert [c.times for c in found] == [15, 5, 1, 1]
    assert [c.bytes for c in found] == [n * 12 for n in (15, 5, 1, 1)]


def test_unknown_groups():
    with pytest.raises(ValueError, match="must be given in a known form"):
        read("f32[2]", "all-reduce", "replica_groups=@mesh<axis>")
    with pytest.raises(ValueError, match="must be given in a known form"):
        read("f32[2]", "all-reduce", "replica_groups=mesh['a'=8] {'a':(1)2}")


def test_prediction():
    distribution = model_parallel(1, 4)
    text = LINE.format(
        result="f32[8,4]",
        kind="all-gather",
        groups="replica_groups=[1,4]<=[4]",
        name="",
    )
    moved = collectives(text, 4)
    step = Step(distribution, moved, [], [], [], [], [], 6e12, 3e9, 0)
    machine = Machine(peak=2e12, memory=1e9, bandwidth=48.0, latency=0.5)
    predicted = predict(step, machine)
    assert predicted == (3.0, 3.0, 96 / 48 + 0.5, 96)
    assert predicted.total == 8.5
