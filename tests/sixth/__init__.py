"""A toy sixth paper, laid out as papers are: a test puts this folder into a copy of the bench.

It claims that held-out images have the contrast of the training images. Start with `paper.py`.
"""
