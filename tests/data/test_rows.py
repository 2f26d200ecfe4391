from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from negvae.config import RunConfig
from negvae.data import tables
from negvae.data.batches import InputSpec
from negvae.data.rows import describe_drowned, finite_rows, holds_rows, load_rows
from negvae.data.streams import stream
from negvae.detector.groups import with_groups
from negvae.runs.embed import read_feature_rows


def test_files_of_rows_are_told_from_files_of_images(tmp_path: Path):
    rows = np.arange(12, dtype=np.int16).reshape(4, 3)
    np.save(tmp_path / "rows.npy", rows)
    np.savez(tmp_path / "rows.npz", X=rows, y=np.zeros(4))
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8), np.uint8))
    assert holds_rows(tmp_path / "rows.npy")
    assert holds_rows(tmp_path / "rows.npz")
    assert not holds_rows(tmp_path / "images.npy")
    assert not holds_rows("fashion-mnist")
    for name in ("rows.npy", "rows.npz"):
        assert np.array_equal(load_rows(tmp_path / name), rows)
    assert len(load_rows(tmp_path / "rows.npy", limit=2)) == 2


def test_what_is_no_number_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="row 1, column 0 is nan"):
        finite_rows(np.array([[1.0, 2], [np.nan, 3]]), "here")
    with pytest.raises(ValueError, match="encode categories first"):
        finite_rows(np.array([["red"], ["blue"]]), "here")
    with pytest.raises(ValueError, match="here: holds complex numbers: give their real and imaginary parts"):
        finite_rows(np.array([[1j, 2]]), "here")
    with pytest.raises(ValueError, match="N x D numbers"):
        finite_rows(np.zeros(3), "here")


@pytest.mark.parametrize(
    ("before", "value", "shown"),
    [("", "t", "'t'"), ("1.5", "2019-01-01", "'2019-01-01'"), ("", "true", "'true'"), ("true", "2", "booleans and '2'"),
     ("2", "x" * 300, f"'{'x' * 40}...'")],
)  # fmt: skip
def test_a_value_that_is_no_number_is_told_with_its_column_however_late_it_stands(
    tmp_path: Path, before: str, value: str, shown: str
) -> None:
    """Before, the message beyond the first megabyte was Arrow's, which counts columns."""
    count = 60_000
    rows = [f"k,{row},{'0' * 20},{before}\n" for row in range(count)]
    (tmp_path / "late.csv").write_text("id,a,b,z\n" + "".join(rows) + f"k,1,2,{value}\n")
    with pytest.raises(ValueError, match=r"late\.csv: column 'z' holds ") as refused:
        load_rows(tmp_path / "late.csv", columns=["z", "a"])
    assert f"column 'z' holds {shown}, and features are numbers: encode it first" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_lines_longer_than_a_block_are_read_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, Arrow's message about blocks was all that the user of a table with 100,000 columns saw."""
    width = 1000
    header = ",".join(f"x{column}" for column in range(width)) + "\n"
    short = [f"{row}," + ",".join(["1"] * (width - 1)) + "\n" for row in range(800)]
    long = [f"{row}," + ",".join(["1." + "0" * 2500] * (width - 1)) + "\n" for row in range(800, 803)]
    for name, lines in (("first", long + short), ("late", short + long + short)):
        (tmp_path / f"{name}.csv").write_text(header + "".join(lines))
        rows = load_rows(tmp_path / f"{name}.csv")
        assert rows.shape == (len(lines), width)
        assert rows[:, 0].tolist() == [int(line[: line.index(",")]) for line in lines]
        assert (rows[:, 1:] == 1).all()
    names = ",".join(f"{column:0>4000}x" for column in range(width))
    (tmp_path / "names.csv").write_text(names + "\n" + short[0])
    assert load_rows(tmp_path / "names.csv").shape == (1, width)
    monkeypatch.setattr(tables, "_LONGEST", 1 << 20)
    for name in ("first", "late"):
        with pytest.raises(ValueError, match=r"has a row of more than 1 MiB, .* given as Parquet or \.npy"):
            load_rows(tmp_path / f"{name}.csv")


def test_a_value_that_drowns_the_others_is_named():
    random = np.random.default_rng(0)
    rows = random.standard_normal((500, 3))
    assert describe_drowned(rows) == ""
    assert describe_drowned(random.standard_cauchy((500, 3))) == ""  # heavy tails are no such values
    assert describe_drowned(random.lognormal(0, 3, (500, 3))) == ""
    rows[:, 2] = 7.0
    rows[3, 1:] = -1e9, 8.0
    text = describe_drowned(rows, ["a", "b", "c"])
    assert text.startswith("column 'b' holds -1e+09, and 90% of its values lie from -")
    rows[4, 0] = np.finfo(float).max
    assert "column 0 holds 1.798e+308" in describe_drowned(rows)
    assert "(and 1 more such columns)" in describe_drowned(rows)


