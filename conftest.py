"""Leaves out the modules and pages of frameworks that are not installed."""

from __future__ import annotations

import gc
import importlib.util
import os

# Compiling makes millions of objects: with the default of 700, looking for cycles takes 6 % of the suite's time.
gc.set_threshold(200_000)

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# What is needed → the modules whose doctests import it, and pages.
_NEEDED = {
    "torch": ["src/fastloss/torch.py", "docs/pytorch.md"],
    "jax": ["src/fastloss/jax.py", "docs/jax.md", "docs/keras.md", "src/fastloss/keras.py"],
    "keras": ["docs/keras.md", "src/fastloss/keras.py"],
    "lightgbm": ["docs/boosting.md", "src/fastloss/boosting.py"],
    "numba_cuda": ["src/fastloss/engine/cuda"],
    "sklearn": ["docs/scikit-learn.md", "src/fastloss/sklearn.py"],
    "xgboost": ["docs/boosting.md", "src/fastloss/boosting.py"],
}
collect_ignore = [path for name, paths in _NEEDED.items() if importlib.util.find_spec(name) is None for path in paths]
