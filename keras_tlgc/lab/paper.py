"""The numbers that the paper prints: parameters, error rates, hours.

Lee, Park, Lee, "Two-level Group Convolution", Tables 1 to 4. The column
"Parameters per processor" of Table 1 holds the same totals as Table 3.
"""

import functools
from typing import NamedTuple

from keras_tlgc.applications import network_builder
from keras_tlgc.costs import count_params

# Names as `network_builder` takes them.
WRN_28_10 = "wrn-28-10"
WRN_34_2 = "wrn-imagenet-34-2"
MOBILENET = "mobilenetv2-1.0"
IMAGENET = "folder"  # The name of the data set that reads it.

_GC_28_10 = {2: "18.25M", 4: "9.14M", 8: "4.58M", 16: "2.30M"}
_GC_34_2 = {2: "43.55M", 4: "22.31M", 8: "11.69M", 16: "6.38M"}
_GC_MOBILENET = {2: "2.44M", 4: "1.91M", 8: "1.65M"}
_2L_28_10 = {2: "18.35M", 4: "9.25M", 8: "4.74M", 16: "2.54M"}
_2L_34_2 = {2: "43.71M", 4: "22.50M", 8: "11.95M", 16: "6.78M"}
_PRINTED = [
    (1, WRN_28_10, "standard", {1: "36.48M"}),
    (1, WRN_28_10, "group", _GC_28_10),
    (1, WRN_28_10, "two_level", _2L_28_10),
    (1, WRN_34_2, "standard", {1: "86.03M"}),
    (1, WRN_34_2, "group", _GC_34_2),
    (1, WRN_34_2, "two_level", _2L_34_2),
    (2, "wrn-28-40", "standard", {1: "583.1M"}),
    (2, "wrn-28-40", "two_level", {2: "292.0M", 4: "146.3M"}),
    (2, "wrn-28-60", "standard", {1: "1311.7M"}),
    (2, "wrn-28-60", "two_level", {2: "656.5M", 4: "328.7M"}),
    (2, "wrn-28-80", "standard", {1: "2331.8M"}),
    (2, "wrn-28-80", "two_level", {2: "1166.8M", 4: "584.0M"}),
    (3, WRN_28_10, "group", _GC_28_10),
    (3, WRN_28_10, "shuffle", _GC_28_10),
    (3, WRN_28_10, "learnable", _GC_28_10),
    (3, WRN_28_10, "two_level", _2L_28_10),
    (3, WRN_34_2, "group", _GC_34_2),
    (3, WRN_34_2, "shuffle", _GC_34_2),
    (3, WRN_34_2, "learnable", _GC_34_2),
    (3, WRN_34_2, "two_level", _2L_34_2),
    (4, MOBILENET, "standard", {1: "3.50M"}),
    (4, MOBILENET, "group", _GC_MOBILENET),
    (4, MOBILENET, "shuffle", _GC_MOBILENET),
    (4, MOBILENET, "learnable", _GC_MOBILENET),
    (4, MOBILENET, "two_level", {2: "2.47M", 4: "1.95M", 8: "1.72M"}),
]
# For data and network, kind, and N: the error rate in percent. Each number is
# in at least one table, and where it is in two, they agree.
ERRORS = {
    ("cifar10", WRN_28_10): {
        "standard": {1: 4.19},
        "group": {2: 4.61, 4: 5.32, 8: 6.54, 16: 8.33},
        "shuffle": {2: 4.00, 4: 4.21, 8: 4.73, 16: 5.28},
        "learnable": {2: 4.62, 4: 6.16, 8: 9.81, 16: 11.26},
        "two_level": {2: 4.12, 4: 4.34, 8: 4.79, 16: 4.95},
    },
    ("cifar100", WRN_28_10): {
        "standard": {1: 18.95},
        "group": {2: 20.77, 4: 24.31, 8: 26.89, 16: 30.81},
        "shuffle": {2: 19.51, 4: 20.38, 8: 21.91, 16: 24.20},
        "learnable": {2: 21.68, 4: 26.33, 8: 30.78, 16: 37.49},
        "two_level": {2: 19.80, 4: 20.90, 8: 22.32, 16: 23.49},
    },
    (IMAGENET, WRN_34_2): {
        "standard": {1: 24.10},
        "group": {2: 26.75, 4: 30.48, 8: 36.36, 16: 43.18},
        "shuffle": {2: 25.12, 4: 26.84, 8: 29.03, 16: 32.27},
        "learnable": {2: 30.43, 4: 38.30, 8: 45.54, 16: 62.02},
        "two_level": {2: 25.36, 4: 27.17, 8: 28.43, 16: 29.31},
    },
    (IMAGENET, MOBILENET): {
        "standard": {1: 30.61},
        "group": {2: 36.96, 4: 42.63, 8: 50.36},
        "shuffle": {2: 36.67, 4: 38.14, 8: 42.75},
        "learnable": {2: 37.98, 4: 44.37, 8: 49.28},
        "two_level": {2: 33.56, 4: 36.88, 8: 39.16},
    },
    ("cifar10", "wrn-28-40"): {
        "standard": {1: 3.64},
        "two_level": {2: 3.58, 4: 3.73},
    },
    ("cifar10", "wrn-28-60"): {
        "standard": {1: 3.51},
        "two_level": {2: 3.68, 4: 3.91},
    },
    ("cifar10", "wrn-28-80"): {
        "standard": {1: 3.77},
        "two_level": {2: 3.75, 4: 4.08},
    },
}


