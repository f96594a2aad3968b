"""Safe access to datasets in local Oxen repositories.

The interface is ``repository.Repository``; its errors are in ``errors``. This module stays empty, because the worker
process imports parts of the package for every operation and pays for each import.
"""
