"""What gradient boosting needs of a loss: slope and curvature of each element, the curvature positive."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastloss.kernels.definition import Kernel

PARAMS = ("slope_scale", "curvature_scale", "flat", "floor")


@cache
def newton(kernel: Kernel) -> Kernel:
    """The kernel whose loss is left out, and whose slope and curvature are scaled, with no curvature below a floor.

    A Newton step divides by the curvature h. Where the loss is flat or bends downwards (h ≤ 0) but still slopes,
    ``flat`` takes its place, in the unit of the scaled h; nowhere is it less than ``floor``. A weight multiplies what
    comes of that, so a sample of weight 0 has no curvature at all. The compiler deletes what the loss alone would need.
    """
    scalar = kernel.factory
    own = len(kernel.params)

    def pointwise_factory(xp: Any) -> Any:
        zero = xp.const(0.0)
        terms = xp.jit(scalar(xp))

        def newton_terms(y, p, *params):
            slope_scale, curvature_scale, flat, floor = params[own:]
            _, slope, curvature = terms(y, p, *params[:own])
            h = curvature * curvature_scale
            h = xp.where((h <= zero) & (slope != zero), flat, h)
            return zero, slope * slope_scale, xp.maximum(h, floor)

        return newton_terms

    def rowwise_factory(xp: Any) -> Any:
        zero = xp.const(0.0)
        functions = scalar(xp)
        gather, finish = xp.jit(functions.gather), xp.jit(functions.finish)
        slope, curvature = xp.jit(functions.slope), xp.jit(functions.curvature)

        def newton_gather(t, p, m, *params):
            return gather(t, p, m, *params[:own])

        def newton_finish(m, a, b, c, *params):
            _, u, v = finish(m, a, b, c, *params[:own])
            return zero, u, v

        def newton_slope(t, kept, u, v, *params):
            return slope(t, kept, u, v, *params[:own]) * params[own]

        def newton_curvature(t, kept, u, v, *params):
            _, curvature_scale, flat, floor = params[own:]
            h = curvature(t, kept, u, v, *params[:own]) * curvature_scale
            h = xp.where((h <= zero) & (slope(t, kept, u, v, *params[:own]) != zero), flat, h)
            return xp.maximum(h, floor)

        return functions._replace(
            gather=newton_gather, finish=newton_finish, slope=newton_slope, curvature=newton_curvature
        )

    factory = pointwise_factory if kernel.shape == "pointwise" else rowwise_factory
    # What is read of a user's factory, to know its kernel on disk, is then read of this one and what it closes over.
    factory.__module__ = scalar.__module__
    return Kernel(
        f"{kernel.name}_newton",
        kernel.shape,
        factory,
        (*kernel.params, *PARAMS),
        kernel.calls,
        kernel.binary_labels,
        curved=kernel.curved,
        source=kernel.source,
    )
