"""The diagonal Hessian of softmax cross-entropies; those of pointwise losses are among the invariants."""

from __future__ import annotations

import numpy as np
import pytest

import data
import fastloss
import reference
from fastloss import losses
from fastloss.registry import LOSSES
from reference import assert_close, assert_same_bits

SPARSE, DENSE = "sparse_categorical_crossentropy", "categorical_crossentropy"


@pytest.mark.parametrize(
    ("name", "params", "shape", "dtype"),
    [
        (SPARSE, {}, (5, 3), np.float64),
        (SPARSE, {"axis": 1}, (2, 4, 3), np.float64),
        (SPARSE, {}, (150, 8), np.float32),
        (DENSE, {"label_smoothing": 0.1}, (5, 3), np.float32),
        (DENSE, {"label_smoothing": 0.1}, (150, 8), np.float32),
    ],
)
def test_it_is_the_second_difference_of_the_oracle(name, params, shape, dtype):
    params = {"from_logits": True, **params}
    y, p = data.inputs(LOSSES[name], params, shape, dtype=np.float32)
    p = p.astype(dtype)
    values = reference.values_shape(name, params, shape)
    weight, mask = data.rng(1).uniform(0.5, 2.0, values), data.rng(2).random(values) < 0.7
    call = {"sample_weight": weight, "mask": mask, "reduction": "sum"}
    want = reference.hessian(name, y, p, **call, **params)
    loss = LOSSES[name].cls(**params, reduction="sum")
    value, gradient, hessian = loss.value_grad_hess(y, p, weight, mask=mask)
    assert_close(hessian, want, rtol=1e-5, atol=1e-6)
    assert_close(gradient, reference.gradient(name, y, p, **call, **params), rtol=1e-4, atol=1e-5)
    assert_close(value, reference.loss(name, y, p, **call, **params), rtol=1e-5)
    assert hessian.dtype == dtype


def test_in_place_and_in_half_precision():
    y, p = data.rng().integers(8, size=150), data.rng(1).normal(size=(150, 8)).astype(np.float16)
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    for z in (p, p.astype(np.float32)):
        value, gradient, hessian = loss.value_grad_hess(y, z)
        again = z.copy()
        value_again, gradient_again, hessian_again = loss.value_grad_hess(y, again, out=again)
        assert gradient_again is again
        assert_same_bits(value_again, value)
        assert_same_bits(again, gradient)
        assert_same_bits(hessian_again, hessian)
        s = np.exp(z.astype(np.float64))
        s /= s.sum(axis=1, keepdims=True)
        assert hessian.dtype == z.dtype
        assert_close(hessian, s * (1 - s), atol=1e-6 if z is not p else 1e-3)


def test_logits_that_are_not_finite():
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    z = np.array([[0.0, -np.inf, 0.0], [800.0, 0.0, -800.0], [np.nan, 0.0, 0.0]])
    hessian = loss.value_grad_hess(np.array([0, 0, 0]), z)[2]
    assert_close(hessian[:2], [[0.25, 0, 0.25], [0, 0, 0]])
    assert np.isnan(hessian[2]).all()


def test_only_logits_have_one():
    for cls in (losses.SparseCategoricalCrossentropy, losses.CategoricalCrossentropy):
        assert cls(from_logits=True).has_hessian
        assert not cls().has_hessian
        with pytest.raises(NotImplementedError, match="no diagonal Hessian"):
            cls().value_grad_hess(np.zeros((2, 3)), np.ones((2, 3)))


def test_a_kernel_of_ones_own_may_be_curved():
    def kernel(xp, curved):
        zero, two = xp.consts(0.0, 2.0)

        def gather(y, p, m):
            e = p - y
            return zero, e * e, zero, zero

        def finish(m, total, b, c):
            return total, zero, zero

        def slope(y, p, u, v):
            return two * (p - y)

        def curvature(y, p, u, v):
            return two

        return fastloss.RowFunctions(
            "none", gather, finish, slope, keeps="prediction", curvature=curvature if curved else None
        )

    @fastloss.rowwise(curved=True)
    def squares(xp):
        return kernel(xp, True)

    @fastloss.rowwise(curved=True)
    def without(xp):
        return kernel(xp, False)

    y, p = np.zeros((4, 3)), np.ones((4, 3))
    report = fastloss.check_gradient(losses.from_kernel(squares), y, p)
    assert report.hessian_error < 1e-6
    with pytest.raises(TypeError, match="`curved` must be False"):
        losses.from_kernel(without).value_grad_hess(y, p)
