"""Trainings: the stage `train` with its loop and worker, teachers, and networks made elsewhere.

Losses are in `methods/`, their settings in `settings/losses/`. May import `data/`, `settings/`,
`artifacts/` and below, nothing of `sampling/` or `scoring/`. Start with `train.py`, then
`worker.py`.
"""
