"""asv suites, driven by the registry of losses."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import harness

CASES = {label: (row, options) for label, row, options in harness.cases()}


class Throughput:
    """A value and gradient of a large batch, and the same bytes added up."""

    params = ([*CASES, "limit: add loop"], ["float32", "float64"], [(4096, 1000), (1048576, 10)], [1, 2])
    param_names = ("loss", "dtype", "shape", "threads")

    def setup(self, label, dtype, shape, threads):
        p = np.ones(shape, dtype)
        out = np.empty_like(p)
        if label.startswith("limit"):
            if threads > 1:
                raise NotImplementedError
            add = harness.limits(dtype)["add"]
            flat = p.reshape(-1)
            self.call = lambda: add(flat, flat, out.reshape(-1))
        else:
            row, options = CASES[label]
            y, p = harness.data(row, shape, dtype, options.get("from_logits", False))
            loss = row.cls(**options)
            self.call = lambda: loss.value_and_grad(y, p, out=out, n_threads=threads)
        self.call()

    def time_value_and_grad(self, label, dtype, shape, threads):
        self.call()


class Overhead:
    """A whole call on a batch so small that its arithmetic hardly counts."""

    params = (list(CASES), [1, 8, 64])
    param_names = ("loss", "samples")

    def setup(self, label, samples):
        row, options = CASES[label]
        self.y, self.p = harness.data(row, (samples, 10), "float32", options.get("from_logits", False))
        self.loss = row.cls(**options)
        self.loss(self.y, self.p)
        self.loss.value_and_grad(self.y, self.p)

    def time_value(self, label, samples):
        self.loss(self.y, self.p)

    def time_value_and_grad(self, label, samples):
        self.loss.value_and_grad(self.y, self.p)


class Memory:
    """What NumPy allocates beyond the gradient."""

    params = (list(CASES),)
    param_names = ("loss",)

    def track_extra_bytes(self, label):
        row, options = CASES[label]
        y, p = harness.data(row, (4096, 1000), "float32", options.get("from_logits", False))
        loss = row.cls(**options)
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
    params = (["MeanSquaredError", "LogCosh"],)
    param_names = ("loss",)

    def setup(self, name):
        self.folder = tempfile.TemporaryDirectory()
        self.script = (
            "import numpy as np, fastloss; a = np.ones((8, 8), 'float32'); "
            f"fastloss.losses.{name}().value_and_grad(a, a)"
        )
        self.run(self.folder.name)

    def teardown(self, name):
        self.folder.cleanup()

    def run(self, folder):
        subprocess.run(
            [sys.executable, "-c", self.script], check=True, env={**os.environ, "FASTLOSS_CACHE_DIR": folder}
        )

    def time_cold(self, name):
        self.run("")

    def time_warm(self, name):
        self.run(self.folder.name)
