"""Test sets for the gate's tests, with two models and an anchor whose scores hang together as those of real ones do."""

import numpy as np

from mlops_assets.gate.rows import Outputs, Paired


def world(rows, classes, seed=0):
    """Labels as text, probabilities of three models of falling quality, a column of groups and one of numbers."""
    rng = np.random.default_rng(seed)
    names = np.array([f"class {index}" for index in range(classes)])
    label = rng.integers(classes, size=rows)
    shared = rng.normal(size=(rows, classes))

    def model(skill):
        logits = shared + 0.6 * rng.normal(size=(rows, classes))
        logits[np.arange(rows), label] += skill
        scores = np.exp(logits)
        scores /= scores.sum(axis=1, keepdims=True)
        return Outputs(names[scores.argmax(axis=1)], scores.round(3) / scores.round(3).sum(axis=1, keepdims=True))

    return Paired(
        label=names[label],
        new=model(2.0),
        old=model(1.6),
        anchor=model(1.5),
        classes=tuple(names.tolist()),
        slices={
            "group": np.where(rng.random(rows) < 0.3, "small", np.where(rng.random(rows) < 0.5, "big", "other")),
            "year": rng.integers(2000, 2003, size=rows),
        },
    )
