"""From a Python function of scalars to a pointwise kernel: traced, differentiated and written out with SymPy.

The trace of a function is a list of steps, each one operation on names of earlier steps, as a SymPy expression. So
SymPy differentiates, folds constants and knows equal steps as equal, but never sees more than one operation at a time,
and what was written to keep digits (``alpha * (y - p)``, not ``alpha*y - alpha*p``) is computed as it was written.
Derivatives are steps too, by the chain rule, and share the steps of the value.

Where a derivative is a choice it is that of `fastloss.symbols`. Selections are differentiated as selections, so that an
infinite slope of the branch that is not taken is not multiplied by 0.

`text` is a trace as text, in a subset of Python; `parse` reads that and nothing else, so a config may come from
anywhere.
"""

from __future__ import annotations

import ast
import inspect
import keyword
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import sympy

from fastloss import symbols
from fastloss.kernels.definition import Kernel
from fastloss.symbols import Condition, Scalar, TraceError, refuse

TARGET, PREDICTION = "y", "p"

_WHOLE_EXPONENTS = range(-8, 9)
_LARGEST_POWER = 64
"""Exponents that are written out as multiplications, also where they are the value of a parameter."""

_MOST_STEPS = 5000

# ---- functions of their own: SymPy's either know too much (Max, Piecewise, Not) or do not exist ------------------


class Where(sympy.Function):  # type: ignore[misc]
    """Where(condition, a, b)."""


class Maximum(sympy.Function):  # type: ignore[misc]
    """The larger one."""


class Minimum(sympy.Function):  # type: ignore[misc]
    """The smaller one."""


class Clip(sympy.Function):  # type: ignore[misc]
    """Clip(x, low, high)."""


class Missing(sympy.Function):  # type: ignore[misc]
    """A number that is NaN where this is selected, and stays NaN in every derivative."""


class Sign(sympy.Function):  # type: ignore[misc]
    """-1, 0 or 1."""

    def fdiff(self, argindex: int = 1) -> Any:
        """0: it is constant wherever there is a derivative."""
        return sympy.S.Zero


class Magnitude(sympy.Function):  # type: ignore[misc]
    """The absolute value."""

    def fdiff(self, argindex: int = 1) -> Any:
        """The sign."""
        return Sign(self.args[0])


class Log1p(sympy.Function):  # type: ignore[misc]
    """The logarithm of 1 + x."""

    def fdiff(self, argindex: int = 1) -> Any:
        """The reciprocal of 1 + x."""
        return 1 / (1 + self.args[0])


class Sigmoid(sympy.Function):  # type: ignore[misc]
    """1 / (1 + exp(-x))."""

    def fdiff(self, argindex: int = 1) -> Any:
        """σ(x)·σ(-x), which keeps its digits where σ is near 1."""
        return SigmoidSlope(self.args[0])


class SigmoidSlope(sympy.Function):  # type: ignore[misc]
    """σ(x)·σ(-x)."""

    def fdiff(self, argindex: int = 1) -> Any:
        """σ(x)·σ(-x)·(σ(-x) - σ(x))."""
        x = self.args[0]
        return self * (Sigmoid(-x) - Sigmoid(x))


class Softplus(sympy.Function):  # type: ignore[misc]
    """The logarithm of 1 + exp(x)."""

    def fdiff(self, argindex: int = 1) -> Any:
        """The sigmoid."""
        return Sigmoid(self.args[0])


class Tanh(sympy.Function):  # type: ignore[misc]
    """The hyperbolic tangent."""

    def fdiff(self, argindex: int = 1) -> Any:
        """1 - tanh², which keeps its digits where tanh is near ±1."""
        return TanhSlope(self.args[0])


class TanhSlope(sympy.Function):  # type: ignore[misc]
    """1 - tanh²."""

    def fdiff(self, argindex: int = 1) -> Any:
        """-2·tanh·(1 - tanh²)."""
        return -2 * Tanh(self.args[0]) * self


class Greater(sympy.Function):  # type: ignore[misc]
    """a > b."""


class GreaterEqual(sympy.Function):  # type: ignore[misc]
    """a >= b."""


class Equal(sympy.Function):  # type: ignore[misc]
    """a == b."""


class NotEqual(sympy.Function):  # type: ignore[misc]
    """a != b."""


class Both(sympy.Function):  # type: ignore[misc]
    """Both conditions."""


class Either(sympy.Function):  # type: ignore[misc]
    """At least one condition."""


class Neither(sympy.Function):  # type: ignore[misc]
    """Not the condition."""