class WallClock(NamedTuple):
    """A training time of Table 2: WideResNet-28-`width` on CIFAR-10.

    `devices` is the number of GPUs. For two-level convolutions it is N.
    Standard ones were split over several GPUs where one was too small, and
    section 4.1.2 says over how many. `seconds` is the time of one step of 128
    images, at 200 epochs of 390 steps (the last 80 images of an epoch are left
    out here).
    """

    width: int
    conv: str
    groups: int
    devices: int
    hours: int
    minutes: int

    @property
    def seconds(self) -> float:
        return (self.hours * 60 + self.minutes) * 60 / (200 * 390)


WALL_CLOCKS = [
    WallClock(40, "standard", 1, 1, 49, 43),
    WallClock(40, "two_level", 2, 2, 17, 47),
    WallClock(40, "two_level", 4, 4, 8, 40),
    WallClock(60, "standard", 1, 2, 89, 49),
    WallClock(60, "two_level", 2, 2, 30, 18),
    WallClock(60, "two_level", 4, 4, 11, 49),
    WallClock(80, "standard", 1, 4, 255, 1),
    WallClock(80, "two_level", 2, 2, 73, 29),
    WallClock(80, "two_level", 4, 4, 20, 12),
]


class Count(NamedTuple):
    """A number of parameters in the paper, as it is printed."""

    table: int
    network: str
    conv: str
    groups: int
    printed: str

    def ours(self) -> str:
        """Return the number of our network, rounded as in the paper."""
        params = _count(self.network, self.conv, self.groups)
        decimals = len(self.printed.rstrip("M").partition(".")[2])
        return f"{params / 1e6:.{decimals}f}M"


COUNTS = [
    Count(table, network, conv, groups, printed)
    for table, network, conv, numbers in _PRINTED
    for groups, printed in numbers.items()
]


class Printed(NamedTuple):
    """What the paper prints for a kind with N groups in one network.

    `seconds` is the time of an epoch, on as many GPUs as Table 2 says.
    """

    error_rate: float
    parameters: str
    seconds: float | None


def printed(data: str, model: str) -> dict[tuple[str, int], Printed]:
    """Return what the paper prints for a network trained on some data.

    Args:
        data: name of the data, `"cifar10"`, `"cifar100"` or, for ImageNet,
            `"folder"`.
        model: name of the network, such as `"wrn-28-10"`.

    Returns:
        A dict from kind and N, empty where the paper has nothing.
    """
    errors = ERRORS.get((data, model), {})
    counts = {c[2:4]: c.printed for c in COUNTS if c.network == model}
    seconds = {
        (clock.conv, clock.groups): clock.seconds * 390
        for clock in WALL_CLOCKS
        if (data, model) == ("cifar10", f"wrn-28-{clock.width}")
    }
    return {
        (conv, n): Printed(error, counts[conv, n], seconds.get((conv, n)))
        for conv, line in errors.items()
        for n, error in line.items()
    }


@functools.cache
def _count(network, conv, groups):
    build = network_builder(network)
    return count_params(lambda: build(conv=conv, groups=groups))
