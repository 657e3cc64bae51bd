"""`fastloss.monitor`: what is logged is what is read, whatever happens in between."""

from __future__ import annotations

import contextlib
import copy
import csv
import gc
import io
import json
import math
import os
import pickle
import pty
import re
import signal
import struct
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from fastloss.monitor import CSV, Console, History, JSONLines, NaNError, Sink, TensorBoard, watch
from fastloss.monitor.rows import Row

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

FORMATS = ("jsonl", "csv")
SPECIAL = (math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308, -0.0, 0.1)


def python(program, *arguments, **options):
    """Start a process that runs a program."""
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], text=True, **options)


def succeed(program, *arguments):
    """What a program prints."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with python(program, *arguments, **pipes) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    return out


def assert_same(one, other):
    assert (one.step, one.epoch) == (other.step, other.epoch)
    for per in ("step", "epoch"):
        assert sorted(one.keys(per)) == sorted(other.keys(per))  # columns of a CSV have an order of their own
        for name, column in one.table(per).items():
            np.testing.assert_allclose(column, other.table(per)[name], rtol=0, atol=1e-6 if name == "time" else 0)


def run_some(history):
    """Two epochs and a bit, with names that come and go."""
    for i in range(8):
        history.log(loss=SPECIAL[i % len(SPECIAL)], **{'a, "b" %': i} if i % 3 == 2 else {})
        if i % 3 == 2:
            history.end_epoch(val_loss=i / 7, loss=2.5)


# --------------------------------------------------------------------------------------------------------------
# Logging and reading
# --------------------------------------------------------------------------------------------------------------


def test_what_is_logged_is_read():
    history = History()
    for i in range(4):
        history.log(loss=i / 2, **{"lr": 0.1} if i == 1 else {})
    history.end_epoch(val_loss=7.0, loss=0.75)
    history.log(step=10, loss=9)
    history.end_epoch()
    np.testing.assert_array_equal(history["loss"], [0, 0.5, 1, 1.5, 9])
    np.testing.assert_array_equal(history["lr"], [math.nan, 0.1, math.nan, math.nan, math.nan])
    np.testing.assert_array_equal(history["val_loss"], [7.0, math.nan])
    np.testing.assert_array_equal(history.steps, [0, 1, 2, 3, 10])
    np.testing.assert_array_equal(history.epochs, [0, 1])
    np.testing.assert_array_equal(history.table()["epoch"], [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(history.table("epoch")["step"], [4, 11])
    assert history["loss"].dtype == np.float64
    assert history.steps.dtype == history.epochs.dtype == np.int64
    series = history.series("lr")
    assert (series.step.tolist(), series.epoch.tolist(), series.value.tolist()) == ([1], [0], [0.1])
    assert abs(series.time[0] - time.time()) < 100
    assert history.series("loss", per="epoch").value.tolist() == [0.75]
    assert list(history) == history.keys() == ["loss", "lr", "val_loss"]
    assert history.keys("epoch") == ["val_loss", "loss"]
    assert "lr" in history
    assert "accuracy" not in history
    assert dict(history).keys() == {"loss", "lr", "val_loss"}
    assert (history.step, history.epoch) == (11, 2)
    history.log(loss=1.0)  # what was read keeps nothing from being logged
    assert repr(history) == "<History: 6 steps, 2 epochs; loss, lr; per epoch: val_loss, loss>"


def test_an_empty_history():
    history = History()
    assert history
    assert history.steps.size == history.epochs.size == 0
    assert list(history) == []
    assert repr(history) == "<History: 0 steps, 0 epochs>"
    assert history.table().keys() == {"step", "epoch", "time"}


def test_scalars_of_numpy():
    history = History()
    value = np.array(0.5, np.float32)
    history.log(a=np.float32(0.1), b=value, c=np.int64(3), d=True, e=np.float16(0.5))
    value += 1
    assert [history[name][0] for name in "abcde"] == [np.float32(0.1), 0.5, 3.0, 1.0, 0.5]


def test_scalars_of_pytorch():
    torch = pytest.importorskip("torch")
    history = History()
    weight = torch.tensor(2.0, requires_grad=True)
    for _ in range(2):
        history.log(loss=weight * weight)
    assert history["loss"].tolist() == [4.0, 4.0]


def test_scalars_of_jax():
    jnp = pytest.importorskip("jax.numpy")
    history = History()
    history.log(loss=jnp.float32(0.5))
    with pytest.raises(TypeError, match=r"`loss` must be a number.* of shape \(2,\)"):
        history.log(loss=jnp.ones(2))
    assert history["loss"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros(3), r"ndarray of shape \(3,\)"),
        (np.zeros((1, 1)), r"ndarray of shape \(1, 1\)"),
        ([0.5], r"\[0\.5\]"),
        ("0.5", "'0.5'"),
        (None, "None"),
        (1j, "1j"),
        (10**400, "1000"),
    ],
)
def test_what_is_no_scalar_is_refused_and_nothing_of_its_row_is_kept(value, said):
    history = History()
    for log in (history.log, history.end_epoch):
        with pytest.raises(TypeError, match=f"^`bad` must be a number, or an array without axes, got {said}"):
            log(good=1.0, bad=value, fine=2.0)
        log(good=1.0, bad=3.0, fine=2.0)
    assert history.table()["bad"].tolist() == history.table("epoch")["bad"].tolist() == [3.0]
    assert (history.step, history.epoch) == (1, 1)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda h: h.log(), ValueError, "nothing to log"),
        (lambda h: h.log(epoch=3), ValueError, "`epoch` cannot be the name of a value"),
        (lambda h: h.end_epoch(time=3), ValueError, "`time` cannot be the name of a value"),
        (lambda h: h.log(**{"a\nb": 1}), ValueError, r"must be printable, got 'a\\nb'"),
        (lambda h: h.log(**{"": 1}), ValueError, "must be printable, got ''"),
        (lambda h: h.log(step=1, loss=1), ValueError, "`step` must be at least 2, as 1 was logged already, got 1"),
        (lambda h: h.log(step=-1, loss=1), ValueError, "`step` must not be negative, got -1"),
        (lambda h: h.log(step=2**53 + 1, loss=1), ValueError, "`step` must be at most 9007199254740992"),
        (lambda h: h.log(step=2.5, loss=1), TypeError, "`step` must be an integer, got 2.5"),
        (lambda h: h.end_epoch(epoch=0), ValueError, "`epoch` must be at least 1"),
        (lambda h: h.resume_at(-1), ValueError, "`step` must not be negative"),
        (lambda h: h.resume_at(0, "a"), TypeError, "`epoch` must be an integer, got 'a'"),
        (lambda h: setattr(h, "epoch", 0), ValueError, "`epoch` must be at least 1"),
        (lambda h: h["lr"], KeyError, "nothing was logged under 'lr'; there is loss, val_loss"),
        (lambda h: h.series("loss", per="epoch"), KeyError, "nothing was logged under 'loss' per epoch"),
        (lambda h: h.series("loss", per="day"), ValueError, "`per` must be 'step' or 'epoch', got 'day'"),
        (lambda h: h.table("day"), ValueError, "`per` must be"),
        (lambda h: h.keys("day"), ValueError, "`per` must be"),
        (lambda h: h.update(), RuntimeError, "only a History from `History.read`"),
        (lambda h: History("run.txt"), ValueError, r"`run.txt` must end in one of \.jsonl, \.ndjson, \.csv"),
        (lambda h: History(3), TypeError, "a sink must be a path or a fastloss.monitor.Sink, got 3"),
        (lambda h: History(["run.csv"]), TypeError, "a sink must be a path"),
        (lambda h: History(b"run.csv"), TypeError, "a sink must be a path"),
        (lambda h: History(resume="yes"), TypeError, "`resume` must be True or False, got 'yes'"),
        (lambda h: History(stop_on_nan=1), TypeError, "`stop_on_nan` must be True or False"),
        (lambda h: History(flush_seconds=-1), ValueError, "`flush_seconds` must be a number of seconds, at least 0"),
        (lambda h: History(flush_seconds=math.nan), ValueError, "`flush_seconds` must be"),
        (lambda h: History(flush_seconds="1"), TypeError, "`flush_seconds` must be a number of seconds, got '1'"),
        (lambda h: History("/no/such/folder/run.csv"), FileNotFoundError, "there is no folder /no/such/folder"),
        (lambda h: History.read("/no/such/run.csv"), FileNotFoundError, "No such file"),
        (lambda h: History.read(3), TypeError, "`path` must be a path, got 3"),
        (lambda h: CSV(None), TypeError, "`path` must be a path"),
        (lambda h: TensorBoard(3), TypeError, "`directory` must be a path"),
        (lambda h: Console(every=-1), ValueError, "`every` must be a number of seconds"),
        (lambda h: Sink().write([]), NotImplementedError, "Sink must define `write`"),
        (lambda h: h.plot("lr"), KeyError, "nothing was logged under 'lr'"),
        (lambda h: h.plot(3), TypeError, "names must be strings"),
        (lambda h: h.plot(x="day"), ValueError, "`x` must be 'step', 'epoch' or 'time', got 'day'"),
        (lambda h: h.plot(log="loss"), TypeError, "`log` must be True, False or a collection of names"),
        (lambda h: h.plot(log=["lr"]), ValueError, "`log` names 'lr', which is no panel; there is loss"),
        (lambda h: h.plot(log=True), ValueError, "`loss` has no positive value"),
        (lambda h: h.plot(smooth=0), ValueError, "`smooth` must be a positive integer"),
        (lambda h: h.plot(path=3), TypeError, "`path` must be a path"),
        (lambda h: History().plot(), ValueError, "nothing was logged yet"),
    ],
)
def test_bad_input(call, error, match):
    history = History()
    history.log(loss=0.0)
    history.log(loss=-1.0)
    history.end_epoch(val_loss=2.0)
    with pytest.raises(error, match=match):
        call(history)
    assert history["loss"].tolist() == [0.0, -1.0]
    assert (history.step, history.epoch) == (2, 1)


def test_a_closed_history_can_be_read_and_not_written():
    with History() as history:
        history.log(loss=1.0)
        history.end_epoch(val_loss=2.0)
    history.close()
    for call in (lambda: history.log(loss=1.0), lambda: history.end_epoch(val_loss=2.0), lambda: history.resume_at(0)):
        with pytest.raises(RuntimeError, match="the History is closed"):
            call()
    assert history["loss"].tolist() == [1.0]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda history: pickle.loads(pickle.dumps(history))])
def test_copies_can_be_read_and_write_nothing(duplicate, tmp_path):
    with History(tmp_path / "a.jsonl") as history:
        history.log(loss=1.0)
        second = duplicate(history)
        with pytest.raises(RuntimeError, match="is a copy"):
            second.log(loss=2.0)
        with pytest.raises(RuntimeError, match="is a copy"):
            second.end_epoch()
        assert second["loss"].tolist() == [1.0]
        second.close()
        del second
        history.log(loss=3.0)
    assert History.read(tmp_path / "a.jsonl")["loss"].tolist() == [1.0, 3.0]
    kept = History()
    kept.log(loss=1.0)
    second = duplicate(kept)
    second.log(loss=2.0)
    assert (kept["loss"].tolist(), second["loss"].tolist(), second.steps.tolist()) == ([1.0], [1.0, 2.0], [0, 1])


def test_ten_million_steps_fit_into_memory():
    """Five doubles a row; of objects of Python there are none."""
    history = History()
    history.log(loss=0.5, lr=0.1)
    tracemalloc.start()
    try:
        for _ in range(100_000):
            history.log(loss=0.5, lr=0.1)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 100_000 * 5 * 8 * 1.2


def test_stop_on_nan_keeps_what_was_logged(tmp_path):
    history = History(tmp_path / "run.jsonl", stop_on_nan=True, flush_seconds=1000)
    history.log(loss=1.0, grad_norm=math.inf)
    with pytest.raises(NaNError, match=r"^`loss` is NaN at step 1, in epoch 0: stopped") as caught:
        history.log(loss=math.nan, grad_norm=2.0)
    assert caught.value.row.values[1] == 2.0
    np.testing.assert_array_equal(History.read(tmp_path / "run.jsonl")["loss"], [1.0, math.nan])
    with pytest.raises(NaNError, match="`a`, `b` are NaN after 2 steps, in epoch 0"):
        history.end_epoch(a=np.float32("nan"), b=math.nan, c=1.0)
    history.end_epoch()
    history.close()
    with History() as tolerant:
        tolerant.log(loss=math.nan)


# --------------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("flush_seconds", [0, 1000])
def test_files_hold_what_was_logged(tmp_path, suffix, flush_seconds):
    path = tmp_path / f"run.{suffix}"
    with History(path, flush_seconds=flush_seconds) as history:
        run_some(history)
    read = History.read(path)
    assert_same(read, history)
    assert read.skipped == 0
    with pytest.raises(RuntimeError, match=r"was read: History\('.*'\) goes on with the file"):
        read.log(loss=1.0)
    assert [path] == list(tmp_path.iterdir())


def test_json_is_strict(tmp_path):
    with History(tmp_path / "run.jsonl") as history:
        run_some(history)
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) for line in lines]
    assert [row["loss"] for row in rows[:3]] == ["NaN", "Infinity", "-Infinity"]
    assert rows[3] == {"per": "epoch", "step": 3, "epoch": 0, "time": rows[3]["time"], "val_loss": 2 / 7, "loss": 2.5}


def test_csv_is_rectangular(tmp_path):
    with History(tmp_path / "run.csv", flush_seconds=0) as history:
        run_some(history)
    with (tmp_path / "run.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["per", "step", "epoch", "time", "loss", 'a, "b" %', "val_loss"]
    assert {len(row) for row in rows} == {len(header)}
    assert [row[4] for row in rows[:3]] == ["nan", "inf", "-inf"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_cut_anywhere_is_read_up_to_there_and_resumed(tmp_path, suffix):
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"run.{suffix}"
    with History(whole) as history:
        run_some(history)
    content = whole.read_bytes()
    lines = content.splitlines(keepends=True)
    for cut in range(0, len(content) + 1, 3):
        path.write_bytes(content[:cut])
        complete = content[:cut].count(b"\n") - (suffix == "csv")
        half = cut > 0 and content[cut - 1 : cut] != b"\n"
        read = History.read(path)
        assert len(read.steps) + len(read.epochs) == max(0, complete)
        assert read.skipped == half
        np.testing.assert_array_equal(
            read.series("loss", "step").value if read.keys() else [], history["loss"][: len(read.steps)]
        )
        if cut % 5 == 0:
            with History(path) as resumed:
                assert resumed.skipped == half
                resumed.log(loss=42.0)
            if suffix == "jsonl":  # of a CSV the header may be one column longer than it was
                assert path.read_bytes().startswith(b"".join(lines[:complete]))
            again = History.read(path)
            assert_same(again, resumed)
            assert again.skipped == 0
            assert again["loss"][-1] == 42.0
            assert again.step == read.step + 1


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_restart_goes_on(tmp_path, suffix):
    path, once = tmp_path / f"run.{suffix}", tmp_path / f"once.{suffix}"
    with History(once) as whole:
        for part in range(3):
            with History(path) as history:
                for log in (history, whole):
                    for i in range(4):
                        log.log(loss=10 * part + i)
                    log.end_epoch(**{f"part_{part}": part})
    read = History.read(path)
    assert read.keys() == whole.keys()
    for per in ("step", "epoch"):
        for name, column in whole.table(per).items():
            if name != "time":
                np.testing.assert_array_equal(read.table(per)[name], column)


@pytest.mark.parametrize("suffix", FORMATS)
def test_resuming_at_a_checkpoint_drops_what_came_after_it(tmp_path, suffix):
    path = tmp_path / f"run.{suffix}"
    with History(path) as history:
        for i in range(10):
            history.log(loss=i)
            if i % 3 == 2:
                history.end_epoch(val_loss=i)
    with History(path) as history:
        assert (history.step, history.epoch) == (10, 3)
        history.resume_at(5)
        assert (history.step, history.epoch) == (5, 1)
        assert history["loss"].tolist() == [0, 1, 2, 3, 4]
        assert history["val_loss"].tolist() == [2]
        history.log(loss=50)
        history.end_epoch(val_loss=60)
    assert history["loss"].tolist() == [0, 1, 2, 3, 4, 50]
    assert history["val_loss"].tolist() == [2, 60]
    assert_same(History.read(path), history)
    assert path.read_text().count("\n") == 15 + (suffix == "csv")  # the file keeps all


def test_an_epoch_that_is_ended_again_replaces_the_first(tmp_path):
    with History(tmp_path / "run.csv") as history:
        history.log(loss=1.0)
        history.end_epoch(val_loss=2.0)
        history.resume_at(1, epoch=0)
        history.end_epoch(val_loss=3.0)
    assert history["val_loss"].tolist() == [3.0]
    assert_same(History.read(tmp_path / "run.csv"), history)


def test_several_sinks_get_the_same(tmp_path):
    with History(tmp_path / "a.csv", tmp_path / "b.jsonl") as history:
        run_some(history)
    assert_same(History.read(tmp_path / "a.csv"), History.read(tmp_path / "b.jsonl"))
    (tmp_path / "b.jsonl").unlink()
    with History(tmp_path / "b.jsonl", tmp_path / "a.csv") as history:  # the first that exists is what is resumed
        assert history.step == 8


@pytest.mark.parametrize(
    "content", [b"x,y\n1,2\n", b"hello", b'{"loss": 1}\n', b"\x89PNG\r\n\x00\n", b"[1]\n{}\n", b"\n"]
)
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_of_somebody_else_is_left_alone(tmp_path, suffix, content):
    path = tmp_path / f"run.{suffix}"
    path.write_bytes(content)
    for use in (History, History.read):
        with pytest.raises(ValueError, match="is no log of a History: it begins with"):
            use(path)
        assert path.read_bytes() == content


def test_lines_that_are_no_rows_are_counted(tmp_path):
    for suffix, junk in (
        (
            "jsonl",
            '{"per": "day", "step": 1, "epoch": 0, "time": 0}\n{"per": "step", "step": 1e999, "epoch": 0, "time": 0}\n',
        ),
        ("csv", "step,1\n\n"),
    ):
        path = tmp_path / f"run.{suffix}"
        with History(path) as history:
            history.log(loss=1.0)
        with path.open("a") as file:
            file.write(junk)
        with History(path) as history:
            assert history.skipped == 2
            history.log(loss=2.0)
        read = History.read(path)
        assert read.skipped == 2
        assert read["loss"].tolist() == [1.0, 2.0]


def test_the_other_format_is_not_appended(tmp_path):
    with History(tmp_path / "run.csv") as history:
        history.log(loss=1.0)
    before = (tmp_path / "run.csv").read_bytes()
    with pytest.raises(ValueError, match="holds CSV, and JSONLines is to be written"):
        History(JSONLines(tmp_path / "run.csv"))
    with pytest.raises(FileExistsError, match="`resume` is False"):
        History(tmp_path / "run.csv", resume=False)
    assert (tmp_path / "run.csv").read_bytes() == before
    History(tmp_path / "run.csv").close()  # nobody holds it


def test_a_link_stays_one(tmp_path):
    (tmp_path / "run.csv").symlink_to(tmp_path / "real.csv")
    with History(tmp_path / "run.csv", flush_seconds=0) as history:
        run_some(history)
    assert (tmp_path / "run.csv").is_symlink()
    assert_same(History.read(tmp_path / "real.csv"), history)


def test_one_history_a_file(tmp_path):
    program = (
        "import sys; from fastloss.monitor import History\ntry: History(sys.argv[1])\nexcept OSError as e: print(e)"
    )
    for suffix in FORMATS:
        path = tmp_path / f"run.{suffix}"
        with History(path, flush_seconds=0) as history:
            run_some(history)  # also where CSV has replaced the file
            with pytest.raises(BlockingIOError, match="is being written by a History"):
                History(path)
            assert "is being written by a History" in succeed(program, path)
        assert succeed(program, path) == ""


def test_one_history_a_sink(tmp_path):
    sink = JSONLines(tmp_path / "a.jsonl")
    with History(sink) as history:
        with pytest.raises(ValueError, match="a sink belongs to one History"):
            History(sink)
        history.log(loss=1.0)
        with pytest.raises(ValueError, match="a sink belongs to one History"):
            History(*[Console()] * 2)
    with History(sink) as again:
        assert again.step == 1


def test_a_forked_child_cannot_log_and_writes_nothing(tmp_path):
    program = """
