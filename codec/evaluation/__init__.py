"""Scores of any codec's output against what went in: named metrics, named failures, recorded conditions.

    codec evaluate REFERENCE_DIR ESTIMATE_DIR
    codec evaluate --model stream --data DIR

do what `evaluate_folders` and `evaluate_model` do. Knows nothing of training. Nothing heavy is imported until it is
used.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOME_OF = {
    "METRICS": "codec.evaluation.registry",
    "Metric": "codec.evaluation.metric",
    "Pair": "codec.evaluation.metric",
    "Undefined": "codec.evaluation.metric",
    "Evaluation": "codec.evaluation.evaluate",
    "evaluate_folders": "codec.evaluation.evaluate",
    "evaluate_model": "codec.evaluation.evaluate",
}

__all__ = ["METRICS", "Evaluation", "Metric", "Pair", "Undefined", "evaluate_folders", "evaluate_model"]

if TYPE_CHECKING:
    from codec.evaluation.evaluate import Evaluation, evaluate_folders, evaluate_model
    from codec.evaluation.metric import Metric, Pair, Undefined
    from codec.evaluation.registry import METRICS


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'codec.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
