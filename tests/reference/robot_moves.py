"""Moves of a virtual robot."""

from featherweight.robot.driver.link_state import Goal


def move(robot, angles_deg, speed=None, timeout_s=None):
    robot.core.set_goal(Goal(tuple(angles_deg), speed, robot.now_s, timeout_s, robot.epoch))
