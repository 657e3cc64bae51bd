"""Evaluation of data of any size: what it finds, where data come from, and what stops it."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import fastloss
from fastloss import cli, losses
from fastloss.evaluation import Worst, blocks, partial
from fastloss.registry import BATCH_LOSSES, LOSSES

pytest.importorskip("ddsketch")

SAMPLES = 5000


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks of little data, the last one not full."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 2100)
    monkeypatch.setattr(blocks, "PIECE_SAMPLES", 300)


def regression(samples=SAMPLES, columns=(3,), dtype=np.float64):
    rng = np.random.default_rng(7)
    y = rng.normal(size=(samples, *columns)).astype(dtype)
    return y, (y + rng.normal(size=y.shape)).astype(dtype)


def everything(evaluation):
    """All that must not change, as text: equal text is equal bits."""
    return evaluation.to_json() + repr(evaluation.histogram(7)) + repr(evaluation._numbers.tolist())


Y, P = regression()
WEIGHT = np.random.default_rng(1).random(SAMPLES)
MASK = np.random.default_rng(2).random(SAMPLES) < 0.8
GROUPS = np.random.default_rng(3).choice(["north", "south", "east"], SAMPLES)


def evaluated(**options):
    return fastloss.evaluate(losses.Huber(), Y, P, WEIGHT, mask=MASK, group_by=GROUPS, top_k=5, **options)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum", "none"])
@pytest.mark.parametrize("weight", [None, WEIGHT, 2.5])
@pytest.mark.parametrize("mask", [None, MASK])
def test_value_is_that_of_one_call(reduction, weight, mask):
    loss = losses.Huber(reduction=reduction)
    whole = losses.Huber(reduction="mean" if reduction == "none" else reduction)
    found = fastloss.evaluate(loss, Y, P, weight, mask=mask)
    assert found.value == pytest.approx(whole(Y, P, weight, mask=mask), rel=1e-13)
    assert found.count == (SAMPLES if mask is None else MASK.sum())
    assert found.masked == SAMPLES - found.count
    assert found.samples == SAMPLES


@pytest.mark.usefixtures("small_blocks")
def test_figures_are_those_of_numpy():
    found = evaluated()
    values = losses.huber(Y, P)
    for label, chosen in [(None, MASK), *((label, MASK & (label == GROUPS)) for label in ("east", "north", "south"))]:
        one = found if label is None else found.groups[label]
        v, w = values[chosen], WEIGHT[chosen]
        assert one.count == chosen.sum()
        assert one.sum == pytest.approx((v * w).sum(), rel=1e-13)
        assert one.weight_sum == pytest.approx(w.sum(), rel=1e-13)
        assert one.value == pytest.approx((v * w).mean(), rel=1e-13)
        assert one.standard_error == pytest.approx((v * w).std(ddof=1) / math.sqrt(len(v)), rel=1e-12)
        assert (one.minimum, one.maximum) == (v.min(), v.max())
        for q in (0.0, 0.1, 0.5, 0.99, 1.0):
            assert one.quantile(q) == pytest.approx(np.quantile(v, q, method="lower"), rel=0.0101)
        counts, edges = one.histogram(20)
        assert counts.sum() == len(v)
        assert (edges[0], edges[-1]) == (v.min(), v.max())
    assert list(found.groups) == ["east", "north", "south"]
    order = np.lexsort((np.arange(SAMPLES), -np.where(MASK, values, -1)))[:5]
    assert found.worst == tuple(Worst(int(i), values[i], GROUPS[i]) for i in order)


def test_standard_error_of_a_weighted_mean_is_that_of_repeated_samples():
    rng = np.random.default_rng(5)
    values, found = [], []
    for _ in range(400):
        y, w = rng.exponential(size=500), rng.random(500)
        one = fastloss.evaluate(losses.MeanAbsoluteError("mean_with_sample_weight"), np.zeros(500), y, w)
        values.append(one.value)
        found.append(one.standard_error)
    assert np.mean(found) == pytest.approx(np.std(values), rel=0.15)


@pytest.mark.usefixtures("small_blocks")
def test_threads_and_batches_change_no_bit():
    first = everything(evaluated())
    for options in ({"n_threads": 1}, {"n_threads": 2}, {"batch_size": 1}, {"batch_size": 4000, "n_threads": 2}):
        assert everything(evaluated(**options)) == first, options


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["hinge", "squared_hinge"])
@pytest.mark.parametrize("odd", [None, 0, SAMPLES - 1, 3500])
def test_hinge_reads_labels_by_all_of_them(name, odd):
    y = (np.random.default_rng(0).random(SAMPLES) < 0.5).astype(np.float64)
    if odd is not None:
        y[odd] = -1
    p = P[:, 0]
    found = fastloss.evaluate(name, y, p, mask=MASK, top_k=2)
    assert found.value == pytest.approx(
        losses.get({"class_name": LOSSES[name].cls.__name__})(y, p, mask=MASK), rel=1e-13
    )


@pytest.mark.usefixtures("small_blocks")
def test_classes_with_their_own_mask():
    rng = np.random.default_rng(0)
    y, z = rng.integers(-1, 4, (SAMPLES, 2)), rng.normal(size=(SAMPLES, 2, 4)).astype(np.float32)
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    weight, valid = rng.random((SAMPLES, 1)), y >= 0
    found = fastloss.evaluate(loss, y, z, weight, top_k=1)
    values = softmax_losses(np.maximum(y, 0), z) * valid
    assert found.value == pytest.approx((values * weight).sum() / valid.sum(), rel=1e-6)
    assert (found.count, found.masked) == (valid.sum(), (~valid).sum())
    assert found.worst[0].index == np.unravel_index(np.argmax(values), values.shape)
    weighted = losses.SparseCategoricalCrossentropy(True, -1, reduction="mean_with_sample_weight")
    expected = (values * weight).sum() / (weight * valid).sum()
    assert fastloss.evaluate(weighted, y, z, weight).value == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(float(weighted(y, z, weight)), rel=1e-6)


def softmax_losses(y, z):
    z = z.astype(np.float64)
    return np.log(np.exp(z).sum(axis=-1)) - np.take_along_axis(z, y[..., None], -1)[..., 0]


def test_losses_that_are_not_finite():
    y, p = np.zeros((6, 1)), np.array([[1.0], [np.inf], [2.0], [np.nan], [3.0], [4.0]])
    found = fastloss.evaluate("mean_absolute_error", y, p, group_by=[0, 0, 0, 1, 1, 2], top_k=3)
    assert (found.count, found.nonfinite, found.finite_value) == (6, 2, 2.5)
    assert math.isnan(found.value)
    assert math.isnan(found.standard_error)
    assert [group.value for group in found.groups.values()][::2] == [math.inf, 4.0]
    assert [worst.index for worst in found.worst] == [3, 1, 5]
    assert json.loads(found.to_json())["value"] == "NaN"
    assert "without those not finite: 2.5" in str(found)


def test_many_equal_losses_give_the_first_as_worst():
    p = np.zeros(3000)
    p[[5, 2000]] = np.inf
    p[2500] = np.nan
    found = fastloss.evaluate("mean_absolute_error", np.zeros(3000), p, top_k=5)
    assert [worst.index for worst in found.worst] == [2500, 5, 2000, 0, 1]


def test_forms_of_a_result(tmp_path):
    found = evaluated()
    assert json.loads(found.to_json(tmp_path / "e.json")) == json.loads((tmp_path / "e.json").read_text())
    assert found.to_dict()["groups"]["east"]["value"] == found.groups["east"].value
    rows = found.rows()
    assert [row["group"] for row in rows] == [None, "east", "north", "south"]
    text = str(found)
    for word in ("Huber", "east", "worst", "± error"):
        assert word in text
    sketch = found.groups["east"].sketch
    sketch.merge(found.groups["north"].sketch)
    assert sketch.count == found.groups["east"].count + found.groups["north"].count
    figure = found.plot(tmp_path / "e.png")
    assert (tmp_path / "e.png").stat().st_size > 5000
    assert len(figure.axes) == 2
    pandas = pytest.importorskip("pandas")
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["value"].tolist() == [row["value"] for row in rows]
    polars = pytest.importorskip("polars")
    assert found.to_polars().select(polars.col("count")).to_series().to_list() == [row["count"] for row in rows]


def test_every_loss_of_samples_and_no_other():
    rng = np.random.default_rng(0)
    for name in ("triplet_hard_loss", "triplet_semihard_loss", "lifted_struct_loss", "npairs_loss", "circle"):
        with pytest.raises(ValueError, match="cannot be evaluated in batches: the loss of a sample depends"):
            fastloss.evaluate(name, np.arange(4), rng.normal(size=(4, 2)))
    coupled = {name for name, row in BATCH_LOSSES.items() if row.cls.coupled}
    assert set(BATCH_LOSSES) - coupled == {"giou_loss", "ctc"}
    for loss in (losses.Dice(), losses.CosineSimilarity(axis=0), losses.BinaryCrossentropy(axis=None)):
        with pytest.raises(ValueError, match="takes the samples together"):
            fastloss.evaluate(loss, Y, P)
    dice = losses.Dice(axis=-1)
    y, p = np.abs(Y) / 9, np.abs(P) / 9
    assert fastloss.evaluate(dice, y, p).value == pytest.approx(dice(y, p), rel=1e-13)
    boxes = rng.random((50, 4))
    assert fastloss.evaluate("giou_loss", boxes, boxes[::-1]).value == pytest.approx(
        losses.GIoULoss()(boxes, boxes[::-1])
    )

    class OfBatch(losses.Loss):
        def call(self, y_true, y_pred):
            return np.mean(y_pred)

    with pytest.raises(ValueError, match="gave losses of shape"):
        fastloss.evaluate(OfBatch(), Y, P)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((Y, P[:-1]), {}, "lengths differ: `y_true` has 5000, `y_pred` has 4999"),
        ((Y, P, WEIGHT[:7]), {}, "`sample_weight` has 7"),
        ((Y[:0], P[:0]), {}, "no sample to evaluate"),
        ((iter([]), iter([])), {}, "no sample to evaluate"),
        ((iter([Y]), iter([P, P])), {}, "`y_pred` has 10000"),
        ((Y, P), {"batch_size": 0}, "`batch_size` must be at least 1"),
        ((Y, P), {"batch_size": "all"}, "`batch_size` must be"),
        ((Y, P), {"top_k": -1}, "`top_k`"),
        ((Y, P), {"n_threads": 0}, "`n_threads`"),
        ((Y, P), {"scheduler": "cluster"}, "`scheduler` must be an address"),
        ((Y, P, np.ones((SAMPLES, 2))), {}, "sample_weight"),
        ((Y, P), {"group_by": np.zeros((SAMPLES, 2))}, "`group_by` must have one label a sample"),
        ((Y, "nonsense.xyz"), {}, "there is no file"),
    ],
)
def test_bad_arguments(arguments, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        fastloss.evaluate("mse", *arguments, **options)


def test_bad_label_names_its_samples(monkeypatch):
    monkeypatch.setattr(blocks, "PIECE_SAMPLES", 10)
    y = np.zeros(40, int)
    y[27] = 9
    with pytest.raises(ValueError, match=r"y_true\[7\] is 9") as caught:
        fastloss.evaluate("sparse_categorical_crossentropy", y, np.full((40, 2), 0.5))
    assert caught.value.__notes__ == ["in samples 20 to 29, which the message counts from 0"]


def test_too_many_groups(monkeypatch):
    monkeypatch.setattr(partial, "MAX_GROUPS", 10)
    with pytest.raises(ValueError, match="at most 10 different groups"):
        fastloss.evaluate("mse", Y, P, group_by=np.arange(SAMPLES))


@pytest.mark.parametrize(
    "labels",
    [
        [3, 1, 3, 2],
        [10**12, -5, 10**12, 0],
        [True, False, True, False],
        ["b", "a", "b", ""],
        [b"b", b"a", b"b", b""],
        [1.5, float("nan"), 1.5, -0.25],
        [None, "x", "x", 3],
    ],
)
def test_labels_of_groups(labels):
    values = np.array([1.0, 2.0, 4.0, 8.0])
    given = np.array(labels, object) if None in labels else np.array(labels)
    found = fastloss.evaluate("mean_absolute_error", np.zeros(4), values, group_by=given)
    expected = {}
    for label, value in zip(labels, values, strict=True):
        label = label.decode() if isinstance(label, bytes) else None if label != label else label
        expected.setdefault(label, []).append(value)
    assert {label: group.value for label, group in found.groups.items()} == {k: np.mean(v) for k, v in expected.items()}


# Where data come from.


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The same data in every kind of file."""
    folder = tmp_path_factory.mktemp("data")
    np.save(folder / "y.npy", Y)
    np.save(folder / "p.npy", P)
    np.save(folder / "w.npy", WEIGHT)
    np.savez(folder / "plain.npz", y=Y, p=P, w=WEIGHT, g=GROUPS)
    np.savez_compressed(folder / "packed.npz", y=Y, p=P, w=WEIGHT, g=GROUPS)
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow_table(pa)
    pq.write_table(table, folder / "t.parquet", row_group_size=1300, write_page_checksum=True)
    (folder / "parts").mkdir()
    pq.write_table(table.slice(0, 3000), folder / "parts" / "a.parquet", row_group_size=900, write_page_checksum=True)
    pq.write_table(table.slice(3000), folder / "parts" / "b.parquet", write_page_checksum=True)
    with pa.ipc.new_file(folder / "t.arrow", table.schema) as file:
        file.write_table(table, 1000)
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    with h5py.File(folder / "d.h5", "w") as file:
        for name, array in {"y": Y, "deep/p": P, "w": WEIGHT}.items():
            file.create_dataset(name, data=array, chunks=(512, *array.shape[1:]), compression="gzip")
        file.create_dataset("g", data=GROUPS.astype("S5"))
    group = zarr.open_group(folder / "d.zarr", mode="w")
    for name, array in {"y": Y, "p": P, "w": WEIGHT}.items():
        group.create_array(name, data=array, chunks=(512, *array.shape[1:]))
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"y": Y, "p": P, "w": WEIGHT}, folder / "d.safetensors")
    return folder


