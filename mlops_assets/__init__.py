"""A data and model platform made of Dagster assets."""

__version__ = "0.1.0"
