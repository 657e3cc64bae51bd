"""asv suites of this package's losses, driven by the registry: throughput, overhead, memory, compilation."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tracemalloc

import numpy as np

from fastloss.bench.cases import LARGE, cases, shapes
from fastloss.bench.limits import limit
from fastloss.bench.timing import interleave
from fastloss.registry import BatchRow

EVERY = {case.label: case for case in cases()}
OF_ELEMENTS = {label: case for label, case in EVERY.items() if not isinstance(case.row, BatchRow)}


class Throughput:
    """A value and gradient of a large batch: seconds, bytes of its arrays a second, and times the limit."""

    params = (list(OF_ELEMENTS), ["float32", "float64"], [LARGE, (1048576, 10)], [1, 2])
    param_names = ("loss", "dtype", "shape", "threads")

    def setup(self, label, dtype, shape, threads):
        case = OF_ELEMENTS[label]
        self.y, self.p = case.inputs(shape, dtype)
        self.out = np.empty_like(self.p)
        self.case, loss = case, case.loss()
        self.call = lambda: loss.value_and_grad(self.y, self.p, out=self.out, n_threads=threads)
        self.call()

    def time_value_and_grad(self, label, dtype, shape, threads):
        self.call()

    def track_gigabytes_a_second(self, label, dtype, shape, threads):
        moved = self.y.nbytes + self.p.nbytes + self.out.nbytes
        return moved / interleave({"loss": self.call}, rounds=10)["loss"].median / 1e9

    track_gigabytes_a_second.unit = "GB/s"

    def track_fraction_of_limit(self, label, dtype, shape, threads):
        bound = limit(self.case, self.y, self.p, self.out)
        timings = interleave({"loss": self.call, **bound.contestants}, rounds=10)
        return bound.read(timings)["seconds"] / timings["loss"].median

    track_fraction_of_limit.unit = "of the limit on one thread"


class Whole:
    """A value and gradient of boxes, sequences and whole batches, each in its own shape."""

    params = ([label for label in EVERY if label not in OF_ELEMENTS], [1, 2])
    param_names = ("loss", "threads")

    def setup(self, label, threads):
        ((shape,), _) = shapes(EVERY[label], ())
        self.y, self.p = EVERY[label].inputs(shape, "float32")
        self.loss = EVERY[label].loss()
        self.loss.value_and_grad(self.y, self.p, n_threads=threads)

    def time_value_and_grad(self, label, threads):
        self.loss.value_and_grad(self.y, self.p, n_threads=threads)


class Overhead:
    """A whole call on a batch so small that its arithmetic hardly counts."""

    params = (list(OF_ELEMENTS), [1, 2, 4, 8, 16, 32, 64])
    param_names = ("loss", "samples")

    def setup(self, label, samples):
        self.y, self.p = OF_ELEMENTS[label].inputs((samples, 10), "float32")
        self.loss = OF_ELEMENTS[label].loss()
        self.loss(self.y, self.p)
        self.loss.value_and_grad(self.y, self.p)

    def time_value(self, label, samples):
        self.loss(self.y, self.p)

    def time_value_and_grad(self, label, samples):
        self.loss.value_and_grad(self.y, self.p)


class Memory:
    """What NumPy allocates beyond the gradient."""

    params = (list(EVERY),)
    param_names = ("loss",)

    def track_extra_bytes(self, label):
        case = EVERY[label]
        (shape, *_) = shapes(case, (LARGE,))[0] or shapes(case, ())[0]
        y, p = case.inputs(shape, "float32")
        loss = case.loss()
        loss.value_and_grad(y, p)
        tracemalloc.start()
        loss.value_and_grad(y, p)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - p.nbytes

    track_extra_bytes.unit = "bytes"


class Compilation:
    """Process start to first gradient, with an empty cache and with a warm one."""

    timeout = 120
    rounds = 1
    number = 1
    repeat = 3
    warmup_time = 0
    params = (["mean_squared_error", "log_cosh", "sparse_categorical_crossentropy, from logits"],)
    param_names = ("loss",)

    def setup(self, label):
        self.folder = tempfile.TemporaryDirectory()
        self.script = (
            "from fastloss.bench.cases import cases; "
            f"case = next(case for case in cases() if case.label == {label!r}); "
            "case.loss().value_and_grad(*case.inputs((8, 8), 'float32'))"
        )
        self.run(self.folder.name)

    def teardown(self, label):
        self.folder.cleanup()

    def run(self, folder):
        subprocess.run(
            [sys.executable, "-c", self.script], check=True, env={**os.environ, "FASTLOSS_CACHE_DIR": folder}
        )

    def time_cold(self, label):
        self.run("")

    def time_warm(self, label):
        self.run(self.folder.name)
