"""Turned matrices."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from fastloss.engine.transpose import turner


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_turned_and_turned_back(dtype):
    turn, turn_back = turner(np.dtype(dtype), spread=False), turner(np.dtype(dtype), spread=True)

    @numba.njit
    def there_and_back(matrix, start, rows, columns, turned, place, back):
        turn(matrix, start, rows, columns, turned, place)
        turn_back(turned, start, rows, columns, back, place)

    rng = np.random.default_rng(0)
    for columns in range(1, 34):
        for rows in (1, 3, 4, 8, 15, 16, 35):
            start, place, size = 7, 3, rows * columns
            matrix = rng.standard_normal(start + size + 5).astype(dtype)
            turned, back = np.zeros(place + size + 5, dtype), np.zeros(start + size + 5, dtype)
            there_and_back(matrix, start, rows, columns, turned, place, back)
            inside = slice(start, start + size)
            expected = np.zeros_like(turned)
            expected[place : place + size] = matrix[inside].reshape(rows, columns).T.ravel()
            np.testing.assert_array_equal(turned, expected, err_msg=f"{rows}, {columns}: and nothing else is written")
            expected = np.zeros_like(back)
            expected[inside] = matrix[inside]
            np.testing.assert_array_equal(back, expected, err_msg=f"{rows}, {columns}, back")
