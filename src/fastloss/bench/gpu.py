"""Losses on a CUDA device, beside PyTorch and Liger-Kernel, and the bandwidth of a copy between two of its arrays.

Everybody computes value and gradient of the same tensors. Time is that between two CUDA events around a call, the
median of rounds in which all take turns; of a small call, for which the host is what takes time, that of the host.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fastloss.bench import cases, peers
from fastloss.bench.cases import BATCH_CASES

ELEMENTS = 1 << 28
SMALL = (32, 10)


class Case(NamedTuple):
    """What is timed.

    Attributes
    ----------
    loss : str
        Identifier.
    options : dict
        Constructor arguments.
    shape : tuple of int
        Of the predictions.
    dtype : str
        Of the predictions.
    arrays : int
        How many arrays of the predictions' size are read and written at least; 0 where that is not what takes time.
    """

    loss: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    dtype: str
    arrays: int


_LOGITS = {"from_logits": True}

CASES = (
    Case("mean_squared_error", {}, (ELEMENTS,), "float32", 3),
    Case("log_cosh", {}, (ELEMENTS,), "float32", 3),
    Case("binary_crossentropy", _LOGITS, (ELEMENTS,), "float32", 3),
    Case("mean_squared_error", {}, (ELEMENTS,), "bfloat16", 3),
    Case("sparse_categorical_crossentropy", _LOGITS, (8192, 128_256), "bfloat16", 2),
    Case("sparse_categorical_crossentropy", _LOGITS, (8192, 128_256), "float32", 2),
    Case("sparse_categorical_crossentropy", _LOGITS, (1_048_576, 10), "float32", 2),
    Case("sparse_categorical_crossentropy", _LOGITS, (65_536, 1000), "float32", 2),
    Case("sparse_categorical_crossentropy", _LOGITS, SMALL, "float32", 2),
    *(Case(name, dict(case.options), case.shape, "float32", 0) for name, case in BATCH_CASES.items()),
)


class Figure(NamedTuple):
    """One contestant's time; the share is that of the copy's bandwidth, with the bytes that must be moved."""

    loss: str
    shape: tuple[int, ...]
    dtype: str
    who: str
    microseconds: float
    share: float | None


def available() -> str | None:
    """Why nothing can be measured here, or None."""
    if importlib.util.find_spec("torch") is None:
        return "it needs PyTorch with CUDA, which is not installed"
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    return None


def run(names: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Measure the cases of these losses, or all: ``{"device", "copy_bytes_per_second", "figures"}``."""
    torch = importlib.import_module("torch")
    bandwidth = _copy_bandwidth(torch, rounds)
    figures: list[Figure] = []
    for case in CASES:
        if names and case.loss not in names:
            continue
        y, p = _inputs(torch, case)
        contestants = _contestants(torch, case, y, p)
        small = case.shape == SMALL
        times = _host_times(torch, contestants, rounds) if small else _device_times(torch, contestants, rounds)
        least = case.arrays * p.numel() * p.element_size()
        for who, seconds in times.items():
            share = least / seconds / bandwidth if least and not small else None
            figures.append(Figure(case.loss, case.shape, case.dtype, who, 1e6 * seconds, share))
        del y, p, contestants
        torch.cuda.empty_cache()
    name = torch.cuda.get_device_name()
    return {"device": name, "copy_bytes_per_second": bandwidth, "figures": [f._asdict() for f in figures]}


def show(console: Any, found: dict[str, Any]) -> None:
    """Print what `run` found."""
    from rich.table import Table

    console.print(f"{found['device']}: a copy moves {found['copy_bytes_per_second'] / 1e12:.2f} TB/s, both directions")
    table = Table("loss", "predictions", "who", "µs", "of the copy's bandwidth")
    for figure in found["figures"]:
        share = "" if figure["share"] is None else f"{100 * figure['share']:.0f} %"
        shape = f"{figure['shape']} {figure['dtype']}"
        table.add_row(figure["loss"], shape, figure["who"], f"{figure['microseconds']:.1f}", share)
    console.print(table)


