"""The loss `sit`."""

from stages.settings.losses import LossOptions


class SiTOptions(LossOptions):
    """SiT: plain velocity regression."""

    mathematics = "stages.methods.sit:Loss"
