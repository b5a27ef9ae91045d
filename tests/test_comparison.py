import csv
import json

import keras
import pytest
from tiny import (
    Interrupt,
    assert_same_run,
    settings,
    tiny_run,  # noqa: F401  A fixture.
)

from keras_tlgc import training
from keras_tlgc.training import (
    Comparison,
    Configuration,
    Row,
    compare,
    comparison,
    outcomes,
    stored_comparison,
    train,
)

pytestmark = pytest.mark.usefixtures("tiny_run")

RECIPE = {"data": "tiny", "model": "wrn-10-1", "epochs": 2, "batch_size": 16}


def small(**changes):
    lists = dict(convs=["group", "standard"], groups=[2], seeds=[0, 1])
    changes["recipe"] = RECIPE | changes.get("recipe", {})
    return Comparison(**lists | changes)


def run_folder(path, conv="group", groups=2, seed=0):
    return path / "runs" / f"{conv}-n{groups}-seed{seed}"


def which(row):
    return row.conv, row.groups, row.seed


def stored_rows(path):
    with open(path / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_comparison_writes_what_it_says(tmp_path):
    rows = compare(small(), tmp_path / "all")
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == sorted(
        training.COMPARISON_FILES
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


@pytest.mark.parametrize("moment", [(0, 1), (1, 2), (1, None)], ids=str)
def test_killed_and_resumed(tmp_path, monkeypatch, moment):
    whole = compare(small(), tmp_path / "whole")
    real, trained = comparison.train, []

    def dying_train(settings, *args, callbacks, **kwargs):
        if len(trained) == 2:
            callbacks = [*callbacks, Interrupt(*moment)]
        trained.append(settings)
        return real(settings, *args, callbacks=callbacks, **kwargs)

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


def test_killed_while_resuming(tmp_path, monkeypatch):
    compare(small(), tmp_path)
    (run_folder(tmp_path, "standard", 1) / "config.json").unlink()
    (run_folder(tmp_path, "standard", 1) / "model.keras").unlink()

    def killed_train(*args, **kwargs):
        raise Interrupt.Kill

    monkeypatch.setattr(comparison, "train", killed_train)
    before = (tmp_path / "results.csv").read_bytes()
    with pytest.raises(Interrupt.Kill):
        compare(small(), tmp_path, resume=True)
    assert (tmp_path / "results.csv").read_bytes() == before


def test_killed_before_anything_was_whole(tmp_path):
    (tmp_path / ".partial-config.json").write_text("{")
    assert len(compare(small(seeds=[0]), tmp_path)) == 2


def test_killed_before_a_run_wrote_its_configuration(tmp_path):
    compare(small(), tmp_path)
    path = run_folder(tmp_path)
    for file in path.iterdir():
        file.unlink()
    (path / ".partial-config.json").write_text("{")
    assert [r.failure for r in compare(small(), tmp_path, resume=True)] == [
        ""
    ] * 4


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
    assert "| GC | 2 | 0.6K | " in (tmp_path / "table.md").read_text()
    assert "| 1 of 2 |" in (tmp_path / "table.md").read_text()


def test_diverged_run_is_a_row(tmp_path):
    recipe = {"learning_rate": 1e30, "epochs": 1}
    rows = compare(small(seeds=[0], recipe=recipe), tmp_path)
    for row in rows:
        assert row.failure.startswith("the loss became ")
        assert row.error_rate is None
    assert (tmp_path / "table.md").read_text().count(
        "| failed |  | 0 of 1"
    ) == 2
    assert (tmp_path / "errors.png").exists()
    again = compare(small(seeds=[0], recipe=recipe), tmp_path, resume=True)
    assert again == rows


def test_failed_run_is_tried_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:

        def failing_train(*args, **kwargs):
            raise MemoryError("too large")

        patch.setattr(comparison, "train", failing_train)
        rows = compare(small(), tmp_path)
        assert [row.failure for row in rows] == ["MemoryError: too large"] * 4
    rows = compare(small(), tmp_path, resume=True)
    assert [row.failure for row in rows] == [""] * 4


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


def test_progress_is_reported(tmp_path):
    reports = []
    rows = compare(small(seeds=[0]), tmp_path, report=reports.append)
    assert [[row.error_rate is None for row in r] for r in reports] == [
        [False, True],
        [False, False],
    ]
    assert reports[-1] == rows
    # Only what has an outcome is stored.
    assert len(outcomes.as_csv(reports[0]).splitlines()) == 1 + 1


def test_losses_and_times_of_finished_runs(tmp_path):
    compare(small(), tmp_path)
    standard, group = Configuration("standard", 1), Configuration("group", 2)
    run = comparison.RunFolder(run_folder(tmp_path, seed=1))
    run.path.joinpath("model.keras").unlink()
    losses = comparison.training_losses(small(), tmp_path)
    assert set(losses) == {standard, group}
    first = comparison.RunFolder(run_folder(tmp_path)).history()
    assert losses[group] == [epoch["loss"] for epoch in first]
    both = [
        comparison.RunFolder(run_folder(tmp_path, "standard", 1, s)).history()
        for s in (0, 1)
    ]
    assert losses[standard][1] == pytest.approx(
        (both[0][1]["loss"] + both[1][1]["loss"]) / 2
    )
    (run_folder(tmp_path) / "times.csv").write_text(
        "epoch,seconds\n0,9.0\n0,3.0\n1,4.0\n2"
    )
    for seed in (0, 1):
        (run_folder(tmp_path, "standard", 1, seed) / "times.csv").unlink()
    assert comparison.epoch_seconds(small(), tmp_path) == {group: 3.5}


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


# Tables and plots


def rows_of(*outcomes):
    """Return rows of (kind, N, error rate), in that order."""
    return [
        Row(conv, groups, 1, seed, 1_234_567, error, "" if error else "failed")
        for seed, (conv, groups, error) in enumerate(outcomes)
    ]


def test_table():
    rows = rows_of(
        ("two_level", 2, 4.0),
        ("group", 4, None),
        ("two_level", 2, 6.0),
        ("two_level", 2, 8.0),
        ("standard", 1, 3.125),
        ("group", 2, 90.0),
        ("group", 2, None),
        ("group", 2, 100.0),
        ("two_level", 4, 5.0),
    )
    rows[4] = rows[4]._replace(parameters=999)
    rows[-1] = rows[-1]._replace(coarse_channels=2)
    rows.append(Row("two_level", 8, 1, 0, 0))
    # Student's t of 2 degrees is 4.303, of 1 degree 12.71.
    columns = {"Twice": lambda summary: f"{2 * summary.mean:.0f}"}
    names = "| Type | N | Parameters | Error rate (%) | 95% interval | Runs |"
    assert outcomes.table(rows, columns).splitlines() == [
        f"{names} Twice |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| SC | 1 | 1.0K | 3.12 |  | 1 | 6 |",
        "| GC | 2 | 1.23M | 95.00 ± 7.07 | 31.47 to 100.00 | 2 of 3 | 190 |",
        "| GC-2L | 2 | 1.23M | 6.00 ± 2.00 | 1.03 to 10.97 | 3 | 12 |",
        "| GC | 4 | 1.23M | failed |  | 0 of 1 | nan |",
        "| GC-2L, r = 2 | 4 | 1.23M | 5.00 |  | 1 | 10 |",
        "| GC-2L | 8 | - | - |  | 0 of 1 | nan |",
    ]


@pytest.fixture
def figures(monkeypatch):
    figures = []
    real = outcomes.Figure

    def figure(*args, **kwargs):
        figures.append(real(*args, **kwargs))
        return figures[-1]

    monkeypatch.setattr(outcomes, "Figure", figure)
    return figures


def test_plot_shows_mean_and_interval(tmp_path, figures):
    rows = rows_of(
        ("standard", 1, 3.0),
        ("group", 2, 4.0),
        ("group", 2, 6.0),
        ("group", 8, 9.0),
        ("two_level", 2, None),
    )
    paper = {
        Configuration("standard", 1): 2.5,
        Configuration("two_level", 4): 3.5,
        Configuration("two_level", 2): 3.0,
    }
    outcomes.plot_errors(rows, tmp_path / "plot.png", paper)
    [axes] = figures[0].axes
    labels = axes.get_legend_handles_labels()[1]
    assert sorted(labels) == ["GC", "GC-2L, paper", "SC", "SC, paper"]
    [bars] = axes.containers
    line, _, [interval] = bars
    assert line.get_xdata().tolist() == [2, 8]
    assert line.get_ydata().tolist() == [5, 9]
    half = 12.7062 * 2**0.5 / 2**0.5
    low, high = interval.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0, 5 + half), rel=1e-4)
    [printed] = [x for x in axes.lines if x.get_label() == "GC-2L, paper"]
    assert list(printed.get_xdata()) == [2, 4]
    assert list(printed.get_ydata()) == [3.0, 3.5]
    outcomes.plot_errors([], tmp_path / "empty.png")


