"""The platform's own code in code versions: one constant per part, raised when the part's results change.

A light module on purpose: the definitions read it, and must not load what it stands for. Source hashes of the platform
are not used, so that an upgrade which changes no result retrains nothing.
"""

from typing import Final

READER: Final = "1"
"""`data/readers.py`: how a file becomes a table, and how a table is encoded."""

IMAGES: Final = "1"
"""`data/images.py` and its layouts: how files become pixels."""

SPLIT: Final = "1"
"""`data/splits.py`: which rows are for testing."""

TRAINER: Final = "1"
"""`training/trainer.py` and `training/architectures.py`: from rows and configuration to weights."""

PREDICT: Final = "1"
"""`training/export.py` and `training/predict.py`: from weights and rows to probabilities."""

EVALUATION: Final = "1"
"""`evaluation/metrics.py`: from probabilities to figures."""

GATE: Final = "2"
"""`gate/`: from condition and predictions to a decision."""

DEPLOYMENT: Final = "1"
"""`assets/deployment.py`: where a champion goes, and what is proven on the way."""

CONTRACT: Final = "1"
"""`serving/contract.py`: what is kept with a version so that it can be served."""
