"""Compiled kernels on disk.

Numba's own cache keys a function by its bytecode and pickled closure. That is not enough for kernels that a factory
makes: the parallel variant would load the serial variant's code, a closure over a jitted function never hits, and an
edit in another module is silently stale. Here the key is complete, each kernel is one file, and nothing that goes wrong
with the disk reaches the caller: a kernel that cannot be stored or read is compiled.

Files are written under a temporary name and renamed, so processes may share the folder; each starts with a checksum of
the rest, so a truncated one is not executed.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_DIGEST = hashlib.sha256
_DIGEST_SIZE = _DIGEST().digest_size


def folder() -> Path | None:
    """Where kernels are kept: ``$FASTLOSS_CACHE_DIR``, else the user's cache folder; None if that variable is empty."""
    chosen = os.environ.get("FASTLOSS_CACHE_DIR")
    if chosen is not None:
        return Path(chosen) if chosen else None
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fastloss"


@cache
def environment() -> str:
    """All that a kernel's machine code depends on besides its own variant: sources, versions, processor, settings."""
    import llvmlite
    import numba
    from numba.core import config
    from numba.core.registry import cpu_target

    digest = _DIGEST()
    package = Path(__file__).parent.parent
    for source in sorted([*package.glob("engine/*.py"), *package.glob("kernels/*.py")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    versions = (sys.version, np.__version__, numba.__version__, llvmlite.__version__)
    settings = [str(getattr(config, name, None)) for name in ("OPT", "BOUNDSCHECK", "LOOP_VECTORIZE", "SLP_VECTORIZE")]
    processor = cpu_target.target_context.codegen().magic_tuple()
    digest.update(repr((versions, settings, processor)).encode())
    return digest.hexdigest()


def _path(name: str, key: str) -> Path | None:
    place, label = folder(), re.sub(r"\W", "_", name)
    return place and place / f"{label}-{_DIGEST((environment() + key).encode()).hexdigest()[:32]}.kernel"


def load(name: str, key: str) -> Any | None:
    """The stored compile result of that key, ready to run, or None."""
    try:
        path = _path(name, key)
        if path is None:
            return None
        content = path.read_bytes()
        digest, payload = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
        if _DIGEST(payload).digest() != digest:
            return None
        from numba.core.compiler import CompileResult
        from numba.core.registry import cpu_target

        context = cpu_target.target_context
        context.refresh()
        return CompileResult._rebuild(context, *pickle.loads(payload))  # type: ignore[no-untyped-call]
    except FileNotFoundError:
        return None
    except Exception:  # Numba's internals or the file are not what they were: compile instead.
        return None


def obtain(name: str, key: str | None, make: Callable[[], Any]) -> Any:
    """The stored compile result of that key, or the one that `make` returns, which is stored then; not without key."""
    if key is None:
        return make()
    result = load(name, key)
    if result is None:
        result = make()
        save(name, key, result)
    return result


def save(name: str, key: str, result: Any) -> None:
    """Store a compile result; in silence if that is not possible."""
    with suppress(Exception):
        path = _path(name, key)
        if path is None or result.library.has_dynamic_globals:
            return
        payload = pickle.dumps(result._reduce(), protocol=pickle.HIGHEST_PROTOCOL)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_DIGEST(payload).digest() + payload)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
