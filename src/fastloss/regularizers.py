"""Penalties of weights and activities, with the semantics of ``keras.regularizers``, and their gradients."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from fastloss import kernels
from fastloss.engine import single, threads
from fastloss.kernels.definition import Kernel
from fastloss.losses import arrays, options
from fastloss.losses.arrays import Array

__all__ = ["L1", "L1L2", "L2", "deserialize", "get", "l1", "l1_l2", "l2", "serialize"]


class L1L2:
    """Sum of absolute values and of squares, ``l1 * sum(abs(x)) + l2 * sum(x**2)``.

    The gradient is ``l1 * sign(x) + 2 * l2 * x``, with sign 0 at 0. A factor of 0 leaves its sum out, also where that
    is infinite.

    Parameters
    ----------
    l1, l2 : float
        The factors, 0 or more; None is 0.

    Raises
    ------
    TypeError, ValueError
        If a factor is no finite number, or negative.

    References
    ----------
    ``keras.regularizers.L1L2``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> penalty = fastloss.regularizers.L1L2(l1=0.5, l2=0.25)
    >>> value, grad = penalty.value_and_grad(np.array([[1.0, -2.0]]))
    >>> float(value), grad.tolist()
    (2.75, [[1.0, -1.5]])
    """

    def __init__(self, l1: float | None = 0.0, l2: float | None = 0.0) -> None:
        self._factors = {"l1": options.non_negative("l1", l1 or 0.0), "l2": options.non_negative("l2", l2 or 0.0)}

    @property
    def l1(self) -> float:
        """The factor of the absolute values."""
        return self._factors.get("l1", 0.0)

    @property
    def l2(self) -> float:
        """The factor of the squares."""
        return self._factors.get("l2", 0.0)

    def __call__(self, x: Any, *, activity: bool = False, n_threads: int | None = None) -> Any:
        """The penalty.

        Parameters
        ----------
        x : array_like
            Weights or activities, of any shape.
        activity : bool
            Divide by the length of the first axis, the batch, as Keras does for an ``activity_regularizer``.
        n_threads : int, optional
            Threads to use; by default as `fastloss.set_num_threads` says, else by the amount of work.

        Returns
        -------
        numpy scalar
            In the dtype that a loss of such predictions has: that of `fastloss.floatx`, else float64 for float64 and
            float32 for all others. It is summed in float64 and rounded once.
        """
        return self._evaluate(x, activity, None, None, n_threads, gradient=False)[0]

    def value_and_grad(
        self,
        x: Any,
        *,
        activity: bool = False,
        upstream: float | None = None,
        out: Array | None = None,
        n_threads: int | None = None,
    ) -> tuple[Any, Array]:
        """The penalty and its gradient with respect to `x`, in one pass.

        Parameters
        ----------
        x, activity, n_threads
            As for calling it.
        upstream : float, optional
            A factor of the gradient; it does not change the value.
        out : numpy.ndarray, optional
            Where the gradient is written: of `x`'s shape and the gradient's dtype, overlapping no input.

        Returns
        -------
        value : numpy scalar
            As from calling it.
        gradient : numpy.ndarray
            Of `x`'s shape, and of its dtype where that is floating, else of the value's. `out` if that was given.

        Raises
        ------
        TypeError, ValueError
            If `x` holds no real numbers, `upstream` is no number, or `out` does not fit.
        """
        return self._evaluate(x, activity, upstream, out, n_threads, gradient=True)

    def _evaluate(
        self, x: Any, activity: bool, upstream: Any, out: Any, n_threads: int | None, *, gradient: bool
    ) -> tuple[Any, Any]:
        if n_threads is not None:
            n_threads = threads.check(n_threads)
        compute, result = arrays.compute_dtypes(None, x)
        given = arrays.to_array("x", x, compute)
        dtype = arrays.gradient_dtype(x, given, result)
        factor = 1.0
        if options.flag("activity", activity):
            if not given.shape or not given.shape[0]:
                raise ValueError(f"`x` must be a batch of at least one activity, got shape {given.shape}")
            factor = 1.0 / given.shape[0]
        flow = factor if upstream is None else factor * options.number("upstream", upstream)
        if out is not None:
            arrays.check_out(out, given, dtype, {"x": given}, "x")
        w = arrays.contiguous(given if arrays.is_float(given) else given.astype(dtype))
        g = None
        if gradient:
            g = out if out is not None and arrays.contiguous(out) is out else np.empty(w.shape, dtype)
        kernel, params, scale = self._kernel()
        if kernel is None:
            total = 0.0
            if g is not None:
                g.fill(0)
        else:
            total = single.run(
                kernel,
                w,
                g,
                params,
                dtype=compute.str[1:],
                value_scale=scale * factor,
                grad_scale=scale * flow,
                n_threads=n_threads,
            )
        if out is not None and g is not out:
            out[...] = g
            g = out
        return result.type(total), g

    def _kernel(self) -> tuple[Kernel | None, tuple[float, ...], float]:
        """The kernel that has only what is wanted, its parameters, and a factor of value and gradient."""
        if self.l1 and self.l2:
            return kernels.absolute_square, (self.l1, self.l2), 1.0
        if self.l1:
            return kernels.absolute, (), self.l1
        if self.l2:
            return kernels.half_square, (), 2.0 * self.l2
        return None, (), 0.0

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, so that ``from_config(get_config())`` makes an equal one."""
        return dict(self._factors)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> L1L2:
        """Make one from what `get_config` gave."""
        return cls(**config)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self._factors.items())})"


