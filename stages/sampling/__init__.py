"""Images from trained networks: the stage `sample`, and how solvers and corrections reach it.

Solvers and corrections themselves are in `methods/`. May import `data/`, `settings/`, `artifacts/`
and below, nothing of `training/` or `scoring/`. Start with `sample.py`.
"""
