"""The pages of the documentation: what they show runs, and does as they say."""

import csv
import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import pytest
import typer
from documents import README, snippets

import keras_tlgc
import keras_tlgc_launcher as launcher
from keras_tlgc import cli
from keras_tlgc.applications.convolutions import CONVOLUTIONS
from keras_tlgc.lab import FILES, load_data, outcomes, paper
from keras_tlgc.lab.comparison import PAPERS
from keras_tlgc.ops import choose_lowering
from keras_tlgc.sharding.per_shard import can_split

BACKEND = keras.backend.backend()
NAMES = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
ROOT = README.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# What runs the examples of a page, where it is not this module.
RUN_BY = {
    "conversion": "test_convert_examples.py",
    "distribution": "test_readme.py",
    "export": "test_export.py",
    "training": "test_readme.py",
}
WITH_EXAMPLES = [page.stem for page in PAGES if snippets(page)]


# Pages


def nav(config):
    """Return the files that `mkdocs.yml` names."""
    return re.findall(r": ([\w/]+\.md)$", config, re.MULTILINE)


def test_every_page_is_in_the_navigation():
    named = nav((ROOT / "mkdocs.yml").read_text())
    there = {str(p.relative_to(ROOT)) for p in DOCS.rglob("*.md")}
    assert len(set(named)) == len(named)
    assert {name for name in named if name.startswith("docs/")} == there


def test_what_is_public_is_in_the_reference():
    pages = "".join(p.read_text() for p in (DOCS / "api").glob("*.md"))
    documented = set(re.findall(r"^::: .*\.(\w+)$", pages, re.MULTILINE))
    for module in (keras_tlgc.layers, keras_tlgc.applications):
        assert set(module.__all__) <= documented
    assert {
        "convert",
        "GroupParallel",
        "plan",
        "get_layout_map",
        "audit",
        "train",
    } <= documented


def command_lines():
    """Return the calls of `keras-tlgc` in all pages, in order."""
    pages = [README, *PAGES, ROOT / "benchmarks" / "README.md"]
    for page in pages:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "keras-tlgc" in words:
                    yield words[words.index("keras-tlgc") + 1 :]


@pytest.mark.parametrize("words", list(command_lines()), ids=" ".join)
def test_command_lines_have_options_that_exist(words):
    command = typer.main.get_command(cli.app)
    parent = command.make_context("keras-tlgc", words[:1])
    _, subcommand, _ = command.resolve_command(parent, words[:1])
    subcommand.make_context(words[0], words[1:], parent=parent)


# Examples


def run(stem, names=None):
    """Run the examples of a page in one namespace, and return it."""
    names = {} if names is None else names
    for block in snippets(DOCS / f"{stem}.md"):
        if "keras.distribution." in block and BACKEND != "jax":
            continue
        exec(compile(block, f"docs/{stem}.md", "exec"), names)
    return names


@pytest.mark.parametrize(
    "stem", [s for s in WITH_EXAMPLES if s not in (*RUN_BY, "faq")]
)
def test_examples(stem, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("keras_tlgc.lab.load_data", few_digits)
    run(stem)
    printed = capsys.readouterr().out
    shown = re.findall(
        r"```text\n(.*?)```", (DOCS / f"{stem}.md").read_text(), re.S
    )
    assert all(block in printed for block in shown)


def few_digits(name):
    data = load_data(name)
    few = slice(None, None, 40)
    return dataclasses.replace(
        data,
        pixels_train=data.pixels_train[few],
        y_train=data.y_train[few],
        pixels_test=data.pixels_test[few],
        y_test=data.y_test[few],
    )


def test_other_pages_are_run_elsewhere():
    for stem, module in RUN_BY.items():
        assert stem in WITH_EXAMPLES
        assert f"{stem}.md" in next((ROOT / "tests").rglob(module)).read_text()


# Error messages

FAQ = (DOCS / "faq.md").read_text()
ENTRIES = re.findall(
    r"^### ([^\n]*)\n\n```(\w+)\n(.*?)```\n\n```text\n(.*?)```",
    FAQ,
    re.M | re.S,
)


def message_of(language, code, capsys):
    """Return the message that an example of the FAQ ends with."""
    if language == "bash":
        return message_of_command(code, capsys)
    if code.startswith("# In a new process"):
        env = {**os.environ, "KERAS_HOME": os.getcwd()}
        if "without KERAS_BACKEND" in code:
            del env["KERAS_BACKEND"]
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=env,
        )
        return re.split(r"^(?=\w+: )", done.stderr, flags=re.M)[-1]
    names = {}
    exec(snippets(DOCS / "faq.md")[0], names)
    with pytest.raises(Exception) as raised:
        exec(code, names)
    return f"{raised.type.__name__}: {raised.value}"


