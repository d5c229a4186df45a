"""Records become tables, and tables become files."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmech.disk import atomically, write_json, write_table, write_weights
from lmech.lanes import Record
from lmech.recorder import Recorder


def record(steps, valid=None, **columns):
    steps = np.asarray(steps)
    valid = np.ones_like(steps, bool) if valid is None else np.asarray(valid)
    return Record(
        np.arange(len(steps)),
        steps,
        valid,
        {name: np.asarray(v) for name, v in columns.items()},
        True,
    )


def recorded(*records):
    """The table of one member."""
    recorder = Recorder(1)
    for one in records:
        recorder.add(one)
    return recorder.table(0)


def test_the_first_value_for_a_column_and_step_stays():
    table = recorded(
        record([[0, 1]], loss=[[1.0, 2.0]]), record([[1, 2]], loss=[[9.0, 3.0]], norm=[[8.0, 7.0]])
    )
    assert table.to_pydict() == {
        "step": [0, 1, 2],
        "loss": [1.0, 2.0, 3.0],
        "norm": [None, 8.0, 7.0],
    }


def test_steps_are_in_order_whatever_order_they_came_in():
    table = recorded(record([[4]], loss=[[4.0]]), record([[0, 2]], loss=[[0.0, 2.0]]))
    assert table.to_pydict() == {"step": [0, 2, 4], "loss": [0.0, 2.0, 4.0]}


def test_invalid_rows_are_dropped_member_by_member():
    recorder = Recorder(2)
    recorder.add(
        record([[0, 1], [0, 1]], [[True, True], [True, False]], loss=[[1.0, 2.0], [3.0, np.inf]])
    )
    recorder.add(record([[2], [2]], [[True], [False]], loss=[[4.0], [np.inf]]))
    assert recorder.table(0).to_pydict() == {"step": [0, 1, 2], "loss": [1.0, 2.0, 4.0]}
    assert recorder.table(1).to_pydict() == {"step": [0], "loss": [3.0]}


def test_the_last_valid_values_are_at_hand():
    recorder = Recorder(1)
    recorder.add(record([[0, 1, 2]], [[True, True, False]], loss=[[1.0, 2.0, 3.0]]))
    assert recorder.last[0] == {"loss": 2.0}


def test_a_column_is_null_where_it_was_not_measured_but_nan_where_it_was():
    table = recorded(
        record([[0, 1, 2]], loss=[[1.0, np.nan, 3.0]]), record([[1]], sharpness=[[5.0]])
    )
    assert table["sharpness"].to_pylist() == [None, 5.0, None]
    assert table["loss"].null_count == 0
    assert np.isnan(table["loss"][1].as_py())


def test_vector_columns_become_lists():
    vectors = np.arange(6.0).reshape(1, 2, 3)
    table = recorded(record([[0, 2]], top=vectors), record([[1]], loss=[[1.0]]))
    assert table["top"].to_pylist() == [[0, 1, 2], None, [3, 4, 5]]
    assert table["top"].type == pa.list_(pa.float64())


def test_matrix_columns_become_row_major_lists():
    table = recorded(record([[0]], matrix=np.arange(4.0).reshape(1, 1, 2, 2)))
    assert table["matrix"].to_pylist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.bool_])
def test_columns_keep_their_type(dtype):
    table = recorded(record([[0]], a=np.ones((1, 1), dtype), v=np.ones((1, 1, 2), dtype)))
    assert table["a"].type == pa.from_numpy_dtype(dtype)
    assert table["v"].type == pa.list_(pa.from_numpy_dtype(dtype))


def test_json_has_null_for_what_is_not_finite(tmp_path):
    value = {
        "plain": 1.5,
        "nan": np.nan,
        "nested": [np.float32("inf"), {"low": -np.inf}],
        "array": np.array([[1.0, np.nan]]),
        "count": np.int64(3),
        "flag": True,
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {
        "plain": 1.5,
        "nan": None,
        "nested": [None, {"low": None}],
        "array": [[1.0, None]],
        "count": 3,
        "flag": True,
    }
    assert text.endswith("}\n")


def test_json_keeps_its_letters(tmp_path):
    write_json(tmp_path / "a.json", {"λ": "½"})
    assert '"λ": "½"' in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_writer_that_raises_leaves_the_old_file_and_no_other(tmp_path):
    def half(path):
        path.write_text("half of the new")
        raise RuntimeError("disk full")

    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError, match="disk full"):
        atomically(tmp_path / "a.txt", half)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_an_unwritable_value_leaves_the_old_json(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"what": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == 1


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    seen = []

    def write(path):
        path.write_text("new")
        seen.append((tmp_path / "a.txt").read_text())

    (tmp_path / "a.txt").write_text("old")
    atomically(tmp_path / "a.txt", write)
    assert seen == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_writing_makes_the_folders_that_are_missing(tmp_path):
    write_json(tmp_path / "deep/er/a.json", [1])
    assert json.loads((tmp_path / "deep/er/a.json").read_text()) == [1]


def test_equal_tables_are_equal_bytes_and_read_back(tmp_path):
    loss, top = np.arange(3.0)[None], np.arange(6.0).reshape(1, 3, 2)
    whole = recorded(record([[0, 1, 2]], loss=loss, top=top))
    pieces = recorded(
        record([[0]], loss=loss[:, :1], top=top[:, :1]),
        record([[1, 2]], loss=loss[:, 1:], top=top[:, 1:]),
    )
    sliced = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    contents = set()
    for name, table in {"whole": whole, "pieces": pieces, "sliced": sliced}.items():
        write_table(tmp_path / name, table)
        contents.add((tmp_path / name).read_bytes())
    assert len(contents) == 1
    assert pq.read_table(tmp_path / "whole").equals(whole)


def test_weights_load_without_pickle_under_their_names(tmp_path):
    leaves = {"hidden_1/kernel": np.arange(6.0).reshape(2, 3), "b": np.zeros(3, np.float32)}
    write_weights(tmp_path / "weights.npz", leaves)
    with np.load(tmp_path / "weights.npz", allow_pickle=False) as loaded:
        assert set(loaded) == set(leaves)
        for name, leaf in leaves.items():
            assert loaded[name].dtype == leaf.dtype
            np.testing.assert_array_equal(loaded[name], leaf)


def test_weights_that_would_need_pickle_are_refused(tmp_path):
    with pytest.raises(ValueError, match="pickle"):
        write_weights(tmp_path / "weights.npz", {"a": np.array([object()])})
    assert list(tmp_path.iterdir()) == []
