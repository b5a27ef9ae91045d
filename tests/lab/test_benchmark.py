"""`keras-tlgc benchmark`: what is timed and what the rows say. No time is
asserted."""

import csv
import dataclasses
import math

import keras
import numpy as np
import pytest
from commands import output_of, squeezed
from networks import few_stages  # noqa: F401

from keras_tlgc.applications import WideResNet
from keras_tlgc.applications.convolutions import Kind
from keras_tlgc.lab.benchmark import (
    SHAPES,
    Row,
    backends,
    benchmark_layers,
    benchmark_networks,
    layers,
    markdown,
    write_rows,
)
from keras_tlgc.lab.benchmark.rows import Step, fill

ALL_KINDS = ["keras", "group", "shuffle", "learnable", "two_level"]


@pytest.fixture
def tiny_shapes(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny3", layers.Shape(6, 8, 16, 3))
    monkeypatch.setitem(SHAPES, "tiny1", layers.Shape(4, 8, 16, 1))
    monkeypatch.setattr(layers, "attained", lambda dtype: (1e9, 1e9))


def rows_of(**options):
    options = {"batch_size": 2, "rounds": 3, **options}
    return [row for some in benchmark_layers(**options) for row in some]


def assert_measured(row):
    assert row.error == ""
    assert 0 < row.low_ms <= row.ms <= row.high_ms
    assert row.to_standard > 0 and row.compile_s >= 0
    assert row.peak_mb >= 0 or math.isnan(row.peak_mb)


@pytest.mark.every_backend
@pytest.mark.usefixtures("tiny_shapes")
@pytest.mark.parametrize("run", ["training", "forward"])
def test_layers(run):
    rows = rows_of(
        shapes=["tiny"],
        convs=ALL_KINDS,
        groups=[2, 3],  # 3 divides neither 8 nor 16: left out.
        lowerings=["native", "matmul"],
        runs=[run],
    )
    chosen = [(row.case, row.conv, row.label, row.groups) for row in rows]
    assert chosen == [
        ("tiny3", "standard", "SC", 1),
        ("tiny3", "keras", "Conv2D(groups)", 2),
        ("tiny3", "group", "GC, native", 2),
        ("tiny3", "shuffle", "Shuffle, native", 2),
        ("tiny3", "learnable", "FLGC", 2),
        ("tiny3", "two_level", "GC-2L, native", 2),
        ("tiny1", "standard", "SC", 1),
        ("tiny1", "keras", "Conv2D(groups)", 2),
        ("tiny1", "group", "GC, native", 2),
        ("tiny1", "group", "GC, matmul", 2),
        ("tiny1", "shuffle", "Shuffle, native", 2),
        ("tiny1", "shuffle", "Shuffle, matmul", 2),
        ("tiny1", "learnable", "FLGC", 2),
        ("tiny1", "two_level", "GC-2L, native", 2),
        ("tiny1", "two_level", "GC-2L, matmul", 2),
    ]
    for row in rows:
        assert_measured(row)
    # 36 positions of 2 images, 9 taps, 8 channels and 16 filters.
    passes = 3 if run == "training" else 1
    standard, *_, two_level = rows[:6]
    flop = 2 * passes * 2 * 36 * 9 * 8 * 16
    assert standard.gflop == pytest.approx(flop / 1e9)
    assert (standard.to_standard, standard.limit) == (1, 1)
    assert rows[1].limit == rows[2].limit == 0.5
    # R: 9 taps of 8 channels; C: 2 coarse channels to 16 filters.
    coarse = (9 * 8 + 2 * 16) / (9 * 8 * 16)
    assert two_level.limit == pytest.approx(0.5 + coarse)
    entries = 2 * 36 * (8 + 16) + 9 * 8 * 16
    least = max(flop, 4 * passes * entries) / 1e9
    assert standard.to_roofline == pytest.approx(standard.ms / 1000 / least)


@pytest.mark.every_backend
@pytest.mark.usefixtures("tiny_shapes")
def test_bfloat16_and_compiled_as_asked():
    options = {
        "shapes": ["tiny3"],
        "convs": ["low_rank"],
        "groups": [4],
        "coarse_channels": 3,
        "dtypes": ["bfloat16"],
    }
    compiled = False
    if keras.backend.backend() == "jax":
        compiled = True
        with pytest.raises(ValueError, match="are always compiled on JAX"):
            rows_of(**options, jit_compile=False)
    rows = rows_of(**options, jit_compile=compiled)
    for row in rows:
        assert_measured(row)
    assert {(row.dtype, row.jit_compile) for row in rows} == {
        ("bfloat16", compiled)
    }
    assert [row.label for row in rows] == ["SC", "Low rank, r = 3"]
    # R: 9 taps of 8 channels, three times; C: 12 coarse channels to 16 filters.
    share = (9 * 8 * 3 + 12 * 16) / (9 * 8 * 16)
    assert rows[1].limit == pytest.approx(share)


def test_shapes_are_those_of_the_networks():
    model = WideResNet(28, 10)
    for name, stage in [("wrn1", 1), ("wrn2", 2), ("wrn3", 3)]:
        layer = model.get_layer(f"stage{stage}_block2_conv1")
        size, channels = layer.input.shape[1], layer.input.shape[-1]
        shape = (size, channels, layer.filters, layer.kernel_size[0])
        assert (*shape, layer.strides[0]) == SHAPES[name]


def test_attained():
    operations, bytes_ = backends.attained("float32")
    assert operations > 1e6 and bytes_ > 1e6


# --- Rows


def new_row(**about):
    values = {
        "backend": "jax",
        "device": "cpu",
        "case": "wrn1",
        "conv": "group",
        "label": "GC",
        "groups": 4,
        "run": "training",
        "dtype": "float32",
        "data_format": "channels_last",
        "jit_compile": "auto",
        "batch_size": 16,
    }
    return Row(**{**values, **about})


class Counter:
    """What builds a step that counts its runs."""

    def __init__(self):
        self.runs = 0

    def __call__(self):
        return Step(self.run, lambda: 5e6)

    def run(self):
        self.runs += 1


def broken():
    raise RuntimeError("no such | thing\nin two lines")


def test_steps_are_timed_in_turns():
    counters = [Counter(), Counter()]
    rows = fill([(new_row(), c) for c in counters], 5)
    assert [c.runs for c in counters] == [1 + 5, 1 + 5]
    assert all(row.peak_mb == 5 for row in rows)


def test_a_failed_row_carries_its_error():
    rows = fill([(new_row(), Counter()), (new_row(), broken)], 3)
    assert rows[0].to_standard == 1 and rows[0].error == ""
    assert rows[1].error == "RuntimeError: no such | thing in two lines"
    assert math.isnan(rows[1].ms) and math.isnan(rows[1].to_standard)
    assert markdown(rows).endswith(f"\n\nwrn1, GC, N = 4: {rows[1].error}")


@pytest.mark.usefixtures("tiny_shapes")
def test_a_layer_that_fails(monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("not today")

    monkeypatch.setitem(layers.KINDS, "keras", Kind(fail, ("groups",), "bad"))
    rows = rows_of(shapes=["tiny3"], convs=["keras", "group"], groups=[2])
    assert [row.error for row in rows] == ["", "ValueError: not today", ""]
    assert math.isnan(rows[1].limit)


def test_files_and_tables(tmp_path):
    rows = [
        new_row(ms=1.25, low_ms=1.0, high_ms=2.0, to_standard=0.5, limit=0.25),
        new_row(run="forward", error="OSError: no"),
    ]
    write_rows(rows, tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", newline="") as file:
        read = list(csv.DictReader(file))
    names = [field.name for field in dataclasses.fields(Row)]
    assert [list(row) for row in read] == [names, names]
    assert (read[0]["ms"], read[0]["peak_mb"]) == ("1.25", "nan")
    assert read[1]["error"] == "OSError: no"
    text = squeezed(markdown(rows))
    assert text.startswith("### jax on cpu, training, float32, channels_last")
    assert "| wrn1 | GC | 4 | 1.2 | 1.0..2.0 | 0.500 | 0.250 |" in text
    assert text.endswith("\n\nwrn1, GC, N = 4: OSError: no")


# --- Memory


def test_peak_of_the_process():
    if not backends.Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells a process its peak")

    def run():
        return np.ones(8_000_000).sum()

    run()
    assert 60e6 < backends._resident_peak(run) < 150e6


# --- Networks


@pytest.mark.every_backend
@pytest.mark.usefixtures("few_stages")
def test_networks():
    def build(**options):
        return WideResNet(10, 1, input_shape=(8, 8, 3), **options)

    lists = list(
        benchmark_networks(
            "tiny",
            build,
            convs=["two_level"],
            groups=[2],
            coarse_channels=2,
            runs=["training", "forward", "folded"],
            dtypes=["bfloat16"],
            batch_size=2,
            rounds=3,
        )
    )
    assert [[(r.run, r.conv) for r in rows] for rows in lists] == [
        [(run, "standard"), (run, "two_level")]
        for run in ("training", "forward", "folded")
    ]
    for rows in lists:
        for row in rows:
            assert_measured(row)
        assert rows[0].limit == 1 and 0.5 < rows[1].limit < 1
        assert rows[1].label == "GC-2L, r = 2"
    assert lists[0][0].gflop == pytest.approx(3 * lists[1][0].gflop)
    assert keras.config.dtype_policy().name == "float32"


# --- Command line


@pytest.mark.usefixtures("tiny_shapes")
def test_command_of_layers(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    arguments = "--shapes tiny --conv group --groups 2 --rounds 3"
    arguments += f" --batch-size 2 --lowerings auto --output {path}"
    out = squeezed(output_of(capsys, "benchmark", *arguments.split()))
    assert out.count("###") == 2 and "| tiny3 | GC | 2 |" in out
    with open(path, newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == (
            ["tiny3", "tiny3", "tiny1", "tiny1"]
        )


@pytest.mark.usefixtures("few_stages")
def test_command_of_networks(capsys):
    arguments = "--model wrn-10-1 --image-size 8"
    arguments += " --conv group --groups 2 --rounds 3 --batch-size 2"
    out = squeezed(output_of(capsys, "benchmark", *arguments.split()))
    assert "| wrn-10-1 | GC | 2 |" in out