import os, sys
from fastloss.monitor import CSV, History, Sink
class Closing(Sink):
    def write(self, rows): pass
    def close(self): os.write(1, b"closed by the parent\\n" if os.getpid() == parent else b"closed by the child\\n")
parent = os.getpid()
csv = CSV(sys.argv[1])
history = History(csv, Closing(), flush_seconds=1000)
for i in range(3): history.log(loss=i)
reads, writes = os.pipe()
wait, tell = os.pipe()
child = os.fork()
if not child:
    try: history.log(loss=1)
    except RuntimeError as error: os.write(1, f"{error}\\n".encode())
    os.close(writes)
    os.write(tell, b".")
    os.read(reads, 1)
    sys.exit()
history.log(loss=3)
history.close()
os.read(wait, 1)  # a child that has not begun yet still shares the lock
History(sys.argv[1]).close()  # while the child lives
os.close(writes)
os.waitpid(child, 0)
"""
    out = succeed(program, tmp_path / "run.csv")
    assert "belongs to the parent process" in out
    assert [line for line in out.splitlines() if "closed" in line] == ["closed by the parent"]
    assert History.read(tmp_path / "run.csv")["loss"].tolist() == [0, 1, 2, 3]


def test_the_end_of_the_interpreter_and_of_the_last_reference_write(tmp_path):
    program = """
