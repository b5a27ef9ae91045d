"""The recipes of examples/containers start processes that fit together."""

import os
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
CONTAINERS = EXAMPLES / "containers"


@pytest.fixture
def parsed(monkeypatch):
    """Return a function that parses the options of multi_host.py."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    example = runpy.run_path(EXAMPLES / "multi_host.py")

    def parse(options):
        monkeypatch.setattr("sys.argv", ["multi_host.py", *options])
        return example["parse_arguments"]()

    return parse


def assert_one_run(processes):
    assert [one.process_id for one in processes] == [*range(len(processes))]
    for one in processes:
        assert one.processes == len(processes)
        assert one.coordinator == processes[0].coordinator
        assert one.checkpoint == processes[0].checkpoint


def test_compose(parsed):
    yaml = pytest.importorskip("yaml", reason="compose files are YAML")
    compose = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())
    services = compose["services"]
    commands = [one["command"] for one in services.values()]
    processes = [parsed(shlex.split(command)) for command in commands]
    assert_one_run(processes)
    assert processes[0].coordinator.split(":")[0] == next(iter(services))
    for one in services.values():
        root = CONTAINERS / one["build"]["context"]
        dockerfile = (root / one["build"]["dockerfile"]).read_text()
        for name in one["build"]["args"]:
            assert f"ARG {name}" in dockerfile
        [volume] = one["volumes"]
        name, _, folder = volume.partition(":")
        assert name in compose["volumes"]
        assert processes[0].checkpoint.is_relative_to(folder)


def test_slurm(parsed, tmp_path):
    """With commands in the place of SLURM's, and two tasks."""
    commands = {
        "scontrol": "echo host7; echo host8",
        "python": 'shift; echo "$@"',
        "srun": 'shift; for i in 0 1; do SLURM_PROCID=$i "$@"; done',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    printed = subprocess.run(
        ["bash", CONTAINERS / "slurm.sh"],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_NODELIST": "host[7-8]",
            "SLURM_NTASKS": "2",
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    processes = [parsed(shlex.split(line)) for line in printed.splitlines()]
    assert len(processes) == 2
    assert_one_run(processes)
    assert processes[0].coordinator == "host7:9876"


def test_two_namespaces(parsed):
    script = CONTAINERS / "two_namespaces.sh"
    subprocess.run(["bash", "-n", script], check=True)
    command = script.read_text().replace("\\\n", " ")
    [options] = [
        line.partition("multi_host.py")[2]
        for line in command.splitlines()
        if "env KERAS_BACKEND" in line
    ]
    assert parsed(shlex.split(options.replace("$@", "0"))).processes == 2
