"""Reading the collectives from the text of a compiled program."""

import collections
import functools
import math
import re
from typing import NamedTuple

import numpy as np

from keras_tlgc.precision import bytes_of

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)

_INSTRUCTION = re.compile(
    rf"= (?P<result>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\("
)
_ARRAY = re.compile(r"\b([a-z]+[0-9]+\w*|pred)\[([\d,]*)\]")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(
    r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)"
    r"|branch_computations=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LISTS = re.compile(
    r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}"
)
_IOTA = re.compile(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
)
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)


class Collective(NamedTuple):
    """One array that a collective moves.

    Attributes:
        kind: one of `KINDS`.
        dtype: HLO's name of its type, such as `"f32"`.
        shape: tuple of integers, the shape of the result on one device.
        groups: tuple of tuples of device positions that exchange data.
        op_name: the operations that it comes from, with their layers' names.
        times: int, how often a step runs it: the length of the loop that it
            is in, such as that of an LSTM. A loop of unknown length counts
            as 1.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    op_name: str
    times: int = 1

    @property
    def elements(self) -> int:
        """Entries of the result on one device."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes that a device receives if its group exchanges in a ring."""
        result = self.elements * bytes_of(self.dtype) * self.times
        return received(self.kind, result, max(map(len, self.groups)))


def received(kind: str, result: float, size: int) -> int:
    """Return the bytes that a device receives in a ring.

    Args:
        kind: string, the collective.
        result: number, the bytes of its result on one device.
        size: int, the devices that take part.
    """
    factors = {
        "all-gather": (size - 1) / size,
        "all-reduce": 2 * (size - 1) / size,
        "reduce-scatter": size - 1,
        "all-to-all": (size - 1) / size,
        "ragged-all-to-all": (size - 1) / size,
        "collective-permute": 1,
        "collective-broadcast": 1,
    }
    return round(result * factors[kind])


def collectives(text: str, device_count: int) -> list[Collective]:
    """Return the collectives of a compiled program that move data.

    Args:
        text: the partitioned program in HLO, as from `compiled.as_text()`.
        device_count: int, the number of its devices.

    Returns:
        A list of `Collective`, one for each array that a collective moves.
        Collectives whose groups are single devices are left out.

    Raises:
        ValueError: if the devices of a collective cannot be read.
    """
    found = []
    lines = [*_placed(text)]
    times = _times(lines)
    for inside, line in lines:
        match = _INSTRUCTION.search(line)
        if not match:
            continue
        groups = _groups(line, device_count)
        if max(map(len, groups)) == 1:
            continue
        arrays = _results(match)
        names = _op_names(line, len(arrays))
        found += [
            Collective(match["kind"], dtype, shape, groups, name, times(inside))
            for (dtype, shape), name in zip(arrays, names, strict=True)
        ]
    return found


def mesh_axes(groups, mesh_shape, axis_names) -> tuple[str, ...]:
    """Return the axes of a mesh that groups of device positions cross."""
    coordinates = np.indices(mesh_shape).reshape(len(mesh_shape), -1)
    crossed = np.zeros(len(mesh_shape), dtype=bool)
    for group in groups:
        members = coordinates[:, list(group)]
        crossed |= (members != members[:, :1]).any(axis=1)
    return tuple(
        name for name, is_crossed in zip(axis_names, crossed, strict=True)
        if is_crossed
    )  # fmt: skip


def _placed(text):
    """Yield each line with the name of the computation that it is in."""
    inside = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            inside = match[1]
        yield inside, line


def _times(lines):
    """Return the function that tells how often a computation is run."""
    callers = collections.defaultdict(list)
    for inside, line in lines:
        trips = _TRIPS.search(line)
        for name, branches in _CALLED.findall(line):
            for called in [name, *re.findall(r"[\w.-]+", branches)]:
                callers[called].append((inside, int(trips[1]) if trips else 1))

    @functools.cache
    def times(name):
        return sum(times(caller) * n for caller, n in callers[name]) or 1

    return times


def _results(match):
    arrays = [
        (dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(match["result"])
    ]
    if match["start"] and match["kind"] != "all-reduce":
        # The result of an asynchronous start begins with its operands.
        arrays = (
            arrays[1:2]
            if match["kind"] == "collective-permute"
            else arrays[len(arrays) // 2 :]
        )
    return arrays


def _op_names(line, count):
    """Return each array's operation, or all of them where HLO joins them."""
    found = _OP_NAME.search(line)
    name = found[1] if found else ""
    parts = _apart(name)
    return parts if len(parts) == count else [":".join(parts)] * count


def _apart(name):
    """Return the names that HLO joins: of `a/(b/c:d)`, `a/b/c` and `a/d`."""
    parts, depth = [""], 0
    for letter in name:
        depth += (letter == "(") - (letter == ")")
        if letter == ":" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if len(parts) > 1:
        return [one for part in parts for one in _apart(part)]
    joined = re.fullmatch(r"(|.*?/)\((.*)\)", name)
    if joined is None:
        return [name]
    return [joined[1] + one for one in _apart(joined[2])]


def _groups(line, device_count):
    if match := _LISTS.search(line):
        groups = [
            tuple(_integers(group))
            for group in re.findall(r"\{([\d,]+)\}", match[1])
        ]
        return tuple(groups) or (tuple(range(device_count)),)
    if match := _IOTA.search(line):
        devices = _iota(match[2], match[3])
        return _rows(devices.reshape(_integers(match[1])))
    if match := _MESH.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        along = re.findall(r"'(\w+)'", match[4])
        names = list(sizes)
        if ":" not in match[4] and set(along) <= set(names):
            dims = match[2] or str(device_count)
            devices = _iota(dims, match[3]).reshape(
                [int(sizes[name]) for name in names]
            )
            last = [names.index(name) for name in along]
            devices = np.moveaxis(devices, last, range(-len(last), 0))
            size = math.prod(int(sizes[name]) for name in along)
            return _rows(devices.reshape(-1, size))
    raise ValueError(
        "The devices of a collective must be given in a known form. "
        f"Received: {line.strip()[:300]}. Report this line, with the version "
        "of JAX."
    )


def _iota(dims, order):
    """Return the devices' numbers in an array of `dims`, then transposed."""
    dims = _integers(dims)
    order = _integers(order) if order else range(len(dims))
    return np.arange(math.prod(dims)).reshape(dims).transpose(*order)


def _rows(devices):
    return tuple(tuple(int(i) for i in row) for row in devices)


def _integers(text):
    return [int(part) for part in text.split(",") if part]
