"""Everything that the platform keeps, in one archive, and a home made of it again.

Belongs here: which files those are, a still copy of them while everything runs, the archive, and unpacking it. Not
here: what a person types and reads, and proving a restored home with Dagster and MLflow (`cli/backup.py`).
"""
