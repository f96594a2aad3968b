"""The Dagster instance of a sensor's tick."""

from __future__ import annotations

import dagster as dg
from dagster._core.instance.ref import InstanceRef

_opened: list[tuple[InstanceRef, dg.DagsterInstance]] = []


def instance_of(context: dg.SensorEvaluationContext) -> dg.DagsterInstance:
    """`context.instance`, opened once in a process instead of once in a tick.

    Opening one reads the migrations of all its databases, which takes several times what a tick does with it.
    """
    ref = context.instance_ref
    if ref is None:
        return context.instance  # the caller's own
    if not _opened or _opened[0][0] != ref:
        _opened[:] = [(ref, dg.DagsterInstance.from_ref(ref))]
    return _opened[0][1]
