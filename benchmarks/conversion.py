"""What converted networks know, against networks of the same cost.

    OMP_NUM_THREADS=1 KERAS_BACKEND=tensorflow python benchmarks/conversion.py \
        --seeds 0,1,2 --output runs/converted

trains a WideResNet-16-2 of standard convolutions on Fashion-MNIST for each
seed and converts it to shares of the multiply-adds of its convolutions: as a
budget chooses for each layer, and with one form for all layers. Layers are
fitted on unlabelled training images, or, for comparison, to the kernels alone.
Each is tested on the 10,000 held-out images as it is, and after the same
fine-tuning with the original as teacher, without labels. Two more have the
layers that the budget chose and weights drawn by chance: one is fine-tuned, the
other trained from the start on the labels, as the original was.

Each result is a row of `results.csv` in the output folder as soon as it is
there. The same command goes on where an earlier one ended, and several, each
with its own seeds, may write to one folder. The table at the end has all rows.
"""

import argparse
import csv
import dataclasses
from pathlib import Path

import keras
from convert_fit import mean_and_spread, numbers, score, share, shares, uniform

import keras_tlgc
from keras_tlgc.lab import Settings, load_data, train

FIELDS = ["budget", "choice", "seed", "share", "accuracy", "fine_tuned"]
ORIGINAL = "original"
# What all layers become, of the largest rank that keeps to the share: the form,
# the groups, and whether it is fitted on images.
UNIFORM = {
    "low rank": ("low_rank", 1, True),
    "low rank, N = 8": ("low_rank", 8, True),
    "two-level, N = 4": ("two_level", 4, True),
    "two-level, N = 4, kernels": ("two_level", 4, False),
    "one level, N = 2": ("group", 2, True),
    "one level, N = 4": ("group", 4, True),
}


class Results:
    """The rows of a file, to which each new one is added at once."""

    def __init__(self, path):
        self.path = path
        if not path.exists():
            path.write_text(",".join(FIELDS) + "\n")

    def rows(self):
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def add(self, budget, choice, seed, make):
        """Add what `make` returns, unless there is such a row."""
        key = str(budget), choice, str(seed)
        if any((*row.values(),)[:3] == key for row in self.rows()):
            return
        numbers = [f"{value:.4f}" for value in make()]
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([*key, *numbers])
        print(*key, *numbers, flush=True)


def original(settings, data, folder):
    """Return the trained network, from its folder if it is there."""
    path = folder / f"{settings.data}-{settings.model}-{settings.seed}"
    if not (path / "model.keras").exists():
        train(settings, path, resume=None, verbose=2, data=data)
    return keras.saving.load_model(path / "model.keras")


class Study:
    """What becomes of the network of one seed."""

    def __init__(self, options, settings, data, results):
        self.options, self.settings = options, settings
        self.data, self.results = data, results
        self.images = data.sample(options.images)
        self.model = original(settings, data, options.output)

    def run(self):
        accuracy = score(self.model, self.data)
        self.results.add(
            1.0, ORIGINAL, self.settings.seed, lambda: (1.0, accuracy, accuracy)
        )
        _, report = keras_tlgc.convert(self.model, 1, "low_rank")
        for budget in self.options.budgets:
            self.chosen = None
            for name, kind in UNIFORM.items():
                *form, fitted = kind
                way = uniform(self.model, report.rows, *form, budget)
                if way is not None:
                    images = self.images if fitted else None
                    self.add(budget, name, self.converted, data=images, **way)
            self.add(budget, "by layer", self.by_layer, budget)
            self.add(budget, "by layer, random", self.random, budget)
            self.results.add(
                budget,
                "by layer, trained from the start",
                self.settings.seed,
                lambda budget=budget: self.from_the_start(budget),
            )

    def add(self, budget, name, convert, *args, **options):
        def make():
            new, left = convert(*args, **options)
            before = score(new, self.data)
            keras_tlgc.distill(
                new,
                self.model,
                self.data.sample(self.options.tuning_images),
                epochs=self.options.finetune,
                verbose=0,
            )
            return left, before, score(new, self.data)

        self.results.add(budget, name, self.settings.seed, make)

    def converted(self, **options):
        new, report = keras_tlgc.convert(self.model, **options)
        return new, share(report)

    def by_layer(self, budget):
        if self.chosen is None:
            self.chosen = self.converted(budget=budget, data=self.images)
        new, left = self.chosen
        copy = keras.models.clone_model(new)
        copy.set_weights(new.get_weights())
        return copy, left

    def random(self, budget):
        """Return the layers that the budget chose, with other weights."""
        new, left = self.by_layer(budget)
        keras.utils.set_random_seed(self.settings.seed)
        return keras.models.clone_model(new), left

    def from_the_start(self, budget):
        new, left = self.random(budget)
        batches = self.data.train_batches(self.settings, self.settings.seed)
        new.compile(
            self.settings.optimizer(len(batches)),
            "sparse_categorical_crossentropy",
        )
        in_order = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: batches.set_epoch(epoch)
        )
        new.fit(
            batches,
            epochs=self.settings.epochs,
            shuffle=False,
            callbacks=[in_order],
            verbose=2,
        )
        accuracy = score(new, self.data)
        return left, accuracy, accuracy


def print_table(rows):
    groups = {}
    for row in rows:
        groups.setdefault((row["budget"], row["choice"]), []).append(row)
    print("\n| budget | choice | share | accuracy | fine-tuned | seeds |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for (budget, choice), runs in groups.items():
        left, accuracy, tuned = (
            [float(row[name]) for row in runs] for name in FIELDS[3:]
        )
        cells = [budget, choice, f"{sum(left) / len(left):.3f}"]
        cells += [mean_and_spread(accuracy)]
        is_trained = accuracy == tuned
        cells += ["" if is_trained else mean_and_spread(tuned), f"{len(runs)}"]
        print(f"| {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--model", default="wrn-16-2")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--budgets", type=shares, default=[0.5, 0.25])
    parser.add_argument("--finetune", type=int, default=1)
    parser.add_argument("--tuning-images", type=int, default=10_000)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results = Results(options.output / "results.csv")
    data = load_data(options.data)
    settings = Settings(
        data=options.data,
        model=options.model,
        conv="standard",
        epochs=options.epochs,
    )
    for seed in options.seeds:
        of_seed = dataclasses.replace(settings, seed=seed)
        Study(options, of_seed, data, results).run()
    print_table(results.rows())


if __name__ == "__main__":
    main()
