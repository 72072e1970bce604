"""Scores of any codec's output against what went in: named metrics, named failures, recorded conditions.

    codec evaluate REFERENCE_DIR ESTIMATE_DIR
    codec evaluate --model stream --data DIR

do what `evaluate_folders` and `evaluate_model` of `evaluate` do. Knows nothing of training.
"""
