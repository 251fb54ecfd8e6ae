"""The mathematics: tensors in, tensors out, tested against exact truths.

No files, no settings, no Ray and no MLflow; every function says shapes, ranges and its source.
Imports nothing of the bench but itself. `table.py` holds the names that settings may choose. Start
with `path.py` (the interpolant and its conversions), then a paper's own file.
"""
