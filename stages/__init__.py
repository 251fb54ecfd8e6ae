"""The bench: what is trained, sampled, scored and reported, and the papers on it.

Folders from top to bottom, each importing only from those below it: `catalog.py`, `papers/`,
`recipes/`, `bench.py`, `report/`, then `training/`, `sampling/` and `scoring/` side by side,
`pages/`, `data/`, `settings/`, `artifacts/`, `encoders/`, `nets/`, `methods/`. Imports `pipeline`,
not `sweeps`. Start with `catalog.py`, or with a paper's `paper.py`.
"""
