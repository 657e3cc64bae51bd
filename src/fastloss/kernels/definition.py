"""What a loss is, before anything compiles it.

A kernel is a factory: called with a *toolbox* ``xp`` (a dtype and a target) it returns plain scalar functions, closed
over constants of that dtype. It holds no loop, knows no array and imports nothing but the toolbox's names, so one
source serves float32, float64, every driver, every target, and plain Python under a debugger.

Three shapes exist:

`pointwise`
    ``terms(y, p, *params) -> (loss, slope, curvature)``: the loss of one element with its first and second
    derivative in ``p``. A driver uses what it needs and the compiler deletes the rest.

`rowwise`
    Losses that normalise a whole row of class scores and are linear in the targets, as four scalar functions
    (`RowFunctions`). Dense targets, class indices and label smoothing all come from the same four: for class indices
    the vector loop runs with the constant target of the wrong classes, which folds most of the arithmetic away, and
    the label's own entry is mended after the loop.

`itemwise`
    What fits neither: ``item(i, *arrays)`` does everything for sequence, box or anchor ``i``, reading and writing
    arrays. It holds its own loops over the item's data; the loop over items is the driver's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


class RowFunctions(NamedTuple):
    """The stages of a rowwise loss; each is called once an element but `finish`, once a row.

    Attributes
    ----------
    pivot : {"max", "sum"}
        How the first stage reduces the row's predictions to one number ``m``.
    gather : callable
        ``gather(t, p, m) -> (kept, a, b, c)``. ``kept`` waits for `slope`, in the gradient's own memory; the sums of
        ``a``, ``b`` and ``c`` over the row go to `finish`.
    finish : callable
        ``finish(m, a, b, c) -> (loss, u, v)``: the row's loss and two numbers for `slope`.
    slope : callable
        ``slope(t, kept, u, v) -> gradient``. It does not see the prediction, whose memory the gradient may overwrite.
    targets_only : bool
        `gather` gives zeros where the target is 0: with unsmoothed class indices only the label's entry is gathered.
    """

    pivot: Literal["max", "sum"]
    gather: Callable[..., Any]
    finish: Callable[..., Any]
    slope: Callable[..., Any]
    targets_only: bool = False


@dataclass(frozen=True)
class Kernel:
    """The definition of one loss.

    Attributes
    ----------
    name : str
        Unique among kernels; part of the on-disk cache's key and of the symbol names in a profile.
    shape : {"pointwise", "rowwise", "itemwise"}
        Which driver runs it.
    factory : callable
        ``factory(xp)`` returns ``terms``, `RowFunctions` or ``item``.
    params : tuple of str
        Names of the run-time parameters, which reach ``terms`` in the kernel's dtype, in this order.
    calls : tuple of str
        The vector functions (toolbox names, and ``"div"``) that value and gradient need for each element: the
        arithmetic part of the limit that a benchmark compares with, and the measure of work by which a call chooses
        between serial and parallel.
    """

    name: str
    shape: Literal["pointwise", "rowwise", "itemwise"]
    factory: Callable[[Any], Any]
    params: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()


def pointwise(*, params: tuple[str, ...] = (), calls: tuple[str, ...] = ()) -> Callable[[Callable[[Any], Any]], Kernel]:
    """Make a `Kernel` of a factory that returns ``terms(y, p, *params) -> (loss, slope, curvature)``."""

    def decorate(factory: Callable[[Any], Any]) -> Kernel:
        return Kernel(factory.__name__, "pointwise", factory, params, calls)

    return decorate


def rowwise(*, calls: tuple[str, ...] = ()) -> Callable[[Callable[[Any], Any]], Kernel]:
    """Make a `Kernel` of a factory that returns `RowFunctions`."""

    def decorate(factory: Callable[[Any], Any]) -> Kernel:
        return Kernel(factory.__name__, "rowwise", factory, (), calls)

    return decorate


def itemwise(factory: Callable[[Any], Any]) -> Kernel:
    """Make a `Kernel` of a factory that returns ``item(i, *arrays)``, which returns nothing."""
    return Kernel(factory.__name__, "itemwise", factory)
