import numpy as np
import pytest

from featherweight.bev.synthetic.rig import WorldConfig
from featherweight.bev.synthetic.streets import lay_streets
from featherweight.bev.synthetic.tables import Tables, map_expansion

pytest.importorskip("shapely")


def test_tokens_follow_from_the_seed_and_what_they_name():
    one, same, other = (Tables(WorldConfig(seed=seed)) for seed in (0, 0, 1))
    first, again, different = (tables.begin_scene("scene-0001", "boston-seaport", 2) for tables in (one, same, other))
    assert first == again != different and len(first) == 32 and int(first, 16) >= 0


def test_samples_of_a_drive_are_a_chain():
    tables = Tables(WorldConfig())
    scene = tables.begin_scene("scene-0001", "boston-seaport", 3)
    tokens = [tables.add_sample(scene, frame, frame) for frame in range(3)]
    chain = [(record["prev"], record["next"]) for record in tables.records["sample"]]
    assert chain == [("", tokens[1]), (tokens[0], tokens[2]), (tokens[1], "")]
    (record,) = tables.records["scene"]
    assert (record["first_sample_token"], record["last_sample_token"]) == (tokens[0], tokens[2])


def test_the_map_has_every_key_that_readers_ask_for():
    content = map_expansion([lay_streets(np.random.default_rng(0), (0.0, 0.0), 30.0)], "boston-seaport")
    assert content["version"] == "1.3" and content["canvas_edge"]
    for key in ("lane", "lane_connector", "traffic_light", "arcline_path_3", "connectivity", "stop_line"):
        assert key in content
    known = {node["token"] for node in content["node"]}
    used = {token for polygon in content["polygon"] for token in polygon["exterior_node_tokens"]}
    assert used <= known and len(known) == len(content["node"])
