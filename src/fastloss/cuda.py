"""What belongs to computing on a CUDA device; losses find their way there by the arrays that they are given.

Its functions need numba-cuda, from the extra ``cuda`` (CUDA 13) or ``cuda12``.
"""

from __future__ import annotations

__all__ = ["set_check_labels", "synchronize"]


def synchronize() -> None:
    """Wait for the current device, and raise what its kernels have found wrong.

    Raises
    ------
    ValueError
        If a label of an earlier call is no class; that sample's loss and gradient are NaN.
    """
    from fastloss.engine.cuda import labels
    from fastloss.engine.cuda.target import cuda

    cuda.synchronize()
    labels.check()


def set_check_labels(check: bool) -> None:
    """Choose whether a label that is no class raises an error, as it does by default.

    The error comes from the first call of a loss, or of `synchronize`, after the device has found the label; nothing
    waits for it. Without, the NaN that such a sample's loss and gradient become is all that tells.

    Parameters
    ----------
    check : bool
        Whether to raise.
    """
    from fastloss.engine.cuda import labels

    labels.checking = bool(check)
