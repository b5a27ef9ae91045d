"""The options of the commands, in this process."""

import pytest
from commands import output_of, rows_of
from tiny import tiny_run  # noqa: F401  A fixture.

import keras_tlgc
from keras_tlgc import cli, lab
from keras_tlgc.lab import paper


def test_params_of_the_paper_that_differ(capsys, monkeypatch):
    wrong = paper.COUNTS[0]._replace(printed="36.49M")
    monkeypatch.setattr(paper, "COUNTS", [wrong, paper.COUNTS[1]])
    text = output_of(capsys, "params")
    assert text.splitlines()[-1] == "1 of 2 agree."
    assert [row[-1] for row in rows_of(text)] == ["✗", "✓"]


def test_params_of_a_network(capsys):
    options = ["--model", "wrn-10-1", "--image-size", "16", "--classes", "5"]
    options += ["--groups", "2,4", "--coarse-channels", "2"]
    text = output_of(capsys, "params", *options)
    rows = rows_of(text)
    labels = ["GC", "Shuffle", "FLGC", "GC-2L", "BGC", "Low rank"]
    assert [row[0] for row in rows] == ["SC", *labels, *labels]
    costs = keras_tlgc.costs.model_costs(
        lambda: keras_tlgc.applications.WideResNet(
            10,
            1,
            conv="low_rank",
            groups=4,
            coarse_channels=2,
            classes=5,
            input_shape=(16, 16, 3),
        )
    )
    assert rows[-1][1:] == [
        "4",
        f"{costs.params:,}",
        f"{costs.params_per_processor:,}",
        f"{costs.coarse_params:,}",
        f"{costs.multiply_adds:,}",
        f"{costs.activation_bytes:,}",
    ]
    assert text.count("\nFLGC, N = ") == 2


def test_version(capsys):
    assert output_of(capsys, "--version").strip() == keras_tlgc.__version__


def test_help_names_every_setting(capsys):
    text = output_of(capsys, "train", "--help")
    for name in lab.Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.usefixtures("tiny_run")
def test_compare_reports_failed_runs(tmp_path, capsys):
    options = ["--data", "tiny", "--conv", "group", "--groups", "2"]
    options += ["--seeds", "0", "--epochs", "1", "--batch-size", "16"]
    options += ["--learning-rate", "1e30"]
    with pytest.raises(SystemExit) as exit_:
        cli.run(["compare", *options, "--output", str(tmp_path / "all")])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert "1 of 1 runs failed; results.csv says why." in captured.err
    assert "the loss became" in captured.out
