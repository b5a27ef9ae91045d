"""Files for runtimes other than Keras: written, run and timed."""

import contextlib
import functools
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tlgc._keras import native_convolutions, padding_in_numbers

FORMATS = {".onnx": "onnx", ".tflite": "litert", "": "tf_saved_model"}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters warn of, which no user of a command can mend."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@_quiet()
def write(
    model: keras.Model, path: Path, calibration: np.ndarray | None = None
) -> None:
    """Export a model of one input to the format that the path's suffix names.

    With `calibration`, inputs like those to come, weights and activations are
    integers of 8 bits. The ranges of activations are those on these inputs, and
    weights have a scale for each filter.

    An ONNX file is then simplified by onnxruntime's basic optimisations, which
    use only standard operations: those of sizes are computed in advance, and
    the transpositions that PyTorch's exporter puts around each convolution of a
    channels-last model cancel, except for one at each end.
    """
    if path.suffix != ".onnx":
        options = {}
        if path.suffix == ".tflite":  # From PyTorch only a fixed batch works.
            [x] = model.inputs
            spec = keras.InputSpec(shape=(1, *x.shape[1:]), dtype=x.dtype)
            options["input_signature"] = [spec]
        if calibration is not None:
            options |= _integers(path, calibration)
        kind = FORMATS[path.suffix]
        model.export(str(path), format=kind, verbose=False, **options)
        return
    import onnxruntime  # noqa: F401  If it is missing, say so before the work.

    [x] = model.inputs  # Keras exports to ONNX only what was called.
    model(np.zeros((1, *x.shape[1:]), x.dtype))
    with tempfile.TemporaryDirectory() as folder:
        raw = os.path.join(folder, "raw.onnx")
        is_fixed = None not in x.shape[1:]
        sizes = padding_in_numbers() if is_fixed else contextlib.nullcontext()
        with native_convolutions(), sizes:
            model.export(raw, format="onnx", verbose=False)
        if calibration is None:
            _simplify(raw, path)
        else:
            simple = Path(folder, "simple.onnx")
            _simplify(raw, simple)
            _quantize(simple, path, calibration)


def _integers(path: Path, calibration: np.ndarray) -> dict[str, Any]:
    """Return what Keras' export to LiteRT takes to write integers."""
    if path.suffix != ".tflite" or keras.backend.backend() != "tensorflow":
        raise ValueError(
            "Integers of 8 bits are for OUT.onnx or, from TensorFlow, "
            f"OUT.tflite. Received: {path}, with the backend "
            f"{keras.backend.backend()}. Name another file, or set "
            "KERAS_BACKEND=tensorflow."
        )
    from tensorflow import lite

    return {
        "optimizations": [lite.Optimize.DEFAULT],
        "representative_dataset": lambda: ([x[None]] for x in calibration),
    }


def _quantize(source: Path, target: Path, calibration: np.ndarray) -> None:
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantType,
        quantize_static,
    )

    session = InferenceSession(source, providers=["CPUExecutionProvider"])
    [entry] = session.get_inputs()

    class Reader(CalibrationDataReader):
        inputs = iter(calibration)

        def get_next(self):
            x = next(self.inputs, None)
            return None if x is None else {entry.name: x[None]}

    quantize_static(
        source,
        target,
        Reader(),
        per_channel=True,
        # With signed ones it is slower than with floats on x86.
        activation_type=QuantType.QUInt8,
    )


def _simplify(source: str, target: Path) -> None:
    import onnx
    import onnxruntime

    # onnxruntime merges zeros around an input with the convolution that reads
    # it, but not if their value is given as an input without a name.
    model = onnx.load(source)
    for node in model.graph.node:
        if node.op_type == "Pad" and not node.input[-1]:
            node.input.pop()
    onnx.save(model, source)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    )
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"]
    )


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def runner(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs an exported file on one input at a time.

    Args:
        path: path that `write` has written.
        threads: how many threads its runtime uses. TensorFlow, which runs a
            SavedModel, has as many as it started with.
    """
    if path.suffix == ".onnx":
        return _onnx_runner(path, threads)
    if path.suffix == ".tflite":
        return _litert_runner(path, threads)
    import tensorflow as tf

    model = tf.saved_model.load(str(path))
    return lambda x: np.asarray(model.serve(x))


def in_onnxruntime(model: keras.Model) -> Callable[[], object]:
    """Return a function that runs a model of one layer once, in onnxruntime.

    This is a `runtime` for `keras_tlgc.convert`. It runs on one thread, on an
    input of ones, without the transpositions that the exported model has at
    both ends: between the layers of a network there are none.
    """
    [x] = model.inputs
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write(model, path)
        shape = _without_transpositions(path, (1, *x.shape[1:]))
        run = runner(path, 1)
    return functools.partial(run, np.ones(shape, x.dtype))


def _without_transpositions(path: Path, shape: tuple[int, ...]) -> Any:
    """Take transpositions off both ends of a graph in a file.

    Returns:
        The shape of its input then.
    """
    import onnx

    model = onnx.load(path)
    graph = model.graph
    ends = {graph.input[0].name, graph.output[0].name}
    names = {}
    for node in list(graph.node):
        if node.op_type != "Transpose" or not ends & {
            *node.input,
            *node.output,
        }:
            continue
        graph.node.remove(node)
        [order] = node.attribute
        if node.input[0] == graph.input[0].name:
            names[node.output[0]] = node.input[0]
            shape = tuple(shape[i] for i in order.ints)
            entry = graph.input[0]
        else:
            names[node.input[0]] = node.output[0]
            entry = graph.output[0]
        entry.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for ends_of in (node.input, node.output):
            renamed = [names.get(name, name) for name in ends_of]
            del ends_of[:]
            ends_of.extend(renamed)
    onnx.save(model, path)
    return shape


def _onnx_runner(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    [entry] = session.get_inputs()
    return lambda x: session.run(None, {entry.name: x})[0]


def _litert_runner(path, threads):
    if keras.backend.backend() == "torch":
        from ai_edge_litert.interpreter import Interpreter
    else:
        from tensorflow import lite

        Interpreter = lite.Interpreter
    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    [entry] = interpreter.get_input_details()
    [result] = interpreter.get_output_details()

    def run(x):
        interpreter.set_tensor(entry["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])

    return run