def message_of_command(code, capsys):
    words = shlex.split(code, comments=True)
    at = words.index("keras-tlgc")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setenv("KERAS_BACKEND", BACKEND)
        for assignment in words[:at]:
            patch.setenv(*assignment.split("="))
        patch.setattr(sys, "argv", words[at:])
        launcher.main()
    return capsys.readouterr().err


def test_every_entry_has_its_message():
    assert [entry[0] for entry in ENTRIES] == re.findall(
        r"^### (.*)", FAQ, re.MULTILINE
    )


@pytest.fixture
def a_folder(tmp_path, monkeypatch):
    """Work where there are a saved model and a run."""
    monkeypatch.chdir(tmp_path)
    layer = keras_tlgc.layers.TwoLevelGroupConv2D(4, 1, groups=2)
    keras.Sequential([keras.Input((2, 2, 4)), layer]).save("model.keras")
    Path("runs/digits").mkdir(parents=True)
    for name in FILES:
        Path("runs/digits", name).touch()


def backends_of(code):
    """Return the marks of an example whose message some backends alone give."""
    first = code.partition("\n")[0]
    named = [backend for backend, name in NAMES.items() if name in first]
    reason = "others have no such message"
    return [pytest.mark.backends(*named, reason=reason)] if named else []


@pytest.mark.parametrize(
    "language, code, shown",
    [
        pytest.param(*entry, id=title, marks=backends_of(entry[1]))
        for title, *entry in ENTRIES
    ],
)
def test_message(language, code, shown, a_folder, capsys):
    if "without KERAS_BACKEND" in code and find_spec("tensorflow"):
        pytest.skip("TensorFlow is there")
    message = message_of(language, code, capsys)
    pattern = re.escape(one_line(shown)).replace(r"\.\.\.", ".*")
    assert re.fullmatch(pattern, one_line(message)), message


def one_line(text):
    return " ".join(text.split())


# Tables


def table(page, heading):
    """Return the rows of the table with such a heading, as dicts."""
    lines = (DOCS / page).read_text().splitlines()
    rows = [[c.strip() for c in x.strip("|").split("|")] for x in lines]
    [first] = [i for i, row in enumerate(rows) if heading in row]
    last = next(i for i in range(first, len(rows)) if len(rows[i]) < 2)
    return [
        dict(zip(rows[first], row, strict=True))
        for row in rows[first + 2 : last]
    ]


@pytest.mark.every_backend
def test_backends_say_what_runs_here():
    alone = table("backends.md", "tested in")
    together = table("backends.md", "tests")
    for row in [*alone, *together]:
        tests = row["tested in"] if row in alone else row["tests"]
        for name in re.findall(r"`(\w+\.py)`", tests):
            assert any((ROOT / "tests").rglob(name)), name
    column = NAMES[BACKEND]
    if BACKEND == "torch":
        versions = "3.16" if can_split() else "3.12 to 3.15"
        column += f", Keras {versions}"
    here = {row[""]: row[column] for row in together}
    says_groups = here["groups over processes"] == "`GroupParallel`"
    assert says_groups == (here["`audit`"] == "yes") == can_split()


