"""What a loss is, before anything compiles it.

A kernel is a factory: called with a *toolbox* ``xp`` (a dtype and a target) it returns plain scalar functions, closed
over constants of that dtype. It holds no loop, knows no array and imports nothing but the toolbox's names, so one
source serves float32, float64, every driver, every target, and plain Python under a debugger.

Three shapes exist:

`pointwise`
    ``terms(y, p, *params) -> (loss, slope, curvature)``: the loss of one element with its first and second
    derivative in ``p``. A driver uses what it needs and the compiler deletes the rest.

`rowwise`
    Losses that need sums over a whole row, as a few scalar functions (`RowFunctions`). Where they are linear in the
    targets, dense targets, class indices and label smoothing all come from the same functions: for class indices the
    vector loop runs with the constant target of the wrong classes, which folds most of the arithmetic away, and the
    label's own entry is mended after the loop.

`itemwise`
    What fits neither: ``item(i, *arrays)`` does everything for sequence, box or anchor ``i``, reading and writing
    arrays. It holds its own loops over the item's data; the loop over items is the driver's. A factory
    ``(xp, code, ...)`` is told how the first arrays are stored, and reads and writes them by `xp.load` and `xp.store`.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


class RowFunctions(NamedTuple):
    """The stages of a rowwise loss; each is called once an element, but `finish` and `refinish` once a row.

    All of them take the kernel's parameters as further arguments, after those named here.

    Attributes
    ----------
    pivot : {"max", "sum", "score", "simplex", "none"}
        How the first stage reduces the row to one number ``m``: the largest prediction, the sum of predictions, the
        largest `score`, the number whose excess over it sums to one (a pair: the largest prediction, and what to add),
        0.
    gather : callable
        ``gather(t, p, m) -> (kept, a, b, c)``. The sums of ``a``, ``b`` and ``c`` over the row go to `finish`.
    finish : callable
        ``finish(m, a, b, c) -> (loss, u, v)``: the row's loss and two numbers for `slope`.
    slope : callable
        ``slope(t, kept, u, v) -> gradient``.
    targets_only : bool
        `gather` gives zeros where the target is 0: with unsmoothed class indices only the label's entry is gathered.
    keeps : {"gathered", "prediction", "nothing"}
        What `slope` gets as ``kept``: `gather`'s, which waits in the gradient's own memory; the prediction; 0.
    score, peak : callable, optional
        ``score(t, p)``, of which the pivot is the row's largest, and ``peak(t, u, v)``, added to the slope of the first
        element that has it.
    regather, refinish : callable, optional
        A second stage: ``regather(t, kept, u, v) -> (more, a, b, c)`` and ``refinish(u, v, a, b, c) -> (loss, u, v)``,
        which replaces what `finish` gave. `slope` then is ``slope(t, kept, u, v, more)``.
    curvature : callable, optional
        ``curvature(t, kept, u, v)``: the second derivative in the element's own prediction, of a `curved` kernel. There
        is none together with `peak` or `regather`.
    """

    pivot: Literal["max", "sum", "score", "simplex", "none"]
    gather: Callable[..., Any]
    finish: Callable[..., Any]
    slope: Callable[..., Any]
    targets_only: bool = False
    keeps: Literal["gathered", "prediction", "nothing"] = "gathered"
    score: Callable[..., Any] | None = None
    peak: Callable[..., Any] | None = None
    regather: Callable[..., Any] | None = None
    refinish: Callable[..., Any] | None = None
    curvature: Callable[..., Any] | None = None


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
        ``factory(xp)`` returns ``terms``, `RowFunctions` or ``item``; an itemwise one may take storage codes too.
    params : tuple of str
        Names of the run-time parameters, which reach the functions in the kernel's dtype, in this order.
    calls : tuple of str
        The vector functions (toolbox names, and ``"div"``) that value and gradient need for each element: the
        arithmetic part of the limit that a benchmark compares with, and the measure of work by which a call chooses
        between serial and parallel.
    binary_labels : bool
        The first two parameters are a scale and a shift of the targets, (2, -1) if every target is 0 or 1, else (1, 0):
        the driver looks and sets them.
    divisible : bool
        Of a rowwise kernel: sums are all that its slope needs (no pivot, nothing kept but the prediction, no score, no
        second stage), so a row may be divided among threads.
    curved : bool
        Of a rowwise kernel: it has a `RowFunctions.curvature`. A pointwise one always has.
    source : str, optional
        All that the kernel's machine code depends on, of a kernel that was generated.
    """

    name: str
    shape: Literal["pointwise", "rowwise", "itemwise"]
    factory: Callable[..., Any]
    params: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    binary_labels: bool = False
    divisible: bool = False
    curved: bool = False
    source: str | None = None

    def __post_init__(self) -> None:
        for name, words in (("params", self.params), ("calls", self.calls)):
            if isinstance(words, str):
                raise TypeError(f"`{name}` must be a tuple of names, got {words!r}")
        unknown = sorted(set(self.calls) - {"exp", "log", "div", "pow"})
        if unknown:
            raise ValueError(f"`calls` may have 'exp', 'log', 'div' and 'pow', got {unknown[0]!r}")

    def __reduce__(self) -> Any:
        """By reference, as functions are pickled: ``@pointwise`` leaves no factory that could be found by its name."""
        try:
            found = find(self.reference)
        except ValueError as error:
            raise pickle.PicklingError(str(error)) from None
        if found is not self:
            raise pickle.PicklingError(f"Another kernel is found at {self.reference!r}")
        return find, (self.reference,)

    def __deepcopy__(self, memo: Any) -> Kernel:
        return self

    @property
    def reference(self) -> str:
        """Where the kernel is found: the factory's module and its name there."""
        return f"{self.factory.__module__}:{self.factory.__qualname__}"


