"""The tables of `benchmarks/README.md`, measured and rendered.

    KERAS_BACKEND=jax python benchmarks/tables.py measure

times everything of one backend, some ten minutes on two quiet cores, and keeps
what it measures in `benchmarks/results/`, a file for each backend and table.
Names of tables after `measure` time those alone.

    python benchmarks/tables.py render

writes the tables of the page and draws its chart from these files.
"""

import argparse
import csv
import math
import re
from pathlib import Path

import keras
from matplotlib import ticker
from matplotlib.figure import Figure

from keras_tlgc.cli import app
from keras_tlgc.lab.tables import markdown_table

FOLDER = Path(__file__).parent
RESULTS, PAGE = FOLDER / "results", FOLDER / "README.md"
BACKENDS = ["jax", "tensorflow", "torch"]
# The options of `keras-tlgc benchmark` that a table takes.
TABLES = {
    "layers": "--conv group,two_level --groups 2,4,8,16,32",
    "keras": "--conv keras --rounds 3",
    "bfloat16": "--conv group,two_level --dtype bfloat16 --rounds 5",
    "network": "--model wrn-28-10 --rounds 5",
    "mobilenetv2": "--model mobilenetv2-1.0 --groups 4 --batch-size 8 "
    "--runs training,forward,folded",
    "small": "--batch-size 8 --runs training,forward --conv group,two_level "
    "--shapes narrow,mobilenet --groups 2,4,8,16",
}
STAGES = {
    "wrn1": "32x32, 160 channels",
    "wrn2": "16x16, 320 channels",
    "wrn3": "8x8, 640 channels",
}


def measure(tables):
    """Time the rows of tables on the backend that runs."""
    RESULTS.mkdir(exist_ok=True)
    for name in tables:
        path = RESULTS / f"{keras.backend.backend()}-{name}.csv"
        options = [*TABLES[name].split(), "--output", str(path)]
        app(["benchmark", *options], standalone_mode=False)
        shorten(path)


def shorten(path):
    """Leave of each number what it can tell, five digits."""
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([head, *([_short(cell) for cell in r] for r in rows)])


def _short(cell):
    return f"{float(cell):.5g}" if re.fullmatch(r"\d+\.\d+", cell) else cell


def read(name):
    """Return the rows of a table as dicts, of all backends in order."""
    rows = []
    for backend in BACKENDS:
        path = RESULTS / f"{backend}-{name}.csv"
        if path.exists():
            with path.open(newline="") as file:
                rows += csv.DictReader(file)
    return [row for row in rows if not row["error"]]


def number(row, name, spec):
    value = float(row[name])
    return "" if math.isnan(value) else format(value, spec)


def by_groups(rows, about, value):
    """Return a table with a column for each number of groups.

    Args:
        rows: dicts. Those of standard convolutions are left out.
        about: dict of the texts that begin a line: heading, and field of a row.
        value: function of a row that returns the text of its cell.
    """
    rows = [row for row in rows if row["conv"] != "standard"]
    numbers = sorted({int(row["groups"]) for row in rows})
    lines = {}
    for row in rows:
        line = lines.setdefault(tuple(row[f] for f in about.values()), {})
        line[int(row["groups"])] = value(row)
    columns = [*about, *(f"N = {n}" for n in numbers)]
    cells = [
        [*texts, *(line.get(n, "") for n in numbers)]
        for texts, line in sorted(lines.items())
    ]
    return markdown_table(columns, cells, [*about])


def time_and_limit(row):
    return (
        f"{number(row, 'to_standard', '.2f')} ({number(row, 'limit', '.2f')})"
    )


def time_to_standard(row):
    return number(row, "to_standard", ".2f")


LAYER = {"backend": "backend", "shape": "case"}
KIND = {**LAYER, "kind": "label"}
RUN = {"backend": "backend", "run": "run", "kind": "label"}


def by_row(rows, about, columns):
    """Return a table with a line for each row.

    Args:
        rows: dicts.
        about: dict, as in `by_groups`.
        columns: dict of the other headings, and functions of a row.
    """
    cells = [
        [
            *(row[f] for f in about.values()),
            *(of(row) for of in columns.values()),
        ]
        for row in rows
    ]
    return markdown_table([*about, *columns], cells, [*about])


