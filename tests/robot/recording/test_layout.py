"""Paths and info of a data set."""

from featherweight.robot.recording import layout


def test_files_are_numbered_in_chunks_of_a_thousand():
    assert layout.DATA.format(**layout.place(0)) == "data/chunk-000/file-000.parquet"
    assert layout.DATA.format(**layout.place(2003)) == "data/chunk-002/file-003.parquet"
    assert layout.file_number(**layout.place(2003)) == 2003


def test_the_info_names_what_lerobot_reads():
    front = layout.camera_feature(240, 320, 30, "av1")
    info = layout.new_info(30, "umirobot", {**layout.robot_features(), layout.camera_key("front"): front})
    assert info["features"]["action"] == {
        "dtype": "float32",
        "shape": [6],
        "names": info["features"]["action"]["names"],
    }
    assert info["features"]["observation.images.front"]["info"]["video.codec"] == "av1"
    assert info["video_path"].endswith(".mp4") and "task_index" in info["features"]
    assert layout.new_info(30, "umirobot", layout.robot_features())["video_path"] is None
    assert layout.video_keys(info["features"]) == ["observation.images.front"]