import sys
from fastloss.monitor import History
def first():
    history = History(sys.argv[1], flush_seconds=1000)
    history.log(loss=0)
    history.log(loss=1)
first()
history = History(sys.argv[1], flush_seconds=1000)
for i in range(2, 5): history.log(loss=i)
raise SystemExit
"""
    assert succeed(program, tmp_path / "run.csv") == ""
    assert History.read(tmp_path / "run.csv")["loss"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_killed_process_loses_at_most_what_it_logged_since_the_last_second(tmp_path, suffix):
    """Each process resumes what the one before it left; after each row it notes outside when that was logged."""
    program = """
import os, struct, sys
from fastloss.monitor import History
history = History(sys.argv[1], flush_seconds=0.05)
notes = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
print("ready", flush=True)
while True:
    step = history.step
    history.log(loss=step / 7)
    (table,) = history._steps.values()
    os.write(notes, struct.pack("qd", step, table.data[-2]))
"""
    path, notes = tmp_path / f"run.{suffix}", tmp_path / "notes"
    known = 0
    for delay in (0.0, 0.11, 0.23, 0.3):
        process = python(program, path, notes, stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        logged = list(struct.iter_unpack("qd", notes.read_bytes()[: notes.stat().st_size // 16 * 16]))
        history = History.read(path)
        np.testing.assert_array_equal(history.steps, np.arange(history.step))
        np.testing.assert_array_equal(history["loss"] if history.step else [], np.arange(history.step) / 7)
        assert history.skipped <= 1
        assert history.step >= known
        assert not logged or logged[0][0] == known
        lost = [stamp for step, stamp in logged if step >= history.step]
        assert not lost or lost[-1] - lost[0] <= 0.05
        known = history.step
    assert known > 0


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_ends_no_training_and_loses_nothing_once_there_is_room(tmp_path, suffix):
    """The limit of a process on the size of its files is a disk that fills up in the middle of a line."""
    program = """
