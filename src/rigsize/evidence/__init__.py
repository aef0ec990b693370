"""Validation: cases with bands declared before, run through the estimator, misses published."""
