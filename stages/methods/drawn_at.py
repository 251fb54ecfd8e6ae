"""The steps of `draws.Draws` that are kept for other uses than training and sampling steps.

A new use takes a number that is not here. Trainings draw at 0, 1, 2, ..., as do sampling by the
SDE and the views of images, from seeds of their own.
"""

# What sampling starts from, and what corrections and solvers are fitted on: never each other's.
INITIAL_NOISE, FITTING_NOISE = -1, -2

# Noise number k on image i, at EVALUATION + k: of scans (always seed 0) and of risks (the run's
# seed). At seed 0 the two are the same noise, which is harmless: no number is computed from both.
# A training of more than 2^20 steps comes by here too.
EVALUATION = 2**20

# Noise on the images that a scan's linear probe is fitted on and tested with.
PROBE = 2**21

# Losses whose gradients are diagnosed; far above every training's last step.
DIAGNOSIS = 10**12


def of_epoch(epoch: int) -> int:
    """The step at which the order of the images in an epoch 0, 1, ... is drawn: -1, -2, ...

    The noises at -1 and -2 are other numbers: the order is of `time`, whose stream is its own.
    """
    return -1 - epoch
