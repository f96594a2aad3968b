"""How good a classifier is on a test set, as numbers, pictures and words.

Belongs here: what follows from labels and predicted probabilities alone. Not here: running a model, storing a report,
and whether a model is good enough (that is the gate).
"""

from mlops_assets.errors import MlopsError


class EvaluationError(MlopsError):
    """Predictions or a stored report that cannot be evaluated; its text says what is wrong, and what to do."""
