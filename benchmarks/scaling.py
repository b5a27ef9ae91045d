"""Several devices: what each has to do, and the time of two processes.

    KERAS_BACKEND=jax python benchmarks/scaling.py counts
    KERAS_BACKEND=jax python benchmarks/scaling.py clock

`counts` reads operations and bytes of one device from the train step compiled
for P virtual CPU devices: nothing runs, no weights are allocated. `clock`
trains with two processes, each on one core of this machine, and compares with
the standard convolution on one core; all runs are measured in turn.
"""

import argparse
import functools
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import keras
import numpy as np

from keras_tlgc.applications import WideResNet
from keras_tlgc.applications.convolutions import CONVOLUTIONS
from keras_tlgc.audit import audit_network
from keras_tlgc.distribution import model_parallel
from keras_tlgc.distribution.mesh import reserve_cpu_devices

ANSWER = "answer: "
KINDS = ["standard", "group", "two_level"]
COUNTS = {
    "GFLOP": (lambda audit: audit.flops / 1e9, "{:,.0f}"),
    "M parameters": (lambda audit: audit.local_params / 1e6, "{:,.2f}"),
    "MB optimizer": (
        lambda audit: audit.local_optimizer_bytes / 1e6,
        "{:,.1f}",
    ),
    "MB temporary, peak": (
        lambda audit: audit.temporary_bytes / 1e6,
        "{:,.0f}",
    ),
    "MB moved": (lambda audit: moved_bytes(audit) / 1e6, "{:,.3f}"),
}


def counts(options):
    """Print a table for each width."""
    reserve_cpu_devices(max(options.devices))
    for width in options.widths:
        print(
            f"\nWideResNet-{options.depth}-{width}, batch "
            f"{options.batch_size}, one device and step. In brackets: ratio "
            "to SC on as many devices; to SC on one.\n"
        )
        print_row(["kind", "P = N", *COUNTS, "audit"])
        print_row(["---"] * (len(COUNTS) + 3))
        single = audit_of("standard", width, 1, options)
        for devices in options.devices:
            split = (
                single
                if devices == 1
                else audit_of("standard", width, devices, options)
            )
            for kind in options.kinds:
                if kind == "standard":
                    print_counts(kind, devices, split, split, single)
                elif devices > 1:  # One group is the standard convolution.
                    audit = audit_of(kind, width, devices, options)
                    print_counts(kind, devices, audit, split, single)


def audit_of(kind, width, devices, options):
    groups = {} if kind == "standard" else {"groups": devices}
    build = functools.partial(
        WideResNet, options.depth, width, conv=kind, **groups
    )
    distribution = model_parallel((1, devices), virtual=True)
    return audit_network(build, distribution, options.batch_size)


def moved_bytes(audit):
    """Bytes that a device receives over the axis that splits the model."""
    return sum(row.bytes for row in audit.rows if audit.model_axis in row.axes)


def print_counts(kind, devices, audit, *bases):
    cells = []
    for count, form in COUNTS.values():
        ratios = "; ".join(
            f"{count(audit) / count(base):.3g}" if count(base) else "-"
            for base in bases
        )
        cells.append(f"{form.format(count(audit))} ({ratios})")
    verdict = "OK"
    if not audit.ok:
        sizes = [row.bytes for row in audit.unexpected]
        verdict = (
            f"NOT OK: {len(sizes)} arrays, {sum(sizes):,} bytes, not "
            f"expected; {len(audit.warnings)} warnings"
        )
    print_row([CONVOLUTIONS[kind].label, str(devices), *cells, verdict])


class Run(NamedTuple):
    """Training to be timed.

    `processes` is 1 or 2. Two of them split the model or, with `apart`, train a
    whole one each, which shows how much two busy cores slow each other down.
    """

    conv: str
    groups: int
    processes: int
    apart: bool = False

    @property
    def name(self):
        kind = CONVOLUTIONS[self.conv].label
        kind += f", N = {self.groups}" * (self.groups > 1)
        if self.apart:
            return f"{kind}, one on each core, nothing moved"
        return f"{kind}, {'one core' if self.processes == 1 else '1x2 mesh'}"


