"""`fastloss.keras` against Keras's own losses, trained and evaluated alike, on the backend that KERAS_BACKEND names.

That is JAX by default; a test runs this file again, in processes of their own, on PyTorch and TensorFlow.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

keras = pytest.importorskip("keras", reason="Keras is not installed: nothing to adapt to")

import data  # noqa: E402
import fastloss.keras  # noqa: E402
from fastloss.registry import BATCH_LOSSES, LOSSES  # noqa: E402

# Keras makes arrays of PyTorch's tensors and of its own variables in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

BACKEND = keras.backend.backend()
OURS = fastloss.keras.wrap("sparse_categorical_crossentropy", from_logits=True)
THEIRS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(autouse=True)
def called_back(monkeypatch):
    """On JAX without handlers, which take seconds to compile, each of them: test_jax.py has those."""
    if BACKEND == "jax":
        monkeypatch.setattr(fastloss.jax, "_target", lambda *arguments: None)


def as_arrays(tree):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tree)


def gradient(function, p):
    """Value and gradient as the backend computes them."""
    if BACKEND == "jax":
        import jax

        with jax.enable_x64(p.dtype == np.float64):
            return as_arrays(jax.value_and_grad(function)(p))
    if BACKEND == "torch":
        import torch

        tensor = torch.tensor(p, requires_grad=True)
        value = function(tensor)
        return as_arrays([value.detach(), *torch.autograd.grad(value, tensor)])
    import tensorflow as tf

    tensor = tf.Variable(p)
    with tf.GradientTape() as tape:
        value = tf.function(function)(tensor)
    return as_arrays([value, tape.gradient(value, tensor)])


# The other batch losses, which compile for seconds, take the same way; test_jax.py and test_torch.py have them all.
ROWS = [*LOSSES.values(), BATCH_LOSSES["giou_loss"], BATCH_LOSSES["npairs_loss"]]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_every_loss_has_its_value_and_gradient(row):
    options = row.variants[0]
    if row.name in BATCH_LOSSES:
        y, p = data.batch_inputs(row, options, 4)
    else:
        y, p = data.inputs(row, options, (4, 3))
    loss = row.cls(**{**options, "reduction": "sum_over_batch_size"})
    value, grad = gradient(lambda p: fastloss.keras.wrap(loss)(y, p), p)
    expected = loss.value_and_grad(y, p)
    np.testing.assert_allclose(value, expected[0], rtol=1e-14)
    np.testing.assert_allclose(grad, expected[1], rtol=1e-14)


@pytest.mark.parametrize("reduction", ["sum", "none", "mean_with_sample_weight"])
def test_reductions_weights_and_masks_are_those_of_keras(reduction):
    y, p = np.array([[0, 1], [2, 1], [0, 2]]), data.rng().normal(size=(3, 2, 4)).astype("float32")
    weight, mask = (
        np.array([[1.0, 1.0], [0.5, 0.7], [2.0, 0.0]], "float32"),
        np.array([[True, True], [True, False], [False, True]]),
    )
    flow = np.arange(6, dtype="float32").reshape(3, 2) if reduction == "none" else np.float32(2)
    results = []
    for loss in (
        fastloss.keras.wrap("sparse_categorical_crossentropy", from_logits=True, reduction=reduction),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction),
    ):

        def function(p, loss=loss):
            keras.src.backend.set_keras_mask(p, keras.ops.convert_to_tensor(mask))
            return keras.ops.sum(
                keras.ops.convert_to_tensor(flow)
                * loss(keras.ops.convert_to_tensor(y), p, keras.ops.convert_to_tensor(weight))
            )

        results.append((*gradient(function, p), as_arrays(loss.call(keras.ops.convert_to_tensor(y), p))))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


# --------------------------------------------------------------------------------------------------------------
# Models
# --------------------------------------------------------------------------------------------------------------


class Pull(keras.layers.Layer):
    """Adds a loss of its input."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def call(self, x):
        self.add_loss(0.1 * self.loss(keras.ops.zeros_like(x), x))
        return x


def one_output(loss):
    inputs = keras.Input((6,))
    return keras.Model(inputs, keras.layers.Dense(4)(inputs)), loss


def beside_add_loss(loss):
    inputs = keras.Input((6,))
    mse = fastloss.keras.wrap("mse") if loss is OURS else keras.losses.MeanSquaredError()
    x = Pull(mse)(keras.layers.Dense(5, activity_regularizer="l2")(inputs))
    return keras.Model(inputs, keras.layers.Dense(4)(x)), loss


