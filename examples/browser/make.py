"""Make the two networks that the page runs: the original and a lighter one.

    pip install -e ".[torch,cli,export]"
    cd examples/browser && npm install
    KERAS_BACKEND=torch python make.py
    python -m http.server

and open http://localhost:8000. Trains a WideResNet on 4,000 MNIST digits,
converts it to a quarter of its multiply-adds, fine-tunes it with the original
as teacher, and writes both to `models/` for onnxruntime, with held-out digits
and what Keras makes of them.
"""

import argparse
import json
import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_tlgc
from keras_tlgc.lab import Settings, exported, load_data, train

SAMPLES = 20
IMAGES = 1000


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="wrn-10-4")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--output", type=Path, default=Path("models"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    data = load_data("mnist5k")
    settings = Settings(
        model=options.model, conv="standard", epochs=options.epochs
    )
    with tempfile.TemporaryDirectory() as folder:
        train(settings, folder, verbose=2)
        original = keras.saving.load_model(Path(folder, "model.keras"))
    images = data.pixels_train
    converted, report = keras_tlgc.convert(
        original, budget=options.budget, data=data.sample(IMAGES)
    )
    print(report.summary)
    keras_tlgc.distill(
        converted, original, images, epochs=options.epochs, verbose=2
    )

    # Other digits in each part of the held-out ones.
    chosen = np.arange(0, len(data.y_test), len(data.y_test) // SAMPLES)
    x = data.pixels_test[chosen].astype("float32")
    samples = {"images": x.reshape(len(x), -1).tolist()}
    samples["labels"] = np.ravel(data.y_test)[chosen].tolist()
    for name, model in [("original", original), ("converted", converted)]:
        path = options.output / f"{name}.onnx"
        exported.write(keras_tlgc.deploy(model, smallest=True), path)
        samples[name] = model.predict(x, verbose=0).tolist()
        print(f"Written: {path}, {path.stat().st_size / 1e6:.2f} MB.")
    text = json.dumps(samples)
    (options.output / "samples.json").write_text(text)


if __name__ == "__main__":
    main()
