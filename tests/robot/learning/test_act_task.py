"""ACT as a task; `tests/contracts` holds it to what every task must do."""

import shutil

import pytest
import torch
from robot_demos import new_writer, write_episode, write_scene_episodes

from featherweight.errors import ConfigError
from featherweight.robot.learning.act_task import ACTTask, ACTTaskConfig

pytest.importorskip("av")
SMALL = {
    "chunk_size": 4,
    "dim_model": 16,
    "n_heads": 2,
    "dim_feedforward": 16,
    "picture_height_px": 32,
    "picture_width_px": 48,
}


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    root = tmp_path_factory.mktemp("seen") / "demos"
    writer = new_writer(root, cameras=True)
    for _ in range(3):
        write_episode(writer, 8)
    return root


def make(demos, **options):
    return ACTTask(ACTTaskConfig(data=str(demos), cameras=["front"], **SMALL, **options), seed=0)


def test_each_frame_has_the_picture_that_was_taken_with_it(demos):
    task = make(demos)
    assert task.describe()["train_episodes"] == 2 and task.train["picture.front"].shape == (16, 3, 32, 48)
    brightness = task.train["picture.front"].float().mean(dim=(1, 2, 3)).tolist()
    # 4 more with every frame, as the writer drew it; the codec is lossy.
    assert all(abs(seen - (20 + 4 * (i % 8))) < 3 for i, seen in enumerate(brightness))


def test_the_latent_vector_costs_its_divergence_in_training_alone(demos):
    torch.manual_seed(0)
    task = make(demos, dropout=0.0)
    policy, batch = task.build_model(), next(task.batches("train", micro_batch_size=4, seed=0))
    with torch.no_grad():
        policy.eval()
        plain, count = task.loss(policy, batch)
        assert count == 4 and float(task.loss(policy, batch)[0]) == float(plain)
        mean, log_variance = policy.encode_style(batch, policy.look(batch)[0])
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        task.config = task.config.model_copy(update={"kl_weight": 1e4})
        policy.train()
        value, _ = task.loss(policy, batch)
    assert float(value) == pytest.approx(1e4 * float(divergence) + float(plain), rel=0.05)


def test_eyes_learn_where_cube_and_bin_are_and_the_report_says_how_far_off_they_are(tmp_path):
    pytest.importorskip("mujoco")
    write_scene_episodes(tmp_path / "seen", episodes=4, frames=6, cameras=("front",))
    task = make(tmp_path / "seen", places_weight=1.0, use_vae=False, dropout=0.0)
    assert torch.allclose(task.train["places"][0, 2:], task.train["places"][5, 2:])  # the bin stands still
    policy = task.build_model()
    assert policy.config.sees_places and policy.config.feature_count == 16
    batch = next(task.batches("train", micro_batch_size=8, seed=0))
    with torch.no_grad():
        told = [float(task.loss(policy.train(), batch)[0])]
        task.config = task.config.model_copy(update={"places_weight": 3.0})
        told.append(float(task.loss(policy, batch)[0]))
        places = policy.look(batch)[2]
    normal = policy.scene_head.normal
    off = 8 * float((normal(places) - normal(batch["places"])).abs().mean())
    assert told[1] - told[0] == pytest.approx(2 * off, rel=1e-4)
    assert 1 < task.evaluate(policy, micro_batch_size=64)["places_error_mm"] < 1000


def test_places_need_cameras_and_a_set_that_tells_them(demos):
    with pytest.raises(ConfigError, match="places_weight=1 has no eyes to teach; expected cameras"):
        ACTTaskConfig.parse({"data": "demos", "places_weight": 1.0}, where="act")
    with pytest.raises(ConfigError, match=r"observation.environment_state=None of .* are other numbers"):
        make(demos, places_weight=1.0)


def test_cameras_that_are_not_there_are_one_sentence(demos, tmp_path):
    with pytest.raises(ConfigError, match=r"camera=frnt of .* is not there; expected one of .'front'.*Did you mean"):
        ACTTask(ACTTaskConfig(data=str(demos), cameras=["frnt"], **SMALL), seed=0)
    write_episode(new_writer(tmp_path / "blind"), 5)
    with pytest.raises(ConfigError, match=r"camera=front of .* is not there; expected one of ..; *|Record with"):
        make(tmp_path / "blind")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("videos/observation.images.front/chunk-000/file-001.mp4", "video=.* cannot be read .*expected a whole video"),
        ("data/chunk-000/file-001.parquet", "expected a whole parquet file"),
        ("meta/episodes/chunk-000/file-001.parquet", "expected a whole parquet file"),
    ],
)
def test_a_truncated_file_ends_the_task_with_one_sentence(demos, tmp_path, name, message):
    copy = shutil.copytree(demos, tmp_path / "demos")
    (copy / name).write_bytes((copy / name).read_bytes()[:200])
    with pytest.raises(ConfigError, match=message):
        make(copy)