def standard_layers():
    """Return what the standard convolutions of the stages take."""
    columns = {
        "ms": lambda r: number(r, "ms", ".0f"),
        "to roofline": lambda r: number(r, "to_roofline", ".1f"),
        "peak (MB)": lambda r: number(r, "peak_mb", ".0f"),
    }
    rows = [row for row in read("layers") if row["conv"] == "standard"]
    return by_row(rows, LAYER, columns)


def memory():
    """Return the peak memory of two levels to that of one level."""
    rows = [row for row in read("layers") if row["backend"] != "tensorflow"]
    one = {_place(r): r["peak_mb"] for r in rows if r["conv"] == "group"}
    return by_groups(
        [row for row in rows if row["conv"] == "two_level"],
        LAYER,
        lambda r: f"{float(r['peak_mb']) / float(one[_place(r)]):.2f}",
    )


def training_and_forward():
    """Return the times of small layers, of both runs in a cell."""
    runs = {"training": [], "forward": []}
    for row in read("small"):
        runs[row["run"]].append(row)
    forward = {(*_place(r), r["label"]): r for r in runs["forward"]}
    return by_groups(
        runs["training"],
        KIND,
        lambda r: " / ".join(
            map(time_to_standard, (r, forward[*_place(r), r["label"]]))
        ),
    )


def _place(row):
    return row["backend"], row["case"], row["groups"]


def networks(name):
    """Return every row of a network's table."""
    columns = {
        "N": lambda r: r["groups"],
        "ms": lambda r: number(r, "ms", ".0f"),
        "least..most": lambda r: "..".join(
            number(r, f, ".0f") for f in ("low_ms", "high_ms")
        ),
        "to SC": time_to_standard,
        "limit": lambda r: number(r, "limit", ".2f"),
        "compile (s)": lambda r: number(r, "compile_s", ".1f"),
        "peak (MB)": lambda r: number(r, "peak_mb", ".0f"),
    }
    return by_row(read(name), RUN, columns)


# What stands between `<!-- name -->` and `<!-- end -->` in the page.
PARTS = {
    "standard": standard_layers,
    "layers": lambda: by_groups(
        read("layers") + read("keras"), KIND, time_and_limit
    ),
    "memory": memory,
    "bfloat16": lambda: by_groups(read("bfloat16"), KIND, time_to_standard),
    "network": lambda: networks("network"),
    "mobilenetv2": lambda: networks("mobilenetv2"),
    "small": training_and_forward,
}


def rendered(page):
    """Return the text of a page with all its tables as the files have them."""

    def part(match):
        return f"<!-- {match[1]} -->\n\n{PARTS[match[1]]()}\n\n<!-- end -->"

    names = "|".join(PARTS)
    pattern = rf"<!-- ({names}) -->.*?<!-- end -->"
    return re.sub(pattern, part, page, flags=re.DOTALL)


def draw(path):
    """Draw the ratio to the standard convolution against N, by stage."""
    rows = read("layers")
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, len(STAGES), sharey=True)
    for axes, (stage, size) in zip(panels, STAGES.items(), strict=True):
        axes.set(title=f"{stage}: {size}", xlabel="number of groups N")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(
                ticker.FuncFormatter(lambda v, _: f"{v:g}")
            )
        for kind, style in (("group", "--"), ("two_level", "-")):
            of = [r for r in rows if r["case"] == stage and r["conv"] == kind]
            for i, backend in enumerate(BACKENDS):
                line = [r for r in of if r["backend"] == backend]
                if line:
                    label = f"{line[0]['label']}, {backend}"
                    _line(axes, line, "to_standard", style, f"C{i}", label)
        if of:
            line = [r for r in of if r["backend"] == of[0]["backend"]]
            _line(axes, line, "limit", ":", "black", "operations of GC-2L")
    panels[0].set_ylabel("time to the standard convolution")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=110)


def _line(axes, rows, field, style, color, label):
    x = [int(row["groups"]) for row in rows]
    y = [float(row[field]) for row in rows]
    axes.plot(x, y, style, color=color, marker=".", label=label)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["measure", "render"])
    parser.add_argument("tables", nargs="*", default=[*TABLES])
    options = parser.parse_args()
    if options.what == "measure":
        measure(options.tables)
    else:
        PAGE.write_text(rendered(PAGE.read_text()))
        draw(RESULTS / "ratio.png")


if __name__ == "__main__":
    main()