class L1(L1L2):
    """Sum of absolute values, ``l1 * sum(abs(x))``; its gradient is ``l1 * sign(x)``, 0 at 0.

    Parameters
    ----------
    l1 : float
        The factor, 0 or more; None is 0.01.

    Raises
    ------
    TypeError, ValueError
        If the factor is no finite number, or negative.

    References
    ----------
    ``keras.regularizers.L1``.

    Examples
    --------
    >>> import fastloss
    >>> float(fastloss.regularizers.L1(0.5)([1.0, -3.0]))
    2.0
    """

    def __init__(self, l1: float | None = 0.01) -> None:
        self._factors = {"l1": options.non_negative("l1", 0.01 if l1 is None else l1)}


class L2(L1L2):
    """Sum of squares, ``l2 * sum(x**2)``; its gradient is ``2 * l2 * x``.

    Parameters
    ----------
    l2 : float
        The factor, 0 or more; None is 0.01.

    Raises
    ------
    TypeError, ValueError
        If the factor is no finite number, or negative.

    References
    ----------
    ``keras.regularizers.L2``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> value, grad = fastloss.regularizers.L2(0.5).value_and_grad(np.array([1.0, -3.0]))
    >>> float(value), grad.tolist()
    (5.0, [1.0, -3.0])
    """

    def __init__(self, l2: float | None = 0.01) -> None:
        self._factors = {"l2": options.non_negative("l2", 0.01 if l2 is None else l2)}


l1, l2, l1_l2 = L1, L2, L1L2

_KNOWN: dict[str, type[L1L2]] = {"L1": L1, "L2": L2, "L1L2": L1L2, "l1": L1, "l2": L2, "l1_l2": L1L2}


def get(identifier: Any) -> Any:
    """Find a regulariser by its identifier.

    Parameters
    ----------
    identifier : str, dict, callable or None
        A name (``"l1"``, ``"l2"``, ``"l1_l2"`` or that of a class; gives default factors), what `serialize` or
        ``keras.regularizers.serialize`` gave, a regulariser or another callable, which is returned as it is, or None.

    Returns
    -------
    L1L2, callable or None

    Raises
    ------
    ValueError
        If there is no such regulariser.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.regularizers.get("l2")
    L2(l2=0.01)
    """
    if identifier is None:
        return None
    if isinstance(identifier, (str, dict)):
        return deserialize(identifier)
    found = identifier() if inspect.isclass(identifier) else identifier
    if callable(found):
        return found
    raise ValueError(f"Could not interpret regularizer identifier: {identifier!r}")


def serialize(regularizer: L1L2) -> dict[str, Any]:
    """Turn a regulariser into what `deserialize` takes.

    Parameters
    ----------
    regularizer : L1L2
        One of this module.

    Returns
    -------
    dict
        ``{"class_name": ..., "config": ...}``.

    Raises
    ------
    ValueError
        If it is not one of this module.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.regularizers.serialize(fastloss.regularizers.L2(0.1))
    {'class_name': 'L2', 'config': {'l2': 0.1}}
    """
    if not isinstance(regularizer, L1L2):
        raise ValueError(f"Could not interpret regularizer identifier: {regularizer!r}")
    return {"class_name": type(regularizer).__name__, "config": regularizer.get_config()}


def deserialize(config: Any) -> L1L2:
    """Make a regulariser from what `serialize` gave.

    Parameters
    ----------
    config : dict or str
        A class's name and config, as ``keras.regularizers.serialize`` writes them too, or a name.

    Returns
    -------
    L1L2

    Raises
    ------
    ValueError
        If there is no such regulariser, or `config` is not of this form.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.regularizers.deserialize({"class_name": "L1", "config": {"l1": 0.5}})
    L1(l1=0.5)
    """
    name: Any = config
    arguments: Any = {}
    if isinstance(config, dict):
        name, arguments = config.get("class_name"), config.get("config", {})
    if not isinstance(name, str) or name not in _KNOWN or not isinstance(arguments, dict):
        raise ValueError(
            f"Could not interpret regularizer identifier: {config!r}; expected one of {', '.join(_KNOWN)}, or a dict "
            "with `class_name` and `config`"
        )
    try:
        return _KNOWN[name].from_config(arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Could not interpret regularizer identifier: {config!r}; {error}") from error
