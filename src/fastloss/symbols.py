"""What the function given to `fastloss.losses.from_function` may call, besides operators and ``abs``.

Each function takes numbers too (and arrays), and then computes with NumPy: so a loss can be tried out before it is
compiled.

==========================  ===========================================================================================
function                    derivative, where it is a choice
==========================  ===========================================================================================
``where(condition, a, b)``  that of the branch taken; the other one may be infinite or NaN
``maximum(a, b)``           at a = b that of a
``minimum(a, b)``           at a = b that of a
``clip(x, low, high)``      that of x within the borders and on them, 0 beyond
``exp(x)``
``log(x)``
``log1p(x)``                log(1 + x), with all digits where x is small
``sqrt(x)``                 infinite at 0
``tanh(x)``
``sigmoid(x)``              1 / (1 + exp(-x)), which does not overflow
``softplus(x)``             log(1 + exp(x)), likewise; ``-softplus(-x)`` is the logarithm of ``sigmoid(x)``
``abs(x)``                  Python's own; at 0 it is 0
``x**n``                    n a whole number up to 64, or a parameter that is one up to 8, by multiplication, and halves
                            with a square root; for others x must not be negative
==========================  ===========================================================================================

Conditions are ``<``, ``<=``, ``>``, ``>=``, ``==`` and ``!=``, joined by ``&``, ``|`` and ``~``.
"""

from __future__ import annotations

import linecache
import operator
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

if TYPE_CHECKING:
    from fastloss.expressions import Trace

__all__ = ["clip", "exp", "log", "log1p", "maximum", "minimum", "sigmoid", "softplus", "sqrt", "tanh", "where"]


_PACKAGE = __name__.partition(".")[0]


class TraceError(TypeError):
    """A function cannot be traced; the message says which construct is in the way, where, and what to write instead."""


class _Traced:
    """What a traced function computes with in place of numbers.

    Parameters
    ----------
    trace : Trace
        Records what is done.
    content : sympy.Basic
        What it stands for: a name, a number, or a condition.
    """

    __slots__ = ("content", "trace")
    __hash__ = None  # type: ignore[assignment]
    __array_priority__ = 1000

    def __init__(self, trace: Trace, content: Any) -> None:
        self.trace = trace
        self.content = content

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        known = _UFUNCS.get(ufunc.__name__)
        if known is None or method != "__call__" or options:
            refuse(f"numpy.{ufunc.__name__}", _hint(ufunc.__name__))
        for value in inputs:
            if isinstance(value, np.ndarray) and value.ndim:
                refuse(f"an array of shape {value.shape}", "the function is of one target and one prediction")
        return known(*(value.item() if isinstance(value, (np.generic, np.ndarray)) else value for value in inputs))

    def __array_function__(self, function: Any, kinds: Any, inputs: Any, options: Any) -> Any:
        known = {"where": where, "clip": clip}.get(function.__name__)
        if known is None or options:
            refuse(f"numpy.{function.__name__}", _hint(function.__name__))
        return known(*inputs)

    def __array__(self, *unused: Any, **unused_too: Any) -> NoReturn:
        refuse("an array of symbols", "the function is of one target and one prediction")

    def __float__(self) -> NoReturn:
        refuse("a conversion to a number, as the functions of `math` make it", _hint())

    __int__ = __complex__ = __index__ = __float__

    def __iter__(self) -> NoReturn:
        refuse("a loop over elements", "y and p are single numbers; for losses of a row see fastloss.rowwise")

    def __len__(self) -> NoReturn:
        refuse("len()", "y and p are single numbers; for losses of a row see fastloss.rowwise")

    def __getitem__(self, key: Any) -> NoReturn:
        refuse("indexing", "y and p are single numbers; for losses of a row see fastloss.rowwise")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)  # protocols, which whoever asks can do without
        refuse(f"the attribute .{name}", "y and p are single numbers; for losses of a row see fastloss.rowwise")

    def __mod__(self, other: Any) -> NoReturn:
        refuse("%", "it has no derivative here")

    __rmod__ = __mod__

    def __floordiv__(self, other: Any) -> NoReturn:
        refuse("//", "it has no derivative here; `/` divides")

    __rfloordiv__ = __floordiv__

    def __round__(self, digits: Any = None) -> NoReturn:
        refuse("rounding", "its derivative is 0 wherever there is one")

    __floor__ = __ceil__ = __trunc__ = __round__

    def __matmul__(self, other: Any) -> NoReturn:
        refuse("@", "y and p are single numbers; `*` multiplies them")


