"""Task-space control: from a wanted point of the wrist or tool to joint angles that move there within the speed
limit.
"""

from featherweight.robot.control.singularity import singularity_scale
from featherweight.robot.control.task import TaskController

__all__ = ["TaskController", "singularity_scale"]
