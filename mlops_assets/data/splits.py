"""Which rows train, which choose, which judge: decided by each row's own key.

Belongs here: the assignment of rows to parts. Does not belong here: whether the parts are good enough (`validation`).
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import polars as pl

from mlops_assets.errors import MlopsError

PARTS: Final = ("train", "validation", "test")


class SplitError(MlopsError):
    """Keys or shares that do not make a split."""


def assign(keys: pl.Series, *, salt: str, test: float, validation: float, own: pl.Series | None = None) -> pl.Series:
    """Assign each key to a part by its hash, where the data do not say it themselves.

    The part depends on the key's text, the salt and the shares alone, not on other rows or their order: a row that was
    test stays test when data grows, and rows that share a key (a group) share a part. The number 1 and the text "1"
    are the same key. A larger `test` keeps every row that was test already.

    Args:
        keys: Integers, text or dates, without nulls.
        salt: Another salt gives an independent split; use the pipeline's name.
        test: Share of the test part, in (0, 1).
        validation: Share of the validation part, in (0, 1); the rest, more than nothing, is train.
        own: The data's own split, as long as `keys`: rows that it calls "test" are test and no others are. If it calls
            none "validation", that share of the others is, by their hash.

    Returns:
        A text series "split", as long as `keys`, of "train", "validation" and "test".

    Raises:
        SplitError: A share lies out of bounds, a key is null, keys are of another type, or `own` says something else.
    """
    if not (0 < test < 1 and 0 < validation < 1 and (own is not None or test + validation < 1)):
        raise SplitError(
            f"test={test} and validation={validation} are no split: each must lie above 0, and their sum below 1."
        )
    dtype = keys.dtype
    if not (dtype.is_integer() or dtype.base_type() in {pl.String, pl.Categorical, pl.Enum, pl.Date}):
        raise SplitError(f"column {keys.name!r} is {dtype}: keys to split by must be integers, text or dates.")
    if keys.has_nulls():
        row = int(keys.is_null().arg_max() or 0) + 1
        raise SplitError(f"column {keys.name!r}: row {row} has no key to split by: fill it, or choose another column.")
    places = _uniform(keys.cast(pl.String).to_list(), salt)
    if own is not None:
        return _as_told(own.cast(pl.String), places, validation)
    parts = np.where(places < test, "test", np.where(places < test + validation, "validation", "train"))
    return pl.Series("split", parts, dtype=pl.String)


def _as_told(own: pl.Series, places: np.ndarray, validation: float) -> pl.Series:
    if not (known := own.is_in(PARTS)).all():
        row = int((~known.fill_null(value=False)).arg_max() or 0)
        raise SplitError(
            f"column {own.name!r}: row {row + 1} says {own[row]!r}, which is none of {', '.join(PARTS)}: correct it."
        )
    if not (own == "validation").any():
        own = pl.Series(np.where((own == "train").to_numpy() & (places < validation), "validation", own.to_numpy()))
    return own.alias("split").cast(pl.String)


def _uniform(texts: list[str], salt: str) -> np.ndarray:
    """Hash each text to a number in [0, 1), evenly spread: 53 bits of BLAKE2b keyed by the salt."""
    key = hashlib.blake2b(salt.encode(), digest_size=32).digest()
    start = hashlib.blake2b(key=key, digest_size=8)
    digests = bytearray()
    for text in texts:
        one = start.copy()
        one.update(text.encode())
        digests += one.digest()
    whole = np.frombuffer(digests, dtype="<u8")
    result: np.ndarray = (whole >> np.uint64(11)) * 2.0**-53
    return result
