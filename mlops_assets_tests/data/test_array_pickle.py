"""Hostile pickles: each is refused with a sentence, runs nothing and takes no more than its size."""

import builtins
import contextlib
import os
import pickle
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.data.array_pickle import load
from mlops_assets.data.readers import ReadError

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)


class Calling:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


RECONSTRUCT = named("numpy.core.multiarray", "_reconstruct")
NDARRAY, DTYPE = named("numpy", "ndarray"), named("numpy", "dtype")
EMPTY = RECONSTRUCT + b"(" + NDARRAY + b"K\x00\x85U\x01btR"
U1 = DTYPE + b"U\x02u1\x85R"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_python_3_pickles_comes_back(protocol: int) -> None:
    content = {
        "data": PIXELS,
        "turned": np.asfortranarray(PIXELS),
        "labels": [0, 1, 255, 70000],
        "numbers": np.arange(3, dtype=">i4"),
        "names": ["cat", "dog", "dog"],
        "raw": b"\x00\xff",
        "nothing": None,
        "yes": True,
        "again": PIXELS,
    }
    read = load(pickle.dumps(content, protocol=protocol))
    assert read.keys() == content.keys()
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            assert read[name].dtype == value.dtype
            assert np.array_equal(read[name], value)
        else:
            assert read[name] == value


def test_what_python_2_pickled_comes_back() -> None:
    data = (
        b"\x80\x02}q\x01(U\x04dataq\x02"
        + RECONSTRUCT
        + b"q\x03"
        + NDARRAY
        + b"q\x04K\x00\x85q\x05U\x01bq\x06\x87q\x07Rq\x08"
        b"(K\x01K\x04K\x06\x86q\x09" + DTYPE + b"q\x0aU\x02u1q\x0bK\x00K\x01\x87q\x0cRq\x0d"
        b"(K\x03U\x01|q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89"
        b"T\x18\x00\x00\x00" + PIXELS.tobytes() + b"q\x10tq\x11bU\x06labelsq\x12]q\x13(K\x06K\x09K\x09K\x04eu."
    )
    read = load(data)
    assert np.array_equal(read["data"], PIXELS)
    assert read["labels"] == [6, 9, 9, 4]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_functions_are_not_run(protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    for calling in (
        Calling(os.system, f"touch {trace}"),
        Calling(builtins.eval, f"open({str(trace)!r}, 'w')"),
        Calling(builtins.exec, f"open({str(trace)!r}, 'w')"),
        Calling(open, str(trace), "w"),
        Calling(np.save, str(trace), 1),
        Calling(np.fromfile, str(Path(__file__))),
        Calling(getattr, "text", "upper"),
        Calling(__import__, "this"),
    ):
        for content in (calling, {"data": calling}, {"data": [PIXELS, (calling,)]}, {calling: 1}):
            with pytest.raises(ReadError, match="which was not run"):
                load(pickle.dumps(content, protocol=protocol))
    assert not trace.exists()
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "content",
    [
        np.array([1, "a", None], dtype=object),
        np.array([1.5, 2.5]),
        np.array(["a", "b"]),
        np.zeros(3, dtype=[("a", "u1"), ("b", "u1")]),
        np.zeros(3, dtype="M8[s]"),
        np.zeros(3, dtype=np.bool_),
        {1, 2},
        frozenset({1}),
        1.5,
        complex(1, 2),
        slice(1),
        Path("a"),
        2**70,
        np.float64(1),
        np.int64(1),
    ],
    ids=str,
)
def test_other_content_is_refused(content: Any) -> None:
    for protocol in (2, 4, 5):
        with pytest.raises(ReadError):
            load(pickle.dumps({"data": content}, protocol=protocol))


@pytest.mark.parametrize("content", [[1], "text", None, 5, PIXELS], ids=str)
def test_the_whole_must_be_a_dictionary(content: Any) -> None:
    with pytest.raises(ReadError, match="something else than a dictionary"):
        load(pickle.dumps(content))