_COMPARISONS = {Greater: ">", GreaterEqual: ">=", Equal: "==", NotEqual: "!="}
_JUNCTIONS = {Both: "&", Either: "|"}
_NAMES = {
    Where: "where",
    Maximum: "maximum",
    Minimum: "minimum",
    Clip: "clip",
    Magnitude: "abs",
    Log1p: "log1p",
    Sigmoid: "sigmoid",
    Softplus: "softplus",
    Tanh: "tanh",
    sympy.exp: "exp",
    sympy.log: "log",
}
_NUMBERS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "power": sympy.Pow,
    "negative": operator.neg,
    "sqrt": sympy.sqrt,
    **{name: function for function, name in _NAMES.items()},
}
_CANCELLING = ("add", "subtract", "multiply", "divide")
"""Where SymPy knows results that NaN, infinity and 0 do not have: x - x and 0·x are 0, and x/x is 1."""
_CONDITIONS: dict[str, Callable[..., Any]] = {
    "greater": Greater,
    "greater_equal": GreaterEqual,
    "equal": Equal,
    "not_equal": NotEqual,
    "and": Both,
    "or": Either,
    "not": Neither,
}


# ---- traces -------------------------------------------------------------------------------------------------------


class Trace:
    """What a function did, in order, each thing once.

    Parameters
    ----------
    parameters : iterable of str
        Names of the run-time parameters.

    Attributes
    ----------
    steps : dict
        What each name stands for: one operation on earlier names and numbers.
    """

    def __init__(self, parameters: Iterable[str]) -> None:
        self.inputs = {name: sympy.Symbol(name, real=True) for name in (TARGET, PREDICTION, *parameters)}
        self.steps: dict[Any, Any] = {}
        self._names: dict[Any, Any] = {}

    def scalar(self, name: str) -> Scalar:
        """An input, as the function gets it."""
        return Scalar(self, self.inputs[name])

    def apply(self, operation: str, *operands: Any) -> Any:
        """Record an operation of the function, and give its result."""
        if operation in _CONDITIONS:
            wanted = _condition if operation in ("and", "or", "not") else self._number
            return Condition(self, _CONDITIONS[operation](*(wanted(operand) for operand in operands)))
        if operation == "where":
            condition, *branches = operands
            atoms = [_condition(condition), *(self._number(branch) for branch in branches)]
        else:
            atoms = [self._number(operand) for operand in operands]
        result = _NUMBERS[operation](*atoms)
        if operation in _CANCELLING and any(atom.free_symbols - result.free_symbols for atom in atoms):
            refuse(
                f"a term that cancels, as x - x, x / x and 0 * x do (this one is {result})",
                "of NaN, infinity or a divisor of 0 it is NaN; leave it out, or make a factor 0 a parameter",
            )
        return Scalar(self, self.name(result))

    def _number(self, operand: Any) -> Any:
        if isinstance(operand, Scalar):
            if operand.trace is not self:
                refuse("a symbol of another function", "it belongs to the function that was given it")
            return operand.content
        if isinstance(operand, (bool, np.bool_, Condition)):
            refuse("a condition where a number is expected", "write where(condition, a, b)")
        if not isinstance(operand, (int, float, np.integer, np.floating)):
            refuse(
                f"{operand!r} of type {type(operand).__name__}", "y and p meet numbers, each other and the parameters"
            )
        return _literal(operand)

    def name(self, expression: Any) -> Any:
        """A name, or minus a name, of one operation; numbers and names stay what they are."""
        if expression.is_Symbol:
            return expression
        if expression.has(sympy.zoo, sympy.nan):
            refuse("a division by 0", "the quotient has no value anywhere")
        if expression.is_number:
            return _constant(expression)
        if expression.could_extract_minus_sign():
            return -self.name(-expression)
        expression = self._scale(expression)
        if expression.is_Symbol:
            return expression
        known = self._names.get(expression)
        if known is None:
            if len(self.steps) >= _MOST_STEPS:
                raise TraceError(f"cannot trace more than {_MOST_STEPS} operations, with those of the derivatives")
            known = self._names[expression] = sympy.Symbol(f"_{len(self.steps) + 1}", real=True)
            self.steps[known] = expression
        return known

    def _scale(self, expression: Any) -> Any:
        """A number times a number times something as one product, where that is exact: half of twice it is itself."""
        outer, rest = expression.as_coeff_Mul()
        inner, rest = self.steps.get(rest, rest).as_coeff_Mul()
        if outer == 1 or inner == 1 or not any(math.frexp(float(c))[0] == 0.5 for c in (outer, inner)):
            return expression
        return sympy.Mul(outer * inner, rest)

    def record(self, expression: Any) -> Any:
        """The name of any expression, its operations recorded one by one."""
        if expression.is_Atom or isinstance(expression, (*_COMPARISONS, *_JUNCTIONS, Neither)):
            return expression if expression.is_Symbol or not expression.is_number else _constant(expression)
        if expression.is_Pow and expression.exp.is_Integer and expression.exp < -1:
            expression = sympy.Pow(self.record(1 / expression.base), -expression.exp)
        return self.name(expression.func(*(self.record(part) for part in expression.args)))

    def needed(self, *roots: Any) -> set[Any]:
        """The names that some expressions depend on."""
        found: set[Any] = set()
        waiting = [symbol for root in roots for symbol in root.free_symbols]
        while waiting:
            symbol = waiting.pop()
            if symbol not in found:
                found.add(symbol)
                waiting.extend(self.steps[symbol].free_symbols if symbol in self.steps else ())
        return found


