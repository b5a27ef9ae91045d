"""What kinds of convolution lose as groups become more, and how sure that is.

    compare="keras-tlgc compare --data fashion_mnist --model wrn-10-1 --epochs 2
        --batch-size 100 --seeds 0,1,2 --output runs/rivals"
    $compare --groups 2,4,8,16 \
        --conv standard,group,shuffle,learnable,balanced,two_level
    for rank in "2 17" "4 7" "8 3" "16 1"; do
        set -- $rank
        $compare --resume --conv low_rank --groups $1 --coarse-channels $2
        keras-tlgc benchmark --model wrn-10-1 --batch-size 100 \
            --conv low_rank --groups $1 --coarse-channels $2 \
            --output times-$1.csv
    done
    keras-tlgc benchmark --model wrn-10-1 --batch-size 100 --groups 2,4,8,16 \
        --conv group,shuffle,learnable,balanced,two_level --output times.csv
    python benchmarks/rivals.py runs/rivals --times times*.csv

reads the runs of a comparison, and draws in its folder, in `rivals.png`, the
error against N, the parameters and the time of a train step. It prints

- the slope of the error in log2 N, by least squares, with its 95% interval, and
  that of its difference from half of the slope of group convolution;
- the differences of two levels from the others of the same N: their 95%
  interval over seeds (Welch), and over the held-out images, on which all runs
  are compared one by one, with the p of the latter after Holm's correction for
  as many comparisons as there are.

Low rank has as many coarse channels as make it no larger than two levels with
the same N, which have to err less than it if their groups are of use.
"""

import argparse
import csv
from pathlib import Path

import keras
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from scipy import stats

from keras_tlgc.applications.convolutions import CONVOLUTIONS
from keras_tlgc.lab import load_data
from keras_tlgc.lab.outcomes import table
from keras_tlgc.lab.results import other_rows, run_folder
from keras_tlgc.lab.tables import markdown_table

KIND, BASE = "two_level", "group"
LEVEL = 0.95


def read(folder, rows, data):
    """Map kind and N to parameters and to the images that each seed missed."""
    runs = {}
    for row in rows:
        if row.failure:
            continue
        path = run_folder(folder, row).path / "model.keras"
        scores = keras.saving.load_model(path).predict(
            data.pixels_test, 500, verbose=0
        )
        missed = scores.argmax(-1) != data.y_test
        key = row.conv, row.groups
        runs.setdefault(key, (row.parameters, []))[1].append(missed)
    return {key: (count, np.array(of)) for key, (count, of) in runs.items()}


def kinds(keys, least=1):
    """Return the kinds with that many groups, in the order of the tables."""
    present = {kind for kind, n in keys if n >= least}
    return [kind for kind in CONVOLUTIONS if kind in present]


def errors(missed):
    """Return the error of each seed in percent."""
    return 100 * missed.mean(1)


def slope(runs, conv):
    """Return the slope of the error in log2 N, its deviation and runs."""
    points = [
        (np.log2(n), error)
        for (kind, n), (_, missed) in runs.items()
        for error in errors(missed)
        if kind == conv
    ]
    fit = stats.linregress(*zip(*points, strict=True))
    return fit.slope, fit.stderr, len(points)


def interval(mean, deviation, freedom):
    half = stats.t.ppf((1 + LEVEL) / 2, freedom) * deviation
    return f"{mean - half:.2f} to {mean + half:.2f}"


def slopes(runs):
    base, base_deviation, base_points = slope(runs, BASE)
    rows = []
    for conv in kinds(runs, 2):
        steep, deviation, points = slope(runs, conv)
        over = steep - base / 2
        both = np.hypot(deviation, base_deviation / 2)
        freedom = points + base_points - 4
        rows.append(
            [
                CONVOLUTIONS[conv].label,
                f"{steep:.2f}",
                interval(steep, deviation, points - 2),
                "" if conv == BASE else interval(over, both, freedom),
            ]
        )
    head = ["Type", "Points a doubling", "95% interval", "beyond GC's half"]
    return markdown_table(head, rows, ["Type"])


