from keras_tlgc.lab.benchmark.layers import SHAPES, benchmark_layers
from keras_tlgc.lab.benchmark.networks import benchmark_networks
from keras_tlgc.lab.benchmark.rows import RUNS, Row, markdown, write_rows

__all__ = [
    "RUNS",
    "SHAPES",
    "Row",
    "benchmark_layers",
    "benchmark_networks",
    "markdown",
    "write_rows",
]
