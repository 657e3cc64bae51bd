"""Deliberate differences from Keras and TensorFlow Addons that no other file shows: what we do, and what Keras does.

``docs/differences.md`` has a line for each, and for those of ``DIFFERENCES`` in ``test_keras_parity.py``. What Keras
does is asserted too: where it changes, the line has to.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from fastloss import losses
from reference import assert_close

ONE = np.ones((1, 1), np.float32)


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    pytest.importorskip("jax", reason="JAX is not installed: no autodiff to compare with")
    keras = pytest.importorskip("keras", reason="Keras is not installed: nothing to compare with")
    if keras.backend.backend() != "jax":
        pytest.skip(f"Keras runs on {keras.backend.backend()}, not on JAX: KERAS_BACKEND=jax enables these tests")
    return keras


def slope(loss, y_true, y_pred):
    """Keras's gradient."""
    import jax

    return np.asarray(jax.grad(lambda p: loss(y_true, p))(jax.numpy.asarray(y_pred)))


# --------------------------------------------------------------------------------------------------------------
# Values
# --------------------------------------------------------------------------------------------------------------


def test_alpha_of_tversky_weighs_false_positives(keras):
    y_true, y_pred = np.array([[1.0, 0.0, 0.0]]), np.array([[0.5, 0.2, 0.1]])
    hit, false_positive, false_negative = 0.5, 0.3, 0.5
    want = 1 - hit / (hit + 0.1 * false_positive + 0.9 * false_negative)
    assert_close(losses.Tversky(alpha=0.1, beta=0.9)(y_true, y_pred), want, rtol=1e-6)
    if keras.__version__.startswith("3.15."):
        assert_close(keras.losses.Tversky(alpha=0.9, beta=0.1)(y_true, y_pred), want, rtol=1e-5)


def test_focal_crossentropy_of_wrong_logits_goes_on(keras):
    logit = np.float32([[-40.0]])
    value, gradient = losses.BinaryFocalCrossentropy(from_logits=True).value_and_grad(ONE, logit)
    assert_close(value, 40.0, rtol=1e-6)
    assert_close(gradient, [[-1.0]], rtol=1e-6)
    theirs = keras.losses.BinaryFocalCrossentropy(from_logits=True)
    assert_close(theirs(ONE, logit), 16.118095, rtol=1e-6)
    assert_close(slope(theirs, ONE, logit), [[0.0]])


def test_generalized_crossentropy_of_a_column_of_labels(keras):
    labels, y_pred = np.array([[0], [1]]), np.float32([[0.5, 0.5], [0.2, 0.8]])
    want = (1 - np.sqrt([0.5, 0.8])) / 0.5
    assert_close(losses.categorical_generalized_cross_entropy(labels, y_pred, 0.5), want, rtol=1e-6)
    theirs = np.asarray(keras.losses.categorical_generalized_cross_entropy(labels, y_pred, 0.5))
    assert theirs.shape == (2, 2)
    assert_close(np.diag(theirs), want, rtol=1e-5)


def test_cosine_similarity_of_a_column_of_targets(keras):
    """(2, 1) targets are (2, 2) ones with equal columns."""
    y_true, y_pred = np.array([[1.0], [2.0]]), np.array([[1.0, 2.0], [3.0, 1.0]])
    wide = np.repeat(y_true, 2, axis=1)
    got = losses.cosine_similarity(y_true, y_pred)
    assert_close(got, losses.cosine_similarity(wide, y_pred))
    assert_close(got, keras.losses.cosine_similarity(wide, y_pred), rtol=1e-5)
    assert np.asarray(keras.losses.cosine_similarity(y_true, y_pred)).min() < -1.2, "a cosine beyond 1"


def test_sets_of_unequal_shapes(keras):
    y_true, y_pred = np.array([[1.0], [0.0]]), np.array([[0.5, 0.5], [0.2, 0.8]])
    for name in ("Dice", "Tversky"):
        loss = getattr(losses, name)()
        for call in (loss, loss.value_and_grad, getattr(losses, name.lower())):
            with pytest.raises(ValueError, match=r"must have the same shape.*\(2, 1\).*\(2, 2\)"):
                call(y_true, y_pred)
    wide = np.repeat(y_true, 2, axis=1)
    assert abs(float(keras.losses.Dice()(y_true, y_pred)) - float(keras.losses.Dice()(wide, y_pred))) > 0.05


def test_labels_longer_than_their_frames(keras):
    """Two equal labels need a blank between them: three frames, not two."""
    labels, logits = np.array([[1, 1]]), np.zeros((1, 2, 3), np.float32)
    value, gradient = losses.CTC().value_and_grad(labels, logits)
    assert value == np.inf
    np.testing.assert_array_equal(gradient, 0)
    assert losses.CTC(zero_infinity=True)(labels, logits) == 0
    assert 1e5 <= np.asarray(keras.losses.CTC()(labels, logits)) < 1.1e5, "a penalty in place of infinity"


