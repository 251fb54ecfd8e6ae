"""The code of the models that MLflow keeps: it has a copy of this file, and nothing pickled.

`mlflow.pyfunc.load_model` runs it; what it answers with is in the store: see
`pipeline.track.models`.
"""

import warnings

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from pipeline.track import models

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow would rather read the signature from type hints

    class Answering(PythonModel):
        """A model that the store holds."""

        def load_context(self, context):
            self._answer = models.opened(context.model_config)

        def predict(self, context, model_input, params=None):
            return self._answer(model_input, params or {})


set_model(Answering())