HUGE = struct.pack("<q", 1 << 40)
HOSTILE = {
    "an array made directly, of a terabyte": NDARRAY + b"\x8a\x06" + HUGE[:6] + b"\x85R.",
    "an array made directly": NDARRAY + b"K\x05\x85\x85R.",
    "a shape that is larger than its content": EMPTY + b"(K\x01J\xff\xff\xff\x7f\x85" + U1 + b"\x89U\x01atb.",
    "a shape with a negative side": EMPTY + b"(K\x01J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86" + U1 + b"\x89U\x01atb.",
    "a shape of many sides": EMPTY + b"(K\x01(" + b"K\x01" * 200 + b"t" + U1 + b"\x89U\x01atb.",
    "a shape of lists": EMPTY + b"(K\x01]\x85" + U1 + b"\x89U\x01atb.",
    "content that is a list": EMPTY + b"(K\x01K\x01\x85" + U1 + b"\x89](U\x01aetb.",
    "a type that is none": EMPTY + b"(K\x01K\x01\x85U\x02u1\x89U\x01atb.",
    "objects by name": DTYPE + b"U\x01O\x85R.",
    "a compound type": DTYPE + b"U\x02u1\x85R(K\x03U\x01|NU\x01a}NNNtb.",
    "a void type of a gigabyte": DTYPE + b"U\x0bV1000000000\x85R.",
    "a changed type": U1 + b"}U\x05_codeU\x01Osb.",
    "a changed function": RECONSTRUCT + b"}U\x0c__defaults__Nsb.",
    "a changed function, by slots": RECONSTRUCT + b"N}U\x0c__defaults__)s\x86b.",
    "a changed array": EMPTY + b"N}U\x06valuesK\x01s\x86b.",
    "a name with dots": named("numpy", "ndarray.__new__") + b")R.",
    "a module as a name": named("numpy.core", "multiarray") + b".",
    "a name of a stand-in": named("mlops_assets.data.array_pickle", "_never") + b".",
    "an old-style instance": b"(ios\nsystem\n.",
    "an object": b"(" + named("os", "system") + b"o.",
    "a new object": NDARRAY + b")\x81.",
    "a persistent id": b"U\x01aQ.",
    "an extension": b"\x82\x01.",
    "an encoding that imports": named("_codecs", "encode") + b"X\x01\x00\x00\x00aU\x04zlib\x86R.",
    "a call of a text": b"U\x06system)R.",
    "a memo of billions": b"}r\xff\xff\xff\x7f.",
    "an object never kept": b"}h\x05.",
    "bytes of a terabyte": b"\x8e" + HUGE + b"a.",
    "bytes of a terabyte, to be filled": b"\x96" + HUGE + b"a.",
    "a frame of a terabyte": b"\x95" + HUGE + b"}.",
    "a number of a gigabyte": b"\x8b\xff\xff\xff\x3fa.",
    "a text with escapes": b"S'a'\n.",
    "keys that take for ever to hash": b"})q\x00"
    + b"".join(b"h" + bytes([count]) + b"\x86q" + bytes([count + 1]) for count in range(80))
    + b"Ns.",
    "keys that take for ever, kept otherwise": b"})"
    + b"".join(b"Nbq" + bytes([count]) + b"h" + bytes([count]) + b"\x86" for count in range(80))
    + b"Ns.",
    "keys a million deep": b"})" + b"\x85" * 1_000_000 + b"Ns.",
    "no end": b"}",
    "nothing": b"",
    "a stack that is empty": b"s.",
    "marks": b"(" * 100_000 + b"t.",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_pickles_are_refused_in_little_memory(data: bytes) -> None:
    content = b"\x80\x02" + data
    tracemalloc.start()
    try:
        with pytest.raises(ReadError) as caught:
            load(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000 + 100 * len(content)
    assert len(str(caught.value)) < 300


@pytest.mark.slow
def test_lists_deep_in_each_other_do_no_harm() -> None:
    load(b"\x80\x02}U\x01a" + b"]" * 500_000 + b"a" * 499_999 + b"s.")


@given(st.binary(max_size=300))
def test_random_bytes_give_a_read_error_or_a_dictionary(data: bytes) -> None:
    for content in (data, b"\x80\x02}(" + data + b"u.", b"\x80\x02" + EMPTY + data + b"b."):
        with contextlib.suppress(ReadError):
            assert isinstance(load(content), dict)


@given(st.data())
def test_a_damaged_pickle_gives_a_read_error_or_a_dictionary(data: st.DataObject) -> None:
    content = bytearray(pickle.dumps({"data": PIXELS, "labels": [1, 2, 3]}, protocol=data.draw(st.integers(2, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ReadError):
        assert isinstance(load(bytes(content[: data.draw(st.integers(0, len(content)))])), dict)
