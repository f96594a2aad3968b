"""Answering with promoted versions: online, in bulk, from streams.

What a worker loads here imports neither torch nor MLflow nor Dagster.
"""

from typing import Final

CONTRACT: Final = "contract.json"
MODEL: Final = "model.onnx"
"""The files of a version that can be served."""
