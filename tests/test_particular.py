"""What is particular to single losses: their own kinks, rules for labels, options and errors."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from fastloss import losses
from reference import assert_close

every_float = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


# --------------------------------------------------------------------------------------------------------------
# Hinge: labels 0 and 1 are -1 and 1, if all of them are
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [losses.Hinge, losses.SquaredHinge], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("shape", [(4, 3), (300, 70), (2, 100_003)], ids=str)
@every_float
def test_labels_zero_and_one_are_signs_if_all_are(cls, shape, dtype):
    random = np.random.default_rng(0)
    y = random.integers(0, 2, shape).astype(dtype)
    p = random.normal(size=shape).astype(dtype)
    for n_threads in (1, 2):
        for reduction in ("sum", "none"):
            loss = cls(reduction=reduction)
            want = loss.value_and_grad(2 * y - 1, p, n_threads=n_threads)
            got = loss.value_and_grad(y, p, n_threads=n_threads)
            np.testing.assert_array_equal(got[0], want[0])
            np.testing.assert_array_equal(got[1], want[1])
            # One other label, the very last, and all of them are taken as they are: 0 then has no slope.
            odd = y.copy()
            odd.flat[-1] = -1
            gradient = loss.value_and_grad(odd, p, n_threads=n_threads)[1]
            assert not gradient[odd == 0].any()
            assert gradient[odd == 1].any()


def test_masked_labels_take_part_in_the_rule():
    y, p = np.array([[0.0], [1.0], [-1.0]]), np.zeros((3, 1))
    mask = np.array([True, True, False])
    assert losses.Hinge(reduction="none")(y, p, mask=mask).tolist() == [1.0, 1.0, 0.0]
    assert losses.Hinge(reduction="none").value_and_grad(y, p, mask=mask)[1].ravel().tolist() == [0.0, -1.0, 0.0]


@every_float
def test_hinges_at_the_margin_have_no_slope(dtype):
    y, p = np.array([[1, -1]], dtype), np.array([[1, -1]], dtype)
    for cls in (losses.Hinge, losses.SquaredHinge):
        value, gradient = cls().value_and_grad(y, p)
        assert value == 0
        assert not gradient.any()


@every_float
def test_a_tied_maximum_gives_its_gradient_to_the_first(dtype):
    y = np.array([[0, 0, 0, 1], [1, 0, 0, 0]], dtype)
    p = np.array([[1, 2, 2, 0], [0, 3, 1, 3]], dtype)
    value, gradient = losses.CategoricalHinge(reduction="none").value_and_grad(y, p)
    assert value.tolist() == [3.0, 4.0]
    assert gradient.tolist() == [[0, 1, 0, -1], [-1, 1, 0, 0]]


def test_a_categorical_hinge_that_is_met_has_no_slope():
    value, gradient = losses.CategoricalHinge().value_and_grad([[0.0, 1.0]], np.array([[0.0, 1.0]]))
    assert value == 0
    assert not gradient.any()


def test_a_categorical_hinge_over_its_own_predictions():
    random = np.random.default_rng(3)
    y, p = np.eye(7)[random.integers(7, size=40)], random.normal(size=(40, 7))
    want = losses.CategoricalHinge().value_and_grad(y, p)
    overwritten = p.copy()
    got = losses.CategoricalHinge().value_and_grad(y, overwritten, out=overwritten)
    assert got[0] == want[0]
    np.testing.assert_array_equal(overwritten, want[1])


# --------------------------------------------------------------------------------------------------------------
# Regression
# --------------------------------------------------------------------------------------------------------------


@every_float
def test_percentages_of_no_error_and_of_nothing(dtype):
    y, p = np.array([[2, 0]], dtype), np.array([[2, 1e-7]], dtype)
    value, gradient = losses.MeanAbsolutePercentageError().value_and_grad(y, p)
    assert_close(value, 50.0, rtol=1e-6)
    assert gradient[0, 0] == 0
    assert_close(gradient[0, 1], 50 / 1e-7, rtol=1e-6)


@every_float
def test_logarithmic_error_below_the_clip_is_dead(dtype):
    low = dtype(1e-7)
    y, p = np.array([[1, 1, 1]], dtype), np.array([[-5, 0, low]], dtype)
    value, gradient = losses.MeanSquaredLogarithmicError(reduction="none").value_and_grad(y, p)
    assert_close(value, [np.log1p(float(low)) ** 2 - 2 * np.log1p(float(low)) * np.log(2) + np.log(2) ** 2], rtol=1e-6)
    assert gradient[0, :2].tolist() == [0, 0]
    assert gradient[0, 2] < 0, "on the border, the full inner gradient"


@every_float
def test_each_column_may_have_its_own_quantile(dtype):
    random = np.random.default_rng(1)
    y, p = random.normal(size=(50, 1)).astype(dtype), random.normal(size=(50, 3)).astype(dtype)
    tau = [0.1, 0.5, 0.9]
    weight = random.uniform(0.5, 2, 50).astype(dtype)
    for n_threads in (1, 2):
        for call in ({}, {"sample_weight": weight}, {"mask": weight > 1}):
            got = losses.PinballLoss(tau=tau, reduction="sum").value_and_grad(y, p, **call, n_threads=n_threads)
            columns = [
                losses.PinballLoss(tau=t, reduction="sum").value_and_grad(y, p[:, i : i + 1], **call)
                for i, t in enumerate(tau)
            ]
            assert_close(got[0], sum(value for value, _ in columns) / 3, rtol=1e-5)
            assert_close(got[1], np.concatenate([gradient for _, gradient in columns], axis=1) / 3, rtol=1e-5)


def test_the_pinball_loss_is_flat_where_it_is_met():
    value, gradient = losses.PinballLoss(tau=0.2).value_and_grad([[1.0, np.inf]], np.array([[1.0, 2.0]]))
    assert value == np.inf
    assert gradient.tolist() == [[0, -0.1]]


def test_quantiles_of_a_wrong_number():
    with pytest.raises(ValueError, match=r"`tau` must be a number or have one for each element of the last axis, 3"):
        losses.PinballLoss(tau=[0.1, 0.9])(np.zeros((4, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"`tau` must be in \[0, 1\], got 1.5"):
        losses.PinballLoss(tau=[0.1, 1.5])


@every_float
def test_a_zero_vector_has_no_direction(dtype):
    y = np.array([[3, 4], [0, 0], [1, 0]], dtype)
    p = np.array([[0, 0], [1, 2], [2, 0]], dtype)
    value, gradient = losses.CosineSimilarity(reduction="none").value_and_grad(y, p)
    assert value.tolist() == [0, 0, -1]
    assert_close(gradient[0], -y[0] / 5 / 1e-7, rtol=1e-5)
    assert not gradient[1:].any()


# --------------------------------------------------------------------------------------------------------------
# Focal losses, generalized cross-entropy, sparsemax
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.0])
@every_float
def test_focal_losses_of_a_certain_right_prediction_are_flat(gamma, dtype):
    """At p_t = 1 the analytic limit of the slope is 0, or next to it: never NaN."""
    y = np.array([[0, 1]], dtype)
    for loss, p in (
        (losses.BinaryFocalCrossentropy(gamma=gamma), y),
        (losses.BinaryFocalCrossentropy(gamma=gamma, from_logits=True), (2 * y - 1) * dtype(1e4)),
        (losses.CategoricalFocalCrossentropy(gamma=gamma), y),
        (losses.CategoricalFocalCrossentropy(gamma=gamma, from_logits=True), (2 * y - 1) * dtype(1e4)),
        (losses.SigmoidFocalCrossEntropy(gamma=gamma, reduction="sum"), y),
    ):
        value, gradient = loss.value_and_grad(y, p)
        assert abs(value) < 1e-3, loss
        assert np.isfinite(gradient).all(), loss
        assert np.abs(gradient).max() < 1e-6, loss


def test_focal_logits_do_not_saturate():
    """Keras stops at 16.118 in float32, because it computes the probability first."""
    value, gradient = losses.BinaryFocalCrossentropy(from_logits=True).value_and_grad(
        np.float32([[1.0]]), np.float32([[-50.0]])
    )
    assert_close(value, 50.0, rtol=1e-6)
    assert_close(gradient[0, 0], -1.0, rtol=1e-6)


def test_gamma_two_is_the_power_written_out():
    random = np.random.default_rng(5)
    y, p = np.round(random.random((30, 4))), random.uniform(0.05, 0.95, (30, 4))
    for cls in (losses.BinaryFocalCrossentropy, losses.CategoricalFocalCrossentropy):
        for logits in (False, True):
            got = cls(from_logits=logits).value_and_grad(y, p)
            near = cls(from_logits=logits, gamma=2.0 + 1e-13).value_and_grad(y, p)
            assert_close(got[0], near[0], rtol=1e-10)
            assert_close(got[1], near[1], rtol=1e-9, atol=1e-12)


def test_falsy_factors_are_dropped():
    y, p = np.array([[0.0, 1.0]]), np.array([[0.3, 0.6]])
    plain = losses.SigmoidFocalCrossEntropy(alpha=0, gamma=0, reduction="sum")(y, p)
    entropy = losses.BinaryCrossentropy(reduction="sum")(y, p)
    assert_close(plain, 2 * entropy, rtol=1e-6)
    assert_close(losses.SigmoidFocalCrossEntropy(alpha=None, gamma=0, reduction="sum")(y, p), plain)


def test_one_class_is_warned_of():
    y, p = np.ones((3, 1)), np.full((3, 1), 0.5)
    for call in (losses.CategoricalFocalCrossentropy(), losses.categorical_focal_crossentropy):
        with pytest.warns(SyntaxWarning, match=r"expected y_pred.shape to be \(batch_size, num_classes\)"):
            call(y, p)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses.SparsemaxLoss()(y, p)


@pytest.mark.parametrize("q", [0.0, 1.0, -0.5, 2.0])
def test_q_is_inside(q):
    with pytest.raises(ValueError, match=r"^q must be in the interval \(0, 1\)"):
        losses.CategoricalGeneralizedCrossEntropy(q=q)


def test_generalized_crossentropy_of_nothing_and_of_certainty():
    value, gradient = losses.CategoricalGeneralizedCrossEntropy(reduction="none").value_and_grad(
        [0, 1], np.array([[0.0, 1.0], [0.0, 1.0]])
    )
    assert value.tolist() == [2.0, 0.0]
    assert gradient.tolist() == [[-np.inf, 0.0], [0.0, -1.0]]
    with pytest.raises(ValueError, match=r"y_true\[1\] is 2"):
        losses.CategoricalGeneralizedCrossEntropy()([0, 2], np.ones((2, 2)))


def test_sparsemax_needs_logits():
    with pytest.raises(ValueError, match="`from_logits` must be True"):
        losses.SparsemaxLoss(from_logits=False)


@every_float
def test_sparsemax_of_infinite_logits(dtype):
    y = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0]], dtype)
    p = np.array([[-np.inf, 0.5, 0.5], [np.inf, 0, 0], [np.nan, 0, 0]], dtype)
    value, gradient = losses.SparsemaxLoss(reduction="none").value_and_grad(y, p)
    assert_close(value[0], 0.25)
    assert gradient[0].tolist() == [0, -0.5, 0.5]
    assert np.isnan(value[1:]).all()


@every_float
def test_sparsemax_of_equal_logits_and_of_long_rows(dtype):
    p = np.full((2, 5000), 3.0, dtype)
    y = np.zeros_like(p)
    gradient = losses.SparsemaxLoss(reduction="sum").value_and_grad(y, p)[1]
    assert_close(gradient, np.full(p.shape, 1 / 5000))
    assert_close(gradient.sum(axis=1), [1, 1])


def test_sparsemax_of_large_logits():
    """What is exact relative to the largest logit stays so: only the logits themselves are rounded."""
    random = np.random.default_rng(8)
    y = np.eye(40)[random.integers(40, size=50)].astype(np.float32)
    p = (1e5 + 0.5 * random.normal(size=y.shape)).astype(np.float32)
    near = p.astype(np.float64) - 1e5
    loss = losses.SparsemaxLoss(reduction="none")
    value, gradient = loss.value_and_grad(y, p)
    want, slope = loss.value_and_grad(y.astype(np.float64), near)
    assert_close(value, want, rtol=1e-5, atol=1e-6)
    assert_close(gradient, slope, rtol=1e-5, atol=1e-6)
    # Targets that do not sum to 1 leave the logits' level in the loss.
    assert_close(loss(y / 2, p), loss(y.astype(np.float64) / 2, p.astype(np.float64)))


# --------------------------------------------------------------------------------------------------------------
# Overlap: one loss of the whole batch
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [losses.Dice, losses.Tversky], ids=lambda cls: cls.__name__)
def test_weights_of_a_loss_of_the_whole_batch(cls):
    random = np.random.default_rng(7)
    y, p = np.round(random.random((4, 5))), random.random((4, 5))
    plain, slope = cls().value_and_grad(y, p)
    assert plain.shape == ()
    for reduction in ("sum_over_batch_size", "mean_with_sample_weight", "sum", "none"):
        value, gradient = cls(reduction=reduction).value_and_grad(y, p, 3.0)
        assert_close(value, 3 * plain)
        assert_close(gradient, 3 * slope)
    weight = np.array([1.0, 2.0, 6.0])
    for reduction, factor in (("sum", 9.0), ("sum_over_batch_size", 3.0), ("mean_with_sample_weight", 1.0)):
        value, gradient = cls(reduction=reduction).value_and_grad(y, p, weight)
        assert_close(value, factor * plain)
        assert_close(gradient, factor * slope)
    value, gradient = cls(reduction="none").value_and_grad(y, p, weight)
    assert_close(value, weight * plain)
    assert_close(gradient, 9.0 * slope)


def test_dice_of_nothing_is_one():
    value, gradient = losses.Dice().value_and_grad(np.zeros((2, 2)), np.zeros((2, 2)))
    assert value == 1
    assert not gradient.any()


def test_tverskys_alpha_weighs_false_positives():
    y, p = np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])  # one right, one false positive
    assert_close(losses.Tversky(alpha=3.0, beta=0.0)(y, p), 0.75, rtol=1e-6)
    assert_close(losses.Tversky(alpha=0.0, beta=3.0)(y, p), 0.0, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------
# Divergences and pairs
# --------------------------------------------------------------------------------------------------------------


def test_poisson_outside_its_domain_is_nan_there_alone():
    value, gradient = losses.Poisson(reduction="none").value_and_grad([[1.0], [1.0]], np.array([[-1.0], [1.0]]))
    assert np.isnan(value).tolist() == [True, False]
    assert np.isfinite(gradient).all(), "the slope 1 - y/(p + ε) is finite there, as autodiff has it"


@every_float
def test_divergence_is_dead_beyond_the_clip(dtype):
    y = np.full((1, 4), 0.5, dtype)
    p = np.array([[0, 1e-7, 1, 1.5]], dtype)
    gradient = losses.KLDivergence().value_and_grad(y, p)[1]
    assert gradient[0, 0] == 0
    assert gradient[0, 3] == 0
    assert_close(gradient[0, 1:3], [-0.5 / float(dtype(1e-7)), -0.5], rtol=1e-6)


def test_pairs_at_the_margin_have_no_slope():
    value, gradient = losses.ContrastiveLoss(reduction="none").value_and_grad(
        [0.0, 0.0, 1.0], np.array([1.0, 2.0, 2.0])
    )
    assert value.tolist() == [0.0, 0.0, 4.0]
    assert gradient.tolist() == [0.0, 0.0, 4.0]