RUNS = [
    Run("standard", 1, 1),
    Run("group", 2, 1),
    Run("two_level", 2, 1),
    Run("standard", 1, 2, apart=True),
    Run("standard", 1, 2),
    Run("group", 2, 2),
    Run("two_level", 2, 2),
]


def clock(options):
    """Print the time of a step of each run, as a ratio to the first."""
    cores = cores_of(options)
    print(
        f"WideResNet-{options.depth}-{options.width}, batch "
        f"{options.batch_size}, {options.rounds} rounds of {options.steps} "
        f"steps, cores {cores[0]} and {cores[1]} "
        f"(hyperthreads of one: {'yes' if siblings(*cores) else 'no'}). "
        f"Load before: {load()}.",
        flush=True,
    )
    workers = []
    try:
        for run in RUNS:
            # One run compiles at a time: gloo waits 30 s for its peers.
            workers.append([])
            start(run, cores, options, workers[-1])
            first = [answer(worker) for worker in workers[-1]]
            print(f"Ready: {run.name}, first loss {first[0]:.6f}.", flush=True)
        times, busy = rounds(workers, options)
    finally:
        for worker in itertools.chain(*workers):
            worker.kill()
        for worker in itertools.chain(*workers):
            worker.communicate()
    print_times(times, busy)


def cores_of(options):
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(
            "`clock` pins processes to cores, which Python does on Linux "
            f"only. Received: {sys.platform}. Run it on Linux."
        )
    free = sorted(os.sched_getaffinity(0))
    cores = free[:2] if options.cores is None else options.cores
    if len(set(cores)) != 2 or not set(cores) <= set(free):
        raise ValueError(
            "`clock` needs two different cores. Received: "
            f"{cores}, of {free} that this process may use. Run it on a "
            "machine with two, or name two with --cores."
        )
    return cores


def load():
    return ", ".join(f"{value:.2f}" for value in os.getloadavg())


def siblings(first, second):
    """Return whether Linux says that two virtual cores are of one core."""

    def core(number):
        folder = f"/sys/devices/system/cpu/cpu{number}/topology/"
        try:
            with open(folder + "thread_siblings_list") as file:
                return file.read()
        except OSError:
            return number

    return core(first) == core(second)


