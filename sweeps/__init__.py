"""Hyperparameter sweeps: many runs of the part of a recipe that a metric needs, under Ray Tune.

Spaces of settings lie in `spaces/`. What one run does is the engine's. Imports `pipeline` and
`stages`. Start with `command.py`, then `session.py`.
"""
