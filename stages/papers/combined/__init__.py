"""The methods put together: MaskAlign's training, CSFlow's grid and the calibrated correction.

No paper of its own: each arm is made of other papers' parts. Start with `recipe.py`.
"""
