"""Experiments as files: read, run beside the paper's numbers, shared, tried."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tiny import contents, tiny_run  # noqa: F401  One is a fixture.

from keras_tlgc import cli, paper
from keras_tlgc.applications import convolutions
from keras_tlgc.training import (
    Configuration,
    Row,
    comparison,
    data,
    experiments,
    load_data,
    networks,
    outcomes,
    read_experiment,
    run_experiment,
    smoke,
)
from keras_tlgc.training.pairs import PAIRS, pairs
from keras_tlgc.training.samples import write_samples

CONFIGS = sorted(
    (Path(__file__).parent.parent / "examples" / "paper").glob("*.toml")
)
TINY = """
title = "Tiny"
convs = ["standard", "group"]
groups = [2]
seeds = [0]

[[parts]]
data = "tiny"
model = "wrn-10-1"
epochs = 2
batch_size = 16

[[parts]]
data = "folder"
model = "wrn-imagenet-10-1"
groups = [4, 8]
"""


def write(path, text=TINY):
    path.write_text(text, "utf-8")
    return path


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
    'title = "a"\nparts = 5': "`parts` at least one table",
    "title = 1\n[[parts]]": "`title` must be text",
    'title = "a"\nparts = [5]': "not a mapping",
    'title = "a"\ncolour = 5\n[[parts]]': r"Settings must be .*colour",
    'title = "a"\nconvs = 5\n[[parts]]': "`convs` must list",
    'title = "a"\n[[parts]]\ndata = 5': "`data` must be one of",
    'title = "a"\n[[parts]]\nrecipe = 5': "`recipe` must be one of",
    'title = "a"\n[[parts]]\n[[parts]]\nepochs = 2': "Parts must differ in",
    'title = "a"\n[[parts]]\nepochs = nan': "`epochs` must be a positive",
    'title = "a"\n[[parts]]\nlearning_rate = nan': "`learning_rate` must be",
    'title = "a"\n[[parts]]\ndrops = 1': "`drops` must be a list",
    "\x00": "Invalid",
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
    header = [line for line in lines if line.startswith("| Type")]
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
    report = (output / "tiny.md").read_text("utf-8")
    assert "| SC | 1 | 0.6K | " in report
    assert "| GC | 2 | 0.6K | - |  | 0 of 1 | - |" in report
    monkeypatch.setattr(comparison, "train", real)
    assert cli.run([*command, "--resume"]) == 0
    report = (output / "tiny.md").read_text("utf-8")
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


def test_data_are_looked_for_in_the_folder_and_then_elsewhere(
    tmp_path, monkeypatch
):
    write_samples(tmp_path)

    def elsewhere(folder):
        if folder is not None:
            raise ValueError("not here")
        images = np.arange(96).reshape(2, 4, 4, 3)
        return images, np.array([0, 1]), images, np.array([0, 1])

    monkeypatch.setitem(data.DATASETS, "cifar100", elsewhere)
    text = TINY.replace('"tiny"', '"cifar10"').replace('"folder"', '"cifar100"')
    parts = read_experiment(write(tmp_path / "t.toml", text)).parts
    sections = [experiments._Section(part, tmp_path) for part in parts]
    for section in sections:
        section.locate(str(tmp_path))
        assert section.missing == ""
    assert sections[0].part.recipe["data_dir"] == str(tmp_path)
    assert sections[1].part.recipe["data_dir"] is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--smoke"], "--smoke is for an experiment's file"),
        (["--config", "a.toml"], "An experiment must be a TOML file"),
        (
            ["--config", "a.toml", "--smoke", "--data-dir", "d"],
            "--smoke generates its images. Received: --data-dir 'd' too.",
        ),
        (
            ["--config", "a.toml", "--epochs", "3", "--conv", "group"],
            "Received: --conv, --epochs beside --config",
        ),
    ],
    ids=["no file to try", "no such file", "other data", "other options"],
)
def test_bad_commands(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.run(["compare", *arguments])
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# Smaller


def test_samples_are_read_as_the_real_files(tmp_path):
    write_samples(tmp_path)
    for name, classes in {"cifar10": 10, "cifar100": 100}.items():
        images = load_data(name, tmp_path)
        assert images.counts == (40, 16)
        assert images.classes == classes
        assert sorted(images.image_shape) == [3, 32, 32]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_smoke_keeps_what_matters(tmp_path, path):
    experiment = read_experiment(path)
    small = smoke(experiment, tmp_path)
    assert len(small.parts) == len(experiment.parts)
    for part, whole in zip(small.parts, experiment.parts, strict=True):
        assert part.convs == whole.convs
        assert {min(whole.groups), max(whole.groups)} == set(part.groups)
        assert part.recipe["augmentation"] == whole.recipe["augmentation"]
        networks.network_builder(part.recipe["model"])
    names = {experiments._Section(p, tmp_path).name for p in small.parts}
    assert len(names) == len(small.parts)


def test_smoke_of_small_data_and_networks(tmp_path):
    text = """
    title = "Own"
    convs = ["group"]
    groups = [2, 32]
    [[parts]]
    data = "pairs"
    model = "plain-1-32"
    [[parts]]
    data = "cifar10"
    model = "wrn-16-10"
    [[parts]]
    data = "cifar10"
    model = "wrn-28-10"
    """
    experiment = read_experiment(write(tmp_path / "own.toml", text))
    pairs_, cifar = smoke(experiment, tmp_path / "images").parts
    assert pairs_.recipe["data_dir"] is None
    assert pairs_.recipe["model"] == "plain-1-32"
    assert cifar.recipe["model"] == "wrn-10-1"
    assert cifar.groups == (2, 16)


@pytest.mark.usefixtures("tiny_run")
def test_folder_of_data_and_what_is_there(tmp_path, capsys):
    """Data that are there are used, and left as they are."""
    write_samples(tmp_path / "data")
    before = contents(tmp_path)
    text = TINY[: TINY.rindex("[[parts]]")].replace('"tiny"', '"cifar10"')
    config = str(write(tmp_path / "own.toml", text))
    command = ["compare", "--config", config, "--output", str(tmp_path)]
    assert cli.run([*command, "--data-dir", str(tmp_path / "data")]) == 0
    assert "0 of 1" not in (tmp_path / "own.md").read_text("utf-8")
    with pytest.raises(SystemExit, match="2"):
        cli.run([*command, "--smoke"])
    assert "--resume" in capsys.readouterr().err
    assert before.items() <= contents(tmp_path).items()


@pytest.mark.real_network
def test_smoke_of_table_2(tmp_path, capsys):
    """From the command line, on any backend; TensorFlow reads the others."""
    config = next(path for path in CONFIGS if path.stem == "table2")
    text = config.read_text("utf-8")
    part = "[[parts]]\n"
    first = part.join(text.split(part)[:2])
    shorter = write(tmp_path / "table2.toml", first)
    command = ["compare", "--config", str(shorter), "--smoke", "--output"]
    assert cli.run([*command, str(tmp_path / "all")]) == 0
    report = (tmp_path / "all" / "table2.md").read_text("utf-8")
    assert "## cifar10, wrn-10-4" in report
    assert report.count("| GC-2L |") == 2 and report.count("| SC |") == 1
    assert "0 of 1" not in report


@pytest.mark.skipif(
    not (find_spec("keras_cv") and find_spec("tensorflow")),
    reason="needs KerasCV and TensorFlow, for ImageNet's images",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_smoke_of_every_file(tmp_path):
    """Each ends with no run failed and none left out."""
    for number, config in enumerate(CONFIGS):
        command = ["compare", "--config", str(config), "--smoke", "--output"]
        command.append(str(tmp_path))
        assert cli.run(command + ["--resume"] * (number > 0)) == 0
        report = (tmp_path / f"{config.stem}.md").read_text("utf-8")
        assert "Not run" not in report and "0 of 1" not in report


# The task whose groups must talk


def test_pairs():
    x_train, y_train, x_test, y_test = pairs()
    assert x_train.shape == (4000, 8, 8, 32) and x_test.shape == (
        1000,
        8,
        8,
        32,
    )
    assert set(y_train) == set(range(16))
    x, y = np.concatenate([x_train, x_test]), np.concatenate([y_train, y_test])
    # The mean over the image tells a channel's sign: 9 of 64 pixels are marked.
    means = x.mean((1, 2)) * 64 / 9
    assert np.abs(means).mean() == pytest.approx(1, abs=0.1)
    signs = means > 0
    for bit, (one, other) in enumerate(PAIRS):
        agrees = (signs[:, one] != signs[:, other]) == (y >> bit & 1)
        assert agrees.mean() > 0.95
        # One alone says nothing.
        for channel in (one, other):
            agrees = signs[:, channel] == (y >> bit & 1)
            assert agrees.mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(pairs()[0], x_train)


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16])
def test_pairs_are_parted_one_after_the_other(groups):
    size = 32 // groups
    parted = [one // size != other // size for one, other in PAIRS]
    assert parted == [groups > 2**bit for bit in range(4)]


def test_plain_network():
    for conv in convolutions.CONVOLUTIONS:
        groups = 1 if conv == "standard" else 4
        model = networks.plain(2, 8, conv, groups, 1, (8, 8, 4), 3)
        assert model.output_shape == (None, 3)
    assert model.get_layer("conv1").groups == 4
    assert sum("Conv" in type(x).__name__ for x in model.layers) == 2
    for arguments, message in [
        ((2, 6, "group", 4), "'conv1' has 6"),
        ((2, 8, "group", 8), "'input' has 4"),
        ((0, 8, "group", 4), "`depth` must be a positive"),
        ((2, 0, "group", 4), "`width` must be a positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            networks.plain(*arguments, 1, (8, 8, 4), 3)


def test_names_of_configurations():
    assert Configuration("group", 2).name == "group-n2"
    assert Configuration("two_level", 4, 2).name == "two_level-n4-r2"
    assert Configuration("two_level", 4, 2).label == "GC-2L, r = 2"
    row = Row("two_level", 4, 2, 0, 9)
    assert row.configuration == Configuration("two_level", 4, 2)
    assert outcomes.format_params(999) == "1.0K"