def write_json(found: dict[str, Any], path: Path) -> None:
    """Write what `run` found."""
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _measured(case: Case) -> cases.Case:
    """The case of that loss and these options, as the CPU's benchmark knows it."""
    return next(found for found in cases.cases((case.loss,)) if found.options == case.options)


def _inputs(torch: Any, case: Case) -> tuple[Any, Any]:
    if case.loss in BATCH_CASES:
        y, p = _measured(case).inputs(case.shape, case.dtype)
        return torch.from_numpy(y).cuda(), torch.from_numpy(p).cuda()
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    p = torch.randn(case.shape, device="cuda", dtype=dtype)
    if case.loss.startswith("sparse"):
        return torch.randint(case.shape[-1], case.shape[:-1], device="cuda"), p
    if case.loss.startswith("binary"):
        return torch.randint(2, case.shape, device="cuda").to(dtype), p
    return torch.randn(case.shape, device="cuda", dtype=dtype), p


def _contestants(torch: Any, case: Case, y: Any, p: Any) -> dict[str, Callable[[], Any]]:
    """Calls that compute value and gradient, by who they are."""
    loss = _measured(case).loss()
    place = torch.empty_like(p)
    wanting = p.detach().requires_grad_()

    plain = peers.torch_value(_measured(case).label)
    if plain is not None and case.loss in BATCH_CASES:
        plain = _on_device(torch, plain)

    def differentiated(function: Callable[..., Any]) -> Callable[[], Any]:
        def call() -> Any:
            value = function(y, wanting)
            return value, torch.autograd.grad(value, wanting)[0]

        return call

    result: dict[str, Callable[[], Any]] = {"fastloss": lambda: loss.value_and_grad(y, p, out=place)}
    if plain is not None:
        result["torch eager"] = differentiated(plain)
        result["torch.compile"] = differentiated(torch.compile(plain))
    if case.loss.startswith("sparse") and importlib.util.find_spec("liger_kernel") is not None:
        liger = importlib.import_module("liger_kernel.transformers").LigerCrossEntropyLoss()

        def liger_call() -> Any:
            # It writes the gradient over the logits, so it gets those of a copy, made before it is timed.
            value = liger(liger_logits, y)
            return value, torch.autograd.grad(value, liger_logits)[0]

        liger_logits = p.detach().clone().requires_grad_()
        result["Liger-Kernel"] = liger_call
    return result


def _on_device(torch: Any, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A formula that makes arrays of its own on the device."""

    def call(y: Any, p: Any) -> Any:
        with torch.device("cuda"):
            return function(y, p)

    return call


def _device_times(torch: Any, contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds between two events, medians of rounds."""
    times: dict[str, list[float]] = {who: [] for who in contestants}
    for call in contestants.values():
        for _ in range(3):
            call()
    for _ in range(rounds):
        for who, call in contestants.items():
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            # Something to wait for, so that the host has queued all launches of the call before the device begins.
            torch.cuda._sleep(2_000_000)
            before.record()
            call()
            after.record()
            after.synchronize()
            times[who].append(before.elapsed_time(after) / 1e3)
    return {who: statistics.median(found) for who, found in times.items()}


def _host_times(
    torch: Any, contestants: dict[str, Callable[[], Any]], rounds: int, calls: int = 200
) -> dict[str, float]:
    """Seconds of the host a call, the device keeping up; medians of rounds."""
    times: dict[str, list[float]] = {who: [] for who in contestants}
    for call in contestants.values():
        for _ in range(10):
            call()
    for _ in range(rounds):
        for who, call in contestants.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            torch.cuda.synchronize()
            times[who].append((time.perf_counter() - start) / calls)
    return {who: statistics.median(found) for who, found in times.items()}


def _copy_bandwidth(torch: Any, rounds: int) -> float:
    """Bytes a second, read and written, of a copy of 1 GiB."""
    source = torch.empty(1 << 28, device="cuda", dtype=torch.float32)
    place = torch.empty_like(source)
    seconds = _device_times(torch, {"copy": lambda: place.copy_(source)}, max(rounds, 10))["copy"]
    moved: int = 2 * source.numel() * source.element_size()
    return moved / seconds