def test_plot_over_the_coarse_rank(tmp_path, figures):
    rows = [
        Row("standard", 1, 1, 0, 9, 1.0),
        Row("group", 16, 1, 0, 9, 8.0),
        Row("two_level", 16, 1, 0, 9, 5.0),
        Row("two_level", 16, 4, 0, 9, 3.0),
    ]
    outcomes.plot_errors(rows, tmp_path / "plot.png")
    [axes] = figures[0].axes
    assert axes.get_xlabel() == "coarse rank r"
    [(line, _, _)] = axes.containers
    assert line.get_xdata().tolist() == [1, 4]
    assert line.get_ydata().tolist() == [5, 3]
    labels = axes.get_legend_handles_labels()[1]
    assert sorted(labels) == ["GC", "GC-2L", "SC"]


def test_plot_of_losses(tmp_path, figures):
    losses = {
        Configuration("standard", 1): [3.0, 1.0],
        Configuration("group", 2): [4.0, 2.0],
        Configuration("group", 8): [5.0, 3.0],
    }
    outcomes.plot_losses(losses, tmp_path / "plot.png")
    [axes] = figures[0].axes
    assert [x.get_label() for x in axes.lines] == [
        "SC",
        "GC, N = 2",
        "GC, N = 8",
    ]
    assert [list(x.get_ydata()) for x in axes.lines] == list(losses.values())
    assert len({x.get_linestyle() for x in axes.lines[1:]}) == 2
    outcomes.plot_losses({}, tmp_path / "empty.png")