def find(reference: str) -> Kernel:
    """The kernel of that `Kernel.reference`, in a module that is imported already."""
    module, _, name = reference.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, Kernel):
        raise ValueError(
            f"No kernel is found at {reference!r}: define it at the top of a module, and import that module first"
        )
    return found


def pointwise(
    *, params: tuple[str, ...] = (), calls: tuple[str, ...] = (), binary_labels: bool = False
) -> Callable[[Callable[[Any], Any]], Kernel]:
    """Make a kernel of a loss of single elements; a decorator.

    Parameters
    ----------
    params : tuple of str
        Names of the run-time parameters.
    calls : tuple of str
        The vector functions that value and gradient call for each element, of ``"exp"``, ``"log"``, ``"div"`` and
        ``"pow"``: the measure of work by which a call chooses its number of threads.
    binary_labels : bool
        The first two parameters are a scale and a shift of the targets, which the driver sets to (2, -1) if every
        target is 0 or 1.

    Returns
    -------
    callable
        Takes a factory and returns its `Kernel`. Called with a toolbox ``xp``, the factory returns
        ``terms(y, p, *params) -> (loss, slope, curvature)``: the loss of one element, and its first and second
        derivative in ``p``. All numbers come from ``xp.const``, outside of ``terms``; ``xp.where`` chooses.

    See Also
    --------
    fastloss.losses.from_kernel : Makes a loss of a kernel.
    fastloss.check_gradient : Compares the derivatives with differences.

    Examples
    --------
    >>> import fastloss
    >>> @fastloss.pointwise(params=("scale",))
    ... def scaled_square(xp):
    ...     two = xp.const(2.0)
    ...
    ...     def terms(y, p, scale):
    ...         e = p - y
    ...         return scale * (e * e), two * scale * e, two * scale
    ...
    ...     return terms
    >>> fastloss.losses.from_kernel(scaled_square, scale=3.0)([[0.0]], [[2.0]]).item()
    12.0
    """

    def decorate(factory: Callable[[Any], Any]) -> Kernel:
        return Kernel(factory.__name__, "pointwise", factory, params, calls, binary_labels)

    return decorate


def rowwise(
    *, params: tuple[str, ...] = (), calls: tuple[str, ...] = (), divisible: bool = False, curved: bool = False
) -> Callable[[Callable[[Any], Any]], Kernel]:
    """Make a kernel of a loss of whole rows; a decorator.

    Parameters
    ----------
    params, calls
        As for `pointwise`.
    divisible : bool
        Sums are all that the slope needs: no pivot, nothing kept but the prediction, no score, no second stage. Then a
        few long rows are divided among threads.
    curved : bool
        The factory gives a `RowFunctions.curvature`, the diagonal of the row's Hessian. Not together with `divisible`.

    Returns
    -------
    callable
        Takes a factory and returns its `Kernel`. Called with a toolbox ``xp``, the factory returns `RowFunctions`.

    See Also
    --------
    fastloss.losses.from_kernel : Makes a loss of a kernel.

    Examples
    --------
    The length of the error:

    >>> import fastloss
    >>> @fastloss.rowwise()
    ... def distance(xp):
    ...     zero, one = xp.consts(0.0, 1.0)
    ...
    ...     def gather(y, p, m):
    ...         e = p - y
    ...         return e, e * e, zero, zero
    ...
    ...     def finish(m, total, b, c):
    ...         length = xp.sqrt(total)
    ...         return length, xp.where(length > zero, one / length, zero), zero
    ...
    ...     def slope(y, e, u, v):
    ...         return e * u
    ...
    ...     return fastloss.RowFunctions("none", gather, finish, slope)
    >>> value, grad = fastloss.losses.from_kernel(distance).value_and_grad([[0.0, 0.0]], [[3.0, 4.0]])
    >>> print(value, grad.round(3))
    5.0 [[0.6 0.8]]
    """

    def decorate(factory: Callable[[Any], Any]) -> Kernel:
        return Kernel(factory.__name__, "rowwise", factory, params, calls, divisible=divisible, curved=curved)

    return decorate


def itemwise(factory: Callable[..., Any]) -> Kernel:
    """Make a `Kernel` of a factory that returns ``item(i, *arrays)``, which returns nothing.

    What the factory takes besides ``xp`` are the storage codes of as many arrays, the item's first ones.
    """
    return Kernel(factory.__name__, "itemwise", factory)
