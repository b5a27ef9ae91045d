"""Experiments as files: read, run beside the paper's numbers, shared, tried."""

import numpy as np
import pytest
from commands import output_of, squeezed
from experiment_files import CONFIGS, TINY, write
from tiny import (
    drawn_figures,  # noqa: F401  A fixture.
    tiny_digits,
    tiny_run,  # noqa: F401  A fixture.
)

from keras_tlgc import cli
from keras_tlgc.lab import (
    comparison,
    data,
    experiments,
    load_data,
    paper,
    read_experiment,
    run_experiment,
)


def test_the_paper_has_a_file_for_each_table_and_figure():
    names = [path.stem for path in CONFIGS]
    assert names == [
        *("figure4", "figure5", "figure7"),
        *("table1", "table2", "table3", "table4"),
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_files_ask_for_what_the_paper_prints(path):
    """Every configuration has a number, and a table's numbers one each."""
    experiment = read_experiment(path)
    asked = set()
    for part in experiment.parts:
        name, model = part.recipe["data"], part.recipe["model"]
        printed = paper.printed(name, model)
        for configuration in part.configurations():
            assert configuration[:2] in printed
            asked.add((name, model, *configuration[:2]))
        recipe = {"cifar10": 200, "cifar100": 200, "folder": 90}
        assert part.recipe["epochs"] == recipe[name]
        assert part.seeds == (0,)
    if experiment.name.startswith("table"):
        table = int(experiment.name[-1])
        counts = {c[1:4] for c in paper.COUNTS if c.table == table}
        assert {a[1:] for a in asked} == counts


def test_numbers_of_the_paper():
    first = paper.printed("cifar10", "wrn-28-10")
    assert first["two_level", 16] == paper.Printed(4.95, "2.54M", None)
    assert first["standard", 1] == paper.Printed(4.19, "36.48M", None)
    wide = paper.printed("cifar10", "wrn-28-80")["two_level", 4]
    assert wide[:2] == (4.08, "584.0M")
    assert wide.seconds == pytest.approx((20 * 60 + 12) * 60 / 200)
    mobile = paper.printed("folder", "mobilenetv2-1.0")
    assert mobile["two_level", 8] == paper.Printed(39.16, "1.72M", None)
    assert paper.printed("mnist5k", "wrn-28-10") == {}
    # As the text says them: N = 16 on ImageNet, one level and two.
    large = paper.printed("folder", "wrn-imagenet-34-2")
    assert large["group", 16].error_rate == 43.18
    assert large["two_level", 16].error_rate == 29.31
    assert sum(map(len, (paper.printed(*key) for key in paper.ERRORS))) == 73


def test_parts_may_have_lists_and_recipes_of_their_own(tmp_path):
    text = TINY.replace("data =", 'recipe = "cifar"\ndata =', 1)
    text = text.replace('"tiny"', '"cifar100"')
    one, other = read_experiment(write(tmp_path / "a.toml", text)).parts
    assert (one.groups, other.groups) == ((2,), (4, 8))
    assert (one.recipe["epochs"], one.recipe["weight_decay"]) == (2, 5e-4)
    assert (other.recipe["epochs"], other.recipe["image_size"]) == (90, 224)


BAD = {
    "": "missing",
    "title": "Expected '='",
    'title = "a"\nparts = []': "`parts` at least one table",
    "title = 1\n[[parts]]": "`title` must be text",
    'title = "a"\nparts = [5]': "not a mapping",
    'title = "a"\ncolour = 5\n[[parts]]': r"Settings must be .*colour",
    'title = "a"\n[[parts]]\nrecipe = 5': "`recipe` must be one of",
    'title = "a"\n[[parts]]\n[[parts]]\nepochs = 2': "Parts must differ in",
}


@pytest.mark.parametrize("text", BAD, ids=repr)
def test_bad_files(tmp_path, text):
    path = write(tmp_path / "bad.toml", text)
    with pytest.raises(
        ValueError, match=rf"(?s)An experiment must be a TOML.*{BAD[text]}"
    ):
        read_experiment(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"must be a TOML file.*utf-8"):
        read_experiment(path)
    with pytest.raises(ValueError, match=r"must be a TOML file.*No such file"):
        read_experiment(tmp_path / "nowhere.toml")


# Runs


@pytest.fixture
def tiny_paper(monkeypatch):
    """Let the paper have numbers of one of the tiny networks."""
    numbers = {
        ("group", 2): paper.Printed(12.5, "1.00M", 7.4),
        ("standard", 1): paper.Printed(10.0, "2.00M", None),
    }
    monkeypatch.setattr(
        paper,
        "printed",
        lambda data, model: numbers if data == "tiny" else {},
    )


@pytest.mark.usefixtures("tiny_run", "tiny_paper")
def test_report_shows_the_paper_beside_what_was_measured(
    tmp_path, capsys, monkeypatch
):
    config = write(tmp_path / "tiny.toml")
    monkeypatch.chdir(tmp_path)
    assert cli.run(["compare", "--config", str(config)]) == 0
    report = (tmp_path / "runs" / "paper" / "tiny.md").read_text("utf-8")
    assert report in capsys.readouterr().out
    lines = report.splitlines()
    assert lines[0] == "# Tiny"
    header = [squeezed(line) for line in lines if line.startswith("| Type")]
    assert header[0].endswith(
        "| Seconds an epoch | Paper: parameters | Paper: error rate (%) | "
        "Paper: seconds an epoch |"
    )
    assert "Paper" not in header[1]
    [standard, group, _, large] = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in lines
        if line.startswith(("| SC", "| GC"))
    ][0:4]
    assert group[:3] == ["GC", "2", "0.6K"]
    assert float(group[6]) >= 0
    assert group[7:] == ["1.00M", "12.50", "7"]
    assert standard[7:] == ["2.00M", "10.00", "-"]
    # What is missing is shown as such, with the reason.
    assert "Not run. `data='folder'` needs a folder" in report
    assert large == ["GC", "4", "-", "-", "", "0 of 1", "-"]
    for name in ("errors", "losses"):
        assert f"![tiny-tiny-wrn-10-1-{name}.png](tiny-" in report
        file = tmp_path / "runs" / "paper" / f"tiny-tiny-wrn-10-1-{name}.png"
        assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("tiny_run")
