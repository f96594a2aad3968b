"""The promotion rule: its language, its statistics and its verdict.

Belongs here: what can be said about two models from their predictions on one test set. Not here: where predictions are
stored, who is champion, and what happens after a verdict.
"""

from mlops_assets.errors import MlopsError


class GateError(MlopsError):
    """The gate was handed something that it cannot judge; its text says what, and what to do."""