def _condition(operand: Any) -> Any:
    if not isinstance(operand, Condition):
        refuse(f"{operand!r} as a condition", "comparisons of y, p and parameters are conditions")
    return operand.content


def _literal(value: Any) -> Any:
    """A number of the function's; whole ones, halves and the like as the ratio they are, which SymPy keeps exact."""
    number = float(value)
    if not math.isfinite(number):
        refuse(f"the number {value}", "it must be finite")
    above, below = number.as_integer_ratio()
    return sympy.Rational(above, below) if max(abs(above), below) < 2**24 else sympy.Float(number)


def _constant(expression: Any) -> Any:
    """An expression without names as a number."""
    if expression.is_Rational or expression.is_Float:
        return expression
    if type(expression) in _NAMES:
        return _literal(_evaluate(expression))
    if not expression.is_finite or not expression.is_real:
        refuse(f"{expression}", "it is no finite real number")
    return sympy.Float(float(expression))


def _evaluate(expression: Any) -> Any:
    """What a function of numbers gives, or whether a condition on them holds."""
    if expression.is_Rational or expression.is_Float:
        return float(expression)
    operands = [_evaluate(part) for part in expression.args]
    known = {Greater: "gt", GreaterEqual: "ge", Equal: "eq", NotEqual: "ne", Both: "and_", Either: "or_"}
    if type(expression) in known:
        return getattr(operator, known[type(expression)])(*operands)
    if isinstance(expression, Neither):
        return not operands[0]
    return _FUNCTIONS[_NAMES[type(expression)]](*operands)


def trace(function: Callable[..., Any], parameters: Iterable[str]) -> tuple[Trace, Any]:
    """Call a function with symbols: what it did, and the name of what it returned."""
    names = tuple(parameters)
    check_names(names)
    record = Trace(names)
    result = function(record.scalar(TARGET), record.scalar(PREDICTION), **{name: record.scalar(name) for name in names})
    if isinstance(result, Condition):
        raise TraceError("the function must return one number made of y and p, got a condition: see where()")
    if not isinstance(result, Scalar):
        raise TraceError(f"the function must return one number made of y and p, got {type(result).__name__}")
    if record.inputs[PREDICTION] not in record.needed(result.content):
        raise TraceError("the function's result does not depend on the prediction, its second argument")
    return record, result.content


def check_names(names: Iterable[str]) -> None:
    """Refuse names of parameters that an expression cannot have."""
    for name in names:
        taken = name in (TARGET, PREDICTION, "abs", *symbols.__all__)
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or taken:
            raise ValueError(
                f"{name!r} cannot be the name of a parameter: it must be an identifier without leading underscore, and "
                f"neither {TARGET!r} nor {PREDICTION!r} nor a function of fastloss.symbols"
            )