def test_triplets_without_a_positive_pair():
    """Addons divides 0 by 0."""
    value, gradient = losses.TripletSemiHardLoss().value_and_grad([0, 1, 2], np.eye(3))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0]], ids=["no positives", "no negatives"])
def test_lifted_structure_without_pairs(labels):
    """Addons divides 0 by 0, and takes the logarithm of an empty sum."""
    value, gradient = losses.LiftedStructLoss().value_and_grad(labels, np.eye(3))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


# --------------------------------------------------------------------------------------------------------------
# Gradients
# --------------------------------------------------------------------------------------------------------------


def test_a_hinge_that_is_just_met_has_no_slope(keras):
    assert_close(losses.Hinge().value_and_grad(ONE, ONE)[1], [[0.0]])
    assert_close(slope(keras.losses.Hinge(), ONE, ONE), [[-0.5]])


def test_the_first_of_equal_maxima_has_the_gradient(keras):
    y_true, y_pred = np.float32([[0, 1, 0]]), np.float32([[2, 0, 2]])
    assert_close(losses.CategoricalHinge().value_and_grad(y_true, y_pred)[1], [[1.0, -1.0, 0.0]])
    assert_close(slope(keras.losses.CategoricalHinge(), y_true, y_pred), [[0.5, -1.0, 0.5]])


@pytest.mark.parametrize("logits", [False, True], ids=["probabilities", "logits"])
def test_a_focal_power_below_one_of_nothing_has_a_slope(logits, keras):
    """The derivative of (1 - p)^γ at p = 1 is infinite, its product with log p = 0 tends to 0."""
    y_pred = np.float32([[100.0 if logits else 1.0]])
    options = {"gamma": 0.5, "from_logits": logits}
    assert_close(losses.BinaryFocalCrossentropy(**options).value_and_grad(ONE, y_pred)[1], [[0.0]])
    assert np.isnan(slope(keras.losses.BinaryFocalCrossentropy(**options), ONE, y_pred)).all()


# --------------------------------------------------------------------------------------------------------------
# What is refused, and what is not
# --------------------------------------------------------------------------------------------------------------


def test_masked_arrays_are_refused(keras):
    y_pred = np.ma.masked_array(np.float32([[1.0], [3.0]]), mask=[[False], [True]])
    zeros = np.zeros((2, 1), np.float32)
    with pytest.raises((TypeError, ValueError), match=r"y_pred.*mask"):
        losses.MeanSquaredError()(zeros, y_pred)
    assert_close(keras.losses.MeanSquaredError()(zeros, y_pred), 5.0)  # the mask is forgotten


def test_class_weights_of_multi_hot_rows(keras):
    from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights

    rows = np.float32([[1, 1, 0], [0, 1, 1]])
    with pytest.raises(ValueError, match="class_weight"):
        losses.CategoricalCrossentropy()(rows, np.full((2, 3), 0.3), class_weight={0: 0.5})
    assert_close(class_weight_to_sample_weights(rows, {0: 0.5}), [0.5, 1.0])  # that of the first class


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("BinaryCrossentropy", "label_smoothing", 2.0),
        ("Huber", "delta", -1.0),
        ("BinaryFocalCrossentropy", "gamma", -1.0),
    ],
)
def test_options_that_make_no_sense(name, option, value, keras):
    with pytest.raises(ValueError, match=option):
        getattr(losses, name)(**{option: value})
    assert np.isfinite(getattr(keras.losses, name)(**{option: value})(ONE, ONE / 2))


def test_options_are_read_only(keras):
    ours, theirs = losses.BinaryCrossentropy(), keras.losses.BinaryCrossentropy()
    with pytest.raises(AttributeError, match="from_logits"):
        ours.from_logits = True
    before = np.asarray(theirs(ONE, ONE / 2))
    theirs.from_logits = True
    assert np.asarray(theirs(ONE, ONE / 2)) == before, "accepted, and without effect"


def test_halves_compute_in_float32(keras):
    """300² is more than float16 holds."""
    y_true, y_pred = np.zeros((1, 4), np.float16), np.full((1, 4), 300, np.float16)
    y_pred[0, 1:] = 0
    value, gradient = losses.MeanSquaredError(dtype="float16").value_and_grad(y_true, y_pred)
    assert value.dtype == gradient.dtype == np.float16
    assert_close(value.astype(float), 22_500.0, rtol=1e-3)
    assert np.isinf(np.asarray(keras.losses.MeanSquaredError(dtype="float16")(y_true, y_pred)))


def test_masks_and_class_weights_are_arguments(keras):
    """In Keras a mask comes with the predictions, and class weights come with ``fit``."""
    y_true, y_pred = np.array([0, 1, 1]), np.float32([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]])
    call = {"mask": [True, True, False], "class_weight": {1: 2.0}}
    got = losses.SparseCategoricalCrossentropy()(y_true, y_pred, **call)
    assert_close(got, -(np.log(0.7) + 2 * np.log(0.6)) / 2, rtol=1e-6)
    for argument, given in call.items():
        with pytest.raises(TypeError, match=argument):
            keras.losses.SparseCategoricalCrossentropy()(y_true, y_pred, **{argument: given})
