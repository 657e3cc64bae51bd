"""The loss of a model with several outputs: a weighted sum of losses."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastloss import structures
from fastloss.losses import arrays, identifiers, options


class Composed(NamedTuple):
    """What `Weighted.value_and_grad` returns.

    Attributes
    ----------
    total : numpy scalar
        The weighted sum, with what `add_loss` added.
    terms : list, tuple or dict
        The value of each loss, not yet weighted, as Keras logs them; None without a loss.
    gradients : list, tuple or dict
        The gradient of the total with respect to each of the predictions; None without a loss.
    """

    total: Any
    terms: Any
    gradients: Any


class Weighted:
    """Weighted sum of the losses of several outputs, as ``compile(loss=[...], loss_weights=[...])`` of Keras has it.

    With losses L_k and weights w_k it is ``sum_k w_k * L_k(y_true[k], y_pred[k])``, and the gradient with respect to
    ``y_pred[k]`` is ``w_k`` times that of L_k: the weight is multiplied in as the gradient is written.

    Parameters
    ----------
    losses : list, tuple or dict
        A loss for each output: a `Loss`, whatever `fastloss.losses.get` finds one by, or None for an output without.
    loss_weights : list, tuple or dict of float, optional
        A finite weight for each, by default 1. A dict may leave outputs out, which weigh 1; the weight of an output
        without a loss is ignored, and may be None.
    name : str
        Name of the whole.

    Raises
    ------
    TypeError
        If `losses` is no list, tuple or dict, an entry is no loss of this package, or `loss_weights` is not of the
        same form.
    ValueError
        If there is no loss at all, a name is unknown, or a weight is not finite.

    Notes
    -----
    ``y_true``, ``y_pred`` and every argument with an entry for each output have the form of `losses`: dicts with the
    same keys, or lists or tuples of the same length. Of an output without a loss the targets may be None, and left out
    of a dict. Each loss must reduce to one number: the reduction ``"none"`` of per-sample losses is refused.

    References
    ----------
    ``keras.Model.compile``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> loss = fastloss.losses.Weighted({"price": "mse", "sold": "bce", "features": None}, loss_weights={"sold": 0.5})
    >>> y_true = {"price": np.zeros((2, 1)), "sold": np.array([[1.0], [0.0]])}
    >>> y_pred = {"price": np.ones((2, 1)), "sold": np.full((2, 1), 0.5), "features": np.ones((2, 8))}
    >>> total, terms, gradients = loss.value_and_grad(y_true, y_pred)
    >>> print(f"{total:.4f} = {terms['price']:.4f} + 0.5 * {terms['sold']:.4f}")
    1.3466 = 1.0000 + 0.5 * 0.6931
    >>> gradients["price"].tolist(), gradients["sold"].tolist(), gradients["features"]
    ([[1.0], [1.0]], [[-0.5], [0.5]], None)
    """

    def __init__(self, losses: Any, loss_weights: Any = None, name: str | None = "weighted") -> None:
        if not structures.is_structure(losses):
            raise TypeError(
                f"`losses` must be a list, tuple or dict with a loss for each output, got {type(losses).__name__}"
            )
        self.name = name or "weighted"
        self._losses = structures.rebuild(losses, lambda key: _loss(key, losses[key]))
        self._keys = [key for key in structures.keys(losses) if self._losses[key] is not None]
        if not self._keys:
            raise ValueError("`losses` must have at least one loss that is not None")
        given: Any = {}
        if loss_weights is not None:
            structures.check_alike("loss_weights", loss_weights, losses, "losses", partial=True)
            given = dict(zip(structures.keys(loss_weights), structures.leaves(loss_weights), strict=True))
        self._has_weights = loss_weights is not None
        self._weights = {key: options.number(f"loss_weights[{key!r}]", given.get(key, 1.0)) for key in self._keys}

    @property
    def check_numerics(self) -> str | None:
        """What each of the losses does when its value or gradient is not finite; None where they differ. May be set."""
        actions = {self._losses[key].check_numerics for key in self._keys}
        return actions.pop() if len(actions) == 1 else None

    @check_numerics.setter
    def check_numerics(self, action: str | None) -> None:
        for key in self._keys:
            self._losses[key].check_numerics = action

    @property
    def losses(self) -> Any:
        """The losses, in the form they were given in."""
        return structures.rebuild(self._losses, lambda key: self._losses[key])

    @property
    def loss_weights(self) -> Any:
        """The weights in the same form, None without a loss."""
        return structures.rebuild(self._losses, self._weights.get)

    def __call__(
        self,
        y_true: Any,
        y_pred: Any,
        sample_weight: Any = None,
        *,
        mask: Any = None,
        add_loss: Any = (),
        n_threads: int | None = None,
    ) -> Any:
        """Compute the total; no gradient is computed.

        Parameters
        ----------
        y_true, y_pred : list, tuple or dict
            Targets and predictions of each output.
        sample_weight, mask : list, tuple or dict, or array_like, optional
            For each output its own, or None; or one array for all outputs.
        add_loss : sequence of numbers, optional
            What else belongs to the total, such as the values of regularisers, as ``keras.Layer.add_loss`` adds it:
            unweighted.
        n_threads : int, optional
            Threads to use; by default as `fastloss.set_num_threads` says, else by the amount of work.

        Returns
        -------
        numpy scalar
            Of the dtype that NumPy promotes those of the terms to; added up in float64.
        """
        return self.value_and_terms(y_true, y_pred, sample_weight, mask=mask, add_loss=add_loss, n_threads=n_threads)[0]

    def value_and_terms(
        self,
        y_true: Any,
        y_pred: Any,
        sample_weight: Any = None,
        *,
        mask: Any = None,
        add_loss: Any = (),
        n_threads: int | None = None,
    ) -> tuple[Any, Any]:
        """Compute the total and each term; no gradient is computed.

        Parameters
        ----------
        y_true, y_pred, sample_weight, mask, add_loss, n_threads
            As for calling it.

        Returns
        -------
        total : numpy scalar
            As from calling it.
        terms : list, tuple or dict
            The value of each loss, not yet weighted; None without a loss.
        """
        arguments = self._arguments(y_true, y_pred, sample_weight, mask)
        terms = {}
        key = None
        try:
            for key, (y, p, weight, valid) in arguments.items():
                loss = self._losses[key]
                terms[key] = _scalar(key, loss, loss(y, p, weight, mask=valid, n_threads=n_threads))
        except Exception as error:
            error.add_note(f"raised by the loss of output {key!r}")
            raise
        return self._total(terms, add_loss), structures.rebuild(self._losses, terms.get)

    def value_and_grad(
        self,
        y_true: Any,
        y_pred: Any,
        sample_weight: Any = None,
        *,
        mask: Any = None,
        add_loss: Any = (),
        upstream: float | None = None,
        out: Any = None,
        n_threads: int | None = None,
    ) -> Composed:
        """Compute the total, each term, and the gradient of the total with respect to each output.

        Parameters
        ----------
        y_true, y_pred, sample_weight, mask, add_loss, n_threads
            As for calling it.
        upstream : float, optional
            A factor of all gradients; it does not change total and terms.
        out : list, tuple or dict, optional
            Where the gradients are written: for each output an array, as for `Loss.value_and_grad`, or None.

        Returns
        -------
        Composed
            ``(total, terms, gradients)``.

        Raises
        ------
        TypeError, ValueError
            If an argument is not of the form of the losses, a loss does not reduce to one number, or a loss refuses
            its input; a note of the error names the output.
        """
        arguments = self._arguments(y_true, y_pred, sample_weight, mask)
        if out is not None:
            structures.check_alike("out", out, self._losses, "losses", partial=True)
        factor = 1.0 if upstream is None else options.number("upstream", upstream)
        terms, gradients = {}, {}
        key = None
        try:
            for key, (y, p, weight, valid) in arguments.items():
                loss, scale = self._losses[key], factor * self._weights[key]
                # The values of an unreduced loss, which are refused, would refuse a scalar `upstream` with other words.
                flow = None if scale == 1.0 or loss.reduction in ("none", None) else scale
                value, gradient = loss.value_and_grad(
                    y, p, weight, mask=valid, upstream=flow, out=structures.entry(out, key), n_threads=n_threads
                )
                terms[key] = _scalar(key, loss, value)
                if flow is None and scale != 1.0:
                    np.multiply(gradient, scale, gradient)
                gradients[key] = gradient
        except Exception as error:
            error.add_note(f"raised by the loss of output {key!r}")
            raise
        return Composed(
            self._total(terms, add_loss),
            structures.rebuild(self._losses, terms.get),
            structures.rebuild(self._losses, gradients.get),
        )

    def _arguments(self, y_true: Any, y_pred: Any, sample_weight: Any, mask: Any) -> dict[Any, tuple[Any, ...]]:
        """Targets, predictions, weights and mask of each output that has a loss."""
        structures.check_alike("y_pred", y_pred, self._losses, "losses", partial=True)
        structures.check_alike("y_true", y_true, self._losses, "losses", partial=True)
        shared = {}
        for name, value in (("sample_weight", sample_weight), ("mask", mask)):
            shared[name] = not structures.is_structure(value)
            if not shared[name]:
                structures.check_alike(name, value, self._losses, "losses", partial=True)
        found = {}
        for key in self._keys:
            y, p = structures.entry(y_true, key), structures.entry(y_pred, key)
            for name, value in (("y_true", y), ("y_pred", p)):
                if value is None:
                    raise ValueError(f"`{name}` must have an array for each output with a loss, but not for {key!r}")
            weight = sample_weight if shared["sample_weight"] else structures.entry(sample_weight, key)
            valid = mask if shared["mask"] else structures.entry(mask, key)
            found[key] = (y, p, weight, valid)
        return found

    def _total(self, terms: dict[Any, Any], add_loss: Any) -> Any:
        if structures.is_structure(add_loss):
            added = structures.leaves(add_loss)
        else:
            added = [add_loss]
        extra = [arrays.to_array("add_loss", value) for value in added]
        for value in extra:
            if value.shape != ():
                raise ValueError(f"`add_loss` must be numbers, got an array of shape {value.shape}")
        dtype = np.result_type(*terms.values())
        total = sum(self._weights[key] * float(value) for key, value in terms.items()) + sum(map(float, extra))
        return dtype.type(total)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, the losses as `fastloss.losses.serialize` writes them."""
        config: dict[str, Any] = {
            "losses": structures.rebuild(
                self._losses,
                lambda key: None if self._losses[key] is None else identifiers.serialize(self._losses[key]),
            ),
            "name": self.name,
        }
        if self._has_weights:
            config["loss_weights"] = self.loss_weights
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Weighted:
        """Make one from what `get_config` gave; `custom_objects` as for `fastloss.losses.deserialize`."""
        losses: Any = config.get("losses")
        if structures.is_structure(losses):
            losses = structures.rebuild(
                losses,
                lambda key: None if losses[key] is None else identifiers.deserialize(losses[key], custom_objects),
            )
        return cls(**{**config, "losses": losses})

    def __repr__(self) -> str:
        weights = f", loss_weights={self.loss_weights!r}" if self._has_weights else ""
        return f"{type(self).__name__}({self._losses!r}{weights}, name={self.name!r})"


def _loss(key: Any, identifier: Any) -> Any:
    """The loss of one output."""
    if identifier is None:
        return None
    try:
        return identifiers.instance(identifier)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`losses[{key!r}]`: {error}") from error


def _scalar(key: Any, loss: Any, value: Any) -> Any:
    """The value of a loss that reduces to one number."""
    if np.ndim(value):
        raise ValueError(
            f"`losses[{key!r}]` must reduce to one number, but {type(loss).__name__} has the reduction "
            f"{loss.reduction!r} and gave values of shape {np.shape(value)}"
        )
    return value
