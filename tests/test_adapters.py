"""What the adapters share: a framework that is missing, or of a version that was not tested."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fastloss import adapters


@pytest.mark.parametrize("name", ["torch", "jax", "keras"])
def test_a_missing_framework_names_its_extra(name):
    script = f"import sys; sys.modules[{name!r}] = None; import fastloss; fastloss.{name}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert f"ModuleNotFoundError: {name} is not installed: pip install 'fastloss[{name}]'" in done.stderr


@pytest.mark.parametrize(("version", "warns"), [("1.9", True), ("2.0", False), ("2.9.1+cpu", False), ("3.0rc1", True)])
def test_a_version_that_was_not_tested_gives_a_warning(monkeypatch, recwarn, version, warns):
    monkeypatch.setitem(adapters.TESTED, "numpy", ("2.0", "3"))
    monkeypatch.setattr(np, "__version__", version)
    adapters.framework("numpy")
    assert [str(w.message) for w in recwarn] == warns * [
        f"fastloss is tested with numpy from 2.0 to before 3, and this is {version}"
    ]
