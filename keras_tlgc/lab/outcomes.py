"""The outcomes of many runs: rows, their summaries and tables."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from keras_tlgc.applications.convolutions import CONVOLUTIONS
from keras_tlgc.lab import paper
from keras_tlgc.lab.tables import markdown_table

# With two runs Student's t is 12.7, and an interval says nothing.
RUNS_FOR_INTERVAL = 3


class Configuration(NamedTuple):
    """A kind of convolution with N groups of r coarse channels."""

    conv: str
    groups: int
    coarse_channels: int = 1

    @classmethod
    def of(cls, run: Any) -> "Configuration":
        """Return the configuration of some `Settings` or of a `Row`."""
        return cls(run.conv, run.groups, run.coarse_channels)

    @property
    def label(self) -> str:
        """The paper's name of the kind, with r where it is not 1 as there."""
        return CONVOLUTIONS[self.conv].label_of(self.coarse_channels)

    @property
    def title(self) -> str:
        """The kind and the number of groups, in words."""
        return f"{self.label}, N = {self.groups}"

    @property
    def name(self) -> str:
        """The name of its files."""
        has_r = "coarse_channels" in CONVOLUTIONS[self.conv].options
        r = f"-r{self.coarse_channels}" if has_r else ""
        return f"{self.conv}-n{self.groups}{r}"


class Row(NamedTuple):
    """The outcome of one run, as `results.csv` holds it.

    `parameters` are counted as in the paper, `error_rate` is in percent of the
    held-out images after the last epoch. A run that failed has no error rate,
    and says why in `failure`; one that was not run yet has neither.
    """

    conv: str
    groups: int
    coarse_channels: int
    seed: int
    parameters: int
    error_rate: float | None = None
    failure: str = ""

    @property
    def configuration(self) -> Configuration:
        return Configuration.of(self)


class Summary(NamedTuple):
    """The runs of one configuration; `errors` are those of finished ones."""

    configuration: Configuration
    parameters: int
    errors: tuple[float, ...]
    failed: int
    runs: int

    @property
    def mean(self) -> float:
        """The mean error rate in percent, NaN where no run has finished."""
        return statistics.fmean(self.errors) if self.errors else math.nan

    @property
    def spread(self) -> float:
        """The standard deviation of the error rates, 0 for a single run."""
        return statistics.stdev(self.errors) if len(self.errors) > 1 else 0.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% confidence interval of the mean, by Student's t.

        It lies within 0 and 100%. It is `None` for fewer runs than
        `RUNS_FOR_INTERVAL`.
        """
        count = len(self.errors)
        if count < RUNS_FOR_INTERVAL:
            return None
        from scipy import stats  # This takes half a second.

        quantile = float(stats.t.ppf(0.975, count - 1))
        half = quantile * self.spread / math.sqrt(count)
        return max(0.0, self.mean - half), min(100.0, self.mean + half)


def summarize(rows: Iterable[Row]) -> list[Summary]:
    """Return a summary for each configuration, ordered by N, kind and r."""
    runs: dict[Configuration, list[Row]] = {}
    for row in rows:
        runs.setdefault(row.configuration, []).append(row)
    kinds = list(CONVOLUTIONS)
    return [
        Summary(
            configuration,
            of_one[0].parameters,
            tuple(r.error_rate for r in of_one if r.error_rate is not None),
            sum(bool(row.failure) for row in of_one),
            len(of_one),
        )
        for configuration, of_one in sorted(
            runs.items(),
            key=lambda item: (item[0].groups, kinds.index(item[0].conv)),
        )
    ]


def table(
    rows: Iterable[Row],
    seconds: Mapping[Configuration, float] | None = None,
    printed: Mapping[Configuration, paper.Printed] | None = None,
) -> str:
    """Return a Markdown table in the form of the paper's Table 3.

    Args:
        rows: `Row`s. What is not known yet is shown as a dash.
        seconds: times of an epoch, for a column that shows them.
        printed: what the paper prints, for columns beside ours.
    """
    columns = ["Type", "N", "Parameters", "Error rate (%)", "95% interval"]
    columns += ["Runs"]
    if seconds is not None:
        columns += ["Seconds an epoch"]
    if printed:
        columns += ["Paper: parameters", "Paper: error rate (%)"]
        columns += ["Paper: seconds an epoch"]
    lines = []
    for summary in summarize(rows):
        line = _cells(summary)
        if seconds is not None:
            line += [_number(seconds.get(summary.configuration), 1)]
        if printed:
            line += _of_paper(printed.get(summary.configuration))
        lines.append(line)
    return markdown_table(columns, lines, ["Type"]) + "\n"


def _cells(summary):
    finished = len(summary.errors)
    error, interval = "failed" if summary.failed else "-", ""
    if finished:
        error = f"{summary.mean:.2f}"
    if finished > 1:
        error += f" ± {summary.spread:.2f}"
    if summary.interval:
        interval = "{:.2f} to {:.2f}".format(*summary.interval)
    runs = summary.runs
    return [
        summary.configuration.label,
        str(summary.configuration.groups),
        format_params(summary.parameters) if summary.parameters else "-",
        error,
        interval,
        f"{finished} of {runs}" if finished < runs else str(finished),
    ]


def format_params(parameters: int) -> str:
    """Return a number of parameters in millions or thousands."""
    if parameters >= 1e6:
        return f"{parameters / 1e6:.2f}M"
    return f"{parameters / 1e3:.1f}K"


def _of_paper(printed):
    if printed is None:
        return ["-"] * 3
    error = f"{printed.error_rate:.2f}"
    return [printed.parameters, error, _number(printed.seconds, 0)]


def _number(value, decimals):
    return "-" if value is None else f"{value:.{decimals}f}"