def arrow_table(pa):
    lists = pa.FixedSizeListArray.from_arrays
    return pa.table(
        {
            "y": lists(pa.array(Y.ravel()), 3),
            "p": pa.array(P.tolist()),  # lists of any length, all 3
            "w": WEIGHT,
            "g": pa.array(GROUPS.tolist()).dictionary_encode(),
            "label": (Y[:, 0] > 0).astype(np.int8),
            "score": 1 / (1 + np.exp(-P[:, 0])),
            "hole": pa.array([None, *WEIGHT[1:]]),
        }
    )


SOURCES = {
    "npy": lambda d: ({}, (d / "y.npy", d / "p.npy", d / "w.npy", GROUPS.tolist())),
    "memmap": lambda d: ({}, (np.load(d / "y.npy", "r"), np.load(d / "p.npy", "r"), WEIGHT, GROUPS.astype(object))),
    "npz": lambda d: ({"data": d / "plain.npz"}, ("y", "p", "w", "g")),
    "npz packed": lambda d: ({"data": d / "packed.npz"}, ("y", "p", "w", "g")),
    "parquet": lambda d: ({"data": d / "t.parquet"}, ("y", "p", "w", "g")),
    "parquet folder": lambda d: ({"data": d / "parts"}, ("y", "p", "w", "g")),
    "arrow file": lambda d: ({"data": d / "t.arrow"}, ("y", "p", "w", "g")),
    "hdf5": lambda d: ({"data": d / "d.h5"}, ("y", "deep/p", "w", f"{d / 'd.h5'}::g")),
    "zarr": lambda d: ({"data": d / "d.zarr"}, ("y", "p", "w", GROUPS)),
    "safetensors": lambda d: ({"data": d / "d.safetensors"}, ("y", "p", "w", GROUPS)),
    "mixed": lambda d: ({}, (f"{d / 'd.h5'}::y", f"{d / 't.parquet'}::p", f"{d / 'd.zarr'}::w", GROUPS)),
    "generators": lambda d: ({}, (pieces(Y, 300), pieces(P, 1111), WEIGHT, pieces(GROUPS, 2))),
    "mapping": lambda d: ({"data": {"y": Y, "p": P, "w": WEIGHT, "g": GROUPS}}, ("y", "p", "w", "g")),
    "tuples": lambda d: ({"data": [*batches(tuple)]}, (0, 1, 2, 3)),
    "dicts": lambda d: ({"data": batches(lambda b: dict(zip("ypwg", b, strict=True)))}, ("y", "p", "w", "g")),
    "table": lambda d: ({"data": arrow_table(pytest.importorskip("pyarrow"))}, ("y", "p", "w", "g")),
    "reader": lambda d: ({"data": arrow_table(pytest.importorskip("pyarrow")).to_reader(400)}, ("y", "p", "w", "g")),
}


