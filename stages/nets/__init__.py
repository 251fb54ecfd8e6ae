"""Architectures: modules that map tensors to tensors.

No training, no weights, no files. May import `methods/`. Start with `sit.py`.
"""
