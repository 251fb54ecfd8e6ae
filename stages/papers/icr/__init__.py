"""ICR (arXiv 2606.09718): a warning of memorisation from representations, without sampling.

Its mathematics is `methods/icr.py` and `methods/alarm.py`. Start with `scan.py`, then `measure.py`.
"""
