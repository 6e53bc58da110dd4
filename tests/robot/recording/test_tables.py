"""Tables as LeRobot writes them."""

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.robot.recording.layout import robot_features
from featherweight.robot.recording.tables import (
    frame_table,
    import_arrow,
    read_table,
    read_tasks,
    to_array,
    write_table,
    write_tasks,
)


def test_vectors_are_lists_of_fixed_size_and_single_numbers_are_numbers(tmp_path):
    pa = import_arrow()
    action, time_s = np.arange(12.0).reshape(2, 6), np.array([0.5, 1.0])
    table = frame_table({"action": action, "observation.t_mono": time_s}, robot_features())
    assert table.schema.field("action").type == pa.list_(pa.float32(), 6)
    assert table.schema.field("observation.t_mono").type == pa.float64()
    write_table(tmp_path / "a.parquet", table)
    back = read_table(tmp_path / "a.parquet")
    assert (to_array(back["action"]) == action).all() and (to_array(back["observation.t_mono"]) == time_s).all()
    assert (to_array(back["action"].cast(pa.list_(pa.float32()))) == action).all()


def test_tasks_are_the_index_of_a_pandas_frame(tmp_path):
    pandas = pytest.importorskip("pandas")
    write_tasks(tmp_path / "tasks.parquet", ["wave", "rest"])
    frame = pandas.read_parquet(tmp_path / "tasks.parquet")
    assert frame.index.name == "task" and frame.loc["rest"]["task_index"] == 1
    assert read_tasks(tmp_path / "tasks.parquet") == ["wave", "rest"]


def test_a_truncated_table_is_one_sentence(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ConfigError, match="expected a whole parquet file"):
        read_table(tmp_path / "a.parquet")
