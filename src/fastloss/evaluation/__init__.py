"""A loss over data of any size, on one core or on a cluster: `fastloss.evaluate`."""

from fastloss.evaluation.evaluate import evaluate as evaluate
from fastloss.evaluation.result import Evaluation as Evaluation
from fastloss.evaluation.result import Worst as Worst

__all__ = ["Evaluation", "Worst", "evaluate"]