class Scalar(_Traced):
    """A number that is not known yet."""

    __slots__ = ()

    def __bool__(self) -> NoReturn:
        refuse("a number as a condition (`if`, `while`, `and`, `or`, `not`)", "write where(x != 0, a, b)")

    def __add__(self, other: Any) -> Any:
        return self.trace.apply("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return self.trace.apply("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return self.trace.apply("subtract", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self.trace.apply("subtract", other, self)

    def __mul__(self, other: Any) -> Any:
        return self.trace.apply("multiply", self, other)

    def __rmul__(self, other: Any) -> Any:
        return self.trace.apply("multiply", other, self)

    def __truediv__(self, other: Any) -> Any:
        return self.trace.apply("divide", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self.trace.apply("divide", other, self)

    def __pow__(self, other: Any) -> Any:
        return self.trace.apply("power", self, other)

    def __rpow__(self, other: Any) -> Any:
        return self.trace.apply("power", other, self)

    def __neg__(self) -> Any:
        return self.trace.apply("negative", self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return self.trace.apply("abs", self)

    def __gt__(self, other: Any) -> Any:
        return self.trace.apply("greater", self, other)

    def __ge__(self, other: Any) -> Any:
        return self.trace.apply("greater_equal", self, other)

    def __lt__(self, other: Any) -> Any:
        return self.trace.apply("greater", other, self)

    def __le__(self, other: Any) -> Any:
        return self.trace.apply("greater_equal", other, self)

    def __eq__(self, other: Any) -> Any:
        return self.trace.apply("equal", self, other)

    def __ne__(self, other: Any) -> Any:
        return self.trace.apply("not_equal", self, other)

    def __invert__(self) -> NoReturn:
        refuse("~ of a number", "it negates conditions")

    def __and__(self, other: Any) -> NoReturn:
        refuse("& and | of a number", "they join conditions: put comparisons in parentheses, (a > b) & (c > d)")

    __rand__ = __or__ = __ror__ = __and__


class Condition(_Traced):
    """A truth that is not known yet: what comparisons give, and `where` takes."""

    __slots__ = ()

    def __bool__(self) -> NoReturn:
        refuse(
            "a comparison that has to be true or false at once (`if`, `while`, `and`, `or`, `not`, a chain a < b < c, "
            "the built-in min and max)",
            "it is another answer for each element; use where(condition, a, b), the operators &, | and ~, maximum and "
            "minimum",
        )

    def __and__(self, other: Any) -> Any:
        return self.trace.apply("and", self, other)

    def __or__(self, other: Any) -> Any:
        return self.trace.apply("or", self, other)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Any:
        return self.trace.apply("not", self)

    def __add__(self, other: Any) -> NoReturn:
        refuse("arithmetic with a condition", "it is no number: write where(condition, a, b)")

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __add__

    def __neg__(self) -> NoReturn:
        refuse("arithmetic with a condition", "it is no number: write where(condition, a, b)")

    __abs__ = __pos__ = __neg__


def refuse(construct: str, hint: str) -> NoReturn:
    """Raise the error of a construct that cannot be traced, with the line of the user's function that has it."""
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == _PACKAGE:
        frame = frame.f_back
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    place = f", in line {frame.f_lineno}, `{line}`" if line else ""
    raise TraceError(f"cannot trace {construct}{place}: {hint}")


def _hint(name: str | None = None) -> str:
    """Which function to use instead."""
    if name in __all__:
        return f"use fastloss.symbols.{name}"
    return f"functions that can be traced are those of fastloss.symbols: {', '.join(__all__)}, and abs"


def _function(name: str, numpy_form: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    for argument in arguments:
        if isinstance(argument, _Traced):
            return argument.trace.apply(name, *arguments)
    return numpy_form(*arguments)


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the condition holds, else `b`."""
    return _function("where", np.where, (condition, a, b))


def maximum(a: Any, b: Any) -> Any:
    """The larger of two numbers; NaN if either is."""
    return _function("maximum", np.maximum, (a, b))


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two numbers; NaN if either is."""
    return _function("minimum", np.minimum, (a, b))


def clip(x: Any, low: Any, high: Any) -> Any:
    """`x`, but `low` where it is below that and `high` where it is above that."""
    return _function("clip", np.clip, (x, low, high))


def exp(x: Any) -> Any:
    """The exponential."""
    return _function("exp", np.exp, (x,))


def log(x: Any) -> Any:
    """The natural logarithm."""
    return _function("log", np.log, (x,))


def log1p(x: Any) -> Any:
    """The logarithm of 1 + x."""
    return _function("log1p", np.log1p, (x,))


def sqrt(x: Any) -> Any:
    """The square root."""
    return _function("sqrt", np.sqrt, (x,))


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return _function("tanh", np.tanh, (x,))


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return _function("sigmoid", lambda x: np.exp(-np.logaddexp(0, -np.asarray(x))), (x,))


def softplus(x: Any) -> Any:
    """The logarithm of 1 + exp(x)."""
    return _function("softplus", lambda x: np.logaddexp(0, x), (x,))


_UFUNCS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "true_divide": operator.truediv,
    "power": operator.pow,
    "negative": operator.neg,
    "absolute": operator.abs,
    "fabs": operator.abs,
    "square": lambda x: x * x,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "less": operator.lt,
    "less_equal": operator.le,
    "equal": operator.eq,
    "not_equal": operator.ne,
    **{f.__name__: f for f in (exp, log, log1p, sqrt, tanh, maximum, minimum, clip)},
}
"""NumPy's functions that are taken for what they mean: the scalars of NumPy call them for their own operators."""