def pieces(array, size):
    return (array[i : i + size] for i in range(0, len(array), size))


def batches(form):
    return (form([a[i : i + 450] for a in (Y, P, WEIGHT, GROUPS)]) for i in range(0, SAMPLES, 450))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", SOURCES)
def test_sources_give_the_same_bits(name, stored):
    options, (y, p, w, g) = SOURCES[name](stored)
    named = (w, g)
    if name == "hdf5":
        options = {}
        y, p, w = (f"{stored / 'd.h5'}::{key}" for key in (y, p, w))
        named = (w, g)
    elif name in ("zarr", "safetensors"):
        named = (w, GROUPS)
    found = fastloss.evaluate("huber", y, p, named[0], group_by=named[1], top_k=5, **options)
    expected = fastloss.evaluate("huber", Y, P, WEIGHT, group_by=GROUPS, top_k=5)
    assert everything(found) == everything(expected)


def test_frames(stored):
    expected = fastloss.evaluate("bce", (Y[:, 0] > 0).astype(np.int8), 1 / (1 + np.exp(-P[:, 0])), group_by=GROUPS)
    for library, read in (("pandas", "read_parquet"), ("polars", "read_parquet")):
        frame = getattr(pytest.importorskip(library), read)(stored / "t.parquet")
        found = fastloss.evaluate("bce", "label", "score", data=frame, group_by="g")
        assert everything(found) == everything(expected)


