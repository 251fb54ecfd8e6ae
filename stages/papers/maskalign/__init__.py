"""MaskAlign (arXiv 2606.08788): SiT training with masked representation alignment.

Its loss is `methods/maskalign.py`, its settings `settings/losses/maskalign.py`; here it is compared
with SiT, REPA and REG, and diagnosed. Start with `recipe.py`.
"""
