"""Experiments at a size of minutes, on generated images."""

import dataclasses

import pytest
from experiment_files import CONFIGS, TINY, write
from tiny import (
    contents,
    drawn_figures,  # noqa: F401  A fixture.
)

from keras_tlgc import cli
from keras_tlgc.applications import network_builder
from keras_tlgc.lab import experiments, read_experiment, smoke


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_smoke_keeps_what_matters(path):
    experiment = read_experiment(path)
    small = smoke(experiment)
    assert len(small.parts) == len(experiment.parts)
    for part, whole in zip(small.parts, experiment.parts, strict=True):
        assert part.convs == whole.convs
        assert {min(whole.groups), max(whole.groups)} == set(part.groups)
        network_builder(part.recipe["model"])
    names = {experiments.name_of(p) for p in small.parts}
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
    small = smoke(experiment)
    assert small.title == "Generated images, not a result: Own"
    pairs_, cifar = small.parts
    assert [part.recipe["data"] for part in small.parts] == [
        *("pairs", "generated-cifar10")
    ]
    real = dataclasses.replace(experiment, parts=experiment.parts[:1])
    small = smoke(real)
    assert small.title == "A single epoch, not a result: Own"
    assert small.name == "own-smoke"
    assert pairs_.recipe["data_dir"] is None
    assert pairs_.recipe["model"] == "plain-1-32"
    assert cifar.recipe["model"] == "wrn-10-1"
    assert cifar.groups == (2, 16)


# The others differ in their lists alone, which the test above reads.
TRIED = [path for path in CONFIGS if path.stem == "figure4"]


@pytest.mark.real_network
@pytest.mark.parametrize("config", TRIED, ids=lambda path: path.stem)
def test_smoke_of_a_file(tmp_path, capsys, figures, config):
    """Each ends with no run failed, and nobody takes it for a result."""
    command = ["compare", "--config", str(config), "--smoke", "--output"]
    assert cli.run([*command, str(tmp_path)]) == 0
    [path] = tmp_path.glob("*.md")
    assert path.name == f"{config.stem}-generated-smoke.md"
    report = path.read_text("utf-8")
    assert report in capsys.readouterr().out
    assert report.startswith("# Generated images, not a result: ")
    assert report.count("\n## ") == report.count("\n## generated-")
    for absent in ("Not run", "0 of 1", "Paper"):
        assert absent not in report
    for path in tmp_path.rglob("*"):
        assert "generated" in str(path.relative_to(tmp_path))
    for path in tmp_path.rglob("config.json"):
        assert '"generated-' in path.read_text("utf-8")
    titles = {axes.get_title() for figure in figures for axes in figure.axes}
    titles |= {figure.get_suptitle() for figure in figures}
    assert all(title.startswith("generated-") for title in titles - {""})


def test_smoke_changes_nothing_else_and_goes_on(tmp_path, capsys):
    """Twice into the folder of the real runs."""
    text = TINY[: TINY.rindex("[[parts]]")].replace('"tiny"', '"cifar10"')
    config = str(write(tmp_path / "own.toml", text))
    (tmp_path / "cifar10-wrn-10-1").mkdir()
    (tmp_path / "cifar10-wrn-10-1" / "mine").touch()
    command = ["compare", "--config", config, "--output", str(tmp_path)]
    assert cli.run([*command, "--smoke"]) == 0
    before = contents(tmp_path)
    assert cli.run([*command, "--smoke"]) == 0
    after = contents(tmp_path)
    assert {path for path in before if before[path] != after[path]} == set()