@pytest.mark.parametrize(
    "names", ["5,0.25,1.5", "5,8,1", "7", "-1,2", "0.5,,3", "1e3,nan", "400,402", "0,3,7", "5,5.0"]
)
def test_a_first_line_of_values_is_not_taken_for_names(tmp_path: Path, names: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{names}\n{names}\n")
    with pytest.raises(ValueError, match="its first line holds the names of the columns, and these are numbers"):
        tables.column_names(path)
    tables.check_columns(path, [names.split(",")[0]])  # those of a model are found by their names


@pytest.mark.parametrize(
    "names",
    ["0,1,2", "2,0,1", "1,2,3", "0", "1", "2019,2020,2021", "400,402,404", "2010,2000,2005", "1_1,1_2", "x,0.5"],
)
def test_numbers_that_count_columns_are_names(tmp_path: Path, names: str) -> None:
    (tmp_path / "t.csv").write_text(f"{names}\n")
    assert tables.column_names(tmp_path / "t.csv") == tuple(names.split(","))


def test_the_row_numbers_that_pandas_writes_are_no_feature(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    for index in (None, [7, 9]):
        frame = table if index is None else table.set_axis(index)
        frame.to_csv(tmp_path / "t.csv")
        frame.to_parquet(tmp_path / "t.parquet")
        for name, called in (("t.csv", "column 0 has no name"), ("t.parquet", "column 2 is called __index_level_0__")):
            if name == "t.parquet" and index is None:  # pandas writes no column for these
                assert load_rows(tmp_path / name).tolist() == table.to_numpy().tolist()
                continue
            with pytest.raises(ValueError, match=rf"{called}: the row numbers of pandas are no feature .*index=False"):
                load_rows(tmp_path / name)
            assert load_rows(tmp_path / name, columns=["b", "a"]).tolist() == [[3.0, 1.0], [4.0, 2.0]]


@pytest.mark.parametrize("ending", ["npy", "npz", "csv", "parquet"])
def test_the_users_home_is_found_by_its_short_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = np.arange(6.0).reshape(3, 2)
    np.save(tmp_path / "x.npy", rows)
    np.savez(tmp_path / "x.npz", rows)
    pd.DataFrame(rows, columns=["a", "b"]).to_csv(tmp_path / "x.csv", index=False)
    pd.DataFrame(rows, columns=["a", "b"]).to_parquet(tmp_path / "x.parquet")
    assert holds_rows(f"~/x.{ending}")
    np.testing.assert_array_equal(load_rows(f"~/x.{ending}"), rows)
    assert RunConfig(data=f"~/x.{ending}", negatives="none").data == str(tmp_path / f"x.{ending}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a;b;c\n1,5;2,5;3\n", r"has semicolons \(a;b;c\): columns are separated by commas"),
        (b"\xef\xbb\xbf\na;b\n1;2\n", r"has semicolons \(a;b\): columns are separated by commas"),
        (b"\xef\xbb\xbfa\tb\r\n1\t2\r\n", r"has tabs \(a\\tb\): columns are separated by commas"),
        ("a,b\n1,2\n".encode("utf-16"), "in UTF-16: save it in UTF-8"),
    ],
)
def test_a_file_that_is_no_csv_says_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path / "t.csv")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("before", "after"), [(0, 1), (2, 0), (1, 3), (0, 0)])
def test_empty_lines_around_a_table_of_one_column_are_no_rows(
    tmp_path: Path, end: str, before: int, after: int
) -> None:
    lines = [""] * before + ["a", *map(str, range(200_000))] + [""] * after
    (tmp_path / "t.csv").write_bytes(end.join([*lines, ""]).encode())
    assert load_rows(tmp_path / "t.csv")[:, 0].tolist() == list(range(200_000))
    (tmp_path / "t.csv").write_bytes(end.join([""] * before + ["a", "1", "", "NA", *[""] * after]).encode())
    found = np.concatenate(list(tables.numbers(tmp_path / "t.csv", ["a"])))[:, 0]
    np.testing.assert_array_equal(found, [1, np.nan, np.nan])


def test_empty_lines_behind_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf\n\na\n1\n2\n\n")
    assert load_rows(tmp_path / "t.csv")[:, 0].tolist() == [1, 2]


def test_a_column_of_missing_values_alone_is_a_column_of_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0, 2.0], "b": pa.nulls(2)}), tmp_path / "t.parquet")
    (found,) = tables.numbers(tmp_path / "t.parquet", ["a", "b"])
    np.testing.assert_array_equal(found, [[1, np.nan], [2, np.nan]])


def test_groups_are_called_alike_in_frames_and_in_files(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "left": [True, False, True]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    pq.write_table(pa.table({"left": [True, None, False]}), tmp_path / "missing.parquet")
    for data in (frame, pa.Table.from_pandas(frame), tmp_path / "t.csv", tmp_path / "t.parquet"):
        assert with_groups(data, "left")[1] == ["True", "False", "True"]
    assert tables.texts(tmp_path / "missing.parquet", "left") == ["True", "", "False"]


def test_messages_show_spaces_in_names_and_speak_of_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a, b\n1, 2\n")
    with pytest.raises(ValueError, match="has no column 'b'; its columns are 'a', ' b'"):
        tables.check_columns(tmp_path / "t.csv", ["a", "b"])
    np.save(tmp_path / "none.npy", np.zeros((0, 3)))
    assert load_rows(tmp_path / "none.npy").shape == (0, 3)
    with pytest.raises(ValueError, match=r"none.npy: holds no rows$"):
        read_feature_rows(str(tmp_path / "none.npy"))
    np.save(tmp_path / "objects.npy", np.array([[1.0, 2.0]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"holds Python objects, which are not read: save an array of numbers"):
        load_rows(tmp_path / "objects.npy")
    (batch,) = stream([str(tmp_path / "none.npy")], InputSpec((3, 1, 1), features=True))
    assert batch.errors == ["holds no images or rows of features (shape 0 x 3)"]
