"""Tests mirror the tree; `oracle.py` holds exact scores, `toy/` and `sixth/` what tests add to the
bench, `bench/` the benchmarks, which are no tests. Start with `methods/` for the mathematics.
"""
