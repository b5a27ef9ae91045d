"""The processes of one run, at the same time on this machine."""

import os
import socket
import subprocess
import sys

import keras

TIMEOUT = 240


def together(commands, *environments):
    """Run the arguments of Python commands; return what each of them prints.

    Args:
        commands: list of lists of arguments.
        environments: dicts of variables, one for all or one for each command.
    """
    running = []
    try:
        for index, command in enumerate(commands):
            running.append(
                subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={
                        **os.environ,
                        "KERAS_BACKEND": keras.backend.backend(),
                        **environments[index % len(environments)],
                    },
                )
            )
        outputs = [process.communicate(timeout=TIMEOUT) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors[-5000:]
    return [out for out, _ in outputs]


def torchrun(processes, script, *arguments):
    """Run a script in several processes of PyTorch; return what they print."""
    command = ["-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", script, *arguments]
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    [printed] = together([command], environment)
    return printed


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
