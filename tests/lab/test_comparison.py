"""Comparisons: what they write, kills, failures, errors."""

import csv
import json

import pytest
from commands import squeezed
from tiny import (
    Interrupt,
    assert_same_run,
    contents,
    settings,
    small,
    tiny_run,  # noqa: F401  A fixture.
)

from keras_tlgc import lab
from keras_tlgc.lab import (
    Comparison,
    Configuration,
    compare,
    comparison,
    estimates,
    outcomes,
    results,
    stored_comparison,
    train,
)

pytestmark = pytest.mark.usefixtures("tiny_run")


def run_folder(path, conv="group", groups=2, seed=0):
    return path / "runs" / f"{conv}-n{groups}-seed{seed}"


def which(row):
    return row.conv, row.groups, row.seed


def stored_rows(path):
    with open(path / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_comparison_writes_what_it_says(tmp_path):
    rows = compare(small(), tmp_path / "all")
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == sorted(
        lab.COMPARISON_FILES
    )
    assert [which(row) for row in rows] == [
        ("standard", 1, 0),
        ("group", 2, 0),
        ("standard", 1, 1),
        ("group", 2, 1),
    ]
    stored = stored_rows(tmp_path / "all")
    for row, written in zip(rows, stored, strict=True):
        assert written == {k: str(v) for k, v in row._asdict().items()}
        assert row.failure == ""
        assert 0 <= row.error_rate < 100
        assert row.parameters == 8 * 64 + 8 + 2 * 8 + 8 * 3 + 3
    table = (tmp_path / "all" / "table.md").read_text("utf-8")
    assert table == outcomes.table(rows)
    for name in ("errors.png", "losses.png"):
        png = (tmp_path / "all" / name).read_bytes()
        assert png.startswith(b"\x89PNG")
    assert stored_comparison(tmp_path / "all") == small()


def test_a_run_is_what_train_would_do(tmp_path):
    rows = compare(small(seeds=[3]), tmp_path / "all")
    alone = settings(conv="group", groups=2, seed=3, epochs=2)
    result = train(alone, tmp_path / "alone", verbose=0)
    assert_same_run(run_folder(tmp_path / "all", seed=3), tmp_path / "alone")
    assert rows[1].error_rate == pytest.approx(100 * (1 - result.accuracy))


def test_killed_and_resumed(tmp_path, monkeypatch):
    whole = compare(small(), tmp_path / "whole")
    real, trained = comparison.train, []

    def dying_train(settings, *args, **kwargs):
        if len(trained) == 2:
            kwargs["callbacks"] = [Interrupt(1, 2)]
        trained.append(settings)
        return real(settings, *args, **kwargs)

    monkeypatch.setattr(comparison, "train", dying_train)
    with pytest.raises(Interrupt.Kill):
        compare(small(), tmp_path / "killed")
    assert len(stored_rows(tmp_path / "killed")) == 2
    finished = contents(run_folder(tmp_path / "killed"))

    resumed = compare(small(), tmp_path / "killed", resume=True)
    assert resumed == whole
    assert len(trained) == 3 + 2  # Neither of the finished ones again.
    assert contents(run_folder(tmp_path / "killed")) == finished
    for row in whole:
        assert_same_run(
            run_folder(tmp_path / "whole", *which(row)),
            run_folder(tmp_path / "killed", *which(row)),
        )


def test_killed_before_a_run_wrote_its_configuration(tmp_path):
    (tmp_path / ".partial-config.json").write_text("{")
    one = small(convs=["group"], seeds=[0])
    compare(one, tmp_path)
    path = run_folder(tmp_path)
    for file in path.iterdir():
        file.unlink()
    (path / ".partial-config.json").write_text("{")
    assert [r.failure for r in compare(one, tmp_path, resume=True)] == [""]


def test_failed_run_is_a_row(tmp_path, monkeypatch):
    real = comparison.train

    def failing_train(settings, *args, **kwargs):
        if (settings.conv, settings.seed) == ("group", 0):
            raise RuntimeError("out of\nmemory [/0]")
        return real(settings, *args, **kwargs)

    monkeypatch.setattr(comparison, "train", failing_train)
    rows = compare(small(), tmp_path)
    failed = [row for row in rows if row.failure]
    assert [which(row) for row in failed] == [("group", 2, 0)]
    assert failed[0].failure == "RuntimeError: out of memory [/0]"
    assert failed[0].error_rate is None
    assert stored_rows(tmp_path)[1]["failure"] == failed[0].failure
    text = (run_folder(tmp_path) / "traceback.txt").read_text("utf-8")
    assert text.startswith("Traceback (most recent call last):")
    assert "in failing_train" in text and "RuntimeError: out of\n" in text
    table = squeezed((tmp_path / "table.md").read_text("utf-8"))
    assert "| GC | 2 | 0.6K | " in table and "| 1 of 2 |" in table
    monkeypatch.setattr(comparison, "train", real)
    assert not any(row.failure for row in compare(small(), tmp_path, True))
    assert not list(tmp_path.rglob("traceback.txt"))


def test_diverged_run_is_a_row(tmp_path):
    recipe = {"learning_rate": 1e30, "epochs": 1}
    rows = compare(small(seeds=[0], recipe=recipe), tmp_path)
    for row in rows:
        assert row.failure.startswith("the loss became ")
        assert row.error_rate is None
    table = squeezed((tmp_path / "table.md").read_text("utf-8"))
    assert table.count("| failed | | 0 of 1") == 2
    assert (tmp_path / "errors.png").exists()
    again = compare(small(seeds=[0], recipe=recipe), tmp_path, resume=True)
    assert again == rows


def test_run_folder_of_other_settings_is_a_failure(tmp_path):
    compare(small(), tmp_path)
    path = run_folder(tmp_path) / "config.json"
    config = json.loads(path.read_text())
    config["settings"]["epochs"] = 7
    path.write_text(json.dumps(config))
    rows = compare(small(), tmp_path, resume=True)
    assert "has epochs=7" in rows[1].failure


def test_lists_may_change_on_resume(tmp_path, monkeypatch):
    compare(small(), tmp_path)
    trained = []
    real = comparison.train

    def counting_train(settings, *args, **kwargs):
        trained.append((settings.conv, settings.groups, settings.seed))
        return real(settings, *args, **kwargs)

    monkeypatch.setattr(comparison, "train", counting_train)
    more = small(convs=["group", "shuffle"], groups=[4, 2], seeds=[1])
    rows = compare(more, tmp_path, resume=True)
    assert len(rows) == 4
    assert trained == [("group", 4, 1), ("shuffle", 4, 1), ("shuffle", 2, 1)]
    assert stored_comparison(tmp_path) == more


def test_nothing_measured_vanishes(tmp_path, monkeypatch):
    """Whatever is compared next: other kinds, groups or seeds, or in vain."""
    one, two, three, four = compare(small(), tmp_path)

    def failing_train(*args, **kwargs):
        raise MemoryError("too large")

    monkeypatch.setattr(comparison, "train", failing_train)
    fewer = small(convs=["group"], groups=[4], seeds=[1])
    [failed] = compare(fewer, tmp_path, resume=True)
    assert failed.failure == "MemoryError: too large"
    every = [failed, two, four, one, three]
    assert [which(row) for row in every] == [
        (row["conv"], int(row["groups"]), int(row["seed"]))
        for row in stored_rows(tmp_path)
    ]
    assert (tmp_path / "table.md").read_text("utf-8") == outcomes.table(every)


def test_coarse_channels_are_for_kinds_that_take_them():
    runs = small(
        convs=["standard", "group", "two_level"],
        coarse_channels=[1, 3],
        seeds=[0],
    ).runs()
    assert [(s.conv, s.coarse_channels) for s in runs] == [
        ("standard", 1),
        ("group", 1),
        ("two_level", 1),
        ("two_level", 3),
    ]


def test_defaults():
    runs = Comparison().runs()
    assert len(runs) == 3 * (1 + 4 * 4)
    assert {s.groups for s in runs} == {1, 2, 4, 8, 16}
    assert {s.data for s in runs} == {"mnist5k"}


def test_progress_is_reported(tmp_path, capsys):
    reports = []
    rows = compare(small(seeds=[0]), tmp_path, report=reports.append)
    assert "Runs left: 1, about 0:00:0" in capsys.readouterr().out
    assert [[row.error_rate is None for row in r] for r in reports] == [
        [False, True],
        [False, False],
    ]
    assert reports[-1] == rows


def test_losses_and_times_of_finished_runs(tmp_path):
    rows = compare(small(), tmp_path)
    standard, group = Configuration("standard", 1), Configuration("group", 2)
    run = lab.RunFolder(run_folder(tmp_path, seed=1))
    run.path.joinpath("model.keras").unlink()
    losses = results.training_losses(rows, tmp_path)
    assert set(losses) == {standard, group}
    first = lab.RunFolder(run_folder(tmp_path)).history()
    assert losses[group] == [epoch["loss"] for epoch in first]
    both = [
        lab.RunFolder(run_folder(tmp_path, "standard", 1, s)).history()
        for s in (0, 1)
    ]
    assert losses[standard][1] == pytest.approx(
        (both[0][1]["loss"] + both[1][1]["loss"]) / 2
    )
    (run_folder(tmp_path) / "times.csv").write_text(
        "epoch,seconds\n0,9.0\n0,3.0\n1,4.0\n"
    )
    for seed in (0, 1):
        (run_folder(tmp_path, "standard", 1, seed) / "times.csv").unlink()
    assert results.epoch_seconds(rows, tmp_path) == {group: 3.5}


def test_runs_over_as_many_devices_as_groups(tmp_path, monkeypatch):
    real, meshes, asked = comparison.train, {}, []

    def train_without_mesh(settings, *args, mesh, **kwargs):
        meshes[settings.conv, settings.groups] = mesh
        return real(settings, *args, **kwargs)

    monkeypatch.setattr(comparison, "train", train_without_mesh)
    monkeypatch.setattr(comparison.mesh, "model_parallel", asked.append)
    compare(
        small(groups=[2, 4], seeds=[0], model_parallel=True), tmp_path / "all"
    )
    assert asked == [(1, 4)]
    assert meshes == {
        ("standard", 1): None,
        ("group", 2): (1, 2),
        ("group", 4): (1, 4),
    }
    with pytest.raises(ValueError, match=r"model_parallel=False; .*has model_"):
        compare(small(groups=[2, 4], seeds=[0]), tmp_path / "all", resume=True)


def test_estimate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = small(convs=["group", "shuffle"], seeds=[0, 1, 2])
    found = lab.estimate(part)
    assert [row.configuration.conv for row in found] == ["group", "shuffle"]
    assert all(row.hours > 0 and row.memory >= 0 for row in found)
    hours = 3 * sum(row.hours for row in found)
    text = lab.estimates_table(part, found)
    assert f"6 runs, one after the other, take about {hours:.3g} hours" in text
    assert not list(tmp_path.iterdir())


def test_estimate_goes_on_after_a_network_that_fails(monkeypatch):
    def build(settings, data):
        if settings.conv == "group":
            raise MemoryError("no room")
        return real(settings, data)

    real = estimates.build_network
    monkeypatch.setattr(estimates, "build_network", build)
    failed, other = sorted(
        lab.estimate(small()), key=lambda row: row.failure, reverse=True
    )
    assert failed.failure == "MemoryError: no room" and other.hours > 0
    text = lab.estimates_table(small(), [failed, other])
    assert "GC, N = 2 cannot be trained: MemoryError: no room" in text
    assert "2 runs" in text and "nan" not in text