def differences(runs):
    """Return the table of GC-2L less each of its rivals."""
    pairs = [
        (other, n)
        for other, n in runs
        if other != KIND and n > 1 and (KIND, n) in runs
    ]
    rows, chances = [], []
    for other, n in pairs:
        ours, theirs = runs[KIND, n][1], runs[other, n][1]
        over_seeds = stats.ttest_ind(
            errors(ours), errors(theirs), equal_var=False
        ).confidence_interval(LEVEL)
        over_images = stats.ttest_1samp(
            100 * (ours.mean(0) - theirs.mean(0)), 0
        )
        low, high = over_images.confidence_interval(LEVEL)
        chances.append(over_images.pvalue)
        rows.append(
            [
                f"GC-2L - {CONVOLUTIONS[other].label}",
                f"{n}",
                f"{(low + high) / 2:+.2f}",
                f"{over_seeds.low:.2f} to {over_seeds.high:.2f}",
                f"{low:.2f} to {high:.2f}",
            ]
        )
    for row, chance in zip(rows, holm(chances), strict=True):
        row.append(f"{chance:.2g}")
    head = ["Difference", "N", "Points", "over seeds", "over images"]
    return markdown_table([*head, f"p of {len(rows)}"], rows, ["Difference"])


def holm(chances):
    """Return each p after Holm's correction."""
    order = np.argsort(chances)
    factors = np.arange(len(chances), 0, -1)
    adjusted = np.maximum.accumulate(np.array(chances)[order] * factors)
    result = np.empty(len(chances))
    result[order] = np.minimum(adjusted, 1)
    return result


def plot(runs, times, path):
    """Draw error against N, parameters and time."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 3 if times else 2, sharey=True)
    for conv in kinds(runs):
        keys = [key for key in runs if key[0] == conv]
        label = CONVOLUTIONS[conv].label
        means = [errors(runs[key][1]).mean() for key in keys]
        spreads = [errors(runs[key][1]).std(ddof=1) for key in keys]
        places = [[n for _, n in keys], [runs[key][0] for key in keys]]
        if times:
            places.append([times[key] for key in keys])
        for one, place in zip(axes, places, strict=True):
            one.errorbar(
                place, means, spreads, fmt="o-", capsize=2, label=label
            )
    axes[0].set(xlabel="number of groups N", ylabel="error rate (%)")
    axes[0].set_xscale("log", base=2)
    axes[0].legend()
    axes[1].set(xlabel="parameters", xscale="log")
    axes[1].xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes[1].xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes[1].xaxis.set_minor_formatter(ticker.NullFormatter())
    if times:
        axes[2].set(xlabel="time of a train step, to SC")
    figure.savefig(path, dpi=100)


def read_times(paths):
    """Map kind and N to the time of a train step, to SC's of the same file."""
    return {
        (row["conv"], int(row["groups"])): float(row["to_standard"])
        for path in paths
        for row in csv.DictReader(path.read_text().splitlines())
        if row["run"] == "training" and not row["error"]
    }


def times_table(times):
    """Return the table of the times of a train step, to SC's."""
    counts = sorted({n for _, n in times if n > 1})
    rows = [
        [CONVOLUTIONS[conv].label, *(f"{times[conv, n]:.2f}" for n in counts)]
        for conv in kinds(times, 2)
    ]
    heads = ["Type", *(f"N = {n}" for n in counts)]
    return markdown_table(heads, rows, ["Type"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--times", type=Path, nargs="+")
    options = parser.parse_args()
    rows = sorted(other_rows([], options.folder), key=lambda row: row.groups)
    runs = read(options.folder, rows, load_data(options.data))
    times = read_times(options.times) if options.times else None
    for text in (table(rows), slopes(runs), differences(runs)):
        print(text, end="\n\n")
    if times:
        print(times_table(times))
    plot(runs, times, options.folder / "rivals.png")


if __name__ == "__main__":
    main()
