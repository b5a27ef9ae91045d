"""The numbers that the paper prints: parameters, with ours, and hours.

Lee, Park, Lee, "Two-level Group Convolution", Tables 1 to 4. The column
"Parameters per processor" of Table 1 holds the same totals as Table 3.
"""

import functools
from typing import NamedTuple

from keras_tlgc import applications
from keras_tlgc.costs import count_params

WRN_28_10 = "WideResNet28x10"
WRN_34_2 = "WideResNet34x2"
MOBILENET = "MobileNetV2"

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
    (2, "WideResNet28x40", "standard", {1: "583.1M"}),
    (2, "WideResNet28x40", "two_level", {2: "292.0M", 4: "146.3M"}),
    (2, "WideResNet28x60", "standard", {1: "1311.7M"}),
    (2, "WideResNet28x60", "two_level", {2: "656.5M", 4: "328.7M"}),
    (2, "WideResNet28x80", "standard", {1: "2331.8M"}),
    (2, "WideResNet28x80", "two_level", {2: "1166.8M", 4: "584.0M"}),
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


class WallClock(NamedTuple):
    """A training time of Table 2: WideResNet-28-`width` on CIFAR-10.

    `devices` is the number of GPUs: N for two-level convolutions and, for
    standard ones, which were split over several where one was too small, what
    section 4.1.2 says. `seconds` are those of one step of 128 images, with 200
    epochs of 390 steps (the last 80 images of an epoch are left out here).
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
        """Return the number of our network, rounded as the paper's."""
        params = _count(self.network, self.conv, self.groups)
        decimals = len(self.printed.rstrip("M").partition(".")[2])
        return f"{params / 1e6:.{decimals}f}M"


COUNTS = [
    Count(table, network, conv, groups, printed)
    for table, network, conv, numbers in _PRINTED
    for groups, printed in numbers.items()
]


@functools.cache
def _count(network, conv, groups):
    arguments = {"conv": conv, "groups": groups}
    if network.startswith("WideResNet28x"):
        width = int(network.removeprefix("WideResNet28x"))
        build = functools.partial(applications.WideResNet, 28, width)
    else:
        build = getattr(applications, network)
    return count_params(lambda: build(**arguments))
