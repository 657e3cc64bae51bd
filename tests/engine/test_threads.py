"""Threads and processes, for each threading layer, in real processes: nothing aborts, and results keep their bits."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import fastloss
from fastloss.engine import threads

PRELUDE = """
import os, sys, threading
import numpy as np
import fastloss
from fastloss.engine import threads

rng = np.random.default_rng(0)
y = rng.normal(size=(700, 100)).astype("float32")
p = rng.normal(size=(700, 100)).astype("float32")
loss = fastloss.losses.LogCosh()
value, grad = loss.value_and_grad(y, p, n_threads=1)

def check(n_threads):
    v, g = fastloss.losses.LogCosh().value_and_grad(y, p, n_threads=n_threads)
    assert v == value and np.array_equal(g, grad), (v, value)
"""


LAYERS = ["omp", "workqueue", "tbb"]


def run(layer: str, body: str) -> str:
    """Run `body` in a process of its own with this layer and four threads; skips where the layer does not load."""
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "4"}
    # The wheel of TBB puts its library where the loader does not look by itself.
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(
        [str(Path(sys.prefix) / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    )
    script = PRELUDE + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"the {layer} threading layer is not installed")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("layer", LAYERS)
def test_parallel_and_serial_have_the_same_bits(layer):
    out = run(
        layer,
        """
        import numba
        for n in (1, 2, 3, 4):
            check(n)
        print(numba.threading_layer())
        """,
    )
    assert out.split() == [layer]


@pytest.mark.parametrize("layer", LAYERS)
def test_python_threads_may_call_at_once(layer):
    out = run(
        layer,
        """
        failures = []
        def work(n):
            try:
                for _ in range(150):
                    check(n)
            except BaseException as error:
                failures.append(error)
        pool = [threading.Thread(target=work, args=(n,)) for n in (2, 4, 3, 2)]
        for t in pool: t.start()
        for t in pool: t.join()
        assert not failures, failures
        print("done")
        """,
    )
    assert out.split() == ["done"]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_forked_child_of_a_threaded_parent_works(layer):
    out = run(
        layer,
        """
        import warnings
        warnings.simplefilter("ignore")  # newer Pythons warn of forking with threads, which is what is tested
        check(4)
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                check(4)
        thread = threading.Thread(target=busy)
        thread.start()  # so that some forks happen while a parallel region runs
        for _ in range(8):
            pid = os.fork()
            if pid == 0:
                check(4)
                check(2)
                assert threads.choose(1e9, 100, 4) == 1
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        thread.join()
        check(4)
        print("done")
        """,
    )
    assert out.split()[-1] == "done"  # the TBB layer prints that it cannot shut down in a child


@pytest.mark.parametrize("layer", LAYERS)
def test_a_child_forked_before_any_thread_may_use_several(layer):
    out = run(
        layer,
        """
        pid = os.fork()
        if pid == 0:
            assert threads.choose(1e9, 100, 4) == 4
            check(4)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        check(4)
        print("done")
        """,
    )
    assert out.split() == ["done"]


def test_first_calls_from_many_threads_compile_once_and_agree(tmp_path):
    out = run(
        "omp",
        f"""
        os.environ["FASTLOSS_CACHE_DIR"] = {str(tmp_path)!r}
        results = []
        def first():
            results.append(fastloss.losses.Huber(0.7).value_and_grad(y, p, n_threads=1)[0])
        pool = [threading.Thread(target=first) for _ in range(6)]
        for t in pool: t.start()
        for t in pool: t.join()
        assert len(results) == 6 and len(set(results)) == 1
        print("done")
        """,
    )
    assert out.split() == ["done"]
    assert len(list(tmp_path.glob("huber-*.kernel"))) == 1


def test_an_interrupt_leaves_nothing_broken():
    out = run(
        "omp",
        """
        import signal, time
        big_y, big_p = np.zeros((20000, 1000), "float32"), np.ones((20000, 1000), "float32")
        caught = 0
        for delay in (0.02, 0.05, 0.1, 0.2):
            signal.setitimer(signal.ITIMER_REAL, delay)
            signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
            try:
                for _ in range(200):
                    loss.value_and_grad(big_y, big_p, n_threads=4)
            except KeyboardInterrupt:
                caught += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert caught == 4, caught
        assert not threads._region.locked()
        check(4)
        print("done")
        """,
    )
    assert out.split() == ["done"]


def test_kernels_release_the_gil():
    """While one thread computes, another one runs Python."""
    out = run(
        "omp",
        """
        big_y, big_p = np.zeros((4000, 1000), "float32"), np.ones((4000, 1000), "float32")
        loss.value_and_grad(big_y, big_p, n_threads=1)
        sys.setswitchinterval(100.0)  # no thread is made to give up the interpreter
        ticks = [0]
        def tick():
            ticks[0] += 1
        import _thread
        # The new thread needs the interpreter to run at all; this one gives it up only inside the kernel.
        _thread.start_new_thread(tick, ())
        loss.value_and_grad(big_y, big_p, n_threads=1)
        print(ticks[0])
        """,
    )
    assert out.split() == ["1"]


@pytest.mark.parametrize("bad", [0, -1])
def test_thread_counts_below_one_are_refused(bad):
    with pytest.raises(ValueError, match="`n_threads` must be at least 1"):
        fastloss.set_num_threads(bad)
    with pytest.raises(ValueError, match="`n_threads` must be at least 1"):
        fastloss.losses.MeanSquaredError()([0.0], [1.0], n_threads=bad)


@pytest.mark.parametrize("bad", [1.5, "2", True])
def test_thread_counts_that_are_no_integers_are_refused(bad):
    with pytest.raises(TypeError, match="`n_threads` must be a positive integer"):
        fastloss.set_num_threads(bad)


def test_choice_of_threads(monkeypatch):
    monkeypatch.setattr(threads, "available", lambda: 8)
    monkeypatch.setattr(threads, "_limit", None)
    little, much = threads.PARALLEL_WORK / 2, threads.PARALLEL_WORK * 100
    assert threads.choose(little, 100, None) == 1
    assert threads.choose(much, 100, None) == 8
    assert threads.choose(much, 3, None) == 3
    assert threads.choose(much, 1, 8) == 1
    assert threads.choose(little, 100, 4) == 4
    assert threads.choose(much, 100, 1) == 1
    fastloss.set_num_threads(2)
    assert threads.choose(little, 100, None) == 2
    assert threads.choose(much, 100, 4) == 4
    fastloss.set_num_threads(1)
    assert threads.choose(much, 100, None) == 1


def test_a_busy_region_makes_others_serial():
    with threads._region:
        got = threads.run(lambda: pytest.fail, lambda: np.add, 2, 1, 2)
    assert got == 3


@pytest.mark.parametrize("alone", [0.0, 0.02])
def test_pace_leaves_threads_that_wait(alone):
    """After three such calls, twice as long each time; not where one thread takes as long."""
    calls = []

    def kernel(name, seconds):
        def run():
            calls.append(name)
            time.sleep(seconds)
            return name

        return lambda: run

    pace = threads.Pace(work=1e6)
    for _ in range(32):
        assert pace.run(kernel("p", 0.02), kernel("s", alone), 2) == calls[-1]
    if alone:
        assert "".join(calls) == "pppps" + 27 * "p"
    else:
        assert "".join(calls) == "pppps" + 8 * "s" + "ps" + 16 * "s" + "p"
    pace = threads.Pace(work=1e9)
    for _ in range(3):
        pace.run(kernel("p", 0.0), kernel("s", 0.0), 2)
    assert calls[-3:] == ["p"] * 3
