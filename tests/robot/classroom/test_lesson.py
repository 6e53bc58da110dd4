"""Challenge and recordings of one student, in virtual time."""

import pytest

from featherweight.robot.challenge.log import read_log
from featherweight.robot.challenge.score import score_log
from featherweight.robot.classroom.lesson import SETTLED_S, Lesson
from featherweight.robot.network.follower_side import FollowerSide
from featherweight.robot.network.inproc import InprocBroker
from featherweight.robot.network.topics import Topics
from featherweight.robot.recording.check import check

pytest.importorskip("mujoco")


class Simulator:
    """What a lesson needs of a simulated robot, in virtual time."""

    def __init__(self):
        from featherweight.robot.sim.session import VirtualSession

        self.session = VirtualSession(cubes=2)
        self.world, self.arm = self.session.world, self.session.robot
        self.reported_deg = self.arm.reported_deg
        self.is_streaming = True
        link = InprocBroker("lab1").join("arm1", "robot")
        self.side = FollowerSide(self.arm, link, Topics("lab1", "arm1"), clock_ns=lambda: round(self.arm.now_s * 1e9))

    def run(self, lesson, seconds, wish=None):
        for _ in range(round(seconds * 60)):
            self.arm.sleep(1 / 60)
            if wish is not None:
                self.side.controller.command(wish, self.arm.now_s)
            self.side.step()
            lesson.look(self.side)


@pytest.fixture
def simulator():
    return Simulator()


@pytest.fixture
def lesson(simulator, tmp_path):
    return Lesson(simulator, tmp_path / "student01", simulator.session.clock)


def put_into_bin(world, heights_m=(0.011, 0.033)):
    """Lay the cubes into the bin, one on the other."""
    for body, height_m in zip(world.cubes, heights_m, strict=True):
        place = world.model.jnt_qposadr[world.model.body_jntadr[body]]
        world.data.qpos[place : place + 7] = [*world.bin_m[:2], height_m, 1, 0, 0, 0]


def test_a_run_is_judged_and_its_log_can_be_scored_again(simulator, lesson, tmp_path):
    before = [simulator.world.cube_m(i).tolist() for i in range(2)]
    lesson.obey({"challenge": True}, simulator.side)
    assert lesson.news()["challenge"] and lesson.news()["left"] == 180
    assert [simulator.world.cube_m(i).tolist() for i in range(2)] != before
    simulator.run(lesson, 1.0, (20.0, 0, 0, 0, 0, 0))
    put_into_bin(simulator.world)
    simulator.run(lesson, 4.0, (20.0, 0, 0, 0, 0, -30))
    assert lesson.news()["challenge"]  # while the gripper is closed it may hold them
    simulator.run(lesson, 0.8 + SETTLED_S, (20.0, 0, 0, 0, 0, 30))
    assert lesson.news()["challenge"]
    simulator.run(lesson, 1.0)

    news = lesson.news()
    assert not news["challenge"] and news["score"]["run"] == 1 and news["score"]["placed"] == 2
    told = score_log(read_log(tmp_path / "student01" / "run_0001.jsonl"))
    assert told.points == news["score"]["points"] and told.path_m == news["score"]["path_m"] > 0
    assert Lesson(simulator, tmp_path / "student01").news()["runs"] == 1


def test_a_run_ends_when_the_student_says_so_and_the_simulation_goes_on(simulator, lesson):
    lesson.obey({"challenge": True}, simulator.side)
    time_s = float(simulator.world.data.time)
    simulator.run(lesson, 0.5)
    lesson.obey({"challenge": False}, simulator.side)
    lesson.obey({"challenge": False}, simulator.side)
    assert lesson.news()["score"]["points"] == 0 and lesson.news()["runs"] == 1
    assert float(simulator.world.data.time) > time_s + 0.4


def test_an_episode_becomes_a_data_set_that_the_ecosystem_reads(simulator, lesson, tmp_path):
    pytest.importorskip("pyarrow")
    lesson.obey({"record": True}, simulator.side)
    simulator.run(lesson, 1.0, (5.0, 0, 0, 0, 0, 0))
    assert lesson.news()["recording"] and lesson.news()["frames"] > 20
    lesson.obey({"record": False}, simulator.side)
    lesson.obey({"record": True}, simulator.side)
    lesson.obey({"record": False}, simulator.side)  # nothing in it: no episode
    lesson.close()
    found = check(tmp_path / "student01" / "demos")
    assert lesson.news()["episodes"] == 1 and found.problems == [] and found.whole == 1


def test_what_cannot_be_written_is_one_sentence_and_the_lesson_goes_on(simulator, lesson, tmp_path):
    (tmp_path / "student01").write_text("a file where the folder should be")
    lesson.obey({"record": True}, simulator.side)
    assert "student01" in lesson.news()["trouble"] and not lesson.news()["recording"]
    simulator.run(lesson, 0.1)
