"""The root of every error that a user is meant to read.

Belongs here: the base class alone. Each core derives its own errors from it, so that the command line and the assets
can tell "something is wrong with what you gave us" (one sentence, no traceback) from a defect of ours.
"""


class MlopsError(Exception):
    """Something a user can mend; its text says in one sentence what is wrong, where, and what to do."""
