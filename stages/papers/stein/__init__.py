"""SteinDiff (arXiv 2606.07835): Stein-corrected few-step ODE solvers.

Its mathematics is `methods/stein.py`; here schedules are calibrated and contractivity is measured.
Start with `calibrate.py`.
"""
