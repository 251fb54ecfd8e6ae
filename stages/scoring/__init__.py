"""Scores of images: extractor, features, evaluation, and images made elsewhere.

The scores' mathematics is in `methods/frechet.py` and `methods/quality.py`. May import `data/`,
`settings/`, `artifacts/` and below, nothing of `training/` or `sampling/`. Start with
`evaluate.py`.
"""
