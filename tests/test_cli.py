import importlib.util
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from helpers import users_environment
from tiny import tiny_run  # noqa: F401  A fixture.

import keras_tlgc
import keras_tlgc_launcher as launcher
from keras_tlgc import cli

COMMAND = [sys.executable, "-c", "import keras_tlgc_launcher as l; l.main()"]


def run(*arguments, **environment):
    """Run the command line in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=users_environment(**environment),
    )


def error_of(capsys, *arguments):
    """Return the one line that bad input prints, in this process."""
    with pytest.raises(SystemExit) as exit_:
        cli.run(list(map(str, arguments)))
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert captured.out == ""
    return lines[0]


BAD_OPTIONS = [
    (["--epochs", "eleven"], "--epochs eleven. Try --help."),
    (["--model", "wrn-11-2"], "`depth` must be 6 b + 4"),
    (["--model", "wrn-28"], "`model` must be of the form wrn-DEPTH-WIDTH or"),
    (["--recipe", "none"], "`recipe` must be one of ['digits', 'cifar'"),
    (["--data-dir", "."], "`data='mnist5k'` comes with a package"),
    (["--data", "folder"], "`data='folder'` needs a folder"),
    (["--drops", "half"], "--drops must be numbers with commas between"),
    (["--drops", "0.6,0.3"], "`drops` must ascend"),
    (["--momentum", "1"], "`momentum` must be a finite number of at least 0"),
    (["--precision", "float8"], "`precision` must be one of"),
    (["--groups", "3"], "Allowed groups: [1, 2, 4, 8, 16]"),
    (["--conv", "dense"], "`conv` must be one of"),
    (["--data", "imagenet"], "`data` must be one of ['mnist5k', 'cifar10'"),
    (["--batch-size", "0"], "`batch_size` must be a positive integer"),
    (["--batch-size", "5000"], "`batch_size` must not exceed"),
    (
        ["--learning-rate", "nan"],
        "`learning_rate` must be a finite number above 0",
    ),
    (["--seed", "-1"], "`seed` must be an integer"),
    (["--coarse-channels", "0"], "`coarse_channels` must be a positive"),
    (["--model", "wrn-10-0"], "`width` must be a positive integer"),
    (["--epochs", "0"], "`epochs` must be a positive integer"),
    (["--resume"], "--resume needs the folder of a run"),
    (["--resume", "--overwrite"], "--resume"),
    (["--color", "red"], "No such option: --color"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=str)
def test_bad_options(tmp_path, capsys, options, message):
    folder = tmp_path / "run"
    line = error_of(capsys, "train", "--output", folder, *options)
    assert line.startswith("keras-tlgc: error: ")
    assert message in line
    assert not folder.exists()


BAD_COMPARISONS = [
    (["--groups", "2,x"], "--groups must be integers with commas"),
    (["--groups", ""], "--groups must be integers with commas"),
    (["--conv", ""], "`conv` must be one of"),
    (["--seeds", "1.5"], "--seeds must be integers with commas"),
    (["--groups", "3"], "Allowed groups: [1, 2, 4, 8, 16]"),
    (["--conv", "group,dense"], "`conv` must be one of"),
    (["--seeds", "1,1"], "`seeds` must list at least one value, none twice"),
    (["--epochs", "0"], "`epochs` must be a positive integer"),
    (["--resume"], "--resume needs the folder of a comparison"),
]


@pytest.mark.parametrize(("options", "message"), BAD_COMPARISONS, ids=str)
def test_bad_comparisons(tmp_path, capsys, options, message):
    folder = tmp_path / "all"
    line = error_of(capsys, "compare", "--output", folder, *options)
    assert message in line
    assert not folder.exists()


BAD_PARAMS = [
    (
        ["--conv", "group", "--coarse-channels", "2"],
        "Received: --conv, --coarse-channels without --model",
    ),
    (["--model", "WideResNet", "--conv", ""], "`conv` must be one of"),
    (["--model", "WideResNet", "--coarse-channels", "0"], "`coarse_channels`"),
    (["--model", "AlexNet"], "`model` must be one of ['MobileNetV2', "),
    (["--model", "MobileNetV2", "--depth", "9"], "Leave out what MobileNetV2"),
    (["--model", "WideResNet28x10", "--width", "9"], "Leave out what WideRes"),
    (["--model", "MobileNetV2", "--groups", "16"], "Allowed groups: [1, 2, 4"),
    (["--model", "WideResNet", "--conv", "dense"], "`conv` must be one of"),
    (["--model", "WideResNet", "--image-size", "0"], "`image_size` must be"),
]


@pytest.mark.parametrize(("options", "message"), BAD_PARAMS, ids=str)
def test_bad_params(capsys, options, message):
    assert message in error_of(capsys, "params", *options)


def cells(line):
    return [cell.strip() for cell in line.strip("│┃ ").split("│")]


def test_params_of_the_paper(capsys):
    assert cli.run(["params"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "72 of 72 agree."
    rows = [cells(line) for line in lines if line.startswith("│")]
    assert len(rows) == 72
    count = ["1", "wrn-imagenet-34-2", "GC-2L", "16"]
    assert [*count, "6.78M", "6.78M", "✓"] in rows


def test_params_of_the_paper_that_differ(capsys, monkeypatch):
    wrong = cli.paper.COUNTS[0]._replace(printed="36.49M")
    monkeypatch.setattr(cli.paper, "COUNTS", [wrong, cli.paper.COUNTS[1]])
    cli.run(["params"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 of 2 agree."
    assert [cells(s)[-1] for s in lines if s.startswith("│")] == ["✗", "✓"]


def test_params_of_a_network(capsys):
    options = ["--model", "WideResNet", "--depth", "10", "--width", "1"]
    options += ["--groups", "2,4", "--coarse-channels", "2", "--classes", "5"]
    assert cli.run(["params", *options, "--image-size", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [cells(line) for line in lines if line.startswith("│")]
    labels = ["GC", "Shuffle", "FLGC", "GC-2L"]
    assert [row[0] for row in rows] == ["SC", *labels, *labels]
    costs = keras_tlgc.costs.model_costs(
        lambda: keras_tlgc.applications.WideResNet(
            10,
            1,
            conv="two_level",
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
    stored = [line for line in lines if line.startswith("FLGC, N = ")]
    assert len(stored) == 2


def test_unknown_command(capsys):
    assert "No such command 'trian'" in error_of(capsys, "trian")


def test_existing_folder_is_kept(tmp_path, capsys):
    (tmp_path / "model.keras").write_text("precious")
    line = error_of(capsys, "train", "--output", tmp_path)
    assert "must be new or empty" in line
    assert (tmp_path / "model.keras").read_text() == "precious"


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = error_of(capsys, "train", "--output", tmp_path / "file" / "run")
    assert "Not a directory" in line


def test_version(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == keras_tlgc.__version__


def test_help_names_every_setting(capsys):
    assert cli.run(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for name in cli.Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("caffe", "KERAS_BACKEND must be one of ['jax', 'tensorflow'"),
        ("missing", "which is not installed. Install it: pip install"),
    ],
)
def test_backend_errors(backend, message):
    if backend == "missing":
        missing = [
            b for b in launcher.BACKENDS if not importlib.util.find_spec(b)
        ]
        if not missing:
            pytest.skip("every backend is installed")
        backend = missing[0]
    result = run("train", KERAS_BACKEND=backend)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def choose(monkeypatch, tmp_path, installed, wanted=None, configured=None):
    monkeypatch.setattr(launcher, "_installed", lambda name: name in installed)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    if wanted:
        monkeypatch.setenv("KERAS_BACKEND", wanted)
    if configured:
        (tmp_path / "keras.json").write_text(configured)
    return launcher.choose_backend()


@pytest.mark.parametrize(
    ("installed", "wanted", "configured", "chosen"),
    [
        (["torch"], None, None, "torch"),
        (["torch"], None, '{"backend": "tensorflow"}', "torch"),
        (["jax", "torch"], None, '{"backend": "torch"}', "torch"),
        (["jax", "torch"], None, "{", "jax"),
        (["jax", "torch"], None, "[]", "jax"),
        (["jax", "torch"], "torch", '{"backend": "jax"}', "torch"),
    ],
)
def test_choice_of_backend(
    monkeypatch, tmp_path, installed, wanted, configured, chosen
):
    assert chosen == choose(
        monkeypatch, tmp_path, installed, wanted, configured
    )


def test_no_backend(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="Keras needs a backend"):
        choose(monkeypatch, tmp_path, [])


def test_missing_package_of_the_command_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "keras_tlgc.cli", None)
    with pytest.raises(SystemExit) as exit_:
        launcher.main()
    assert exit_.value.code == 2
    assert "pip install 'keras-tlgc[cli]'" in capsys.readouterr().err


@pytest.mark.real_network
def test_train_killed_and_resumed(tmp_path):
    """The main job, small: killed in its second epoch, then resumed."""
    options = ["train", "--model", "plain-2-16", "--conv", "standard"]
    options += ["--epochs", 2, "--batch-size", 200, "--output"]
    whole = run(*options, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert "Epoch 2/2" in whole.stdout
    assert "Held-out accuracy" in whole.stdout

    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*COMMAND, *map(str, options), str(killed)],
        stdout=subprocess.DEVNULL,
        env=users_environment(),
    )
    checkpoint = killed / "checkpoint.weights.h5"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "model.keras").exists()

    resumed = run("train", "--resume", "--output", killed)
    assert resumed.returncode == 0, resumed.stderr
    assert "Epoch 1/2" not in resumed.stdout
    one, other = (
        keras.saving.load_model(folder / "model.keras").get_weights()
        for folder in (tmp_path / "whole", killed)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)

    changed = run("train", "--resume", "--seed", 1, "--output", killed)
    assert changed.returncode == 2
    assert "Received: seed=1" in changed.stderr
    assert changed.stderr.count("\n") == 1


@pytest.mark.real_network
def test_compare_killed_and_resumed(tmp_path):
    """A comparison of two runs, killed after the first, then resumed."""
    folder = tmp_path / "all"
    options = ["compare", "--conv", "group,shuffle", "--groups", "2"]
    options += ["--seeds", "0", "--model", "wrn-10-1", "--epochs", "1"]
    options += ["--batch-size", "400", "--output", str(folder)]
    process = subprocess.Popen(
        [*COMMAND, *options],
        stdout=subprocess.DEVNULL,
        env=users_environment(),
    )
    results = folder / "results.csv"
    while not results.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    first = folder / "runs" / "group-n2-seed0" / "model.keras"
    written = first.stat().st_mtime_ns
    assert results.read_text().count("\n") == 2

    resumed = run("compare", "--resume", "--output", folder)
    assert resumed.returncode == 0, resumed.stderr
    assert first.stat().st_mtime_ns == written
    assert results.read_text().count("\n") == 3
    assert "| Shuffle | 2 | " in resumed.stdout
    assert "GC, N = 2, seed 0: " in resumed.stdout


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
