"""The training method that settings choose, and the own settings of all: from `table.LOSSES`."""

from __future__ import annotations

from pydantic import Field, create_model

from pipeline.stage import Settings, resolve
from stages.methods import table
from stages.settings.losses import LossOptions


def options_of(method: str) -> type[LossOptions]:
    """What a method's file says of it."""
    return resolve(table.LOSSES[method])


# A method without settings of its own has no field.
OWN = {
    method: (options, Field(options(), description=f"method={method}"))
    for method in table.LOSSES
    if (options := options_of(method)).model_fields
}


class MethodOptions(create_model("OwnOptions", __base__=Settings, __module__=__name__, **OWN)):
    """The method, and the settings that methods have of their own, each under its name.

    A training reads those of its method alone, and its key holds no others.
    """

    method: table.choice("method", table.LOSSES) = Field("sit", description="the training loss")

    @property
    def loss_options(self) -> LossOptions:
        """The chosen method's own settings, and all else that its file says."""
        return getattr(self, self.method) if self.method in OWN else options_of(self.method)()