import resource, sys, warnings
from fastloss.monitor import History
path = sys.argv[1]
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
history = History(path, flush_seconds=0)
history.log(loss=0)
before = open(path).read()
resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, most))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for i in range(1, 50): history.log(loss=i, **({"new": i} if i > 25 else {}))
assert len(caught) == 1 and caught[0].filename == "<string>", caught
print(caught[0].message)
assert open(path).read() == before
try: history.flush()
except OSError: pass
else: raise AssertionError
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
history.log(loss=50)
assert History.read(path)["loss"].tolist() == history["loss"].tolist() == list(range(51))
resource.setrlimit(resource.RLIMIT_FSIZE, (10, most))
warnings.simplefilter("ignore")
history.log(loss=51)
try: history.close()
except OSError as error: print(error)
assert len(history["loss"]) == 52 and History.read(path).step == 51
"""
    out = succeed(program, tmp_path / f"run.{suffix}").splitlines()
    assert "File too large" in out[0]
    assert f"run.{suffix}" in out[0]
    assert "the training goes on" in out[0]
    assert "File too large" in out[1]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_was_deleted_is_missed(tmp_path):
    history = History(tmp_path / "run.jsonl", flush_seconds=0)
    history.log(loss=1.0)
    (tmp_path / "run.jsonl").unlink()
    with pytest.warns(RuntimeWarning, match="was deleted while it was written"):
        history.log(loss=2.0)
    with pytest.raises(FileNotFoundError, match="was deleted"):
        history.close()
    assert history["loss"].tolist() == [1.0, 2.0]


def test_an_error_while_opening_closes_the_others(tmp_path):
    with pytest.raises(FileNotFoundError):
        History(tmp_path / "run.csv", tmp_path / "nowhere" / "run.csv")
    History(tmp_path / "run.csv").close()


def test_update_follows_a_file_that_grows_and_is_replaced(tmp_path):
    path = tmp_path / "run.csv"
    with History(path, flush_seconds=0) as history:
        history.log(loss=1.0)
        read = History.read(path)
        history.log(loss=2.0)
        assert read.update() == 1
        history.end_epoch(val_loss=3.0)  # a new column
        read.update()
        assert_same(read, history)
        with path.open("a") as file:
            file.write("step,2,1,0.0,4")
        assert read.update() == 0
        assert read.skipped == 1
        with path.open("a") as file:
            file.write(".5,\n")
        assert read.update() == 1
        assert read.skipped == 0
        assert read["loss"].tolist() == [1.0, 2.0, 4.5]


# --------------------------------------------------------------------------------------------------------------
# Console and TensorBoard
# --------------------------------------------------------------------------------------------------------------


def test_console_shows_epochs_and_now_and_then_a_step():
    out = io.StringIO()
    console = Console(every=1000, file=out)
    step = [Row("step", i, 0, 0.0, ("loss", "lr"), (0.123456 + i, 1e-5)) for i in range(3)]
    console.write(step[:2])
    console.write([step[2], Row("epoch", 3, 0, 0.0, ("val_loss",), (math.nan,))])
    assert out.getvalue() == "epoch 0  step 1  loss 1.123  lr 1e-05\nepoch 0 done after 3 steps  val_loss nan\n"


def events(directory):
    """What TensorBoard's event files hold, each record's checksums being right."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def masked(data):
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    for path in sorted(directory.glob("*tfevents*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            assert struct.unpack("<I", data[8:12])[0] == masked(data[:8])
            record, data = data[12 : 12 + size], data[12 + size :]
            assert struct.unpack("<I", data[:4])[0] == masked(record)
            data = data[4:]
            event = Event.FromString(record)
            if event.HasField("session_log"):
                yield "start", event.step, None
            for value in event.summary.value:
                yield value.tag, event.step, value.simple_value


def test_tensorboard_gets_everything_and_is_told_of_a_restart(tmp_path):
    pytest.importorskip("tensorboardX")
    for part in range(2):
        with History(tmp_path / "run.csv", TensorBoard(tmp_path / "a" / "b"), flush_seconds=0) as history:
            history.log(loss=part, lr=0.5)
            history.log(loss=part + 2)
            history.end_epoch(val_loss=part + 4)
    assert list(events(tmp_path / "a" / "b")) == [
        *[("loss", 0, 0.0), ("lr", 0, 0.5), ("loss", 1, 2.0), ("epoch_val_loss", 0, 4.0)],
        ("start", 2, None),
        *[("loss", 2, 1.0), ("lr", 2, 0.5), ("loss", 3, 3.0), ("epoch_val_loss", 1, 5.0)],
    ]
    with pytest.raises(FileExistsError, match="there are event files in"):
        History(TensorBoard(tmp_path / "a" / "b"), resume=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        History(TensorBoard(tmp_path / "file"))


def test_missing_libraries_are_named(tmp_path):
    program = """
import sys
for name in ("matplotlib", "tensorboardX", "keras"): sys.modules[name] = None
from fastloss.monitor import History, TensorBoard
import fastloss.monitor.keras
history = History()
history.log(loss=1)
for call in (history.plot, lambda: History(TensorBoard(sys.argv[1])), lambda: fastloss.monitor.keras.History):
    try: call()
    except ModuleNotFoundError as error: print(error)
"""
    said = succeed(program, tmp_path).splitlines()
    assert "matplotlib: pip install 'fastloss[monitor]'" in said[0]
    assert "tensorboardX: pip install 'fastloss[tensorboard]'" in said[1]
    assert "keras: pip install keras" in said[2]


# --------------------------------------------------------------------------------------------------------------
# Plots
# --------------------------------------------------------------------------------------------------------------


def curve(axes, label):
    (line,) = [line for line in axes.lines if line.get_label().partition(" (")[0] == label]
    return line.get_xdata(), line.get_ydata()


def learned(steps=300, epochs=3):
    history = History()
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for _ in range(steps // epochs):
            history.log(loss=math.exp(-history.step / 50) * rng.uniform(0.5, 1.5), lr=0.1)
        history.end_epoch(val_loss=math.exp(-history.step / 50), accuracy=0.5)
    return history


def test_a_plot_has_training_raw_and_smoothed_and_validation(tmp_path):
    history = learned()
    figure = history.plot(path=tmp_path / "run.png", log=["loss"])
    assert [axes.get_title() for axes in figure.axes] == ["loss", "lr", "accuracy"]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"step"}
    axes = figure.axes[0]
    raw = next(line for line in axes.lines if line.get_alpha())
    np.testing.assert_array_equal(raw.get_xdata(), history.steps)
    np.testing.assert_array_equal(raw.get_ydata(), history["loss"])
    x, y = curve(axes, "training")
    truth = np.exp(-x / 50)
    np.testing.assert_array_equal(x, history.steps)
    assert np.abs(np.log(y / truth)).max() < 0.5 * np.abs(np.log(history["loss"] / truth)).max()
    x, y = curve(axes, "validation")
    np.testing.assert_array_equal(x, [100, 200, 300])
    np.testing.assert_array_equal(y, history["val_loss"])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["training (mean over 10 steps)", "validation"]
    np.testing.assert_allclose(curve(figure.axes[1], "lr")[1], 0.1, rtol=1e-12)  # also at the ends
    from matplotlib.image import imread

    assert min(imread(tmp_path / "run.png").shape[:2]) > 300


def test_abscissae_of_plots():
    history = learned()
    (axes,) = history.plot("loss", x="epoch", smooth=1).axes
    np.testing.assert_allclose(curve(axes, "training")[0], np.arange(1, 301) / 100)
    np.testing.assert_array_equal(curve(axes, "training")[1], history["loss"])
    np.testing.assert_array_equal(curve(axes, "validation")[0], [1, 2, 3])
    (axes,) = history.plot("loss", x="time", smooth=1).axes
    assert axes.get_xlabel() == "time (seconds)"
    assert curve(axes, "training")[0][0] == 0
    assert curve(axes, "validation")[0][-1] > curve(axes, "training")[0][-1] - 1e-6
    epochs = History()
    for value in (3.0, 2.0):
        epochs.end_epoch(val_loss=value)
    (axes,) = epochs.plot().axes
    assert (axes.get_title(), axes.get_xlabel()) == ("loss", "epoch")
    np.testing.assert_array_equal(curve(axes, "val_loss"), [[1, 2], [3, 2]])


def test_what_is_not_finite_is_marked_and_bends_nothing():
    history = History()
    for i in range(100):
        history.log(loss={40: math.nan, 41: math.inf}.get(i, 2.0))
    (axes,) = history.plot().axes
    x, y = curve(axes, "loss")
    np.testing.assert_allclose(y, np.where(np.isin(x, [40, 41]), math.nan, 2.0))
    np.testing.assert_array_equal(curve(axes, "loss: NaN or infinite")[0], [40, 41])
    assert axes.get_ylim()[0] > 1.5  # the marks have no height


def test_many_steps_are_drawn_as_their_range():
    history = History()
    values = np.random.default_rng(0).lognormal(size=100_000) * np.logspace(0, -9, 100_000)
    for value in values.tolist():
        history.log(loss=value)
    (axes,) = history.plot(log=True).axes
    x, y = curve(axes, "loss")
    assert len(x) <= 1000
    np.testing.assert_allclose(np.log10(y / math.exp(0.5)), -9 * x / len(values), atol=0.4)
    (band,) = axes.collections
    reach = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([reach.min(), reach.max()], [values.min(), values.max()])


# --------------------------------------------------------------------------------------------------------------
# Watching
# --------------------------------------------------------------------------------------------------------------

# Who runs the tests in the background has children that ignore interrupts.
WATCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = 'fastloss'
from fastloss.cli import main
main()
"""
WRITER = """
import sys, time
from fastloss.monitor import History
with History(sys.argv[1], flush_seconds=0) as history:
    for step in range(200):
        history.log(loss=1 / (1 + step))
        time.sleep(0.005)
    history.end_epoch(val_loss=0.25)
"""


def test_watch_once(tmp_path):
    path = tmp_path / "run.jsonl"
    with History(path) as history:
        for i in range(200):
            history.log(loss=1 / (1 + i), lr=0.1)
        history.end_epoch(val_loss=math.nan)
    with path.open("a") as file:
        file.write('{"per')
    out = succeed(WATCH, "watch", path, "--once")
    assert f"{path}: epoch 1, 200 steps, " in out
    assert "1 lines skipped" in out
    loss = next(line for line in out.splitlines() if line.startswith("│ loss"))
    cells = [cell.strip() for cell in loss.strip("│").split("│")]
    assert cells[:2] + cells[3:5] == ["loss", "0.005", "0.005", "1"]
    assert float(cells[2]) == pytest.approx(history["loss"][-100:].mean(), rel=1e-3)
    assert cells[5][0] == "█"
    assert cells[5][-1] == "▁"
    assert "1 NaN or infinite" in next(line for line in out.splitlines() if "val_loss, per epoch" in line)


def test_watch_follows_another_process_until_it_is_interrupted(tmp_path):
    path = tmp_path / "run.csv"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with python(WATCH, "watch", path, "--every", "0.05", **pipes) as watcher:
        lines = [watcher.stdout.readline()]
        with python(WRITER, path):
            while "val_loss 0.25" not in lines[-1]:
                lines.append(watcher.stdout.readline())
                assert lines[-1], watcher.stderr.read()
        watcher.send_signal(signal.SIGINT)
        rest, err = watcher.communicate(timeout=30)
    assert (watcher.returncode, rest, err) == (0, "", "")
    assert lines[0] == f"Waiting for {path}\n"
    steps = [int(line.split()[3]) for line in lines[1:]]
    assert steps == sorted(steps)
    assert len(set(steps)) > 2
    assert lines[-1] == "epoch 1  step 199  loss 0.005  val_loss 0.25\n"


def test_watch_in_a_terminal(tmp_path):
    path = tmp_path / "run.jsonl"
    with History(path, flush_seconds=0) as history:
        history.log(loss=0.5)
        ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        with python(WATCH, "watch", path, "--every", "0.05", stdout=theirs, stderr=theirs, env=environment) as watcher:
            os.close(theirs)
            seen = b""
            while b"0.25" not in seen:
                seen += os.read(ours, 65536)
                if b"0.5" in seen and history.step == 1:
                    history.log(loss=0.25)
            watcher.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # so ends a terminal that nobody holds
                while more := os.read(ours, 65536):
                    seen += more
        os.close(ours)
    assert watcher.returncode == 0
    assert b"Traceback" not in seen
    assert b"Abort" not in seen
    assert seen.rindex(b"\x1b[?25h") > seen.index(b"\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot read .*: No such file"), (b"hello\n", "is no log of a History")]
)
def test_watch_says_no(tmp_path, content, said):
    path = tmp_path / "run.jsonl"
    if content:
        path.write_bytes(content)
    with python(WATCH, "watch", path, "--once", stderr=subprocess.PIPE) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("fastloss: error: ")
    assert err.count("\n") == 1
    assert re.search(said, err)


def test_sparks():
    assert watch.spark(np.arange(8.0)) == watch.BLOCKS
    assert watch.spark(np.full(3, math.nan)) == "   "
    assert watch.spark(np.ones(1000)) == "▁" * watch.SPARKS
    assert watch._duration(3725.4) == "1:02:05"


# --------------------------------------------------------------------------------------------------------------
# Keras
# --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_and_data():
    keras = pytest.importorskip("keras")
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), "mse", metrics=["mae"])
    return model, x, x.sum(axis=1, keepdims=True)


def test_keras_callback_logs_a_fit(tmp_path, model_and_data):
    import keras

    from fastloss.monitor.keras import History as Callback

    model, x, y = model_and_data
    callback = Callback(tmp_path / "run.csv")
    assert isinstance(callback, keras.callbacks.Callback)
    fitted = model.fit(x, y, batch_size=8, epochs=3, validation_split=0.2, verbose=0, callbacks=[callback]).history
    history = callback.history
    assert history.keys("step") == ["loss", "mae"]
    assert set(history.keys("epoch")) == {"loss", "mae", "val_loss", "val_mae", "learning_rate"}
    np.testing.assert_array_equal(history.steps, np.arange(12))
    np.testing.assert_array_equal(history.table()["epoch"], np.repeat(np.arange(3), 4))
    for name in ("loss", "mae", "val_loss", "val_mae"):
        np.testing.assert_allclose(history.series(name, "epoch").value, fitted[name], rtol=1e-6)
    np.testing.assert_allclose(history["loss"][3::4], fitted["loss"], rtol=1e-6)
    np.testing.assert_allclose(history["learning_rate"], 0.05)
    assert_same(History.read(tmp_path / "run.csv"), history)

    model.fit(x, y, batch_size=20, epochs=1, verbose=0, callbacks=[callback])  # numbers go on
    assert (history.step, history.epoch) == (14, 4)
    history.close()

    again = Callback(tmp_path / "run.csv")  # a restart from a checkpoint after the second epoch
    model.fit(x, y, batch_size=20, initial_epoch=2, epochs=3, verbose=0, callbacks=[again])
    assert again.history.steps.tolist() == list(range(8 + 2))
    assert again.history.epochs.tolist() == [0, 1, 2]
    model.fit(x, y, batch_size=20, initial_epoch=6, epochs=7, verbose=0, callbacks=[again])
    assert again.history.table()["epoch"].tolist() == [0] * 4 + [1] * 4 + [2] * 2 + [6] * 2
    again.history.close()


def test_keras_callback_stops_at_nan(model_and_data):
    from fastloss.monitor.keras import History as Callback

    model, x, y = model_and_data
    y = y.copy()
    y[16:24] = math.nan
    callback = Callback(stop_on_nan=True)
    with pytest.warns(RuntimeWarning, match=r"`loss`, `mae` are NaN at step 2, in epoch 0: stopped"):
        model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=[callback])
    assert callback.history.steps.tolist() == [0, 1, 2]
    assert np.isnan(callback.history["loss"]).tolist() == [False, False, True]


def test_a_reader_notices_a_file_with_the_number_of_the_one_before(tmp_path):
    """As file systems give the number of a file that is gone to the next one, here the very file is written anew."""
    path = tmp_path / "run.csv"
    with History(path, flush_seconds=0) as history:
        history.log(loss=1.0)
    seen = History.read(path)
    with History(tmp_path / "other.csv", flush_seconds=0) as other:
        for i in range(20):
            other.log(loss=1.0 / (1 + i), lr=0.1)
    path.write_bytes((tmp_path / "other.csv").read_bytes())
    assert seen.update() == 20
    np.testing.assert_array_equal(seen["lr"], np.full(20, 0.1))