# Errors


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(convs=[]), r"`convs` must list at least one.*convs=\[\]"),
        (dict(convs="group"), r"`convs` must list at least .*convs='group'"),
        (dict(seeds=3), r"`seeds` must list at least .*seeds=3"),
        (dict(groups=[[2]]), r"`groups` must be a positive.*groups=\[2\]"),
        (dict(model_parallel=1), r"`model_parallel` must be True .*: 1"),
        (dict(seeds=[1, 1]), r"`seeds` must list .*none twice.*\[1, 1\]"),
        (dict(groups=[2, 4, 2]), r"`groups` must list .*\[2, 4, 2\]"),
        (dict(convs=["dense"]), r"`conv` must be one of.*'dense'"),
        (dict(groups=[0]), r"`groups` must be a positive.*groups=0"),
        (dict(seeds=[-1]), r"`seed` must be an integer from 0.*seed=-1"),
        (dict(recipe={"epochs": 0}), r"`epochs` must be a positive"),
        (
            dict(recipe={"seed": 1, "conv": "group"}),
            r"`recipe` must hold what all runs share.*\['conv', 'seed'\]",
        ),
        (dict(coarse_channels=[0]), r"`coarse_channels` must be a positive"),
        (dict(recipe={"data_dir": 5}), r"`data_dir` must be the path.*=5"),
        (dict(recipe={"drops": 5}), r"`drops` must be a list.*drops=5"),
        (dict(recipe={"colour": 1}), r"Settings must be .*\['colour'\]"),
    ],
    ids=str,
)
def test_bad_comparisons(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_recipe_must_be_a_dict():
    with pytest.raises(ValueError, match=r"`recipe` must be a dict.*\[1\]"):
        Comparison(recipe=[1])


@pytest.mark.real_network
@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(groups=[2, 3]), r"`groups` must divide .*groups=3, but"),
        (dict(recipe={"model": "wrn-11-1"}), r"`depth` must be 6 b"),
        (dict(recipe={"batch_size": 97}), r"`batch_size` must not exceed"),
    ],
    ids=str,
)
def test_networks_that_cannot_be_built_write_nothing(
    tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        compare(small(**changes), tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_existing_folder_is_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(
            ValueError, match=r"comparison must be new or empty.*--resume"
        ):
            compare(small(), path)
    with pytest.raises(
        ValueError, match=r"--resume needs the folder of a comparison"
    ):
        compare(small(), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"--resume needs the folder of a co"):
        stored_comparison(tmp_path / "nowhere")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": 1}'])
def test_damaged_configuration(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        stored_comparison(tmp_path)


def test_recipe_and_backend_may_not_change_on_resume(tmp_path):
    compare(small(), tmp_path)
    before = contents(tmp_path)
    other = small(recipe={"epochs": 9})
    with pytest.raises(
        ValueError,
        match=r"goes on with the recipe and backend.*epochs=9; .*has epochs=2",
    ):
        compare(other, tmp_path, resume=True)
    assert contents(tmp_path) == before
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace(keras.backend.backend(), "numpy"))
    with pytest.raises(ValueError, match=r"has backend='numpy'"):
        compare(small(), tmp_path, resume=True)
