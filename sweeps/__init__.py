"""Hyperparameter sweeps: many runs of the part of a recipe that a metric needs, under Ray Tune."""