def parameter_names(function: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a function beyond target and prediction, with their defaults."""
    try:
        arguments = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise TypeError(
            f"`function` must be a Python function of target, prediction and parameters, got {function!r}"
        ) from None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(arguments) < 2 or any(argument.kind not in positional for argument in arguments[:2]):
        raise TypeError("`function` must take the target and the prediction as its first two arguments")
    for argument in arguments[2:]:
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD, argument.POSITIONAL_ONLY):
            raise TypeError(f"`function` must name its parameters, and take them by name: got {argument}")
    return {argument.name: argument.default for argument in arguments[2:]}


def with_defaults(found: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are given, and the defaults of the other parameters."""
    unknown = sorted(set(given) - set(found))
    if unknown:
        raise TypeError(f"`function` has no parameter {unknown[0]!r}; it has {', '.join(found) or 'none'}")
    missing = [name for name, default in found.items() if default is inspect.Parameter.empty and name not in given]
    if missing:
        raise TypeError(f"`function` needs a value of its parameter {missing[0]!r}: pass {missing[0]}=...")
    return {**{name: default for name, default in found.items() if name not in given}, **given}


# ---- derivatives ----------------------------------------------------------------------------------------------------


def differentiate(record: Trace, root: Any, known: dict[Any, Any]) -> Any:
    """The derivative of a name in the prediction; `known` holds those found before."""
    needed = record.needed(root)
    for symbol in list(record.steps):
        if symbol in needed and symbol not in known:
            known[symbol] = _derivative(record, record.steps[symbol], known)
    return _of(root, known)


def _of(atom: Any, known: dict[Any, Any]) -> Any:
    if atom.is_Symbol:
        return known.get(atom, sympy.S.Zero)
    return -_of(-atom, known) if (-atom).is_Symbol else sympy.S.Zero


def _derivative(record: Trace, step: Any, known: dict[Any, Any]) -> Any:
    name, args = record.name, step.args

    def choose(condition: Any, a: Any, b: Any) -> Any:
        return a if a == b else name(Where(condition, a, b))

    if isinstance(step, Where):
        return choose(args[0], _of(args[1], known), _of(args[2], known))
    slopes = [_of(arg, known) for arg in args]
    if not any(slope != 0 for slope in slopes):
        return sympy.S.Zero
    if isinstance(step, Missing):
        return name(step)
    if isinstance(step, (Maximum, Minimum)):
        (a, b), (da, db) = args, slopes
        larger, smaller = (a, b) if isinstance(step, Maximum) else (b, a)
        lost = name(Missing(name(step)))
        return da if da == db else choose(GreaterEqual(larger, smaller), da, choose(Greater(smaller, larger), db, lost))
    if isinstance(step, Clip):
        x, low, high = args
        if slopes[1] == 0 == slopes[2]:
            return choose(Either(Greater(low, x), Greater(x, high)), sympy.S.Zero, slopes[0])
        raised = name(Maximum(x, low))
        known[raised] = _derivative(record, record.steps[raised], known)
        return _derivative(record, Minimum(raised, high), known)
    total = sympy.S.Zero
    for symbol in sorted(step.free_symbols, key=str):
        slope = _of(symbol, known)
        if slope != 0:
            total = name(total + name(record.record(_partial(step, symbol)) * slope))
    return total


def _partial(step: Any, symbol: Any) -> Any:
    """The derivative of one operation in one of its names."""
    if step.is_Pow and symbol == step.base and not step.exp.is_number and symbol not in step.exp.free_symbols:
        return step.exp * sympy.Pow(step.base, step.exp - 1, evaluate=False)
    return step.diff(symbol)


# ---- text -----------------------------------------------------------------------------------------------------------


def text(record: Trace, root: Any) -> str:
    """A trace as text: Python, with a statement for what is used more than once."""
    needed = record.needed(root)
    uses = dict.fromkeys(needed, 0)
    for symbol in (root, *(record.steps[symbol] for symbol in needed if symbol in record.steps)):
        for part in sympy.preorder_traversal(symbol):
            if part.is_Symbol:
                uses[part] += 1
    printed: dict[Any, tuple[str, int]] = {}
    statements: list[str] = []
    for symbol in (*record.inputs.values(), *record.steps):
        if symbol not in needed:
            continue
        if symbol not in record.steps:
            printed[symbol] = str(symbol), _ATOM
            continue
        written = _in_python(record.steps[symbol], printed)
        if uses[symbol] > 1 or len(written[0]) > _LONG_TEXT:
            label = f"_{len(statements) + 1}"
            statements.append(f"{label} = {written[0]}")
            written = label, _ATOM
        printed[symbol] = written
    return "; ".join([*statements, _in_python(root, printed)[0]])


_LONG_TEXT = 100
"""From this length on a step gets a statement of its own: Python reads no more than 200 parentheses in each other."""

_CONDITION, _SUM, _PRODUCT, _SIGNED, _POWER, _ATOM = range(6)
"""How strongly the outermost operation of a text binds."""


def _in_python(expression: Any, printed: Mapping[Any, tuple[str, int]]) -> tuple[str, int]:
    def within(part: Any, strength: int) -> str:
        written, own = _in_python(part, printed)
        return written if own >= strength else f"({written})"

    if expression in printed:
        return printed[expression]
    if expression.is_number:
        return _digits(expression), _SIGNED if expression.is_negative else _ATOM
    if expression.is_Add:
        return _sum([(minus, within(part, _PRODUCT)) for minus, part in _signed(expression)]), _SUM
    if expression.is_Mul:
        coefficient, above, below = _factors(expression)
        if coefficient == -1 and len(above) == 1 and not below:
            return f"-{within(above[0], _POWER)}", _SIGNED
        factors = [within(part, _POWER) for part in ([] if coefficient == 1 and above else [coefficient]) + above]
        return " * ".join(factors) + "".join(f" / {within(part, _POWER)}" for part in below), _PRODUCT
    if expression.is_Pow:
        if expression.exp == sympy.S.Half:
            return f"sqrt({within(expression.base, _CONDITION)})", _ATOM
        if expression.exp == -1:
            return f"1 / {within(expression.base, _POWER)}", _PRODUCT
        return f"{within(expression.base, _ATOM)}**{within(expression.exp, _ATOM)}", _POWER
    kind = type(expression)
    if kind in _COMPARISONS or kind in _JUNCTIONS:
        a, b = (within(part, _SUM) for part in expression.args)
        return f"{a} {_COMPARISONS.get(kind) or _JUNCTIONS[kind]} {b}", _CONDITION
    if isinstance(expression, Neither):
        return f"~{within(expression.args[0], _ATOM)}", _ATOM
    return f"{_NAMES[kind]}({', '.join(within(part, _CONDITION) for part in expression.args)})", _ATOM


def _signed(total: Any) -> list[tuple[bool, Any]]:
    """The terms of a sum with their signs (whether it is minus), the positive ones first."""
    terms = [(bool(term.could_extract_minus_sign()), term) for term in total.args]
    return sorted(((minus, -term if minus else term) for minus, term in terms), key=lambda pair: pair[0])


def _sum(terms: list[tuple[bool, str]]) -> str:
    (minus, first), *rest = terms
    return ("-" if minus else "") + first + "".join(f" {'-' if minus else '+'} {term}" for minus, term in rest)


def _factors(product: Any) -> tuple[Any, list[Any], list[Any]]:
    """The number of a product, its other factors, and its divisors."""
    coefficient, rest = product.as_coeff_Mul()
    above, below = [], []
    for factor in rest.args if rest.is_Mul else (rest,):
        if _inverts(factor):
            below.append(factor.base)
        else:
            above.append(factor)
    return coefficient, above, below


def _digits(number: Any) -> str:
    return str(number) if number.is_Integer else repr(float(number))


_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": abs, **{name: getattr(symbols, name) for name in symbols.__all__}}
_LONGEST_TEXT = 100_000


def parse(expression: str, parameters: Iterable[str]) -> tuple[Trace, Any]:
    """Read the text of an expression: operators, functions of `fastloss.symbols`, names given before; nothing else.

    Raises
    ------
    ValueError
        If there is anything else in it.
    """
    if not isinstance(expression, str):
        raise TypeError(f"`expression` must be text, got {expression!r}")
    if len(expression) > _LONGEST_TEXT:
        raise ValueError(f"`expression` must have at most {_LONGEST_TEXT} characters, got {len(expression)}")
    try:
        body = ast.parse(expression.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"`expression` cannot be read: {error}") from None

    def run(y: Any, p: Any, **others: Any) -> Any:
        names = {TARGET: y, PREDICTION: p, **others}
        for statement in body[:-1]:
            if not (
                isinstance(statement, ast.Assign)
                and len(statement.targets) == 1
                and isinstance(statement.targets[0], ast.Name)
            ):
                raise _unreadable(statement)
            names[statement.targets[0].id] = _value(statement.value, names)
        if not body or not isinstance(body[-1], ast.Expr):
            raise ValueError("`expression` must end with the loss")
        return _value(body[-1].value, names)

    try:
        return trace(run, parameters)
    except (TraceError, RecursionError, ArithmeticError) as error:
        raise ValueError(f"`expression` cannot be read: {error}") from None


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, names), _value(node.right, names))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand, names))
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OPERATORS:
        return _OPERATORS[type(node.ops[0])](_value(node.left, names), _value(node.comparators[0], names))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _FUNCTIONS.get(node.func.id)
        if function is not None and len(node.args) == len(inspect.signature(function).parameters):
            return function(*(_value(argument, names) for argument in node.args))
    raise _unreadable(node)