def two_outputs(loss):
    inputs = keras.Input((6,))
    outputs = {"a": keras.layers.Dense(4, name="a")(inputs), "b": keras.layers.Dense(4, name="b")(inputs)}
    other = fastloss.keras.wrap("huber", delta=0.5) if loss is OURS else keras.losses.Huber(0.5)
    return keras.Model(inputs, outputs), {"a": loss, "b": other}


def masked(loss):
    inputs = keras.Input((6,), dtype="int32")
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Embedding(9, 3, mask_zero=True)(inputs))), loss


def half(loss):
    inputs = keras.Input((6,))
    return keras.Model(inputs, keras.layers.Dense(4, dtype="mixed_bfloat16")(inputs)), loss


N = 32
X = data.rng(1).normal(size=(N, 6)).astype("float32")
Y = data.rng(2).integers(0, 4, N)
WORDS = data.rng(3).integers(0, 9, (N, 6))
TAGS = data.rng(4).integers(0, 4, (N, 6))
WEIGHT = data.rng(5).random(N).astype("float32")
BOTH = {"a": Y, "b": data.rng(6).normal(size=(N, 4)).astype("float32")}

SCENARIOS = {
    "sample weights": (one_output, X, Y, {}, {"sample_weight": WEIGHT}, 1e-5),
    "class weights": (one_output, X, Y, {}, {"class_weight": {0: 2.0, 3: 0.5}}, 1e-5),
    "add_loss": (beside_add_loss, X, Y, {}, {}, 1e-5),
    "several outputs": (two_outputs, X, BOTH, {"loss_weights": {"a": 0.3, "b": 2.0}}, {}, 1e-5),
    "masks": (masked, WORDS, TAGS, {}, {}, 1e-5),
    "mixed precision": (half, X, Y, {}, {}, 2e-2),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_training_is_that_of_keras_own_loss(name):
    build, x, y, compiling, fitting, tolerance = SCENARIOS[name]
    found = []
    for loss in (OURS, THEIRS):
        keras.utils.set_random_seed(0)
        model, chosen = build(loss)
        model.compile(keras.optimizers.SGD(0.1), loss=chosen, **compiling)
        found.append(model.fit(x, y, batch_size=8, epochs=3, verbose=0, **fitting).history)
    assert found[0]["loss"][-1] < found[0]["loss"][0]
    assert set(found[0]) == set(found[1])
    for key, values in found[0].items():
        np.testing.assert_allclose(values, found[1][key], rtol=tolerance, err_msg=key)


def test_digits():
    """The same losses as with Keras's own, epoch by epoch, in training, validation, evaluation and single batches."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    found = []
    for loss in (OURS, THEIRS):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])
        model.compile(keras.optimizers.Adam(0.01), loss=loss, metrics=["accuracy"])
        history = model.fit(x, y, batch_size=64, epochs=4, verbose=0, validation_split=0.2).history
        batches = [model.train_on_batch(x[:50], y[:50])[0] for _ in range(2)]
        found.append([*history["loss"], *history["val_loss"], *batches, model.evaluate(x, y, verbose=0)[0]])
        assert history["accuracy"][-1] > 0.9
    np.testing.assert_allclose(*found, atol=1e-4)


def test_a_model_is_saved_and_loaded(tmp_path):
    keras.utils.set_random_seed(0)
    model, loss = one_output(fastloss.keras.wrap("sparse_categorical_crossentropy", from_logits=True, reduction="sum"))
    model.compile("sgd", loss=loss)
    before = model.evaluate(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.loss) is fastloss.keras.FusedLoss
    assert loaded.loss.loss.get_config() == loss.loss.get_config()
    assert loaded.evaluate(X, Y, verbose=0) == pytest.approx(before, rel=1e-6)
    assert loaded.train_on_batch(X, Y) == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in (*LOSSES.values(), *BATCH_LOSSES.values())])
def test_configs(row):
    loss = fastloss.keras.wrap(row.cls(**row.variants[-1]))
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.loss.get_config() == loss.loss.get_config()
    assert (again.name, again.reduction) == (loss.name, loss.reduction)
    assert isinstance(again, keras.losses.Loss)


def test_a_backend_without_gradients(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "numpy")
    fastloss.keras._way.cache_clear()
    with pytest.raises(
        NotImplementedError, match="works with the backends torch, jax, tensorflow, and Keras runs on numpy"
    ):
        OURS(Y, X)
    fastloss.keras._way.cache_clear()


@pytest.mark.skipif(BACKEND != "jax", reason="this is that other process")
@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
def test_on_another_backend(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*command, "-k", "not every_loss and not configs"],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
