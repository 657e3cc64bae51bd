"""Arrays of a device where there is none: what a call says, and that nothing else changes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from fastloss import losses
from fastloss.losses import arrays


class Elsewhere:
    """Says that it is on a device."""

    dtype = np.dtype("float32")
    shape = (2,)

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "typestr": "<f4", "data": (0, False), "version": 3}


class Speaks:
    """Says by DLPack where it is."""

    def __init__(self, device):
        self.device = device

    def __dlpack__(self, **keywords):
        raise AssertionError("not to be read")

    def __dlpack_device__(self):
        return self.device, 0


def test_whoever_is_on_a_device_is_found():
    assert arrays.on_cuda(Elsewhere())
    assert arrays.on_cuda(Speaks(2))
    assert not arrays.on_cuda(Speaks(1))
    assert not any(arrays.on_cuda(x) for x in (np.zeros(2), [0.0], 0.0, np.float32(1), np.ma.zeros(2)))


def test_the_error_says_what_to_install_or_to_look_at():
    if importlib.util.find_spec("numba_cuda") is None:
        error, words = ImportError, r"fastloss\[cuda\]"
    else:
        from fastloss.engine.cuda.target import SIMULATED, cuda

        if SIMULATED or cuda.is_available():
            pytest.skip("there is a device")
        error, words = RuntimeError, "needs a CUDA driver"
    with pytest.raises(error, match=words):
        losses.MeanSquaredError()(Elsewhere(), Elsewhere())


def test_the_host_has_no_use_for_an_array_of_a_device():
    with pytest.raises(TypeError, match="`sample_weight` is on a CUDA device"):
        losses.MeanSquaredError()([0.0, 0.0], [1.0, 1.0], Elsewhere())


def test_a_loss_of_host_arrays_imports_nothing_of_cuda():
    program = (
        "import sys, numpy as np, fastloss; fastloss.losses.MeanSquaredError()(np.zeros(3), np.ones(3));"
        "print([m for m in sys.modules if m.startswith(('numba.cuda', 'numba_cuda', 'fastloss.engine.cuda'))])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "fastloss.engine.cuda" not in run.stdout