def start(run, cores, options, workers):
    """Start the run's processes, each on its own core, into `workers`."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    before = os.sched_getaffinity(0)
    for process in range(run.processes):
        job = {
            "run": run,
            "process": process,
            "address": address,
            "size": [options.depth, options.width, options.batch_size],
        }
        os.sched_setaffinity(0, {cores[process]})  # The child inherits it.
        try:
            worker = subprocess.Popen(
                [sys.executable, __file__, "clock", "--job", json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "JAX_NUM_CPU_DEVICES": "1",
                    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
                },
            )
        finally:
            os.sched_setaffinity(0, before)
        workers.append(worker)


def answer(worker):
    for line in worker.stdout:
        if line.startswith(ANSWER):  # Gloo writes lines of its own.
            return json.loads(line.removeprefix(ANSWER))
    raise ValueError(
        "A process must go on until it is told to end. Received: one that "
        f"ended with status {worker.wait()}. See its messages above."
    )


def rounds(workers, options):
    """Let the runs take steps in turn; return seconds and busy shares."""
    times = [[] for _ in workers]
    busy = [[] for _ in workers]
    for number in range(options.rounds):
        for i, group in enumerate(workers):
            for worker in group:
                print(options.steps, file=worker.stdin, flush=True)
            answers = [answer(worker) for worker in group]
            # A step is done when the slower process is.
            steps = zip(*(a["seconds"] for a in answers), strict=True)
            times[i].append([max(step) for step in steps])
            busy[i] += [a["busy"] for a in answers]
        medians = [statistics.median(run[-1]) for run in times]
        print(
            f"Round {number + 1}: load {load()}; medians "
            f"{', '.join(f'{m:.3f}' for m in medians)} s.",
            flush=True,
        )
    return times, busy


def print_times(times, busy):
    columns = ["run", "s a step", "min..max", "rounds", "to SC on one core"]
    columns += ["min..max of rounds", "CPU / wall"]
    print()
    print_row(columns)
    print_row(["---"] * len(columns))
    base = [statistics.median(steps) for steps in times[0]]
    whole = statistics.median(itertools.chain(*times[0]))
    for run, of_rounds, shares in zip(RUNS, times, busy, strict=True):
        steps = [*itertools.chain(*of_rounds)]
        medians = [statistics.median(steps) for steps in of_rounds]
        ratios = [m / b for m, b in zip(medians, base, strict=True)]
        print_row(
            [
                run.name,
                f"{statistics.median(steps):.3f}",
                f"{min(steps):.3f}..{max(steps):.3f}",
                f"{min(medians):.3f}..{max(medians):.3f}",
                f"{statistics.median(steps) / whole:.3f}",
                f"{min(ratios):.3f}..{max(ratios):.3f}",
                f"{statistics.median(shares):.2f}",
            ]
        )


def work(job):
    """Be one process of a run: train as many steps as each input line says."""
    import jax

    run = Run(*job["run"])
    depth, width, batch_size = job["size"]
    split = run.processes == 2 and not run.apart
    if split:
        keras.distribution.initialize(job["address"], 2, job["process"])
    keras.utils.set_random_seed(0)
    if split:
        keras.distribution.set_distribution(model_parallel((1, 2)))
    groups = {"groups": run.groups} if run.groups > 1 else {}
    model = WideResNet(depth, width, conv=run.conv, **groups)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        "sparse_categorical_crossentropy",
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch_size, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, batch_size)

    def step():
        loss = model.train_on_batch(x, y)
        jax.block_until_ready([v.value for v in model.variables])
        return float(loss)

    first = step()
    step(), step()
    print(ANSWER + json.dumps(first), flush=True)
    for line in sys.stdin:
        step()  # Others ran since: warm the caches again.
        seconds = []
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        cpu = time.process_time() - cpu
        share = cpu / (time.perf_counter() - begin)
        result = {"seconds": seconds, "busy": share}
        print(ANSWER + json.dumps(result), flush=True)


def integers(text):
    return [int(part) for part in text.split(",")]


def kinds(text):
    found = text.split(",")
    if not set(found) <= set(KINDS):
        raise ValueError
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("counts", help=counts.__doc__)
    command.set_defaults(command=counts)
    command.add_argument("--depth", type=int, default=28)
    command.add_argument("--widths", type=integers, default=[10, 40])
    command.add_argument("--devices", type=integers, default=[1, 2, 4, 8])
    command.add_argument(
        "--kinds", type=kinds, default=KINDS, help=f"of {','.join(KINDS)}"
    )
    command.add_argument("--batch-size", type=int, default=128)
    command = commands.add_parser("clock", help=clock.__doc__)
    command.set_defaults(command=clock)
    command.add_argument("--depth", type=int, default=10)
    command.add_argument("--width", type=int, default=10)
    command.add_argument("--batch-size", type=int, default=16)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--steps", type=int, default=5, help="in each round")
    command.add_argument(
        "--cores", type=integers, help="two numbers; the first two if not given"
    )
    command.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if keras.backend.backend() != "jax":
        parser.error(
            "This benchmark needs the JAX backend. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}. Set KERAS_BACKEND=jax."
        )
    if getattr(options, "job", None):
        return work(options.job)
    print(f"Keras {keras.__version__}, JAX {jax_version()}")
    try:
        options.command(options)
    except ValueError as error:
        parser.error(str(error))


def jax_version():
    import jax

    return jax.__version__


def print_row(cells):
    print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