def _unreadable(node: ast.AST) -> ValueError:
    return ValueError(f"`expression` holds {ast.unparse(node)!r}, which is neither arithmetic nor in fastloss.symbols")


# ---- code -----------------------------------------------------------------------------------------------------------


def whole_exponents(expression: str, params: Mapping[str, float]) -> tuple[tuple[str, int], ...]:
    """Parameters that are exponents, and whose values are small whole numbers."""
    small = {name: int(value) for name, value in params.items() if value in _WHOLE_EXPONENTS}
    return tuple((name, small[name]) for name in _exponents(expression, tuple(params)) if name in small)


@cache
def _exponents(expression: str, parameters: tuple[str, ...]) -> tuple[str, ...]:
    record, _ = parse(expression, parameters)
    powers = [step for step in record.steps.values() if step.is_Pow]
    return tuple(name for name in parameters if any(step.exp == record.inputs[name] for step in powers))


@cache
def kernel(expression: str, parameters: tuple[str, ...], fixed: tuple[tuple[str, int], ...] = ()) -> Kernel:
    """The kernel of an expression.

    Parameters
    ----------
    expression : str
        Text that `parse` takes.
    parameters : tuple of str
        Names of all parameters, those fixed included.
    fixed : tuple of (str, int)
        Parameters that are constants of this kernel as exponents. A power costs 3 ns an element, a multiplication 0.1.
    """
    record, root = parse(expression, parameters)
    if fixed:
        record, root = _fix(record, root, dict(fixed), parameters)
    known = {record.inputs[PREDICTION]: sympy.S.One}
    slope = differentiate(record, root, known)
    curvature = differentiate(record, slope, known)
    source, calls = _code(record, (root, slope, curvature), parameters)
    namespace: dict[str, Any] = {}
    exec(compile(source, f"<fastloss expression {expression}>", "exec"), namespace)
    return Kernel("expression", "pointwise", namespace["factory"], parameters, calls, source=source)


