"""Pickles of NumPy arrays, read without running anything that they ask for.

A pickle is a program. This reader admits what CIFAR's files need: dictionaries, lists, texts, whole numbers and arrays
of whole numbers. What a pickle calls is never NumPy, but a stand-in that checks its arguments.

Belongs here: that reader. Does not belong here: what the dictionary must contain (`image_layouts`).
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlops_assets.data.readers import ReadError

_TEXTS: Final = frozenset(
    {"SHORT_BINSTRING", "BINSTRING", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_TUPLES: Final = frozenset({"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
_SHARED: Final = _TEXTS | {"GLOBAL", "STACK_GLOBAL", "REDUCE", "EMPTY_LIST", "EMPTY_DICT"}
_PUTS: Final = frozenset({"BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS: Final = frozenset({"BINGET", "LONG_BINGET"})
_ADMITTED: Final = (
    _SHARED
    | _TUPLES
    | _PUTS
    | _GETS
    | {"PROTO", "FRAME", "MARK", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2"}
    | {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}
)
_MOST_TUPLES: Final = 1000  # an array needs about six
_MOST_DIMENSIONS: Final = 4
_NUMBERS: Final = frozenset({"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"})


def load(data: bytes) -> dict[str, Any]:
    """Read a pickled dictionary; texts of Python 2 come as bytes, its keys as text.

    Args:
        data: A pickle of protocol 2 or above.

    Raises:
        ReadError: With the reason alone: it is damaged, or asks for more than data.
    """
    try:
        _check(data)
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except ReadError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises anything, and that is the finding
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise ReadError(f"not a pickle of arrays, or a damaged one ({reason})") from None
    if not isinstance(content, dict):
        raise ReadError("a pickle of something else than a dictionary")
    return {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): value.values
        if isinstance(value, _Array)
        else value
        for key, value in content.items()
    }


def _check(data: bytes) -> None:
    """Refuse what could exhaust memory, time or stack before `find_class` is asked.

    A few bytes make the unpickler allocate gigabytes (a high memo index), hash for ever (tuples that share their
    parts, as a key) or overflow the stack (tuples a million deep, as a key). Large numbers are refused because those
    with equal hashes, as keys, take quadratic time.
    """
    shared: dict[int, bool] = {}
    tuples = 0
    before = ""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        tuples += name in _TUPLES
        if name not in _ADMITTED or tuples > _MOST_TUPLES:
            raise ReadError(f"a pickle of more than arrays, lists, texts and numbers (it uses {name})")
        index: Any = len(shared) if argument is None else argument  # MEMOIZE counts for itself
        if name in _PUTS:
            if index > count:
                raise ReadError(f"a damaged pickle (it claims {index} objects)")
            shared[index] = before in _SHARED
        elif name in _GETS and not shared.get(index):
            raise ReadError("a pickle that shares more than arrays, lists and texts")
        before = name


class _StandIn:
    """What a pickle gets for a name that it asks for; without attributes that it could change."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *arguments: object) -> object:
        return self._make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _Type:
    """Stand-in for a NumPy type: whole numbers of 1 to 8 bytes."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: object, *_flags: object) -> None:
        self._code, self._order = _ascii(code), "|"
        if self._code not in _NUMBERS:
            raise pickle.UnpicklingError(f"arrays of type {self._code[:20]!r}, not of whole numbers")

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _version, order, *fields = state
        self._order = _ascii(order)
        if self._order not in {"<", ">", "|", "="} or fields[:3] != [None, None, None]:
            raise pickle.UnpicklingError("arrays of a compound type")

    @property
    def plain(self) -> np.dtype[Any]:
        return np.dtype(self._order + self._code)


class _Array:
    """Stand-in for an array, which NumPy pickles empty and fills afterwards."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, kind, fortran, raw = state
        self.fill(raw, kind, shape, "F" if fortran else "C")

    def fill(self, raw: object, kind: object, shape: object, order: object) -> None:
        if not isinstance(raw, bytes | bytearray) or not isinstance(kind, _Type) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array of objects")
        sides = [side for side in shape if isinstance(side, int) and side >= 0]
        fits = len(sides) == len(shape) <= _MOST_DIMENSIONS and math.prod(sides) * kind.plain.itemsize == len(raw)
        if not fits:
            raise pickle.UnpicklingError("an array whose shape and content disagree")
        self.values = np.frombuffer(raw, dtype=kind.plain).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(_kind: object, _shape: object, _code: object) -> _Array:
    return _Array()


def _frombuffer(raw: object, kind: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.fill(raw, kind, shape, order)
    return array


def _encode(text: object, encoding: object) -> bytes:
    """How Python 3 writes bytes in protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it encodes a text")
    return text.encode("latin-1")


def _never(*_arguments: object) -> object:
    raise pickle.UnpicklingError("it makes an array by itself")


def _ascii(text: object) -> str:
    return text.decode("ascii") if isinstance(text, bytes) else str(text)


_STAND_INS: Final[dict[tuple[str, str], Callable[..., object]]] = {
    ("numpy", "ndarray"): _never,  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},  # protocol 5
}


class _Unpickler(pickle.Unpickler):
    """Knows the names in `_STAND_INS` and no others."""

    def find_class(self, module_name: str, global_name: str) -> object:
        """Give the stand-in for a name; nothing is imported."""
        make = _STAND_INS.get((module_name, global_name))
        if make is None:
            raise ReadError(f"a pickle that asks for {module_name}.{global_name}, which was not run")
        return _StandIn(make)
