from pathlib import Path

import polars as pl
import pytest

from mlops_assets.data.readers import ReadError
from mlops_assets.data.tables import TablesDiffer, convertible, read_any, together


def written(place: Path, **texts: str) -> dict[str, Path]:
    files = {name.replace("_", "."): place / name.replace("_", ".") for name in texts}
    for file, text in zip(files.values(), texts.values(), strict=True):
        file.write_text(text)
    return files


def test_tables_are_put_together_in_the_given_order_with_the_columns_of_the_first(tmp_path: Path) -> None:
    files = written(tmp_path, b_csv="id,x\n1,a\n", a_csv="x,id\nb,2\n", c_tsv="id\tx\n3\tc\n")
    assert together(files).rows() == [("1", "a"), ("2", "b"), ("3", "c")]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("id,y\n2,b\n", "b.csv has no column 'x', which a.csv has"),
        ("id,x,y\n2,b,c\n", "b.csv has a column 'y', which a.csv has not"),
        ("", "b.csv has no column 'id', which a.csv has"),
        ("id,x\n2\n", r"b.csv, line 2: 1 of 2 values"),
    ],
)
def test_a_table_that_differs_is_named_with_its_column(tmp_path: Path, other: str, said: str) -> None:
    with pytest.raises((TablesDiffer, ReadError), match=said):
        together(written(tmp_path, a_csv="id,x\n1,a\n", b_csv=other))


def test_types_of_parquet_must_agree(tmp_path: Path) -> None:
    for name, values in (("a.parquet", [1]), ("b.parquet", ["1"])):
        pl.DataFrame({"id": values}).write_parquet(tmp_path / name)
    with pytest.raises(TablesDiffer, match=r"b.parquet has column 'id' as String and a.parquet as Int64"):
        together({name: tmp_path / name for name in ("a.parquet", "b.parquet")})


def test_json_lines_keep_their_types(tmp_path: Path) -> None:
    (file,) = written(tmp_path, a_jsonl='{"id": 1, "x": 0.5, "ok": true}\n{"id": 2, "x": 1, "ok": null}\n').values()
    assert read_any(file).to_dicts() == [{"id": 1, "x": 0.5, "ok": True}, {"id": 2, "x": 1.0, "ok": None}]


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no text of one JSON object a line"), ('{"a": 1}\nx\n', "no text of one"), ('{"a": [1]}', "'a' holds lists")],
)
def test_json_lines_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ReadError, match=said):
        read_any(written(tmp_path, a_jsonl=text)["a.jsonl"])


def test_text_becomes_text_and_typed_tables_parquet() -> None:
    assert ".csv" not in convertible("t.parquet")
    assert {".csv.gz", ".tsv", ".jsonl"} <= convertible("t.csv")
    assert ".parquet" not in convertible("t.csv")