def test_experiments_share_runs(tmp_path, monkeypatch):
    one = read_experiment(write(tmp_path / "one.toml"))
    text = TINY.replace('["standard", "group"]', '["group", "shuffle"]')
    other = read_experiment(write(tmp_path / "other.toml", text))
    trained = []
    real = comparison.train

    def counting_train(settings, *args, **kwargs):
        trained.append(settings.conv)
        return real(settings, *args, **kwargs)

    monkeypatch.setattr(comparison, "train", counting_train)
    output = tmp_path / "all"
    run_experiment(one, output)
    with pytest.raises(ValueError, match=r"must be new or empty.*--resume"):
        run_experiment(other, output)
    assert trained == ["standard", "group"]
    rows = run_experiment(other, output, resume=True)
    assert trained == ["standard", "group", "shuffle"]
    assert [row.conv for row in rows] == ["group", "shuffle"]
    assert {p.name for p in output.glob("*.md")} == {"one.md", "other.md"}
    assert (output / "tiny-wrn-10-1" / "results.csv").exists()


@pytest.mark.usefixtures("tiny_run")
def test_data_are_read_once_and_not_for_a_check(tmp_path, monkeypatch):
    loads = []

    def counted(directory):
        loads.append(directory)
        return tiny_digits()

    monkeypatch.setitem(data.sets.DATASETS, "tiny", counted)
    part = TINY[TINY.index("[[parts]]") : TINY.rindex("[[parts]]")]
    other = part.replace("wrn-10-1", "wrn-16-1")
    text = TINY[: TINY.rindex("[[parts]]")] + other
    text = text.replace('["standard", "group"]', '["group"]')
    path = write(tmp_path / "a.toml", text)
    experiment = read_experiment(path)
    folder = tmp_path / "all" / "tiny-wrn-16-1"
    folder.mkdir(parents=True)
    (folder / "mine").touch()
    with pytest.raises(ValueError, match="must be new or empty"):
        run_experiment(experiment, tmp_path / "all")
    assert loads == []
    rows = run_experiment(experiment, tmp_path / "new")
    assert [row.failure for row in rows] == ["", ""]
    assert loads == [None]