def test_half_precision_tensors(tmp_path):
    numpy, dtypes = pytest.importorskip("safetensors.numpy"), pytest.importorskip("ml_dtypes")
    logits = np.random.default_rng(0).normal(size=(900, 5)).astype(dtypes.bfloat16)
    numpy.save_file({"logits": logits}, tmp_path / "l.safetensors")
    labels = np.arange(900) % 5
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    found = fastloss.evaluate(loss, labels, tmp_path / "l.safetensors")
    assert found.value == pytest.approx(softmax_losses(labels, logits).mean(), rel=1e-6)


def test_partitions_of_folders_are_columns(tmp_path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    pq.write_to_dataset(pa.table({"y": Y[:, 0], "p": P[:, 0], "g": GROUPS.tolist()}), tmp_path, partition_cols=["g"])
    found = fastloss.evaluate("mae", "y", "p", data=tmp_path, group_by="g")
    expected = fastloss.evaluate("mae", Y[:, 0], P[:, 0], group_by=GROUPS)
    assert [group.count for group in found.groups.values()] == [group.count for group in expected.groups.values()]
    assert found.value == pytest.approx(expected.value, rel=1e-14)


def test_errors_of_files_name_file_row_group_and_column(stored, tmp_path):
    def error(*arguments, **options):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            fastloss.evaluate("mae", *arguments, **options)
        return str(caught.value)

    def damaged(name, change, source=None):
        content = bytearray((stored / (source or name)).read_bytes())
        (tmp_path / name).write_bytes(change(content))
        return tmp_path / name

    def flipped(content):
        place = len(content) * 4 // 7  # amid the targets or predictions of every file
        content[place : place + 64] = bytes(64)
        return content

    assert "has no 'x'; there is y, p, w, g" in error("x", "p", data=stored / "t.parquet")
    assert "has no 'x'" in error("x", "p", data=stored / "plain.npz")
    assert "has no 'x'" in error("x", "p", data=stored / "d.h5")
    assert "::NAME" in error(stored / "t.parquet", P)
    assert "hole" in error("y", "hole", data=stored / "t.parquet")
    assert "missing values" in error("hole", "hole", data=stored / "t.parquet")
    message = error("y", "p", data=damaged("t.parquet", flipped))
    assert "row group" in message
    assert "t.parquet" in message
    assert "column" in message
    assert "t.parquet" in error("w", "score", data=damaged("t.parquet", lambda content: content[:-500]))
    (tmp_path / "parts").mkdir()
    for part in ("a.parquet", "b.parquet"):
        damaged(f"parts/{part}", flipped if part == "b.parquet" else bytes)
    assert "row group 0 of" in (message := error("y", "p", data=tmp_path / "parts"))
    assert "b.parquet" in message
    assert "p.npy" in error(stored / "y.npy", damaged("p.npy", lambda content: content[:-100]))
    assert "packed.npz" in (message := error("y", "p", data=damaged("packed.npz", flipped)))
    assert "cannot read" in message
    assert "d.safetensors" in error("y", "p", data=damaged("d.safetensors", lambda content: content[:-100]))
    message = error(f"{damaged('d.h5', flipped)}::y", f"{tmp_path / 'd.h5'}::deep/p")
    assert "d.h5" in message
    assert "t.arrow" in error("y", "p", data=damaged("t.arrow", lambda content: content[: len(content) // 2]))


# Going on after a kill.

PROGRAM = """
import sys, time
import numpy as np
import fastloss
from fastloss.evaluation import blocks, checkpoint
blocks.BLOCK_ELEMENTS, checkpoint.EVERY = 100, 0.0
folder, pause = sys.argv[1], float(sys.argv[2])
found = fastloss.evaluate("hinge", f"{folder}/y.npy", f"{folder}/p.npy", group_by=np.arange(6000) % 7, top_k=4,
    checkpoint=f"{folder}/state", batch_size=100, progress=lambda done, total: time.sleep(pause))
print(found.to_json())
"""


def test_a_killed_evaluation_goes_on_to_the_same_result(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "y.npy", rng.integers(0, 2, 6000).astype(np.float64))
    np.save(tmp_path / "p.npy", rng.normal(size=6000))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(pause):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(pause)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def done():
        with np.load(tmp_path / "state") as arrays:
            return json.loads(str(arrays["about"]))["states"][0][0]["samples"]

    reached = [0]
    for _ in range(3):
        process = start(0.05)
        while not (tmp_path / "state").exists() or done() < reached[-1] + 400:
            assert process.poll() is None
            time.sleep(0.01 * rng.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        reached.append(done())
    assert reached == sorted(set(reached))
    assert reached[-1] < 6000
    resumed = start(0).communicate()[0]
    again = start(0).communicate()[0]
    (tmp_path / "state").unlink()
    assert resumed == again == start(0).communicate()[0]
    assert not [file for file in os.listdir(tmp_path) if file.startswith(".state")]


@pytest.mark.usefixtures("small_blocks")
def test_checkpoints_of_streams_and_of_other_evaluations(tmp_path, monkeypatch):
    monkeypatch.setattr(fastloss.evaluation.checkpoint, "EVERY", 0.0)
    path = tmp_path / "state"

    class StopError(Exception):
        pass

    def stop(done, total):
        if done >= 2000:
            raise StopError

    def stream():
        return {"group_by": pieces(GROUPS, 100), "top_k": 3}

    expected = everything(fastloss.evaluate("huber", Y, P, **stream()))
    with pytest.raises(StopError):
        fastloss.evaluate(
            "huber", pieces(Y, 9), pieces(P, 70), checkpoint=path, batch_size=700, progress=stop, **stream()
        )
    assert path.exists()
    found = fastloss.evaluate("huber", pieces(Y, 9), pieces(P, 70), checkpoint=path, **stream())
    assert everything(found) == expected
    with pytest.raises(ValueError, match="that of another evaluation: its loss was"):
        fastloss.evaluate("mae", pieces(Y, 9), pieces(P, 70), checkpoint=path, **stream())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is no checkpoint"):
        fastloss.evaluate("huber", pieces(Y, 9), pieces(P, 70), checkpoint=path, **stream())
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        fastloss.evaluate("huber", Y, P, checkpoint=tmp_path / "none" / "state")


# On a cluster.


@pytest.mark.usefixtures("small_blocks")
def test_dask_collections():
    pytest.importorskip("dask")
    da, dd = pytest.importorskip("dask.array"), pytest.importorskip("dask.dataframe")
    pandas = pytest.importorskip("pandas")
    y, p, w = (da.from_array(array, chunks=1000) for array in (Y, P, WEIGHT))
    expected = evaluated()
    options = {"mask": MASK, "group_by": GROUPS, "top_k": 5}
    told = []
    found = fastloss.evaluate("huber", y, p, w, progress=lambda *done: told.append(done), **options)
    assert sorted(told) == told == [(1000 * k, SAMPLES) for k in range(1, 6)]
    assert everything(found) == everything(fastloss.evaluate("huber", y, p, w, scheduler="synchronous", **options))
    assert found.worst == expected.worst
    assert found.quantile([0.1, 0.9]) == expected.quantile([0.1, 0.9])
    assert found.value == pytest.approx(expected.value, rel=1e-14)
    assert found.groups["east"].standard_error == pytest.approx(expected.groups["east"].standard_error, rel=1e-12)
    frame = dd.from_pandas(pandas.DataFrame({"y": Y[:, 0], "p": P[:, 0], "g": GROUPS}), npartitions=4)
    found = fastloss.evaluate("mae", "y", "p", data=frame, group_by="g", top_k=2)
    expected = fastloss.evaluate("mae", Y[:, 0], P[:, 0], group_by=GROUPS, top_k=2)
    assert found.worst == expected.worst
    assert [group.count for group in found.groups.values()] == [group.count for group in expected.groups.values()]
    chosen = frame[frame["y"] > 0]  # partitions of unknown length
    assert fastloss.evaluate("mae", chosen["y"], chosen["p"]).count == (Y[:, 0] > 0).sum()
    with pytest.raises(ValueError, match="lengths differ"):
        fastloss.evaluate("huber", y, p[:-5])
    with pytest.raises(ValueError, match="has no 'x'"):
        fastloss.evaluate("mae", "x", "p", data=frame)
    with pytest.raises(ValueError, match="known lengths"):
        fastloss.evaluate("mae", chosen["y"], P[:, 0])


DASK_PROGRAM = """
import sys, time
import dask.array as da
import numpy as np
import fastloss
folder, pause = sys.argv[1], float(sys.argv[2])
y, p = (da.from_array(np.load(f"{folder}/{name}.npy"), chunks=(50, 3)) for name in "yp")
slow = p.map_blocks(lambda part: time.sleep(pause) or part, dtype=p.dtype)
found = fastloss.evaluate("huber", y, slow, top_k=4, scheduler="threads", checkpoint=f"{folder}/dask")
print(found.to_json())
"""


def test_a_killed_evaluation_with_dask_goes_on_to_the_same_result(tmp_path):
    da = pytest.importorskip("dask.array")
    for name, array in (("y", Y), ("p", P)):
        np.save(tmp_path / f"{name}.npy", array)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(pause):
        command = [sys.executable, "-c", DASK_PROGRAM, str(tmp_path), str(pause)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    process = start(0.1)
    while not (tmp_path / "dask").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with np.load(tmp_path / "dask") as arrays:
        about = json.loads(str(arrays["about"]))
    assert not about["finished"]
    assert 0 < len(about["states"]) < 13
    resumed = start(0).communicate()[0]
    y, p = (da.from_array(array, chunks=(50, 3)) for array in (Y, P))
    assert resumed.strip() == fastloss.evaluate("huber", y, p, top_k=4, scheduler="threads").to_json()
    with pytest.raises(ValueError, match="that of another evaluation: its loss"):
        fastloss.evaluate("mae", y, p, checkpoint=tmp_path / "dask", top_k=4)


def test_a_cluster_of_processes_loses_a_worker(stored):
    distributed = pytest.importorskip("distributed")
    da = pytest.importorskip("dask.array")
    y, p = (da.from_array(array, chunks=250) for array in (Y, P))
    expected = everything(fastloss.evaluate("huber", y, p, top_k=3, scheduler="synchronous"))
    import threading

    def slowly(part):  # in here it travels to the workers by value; they cannot import the tests
        time.sleep(0.15)
        return part

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        victim = next(iter(client.run(os.getpid).values()))
        killed = threading.Timer(0.6, os.kill, (victim, signal.SIGKILL))
        killed.start()
        told = []
        slow = p.map_blocks(slowly, dtype=p.dtype)
        found = fastloss.evaluate("huber", y, slow, top_k=3, progress=lambda *done: told.append(done))
        assert killed.finished.is_set()
        assert told == [(250 * k, SAMPLES) for k in range(1, 21)]
        assert everything(found) == expected
        assert victim not in client.run(os.getpid).values()
        address = cluster.scheduler_address
        files = fastloss.evaluate("huber", "y", "p", "w", data=stored / "t.parquet", group_by="g", scheduler=address)
        local = fastloss.evaluate("huber", "y", "p", "w", data=stored / "t.parquet", group_by="g")
        assert files.value == pytest.approx(local.value, rel=1e-14)
        assert list(files.groups) == list(local.groups)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cells_are_those_of_the_library(dtype):
    from ddsketch.mapping import LinearlyInterpolatedMapping

    from fastloss.engine import sketch

    mapping = LinearlyInterpolatedMapping(partial.ACCURACY)
    rng = np.random.default_rng(0)
    values = (rng.normal(size=4099) * 10.0 ** rng.uniform(-12, 12, 4099)).astype(dtype)
    expected = {}
    for value in values.tolist():
        cell = int(math.copysign(mapping.key(abs(value)) + sketch.OFFSET, value))
        expected[cell] = expected.get(cell, 0) + 1
    values = np.concatenate([values, np.array([0.0, -0.0, np.finfo(dtype).tiny / 4], dtype)])
    expected[0] = 3
    for _ in range(2):  # a table is empty again after its use
        counts, figures = sketch.Counts(values.dtype), np.empty(4)
        counts.add(values, figures)
        cells, numbers = counts.take(*figures[2:].tolist())
        assert dict(zip(cells.tolist(), numbers.tolist(), strict=True)) == expected
        assert (np.diff(cells) > 0).all()
    wide = values.astype(np.float64)
    assert figures[0] == pytest.approx(wide.sum(), rel=1e-12)
    assert figures[1] == pytest.approx(((wide - wide.mean()) ** 2).sum(), rel=1e-12)
    assert (figures[2], figures[3]) == (wide.min(), wide.max())


def test_what_travels_to_workers_is_small():
    scheme = blocks.Scheme.of("huber", 5, None, False)
    state = scheme.summarise(np.tile(Y, (20, 1)), np.tile(P, (20, 1)))
    assert len(pickle.dumps(state)) < 50_000
    assert len(pickle.dumps(scheme)) < 2000


# From a shell.


def command(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"}
    line = [sys.executable, "-m", "fastloss.cli", *map(str, arguments)]
    return subprocess.run(line, env=environment, capture_output=True, encoding="utf-8", timeout=120, **options)


def in_process(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["fastloss", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0, *capsys.readouterr()


def test_command_of_files(stored):
    done = command(
        "eval", "--loss", "huber", "--set", "delta=2", "--y-true", stored / "y.npy", "--y-pred", stored / "p.npy"
    )
    assert (done.returncode, done.stderr) == (0, "")  # no bar in a pipe
    assert f"{losses.Huber(2.0)(Y, P):.6g}" in done.stdout


def test_command_of_a_table(stored, tmp_path, monkeypatch, capsys):
    options = ("--y-true", "label", "--y-pred", "score", "--group-by", "g", "--top", 20)
    places = ("--plot", tmp_path / "out.png", "--json", tmp_path / "out.json", "--scheduler", "threads")
    done = in_process(
        monkeypatch, capsys, "eval", stored / "t.parquet", "--loss", "binary_crossentropy", *options, *places
    )
    assert done[::2] == (0, "")
    assert "north" in done[1]
    found = json.loads((tmp_path / "out.json").read_text())
    assert [group["group"] for group in found["groups"]] == ["east", "north", "south"]
    assert len(found["worst"]) == 20
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    done = in_process(monkeypatch, capsys, "eval", stored / "t.parquet", "--loss", "bce", *options, "--json", "-")
    assert json.loads(done[1])["value"] == pytest.approx(found["value"], rel=1e-14)


def test_a_bar_on_a_terminal(stored):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    line = [sys.executable, "-c", "import sys; from fastloss.cli import main; main()", "eval", "--loss", "mse"]
    line += ["--y-true", str(stored / "y.npy"), "--y-pred", str(stored / "p.npy")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, stderr=theirs, timeout=120)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode(errors="replace")
    os.close(ours)
    assert done.returncode == 0
    assert "%" in shown
    assert b"\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["--loss", "hubert", "--y-true", "label", "--y-pred", "score"], 2, ["--loss", "did you mean 'huber'"]),
        (["--loss", "huber", "--set", "delt=2", "--y-true", "label", "--y-pred", "score"], 2, ["'delt'", "delta"]),
        (["--loss", "huber", "--set", "delta", "--y-true", "label", "--y-pred", "score"], 2, ["--set", "delta=2"]),
        (
            ["--loss", "huber", "--set", "delta=-1", "--y-true", "label", "--y-pred", "score"],
            2,
            ["must not be negative"],
        ),
        (["--loss", "huber", "--y-pred", "score"], 2, ["--y-true", "must be given"]),
        (["--loss", "huber", "--y-true", "x", "--y-pred", "score"], 1, ["fastloss: error: ", "t.parquet has no 'x'"]),
        (["--loss", "circle", "--y-true", "label", "--y-pred", "score"], 1, ["cannot be evaluated in batches"]),
        (["--loss", "mse", "--y-true", "w", "--y-pred", "w", "--json", "/no/where"], 1, ["there is no folder /no"]),
    ],
)
def test_command_line_mistakes(monkeypatch, capsys, stored, arguments, code, parts):
    done = in_process(monkeypatch, capsys, "eval", stored / "t.parquet", *arguments)
    assert done[:2] == (code, "")
    for part in parts:
        assert part in done[2]


def test_command_losses(monkeypatch, capsys):
    code, out, _ = in_process(monkeypatch, capsys, "losses")
    assert code == 0
    for name, row in {**LOSSES, **BATCH_LOSSES}.items():
        name = name if row.function else row.cls.__name__
        assert f"\n{name} " in f"\n{out}" or f"\n{name}\n" in out
    for name in ("weighted_kappa_loss", "WeightedKappaLoss"):
        assert "kappa" in in_process(monkeypatch, capsys, "losses", name)[1]
    assert "delta=1.0" in out
    assert "Huber loss" in in_process(monkeypatch, capsys, "losses", "huber")[1]
    assert in_process(monkeypatch, capsys, "losses", "hubert")[0] == 2


def test_command_doctor(monkeypatch, capsys):
    code, out, _ = in_process(monkeypatch, capsys, "doctor")
    assert code == 0
    for part in (fastloss.__version__, np.__version__, "threading layer", "features", "cache", "cuda", "cores"):
        assert part in out
    monkeypatch.setattr(fastloss.losses.Huber, "value_and_grad", lambda *_: (1.0, np.zeros(1)))
    code, out, _ = in_process(monkeypatch, capsys, "doctor")
    assert code == 1
    assert "FAILED" in out
