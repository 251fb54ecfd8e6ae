"""The wavelet score (arXiv 2606.08309): closed-form scores in a Daubechies basis.

Its mathematics is `methods/wavelet/`; here scores are fitted, measured and sampled. Start with
`fit.py`.
"""
