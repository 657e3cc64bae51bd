"""The cache on disk: complete keys, and no harm from whatever happens to the folder."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
import sys

import pytest

from fastloss import kernels
from fastloss.engine import cache
from fastloss.engine import compile as compiling
from fastloss.engine.variant import Variant

SCRIPT = """
import numpy as np, fastloss
from fastloss.engine import compile as compiling
count = [0]
original = compiling._compile
def counted(variant):
    count[0] += 1
    return original(variant)
compiling._compile = counted
y, p = np.zeros((40, 7), "float32"), np.ones((40, 7), "float32")
value, grad = fastloss.losses.MeanSquaredError().value_and_grad(y, p)
assert value == 1 and (grad == np.float32(2 / 280)).all()
print(count[0])
"""


# Kernels that treat items go another way into the cache.
ITEMS = """
import numpy as np, fastloss
from fastloss.engine import items
count = [0]
original = items._compile
def counted(*arguments):
    count[0] += 1
    return original(*arguments)
items._compile = counted
boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 3]], "float32")
value, grad = fastloss.losses.GIoULoss().value_and_grad(boxes, boxes[::-1].copy())
assert abs(value - 2 / 3) < 1e-6 and grad.any()
print(count[0])
"""


def run(folder, script=SCRIPT, **more):
    environment = {**os.environ, "FASTLOSS_CACHE_DIR": str(folder), **more}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


def test_a_second_process_compiles_nothing(tmp_path):
    assert run(tmp_path) == 1
    assert run(tmp_path) == 0
    assert run(tmp_path, ITEMS) == 1
    assert run(tmp_path, ITEMS) == 0


def test_an_empty_setting_turns_the_cache_off(tmp_path):
    assert run("") == 1
    assert run("") == 1


def test_truncated_and_corrupt_files_are_compiled_anew_and_replaced(tmp_path):
    run(tmp_path)
    (file,) = tmp_path.glob("*.kernel")
    whole = file.read_bytes()
    for broken in (
        b"",
        whole[:10],
        whole[: len(whole) // 2],
        whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
        whole + b"x",
    ):
        file.write_bytes(broken)
        assert run(tmp_path) == 1
        assert run(tmp_path) == 0


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX ones")
def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert run(file / "below") == 1
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    # The superuser may write anywhere; a folder of the kernel's own takes nobody's files.
    assert run(locked if os.geteuid() else "/proc/self/fastloss") == 1


def test_processes_that_start_together_share_the_folder(tmp_path):
    environment = {**os.environ, "FASTLOSS_CACHE_DIR": str(tmp_path)}
    several = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        for _ in range(3)
    ]
    for process in several:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    assert [f.suffix for f in tmp_path.iterdir()] == [".kernel"]
    assert run(tmp_path) == 0


def test_every_field_of_a_variant_is_in_the_key():
    base = Variant(kernels.huber, "f4", "f4", "f4", "f4", 1)
    keys = {compiling.key(base)}
    changes = {"kernel": kernels.log_cosh, "outputs": 2}
    for field in dataclasses.fields(Variant):
        old = getattr(base, field.name)
        new = changes.get(field.name, (not old) if isinstance(old, bool) else "f8")
        keys.add(compiling.key(dataclasses.replace(base, **{field.name: new})))
    assert len(keys) == 1 + len(dataclasses.fields(Variant))


def test_sources_versions_and_processor_are_in_the_key(monkeypatch):
    import llvmlite
    import numba
    from numba.core.registry import cpu_target

    seen = {cache.environment.__wrapped__()}
    codegen = type(cpu_target.target_context.codegen())
    with monkeypatch.context() as m:
        m.setattr(numba, "__version__", "0")
        seen.add(cache.environment.__wrapped__())
    with monkeypatch.context() as m:
        m.setattr(llvmlite, "__version__", "0")
        seen.add(cache.environment.__wrapped__())
    with monkeypatch.context() as m:
        m.setattr(codegen, "magic_tuple", lambda self: ("another", "processor", ""))
        seen.add(cache.environment.__wrapped__())
    with monkeypatch.context() as m:
        from pathlib import Path

        read = Path.read_bytes
        m.setattr(Path, "read_bytes", lambda self: read(self) + b"#" * (self.name == "vmath.py"))
        seen.add(cache.environment.__wrapped__())
    with monkeypatch.context() as m:
        m.setattr(Path, "read_bytes", lambda self: read(self) + b"#" * (self.name == "regression.py"))
        seen.add(cache.environment.__wrapped__())
    assert len(seen) == 6


def test_serial_and_parallel_code_are_kept_apart(tmp_path):
    script = """
import numpy as np, fastloss
y, p = np.zeros((4000, 70), "float32"), np.ones((4000, 70), "float32")
loss = fastloss.losses.MeanSquaredError()
serial = loss.value_and_grad(y, p, n_threads=1)
parallel = loss.value_and_grad(y, p, n_threads=2)
assert serial[0] == parallel[0] == 1 and (serial[1] == parallel[1]).all()
from numba.np.ufunc import parallel as layer
print(layer._is_initialized)
"""
    environment = {**os.environ, "FASTLOSS_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2"}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120
        )
        assert (done.returncode, done.stdout.split()) == (0, ["True"]), done.stderr[-2000:]
    assert len(list(tmp_path.glob("*.kernel"))) == 2


def test_numba_internals_that_changed_mean_no_cache(monkeypatch, tmp_path):
    from numba.core.compiler import CompileResult

    monkeypatch.setenv("FASTLOSS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(CompileResult, "_reduce", None)
    variant = Variant(kernels.mean_squared_error, "f4", "f4", "f4", "f4", 0)
    result = compiling._compile(variant)
    cache.save("mean_squared_error", "key", result)
    assert not list(tmp_path.iterdir())
    assert cache.load("mean_squared_error", "key") is None