@pytest.mark.backends("tensorflow", reason="others have it")
def test_what_tensorflow_lacks():
    x = keras.ops.ones((1, 32, 4, 4), "float64")
    options = dict(data_format="channels_first", dtype="float64")
    with pytest.raises(Exception, match="only supports the NHWC"):
        keras.layers.Conv2D(32, 1, **options)(x)
    for lowering in ("slices", "native"):
        layer = keras_tlgc.layers.GroupConv2D(
            32, 1, groups=2, lowering=lowering, **options
        )
        assert keras.backend.standardize_dtype(layer(x).dtype) == "float64"


@pytest.mark.every_backend
def test_backends_say_how_a_group_is_computed():
    places = {
        "CPU": ("cpu", (3, 3)),
        "CPU, few channels": ("cpu", (1, 1), 6, 36, 4, 1),
        "CPU, 1x1 kernels, channels last": ("cpu", (1, 1), 80, 320, 4, 1),
        "CPU, one channel a group": ("cpu", (3, 3), 1, 1, 384),
        "GPU": ("gpu", (3, 3)),
    }
    rows = table("backends.md", "computed on")
    assert {row["computed on"] for row in rows} == set(places)
    for row in rows:
        for backend, name in NAMES.items():
            lowering = choose_lowering(backend, *places[row["computed on"]])
            assert row[name] == f"`{lowering}`"


def test_benchmarks_show_the_rows_that_are_kept(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    tables = importlib.import_module("tables")
    page = tables.PAGE.read_text()
    assert tables.rendered(page) == page
    assert all(page.count(f"<!-- {name} -->") == 1 for name in tables.PARTS)


def test_networks_have_the_parameters_of_the_paper():
    models = {
        "WideResNet-28-10": paper.WRN_28_10,
        "WideResNet-34-2": paper.WRN_34_2,
        "MobileNetV2": paper.MOBILENET,
    }
    shown, model = {}, None
    for row in table("networks.md", "GC, Shuffle, FLGC"):
        model = models.get(row[""], model)
        for conv in PAPERS:
            kind = CONVOLUTIONS[conv]
            [cell] = [
                row[name] for name in row if kind.label in name.split(", ")
            ]
            if cell:
                shown[model, conv, int(row["N"])] = cell
    # That they are ours as well is tested where they are counted.
    assert shown == {
        count[1:4]: count.printed
        for count in paper.COUNTS
        if count.network in models.values()
    }


# Results


def results(name):
    """Return the table and the command of an experiment in `results.md`."""
    [section] = [
        section
        for section in (DOCS / "results.md").read_text().split("\n## ")
        if f"results/{name}.csv" in section
    ]
    [shown] = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    [command] = re.findall(r"```bash\nkeras-tlgc (.*?)```", section, re.S)
    return shown, shlex.split(command.replace("\\\n", ""))


@pytest.mark.parametrize("name", ["digits", "pairs", "rank"])
def test_results_are_those_of_the_runs(name, monkeypatch):
    shown, command = results(name)
    with open(DOCS / "results" / f"{name}.csv", newline="") as file:
        rows = [
            outcomes.Row(
                row["conv"],
                *(int(row[key]) for key in outcomes.Row._fields[1:5]),
                float(row["error_rate"]),
                row["failure"],
            )
            for row in csv.DictReader(file)
        ]
    assert outcomes.table(rows) == shown

    # Its command makes these runs.
    ran = []
    monkeypatch.setattr(
        "keras_tlgc.lab.compare",
        lambda comparison, *args, **kwargs: ran.append(comparison) or [],
    )
    cli.run([*command, "--output", "unused"])
    [comparison] = ran
    assert {row[:4] for row in rows} == {
        (*configuration, seed)
        for configuration in comparison.configurations()
        for seed in comparison.seeds
    }