def _fix(record: Trace, root: Any, values: dict[str, int], parameters: tuple[str, ...]) -> tuple[Trace, Any]:
    """The same trace with numbers for some parameters, where they are exponents."""
    result = Trace(parameters)
    numbers = {record.inputs[name]: sympy.Integer(value) for name, value in values.items()}
    names: dict[Any, Any] = {}
    for symbol, step in record.steps.items():
        if step.is_Pow and step.exp in numbers:
            step = sympy.Pow(step.base, numbers[step.exp])
        names[symbol] = result.record(step.xreplace(names))
    return result, root.xreplace(names)


def _code(record: Trace, roots: tuple[Any, Any, Any], parameters: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The source of a kernel's factory, and the vector functions that value and slope call."""
    writer = _Writer(record, roots, parameters)
    results = [writer.atom(root) for root in roots]
    arguments = ", ".join([TARGET, PREDICTION, *(f"a{k}" for k in range(len(parameters)))])
    constants = "".join(f"    {name} = xp.const({value})\n" for value, name in writer.constants.items())
    lines = "".join(f"        {line}\n" for line in writer.lines)
    source = (
        f"def factory(xp):\n{constants}\n    def terms({arguments}):\n{lines}        return {', '.join(results)}\n\n"
        "    return terms\n"
    )
    return source, tuple(writer.calls)


def _inverts(step: Any) -> bool:
    return bool(step.is_Pow and step.exp == -1)


class _Writer:
    """Steps as lines of a kernel.

    Numbers whose signs or ranges are known get the cheaper of two functions; powers become products; a quotient whose
    divisor's reciprocal is needed anyway becomes a product with it.
    """

    def __init__(self, record: Trace, roots: tuple[Any, Any, Any], parameters: tuple[str, ...]) -> None:
        self._steps = record.steps
        self.lines: list[str] = []
        self.constants: dict[str, str] = {}
        self.calls: list[str] = []
        self._texts = {record.inputs[TARGET]: TARGET, record.inputs[PREDICTION]: PREDICTION}
        self._texts |= {record.inputs[name]: f"a{k}" for k, name in enumerate(parameters)}
        self._lines: dict[str, str] = {}
        self._ranges = _Ranges(record.steps)
        often, needed = record.needed(*roots[:2]), record.needed(*roots)
        self._reciprocals = {step.base for symbol, step in record.steps.items() if symbol in often and _inverts(step)}
        for symbol in [*(s for s in record.steps if s in often), *(s for s in record.steps if s in needed - often)]:
            self._counting = symbol in often
            self._ranges(symbol)  # known in this order, it takes no recursion
            self._texts[symbol] = self._line(self._step(record.steps[symbol]))

    def _line(self, code: str) -> str:
        """A name for `code`, the same one for the same code."""
        if code.isidentifier():
            return code
        if code not in self._lines:
            self._lines[code] = f"t{len(self._lines)}"
            self.lines.append(f"{self._lines[code]} = {code}")
        return self._lines[code]

    def _call(self, kind: str, code: str) -> str:
        """A name for `code`, which calls a function of that kind."""
        if code not in self._lines and self._counting:
            self.calls.append(kind)
        return self._line(code)

    def atom(self, atom: Any) -> str:
        """A name, minus a name, or a constant."""
        if atom in self._texts:
            return self._texts[atom]
        if atom.is_number:
            return self.constants.setdefault(repr(float(atom)), f"c{len(self.constants)}")
        return f"-{self._texts[-atom]}"

    def _step(self, step: Any) -> str:
        if step.is_Add:
            return _sum([(minus, self.atom(term)) for minus, term in _signed(step)])
        if step.is_Mul:
            return self._product(step)
        if step.is_Pow:
            return self._power(step.base, step.exp)
        if isinstance(step, Where):
            condition, a, b = step.args
            return f"xp.where({self._condition(condition)}, {self.atom(a)}, {self.atom(b)})"
        return str(getattr(self, f"_{type(step).__name__.lower()}")(*step.args))

    def _product(self, step: Any) -> str:
        coefficient, above, below = _factors(step)
        factors = [] if coefficient == 1 and above else [self.atom(coefficient)]
        factors += [self._line(self._step(factor)) if factor.is_Pow else self.atom(factor) for factor in above]
        divisors = []
        for base in below:
            if base in self._reciprocals:
                factors.append(self._line(self._power(base, sympy.Integer(-1))))
            else:
                divisors.append(self.atom(base))
                if self._counting:
                    self.calls.append("div")
        return " * ".join(factors) + "".join(f" / {divisor}" for divisor in divisors)

    def _power(self, base: Any, exponent: Any) -> str:
        if exponent.is_Integer and abs(exponent) <= _LARGEST_POWER:
            if exponent < 0:
                one = self.atom(sympy.S.One)
                return self._call("div", f"{one} / {self._line(self._whole(self.atom(base), -int(exponent)))}")
            return self._whole(self.atom(base), int(exponent))
        if (2 * exponent).is_Integer and exponent - sympy.S.Half in _WHOLE_EXPONENTS:
            root = self._call("div", f"xp.sqrt({self.atom(base)})")
            whole = int(exponent - sympy.S.Half)
            if whole == 0:
                return root
            if exponent == -sympy.S.Half:
                return self._call("div", f"{self.atom(sympy.S.One)} / {root}")
            return f"{root} * {self._line(self._power(base, sympy.Integer(whole)))}"
        return self._call("pow", f"xp.pow({self.atom(base)}, {self.atom(exponent)})")

    def _whole(self, base: str, exponent: int) -> str:
        """A power by squaring."""
        if exponent == 0:
            return self.atom(sympy.S.One)
        if exponent == 1:
            return base
        half = self._line(self._whole(base, exponent // 2)) if exponent > 3 else base
        return f"{half} * {half}" + (f" * {base}" if exponent % 2 else "")

    def _condition(self, condition: Any) -> str:
        kind = type(condition)
        if kind in _COMPARISONS:
            a, b = condition.args
            return f"({self.atom(a)} {_COMPARISONS[kind]} {self.atom(b)})"
        if kind in _JUNCTIONS:
            a, b = condition.args
            return f"({self._condition(a)} {_JUNCTIONS[kind]} {self._condition(b)})"
        return f"(not {self._condition(condition.args[0])})"

    # ---- functions, by the names of their classes

    def _maximum(self, a: Any, b: Any) -> str:
        return f"xp.maximum({self.atom(a)}, {self.atom(b)})"

    def _minimum(self, a: Any, b: Any) -> str:
        return f"xp.minimum({self.atom(a)}, {self.atom(b)})"

    def _clip(self, x: Any, low: Any, high: Any) -> str:
        return f"xp.clip({self.atom(x)}, {self.atom(low)}, {self.atom(high)})"

    def _missing(self, x: Any) -> str:
        return self.atom(x)

    def _magnitude(self, x: Any) -> str:
        return f"abs({self.atom(x)})"

    def _sign(self, x: Any) -> str:
        zero, one = self.atom(sympy.S.Zero), self.atom(sympy.S.One)
        size = self._line(self._magnitude(x))
        return f"xp.where({size} > {zero}, xp.copysign({one}, {self.atom(x)}), {self.atom(x)})"

    def _exp(self, x: Any) -> str:
        known = "exp_nonpositive" if self._ranges(x)[1] <= 0 else "exp"
        return self._call("exp", f"xp.{known}({self.atom(x)})")

    def _log(self, x: Any) -> str:
        known = "log_positive" if self._ranges(x)[0] >= np.finfo(np.float32).tiny else "log"
        return self._call("log", f"xp.{known}({self.atom(x)})")

    def _log1p(self, x: Any) -> str:
        low, high = self._ranges(x)
        known = "log1p_unit" if low >= 0 and high <= 1 else "log1p"
        return self._call("log", f"xp.{known}({self.atom(x)})")

    def _halves(self, x: Any) -> tuple[str, str, str]:
        """(x, E, 1/(1 + E)) with E = exp(-abs(x)), the same for x and -x."""
        plain = self.atom(x).removeprefix("-")
        e = self._call("exp", f"xp.exp_nonpositive(-abs({plain}))")
        one = self.atom(sympy.S.One)
        return self.atom(x), e, f"{one} / ({one} + {e})"

    def _sigmoid(self, x: Any) -> str:
        name, e, inverse = self._halves(x)
        r = self._call("div", inverse)
        return f"xp.where({name} < {self.atom(sympy.S.Zero)}, {self._line(f'{e} * {r}')}, {r})"

    def _sigmoidslope(self, x: Any) -> str:
        _, e, inverse = self._halves(x)
        r = self._call("div", inverse)
        return f"{self._line(f'{e} * {r}')} * {r}"

    def _softplus(self, x: Any) -> str:
        name, e, _ = self._halves(x)
        rest = self._call("log", f"xp.log1p_unit({e})")
        zero = self.atom(sympy.S.Zero)
        return f"xp.where({name} > {zero}, {name}, {zero}) + {rest}"

    def _tanh_parts(self, x: Any) -> tuple[str, str]:
        """expm1(-2·abs(x)), and 2 more."""
        a = self._line(f"abs({self.atom(x).removeprefix('-')})")
        m = self._call("exp", f"xp.expm1_nonpositive(-({a} + {a}))")
        return m, self._line(f"{self.atom(sympy.Integer(2))} + {m}")

    def _tanh(self, x: Any) -> str:
        m, d = self._tanh_parts(x)
        q = self._call("div", f"{m} / {d}")
        return f"xp.where({self.atom(x)} < {self.atom(sympy.S.Zero)}, {q}, -{q})"

    def _tanhslope(self, x: Any) -> str:
        m, d = self._tanh_parts(x)
        four, one = self.atom(sympy.Integer(4)), self.atom(sympy.S.One)
        return self._call("div", f"{four} * ({m} + {one}) / ({d} * {d})")


class _Ranges:
    """Between which numbers a step's result lies, if it is not NaN; in float32 and in float64 alike.

    Endpoints are computed as the kernel computes, in both dtypes. Rounding is monotone, so they hold for all between.
    """

    def __init__(self, steps: Mapping[Any, Any]) -> None:
        self._steps = steps
        self._known: dict[Any, tuple[float, float]] = {}
        self._exact: dict[tuple[Any, Any], tuple[Any, Any]] = {}

    def __call__(self, atom: Any) -> tuple[float, float]:
        """The range of a name or number."""
        pairs = [self._range(atom, real) for real in (np.float32, np.float64)]
        return float(min(pair[0] for pair in pairs)), float(max(pair[1] for pair in pairs))

    def _range(self, atom: Any, real: Any) -> tuple[Any, Any]:
        if atom.is_number:
            return real(float(atom)), real(float(atom))
        if not atom.is_Symbol:
            low, high = self._range(-atom, real)
            return -high, -low
        if atom not in self._steps:
            return real(-np.inf), real(np.inf)
        if (atom, real) not in self._exact:
            with np.errstate(all="ignore"):
                pair = self._of_step(self._steps[atom], real)
            nothing_known = any(np.isnan(end) for end in pair)
            self._exact[atom, real] = (real(-np.inf), real(np.inf)) if nothing_known else pair
        return self._exact[atom, real]

    def _of_step(self, step: Any, real: Any) -> tuple[Any, Any]:
        zero, one, infinity = real(0), real(1), real(np.inf)
        if step.is_Add:
            ranges = [self._range(arg, real) for arg in step.args]
            return sum((r[0] for r in ranges), zero), sum((r[1] for r in ranges), zero)
        if step.is_Mul and len(step.args) == 2 and not any(arg.is_Pow for arg in step.args):
            a, b = (self._range(arg, real) for arg in step.args)
            corners = [u * v for u in a for v in b]
            if any(np.isnan(corner) for corner in corners):
                same_side = all(r[0] >= 0 for r in (a, b)) or all(r[1] <= 0 for r in (a, b))
                other_side = (a[0] >= 0 and b[1] <= 0) or (a[1] <= 0 and b[0] >= 0)
                return (zero if same_side else -infinity), (zero if other_side else infinity)
            return min(corners), max(corners)
        if step.is_Pow:
            even = step.exp.is_Integer and step.exp % 2 == 0
            low = self._range(step.base, real)[0]
            return (zero if even or low >= 0 else -infinity), infinity
        if isinstance(step, (Maximum, Minimum)):
            choose = max if isinstance(step, Maximum) else min
            a, b = (self._range(arg, real) for arg in step.args)
            return choose(a[0], b[0]), choose(a[1], b[1])
        if isinstance(step, Clip):
            return self._range(step.args[1], real)[0], self._range(step.args[2], real)[1]
        if isinstance(step, Where):
            a, b = (self._range(arg, real) for arg in step.args[1:])
            return min(a[0], b[0]), max(a[1], b[1])
        if isinstance(step, Magnitude):
            low, high = self._range(step.args[0], real)
            return (zero if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))
        if isinstance(step, sympy.exp):
            return zero, (one if self._range(step.args[0], real)[1] <= 0 else infinity)
        if isinstance(step, (Sigmoid, SigmoidSlope, TanhSlope)):
            return zero, one
        if isinstance(step, (Tanh, Sign)):
            return -one, one
        if isinstance(step, Softplus):
            return zero, infinity
        return -infinity, infinity