@pytest.mark.usefixtures("tiny_run")
def test_report_is_written_after_each_run(tmp_path, monkeypatch):
    real = comparison.train

    def dying_train(settings, *args, **kwargs):
        if settings.conv == "group":
            raise KeyboardInterrupt
        return real(settings, *args, **kwargs)

    monkeypatch.setattr(comparison, "train", dying_train)
    config = str(write(tmp_path / "tiny.toml"))
    output = tmp_path / "all"
    command = ["compare", "--config", config, "--output", str(output)]
    assert cli.run(command) == 130
    report = squeezed((output / "tiny.md").read_text("utf-8"))
    assert "| SC | 1 | 0.6K | " in report
    assert "| GC | 2 | 0.6K | - | | 0 of 1 | - |" in report
    monkeypatch.setattr(comparison, "train", real)
    assert cli.run([*command, "--resume"]) == 0
    report = squeezed((output / "tiny.md").read_text("utf-8"))
    assert "| GC | 2 | 0.6K | - |" not in report


@pytest.mark.usefixtures("tiny_run")
def test_nothing_is_written_where_nothing_can_run(tmp_path):
    text = TINY.replace('"tiny"', '"folder"')
    experiment = read_experiment(write(tmp_path / "tiny.toml", text))
    with pytest.raises(ValueError, match=r"needs a folder.*--data-dir"):
        run_experiment(experiment, tmp_path / "all")
    # The reason is that of the folder that someone named.
    text = text.replace('"folder"', '"cifar10"')
    text = text.replace("epochs = 2", 'data_dir = "nowhere"')
    experiment = read_experiment(write(tmp_path / "tiny.toml", text))
    with pytest.raises(ValueError, match="nowhere"):
        run_experiment(experiment, tmp_path / "all")
    bad = TINY.replace("batch_size = 16", "batch_size = 1000")
    experiment = read_experiment(write(tmp_path / "tiny.toml", bad))
    with pytest.raises(ValueError, match=r"`batch_size` must not exceed"):
        run_experiment(experiment, tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.usefixtures("tiny_run")
def test_estimate_of_all_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tiny.toml", TINY)
    command = ["compare", "--config", "tiny.toml", "--estimate"]
    printed = output_of(capsys, *command)
    assert printed.count("Seconds a step") == 1
    assert "runs, one after the other, take about" in printed
    assert "Not estimated." in printed and "--data-dir" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_data_are_looked_for_in_the_folder_and_then_elsewhere(
    tmp_path, monkeypatch
):
    images = np.arange(96).reshape(2, 4, 4, 3), np.array([0, 1])

    def there(folder):
        return *images, *images

    def elsewhere(folder):
        if folder is not None:
            raise ValueError("not here")
        return *images, *images

    monkeypatch.setitem(data.sets.DATASETS, "cifar10", there)
    monkeypatch.setitem(data.sets.DATASETS, "cifar100", elsewhere)
    text = TINY.replace('"tiny"', '"cifar10"').replace('"folder"', '"cifar100"')
    parts = read_experiment(write(tmp_path / "t.toml", text)).parts
    sections = [experiments._Section(part, tmp_path, False) for part in parts]
    for section in sections:
        section.locate(str(tmp_path), load_data)
        assert section.missing == ""
    assert sections[0].part.recipe["data_dir"] == str(tmp_path)
    assert sections[1].part.recipe["data_dir"] is None
