"""A desktop arm for less than 100 dollars: driver, emulator, simulator, kinematics, teleoperation over networks.

The classes have the names and the life cycle of LeRobot's Robot and Teleoperator. Public names load on first use; the
driver needs pyserial alone, and nothing here imports torch unless the torch kinematics are asked for.
"""

import importlib
from typing import Any

_LAZY = {
    "Robot": "contract",
    "Teleoperator": "contract",
    "UMIRobot": "driver.umirobot",
    "UMIRobotConfig": "driver.umirobot",
    "KitCalibration": "calibration_file",
    "JOINTS": "kit",
    "JOINT_KEYS": "kit",
    "EmulatedKit": "emulator.emulated_kit",
    "FaultConfig": "emulator.faults",
    "PseudoTerminal": "emulator.pseudo_terminal",
    "PotLeader": "leaders.potentiometer",
    "PotLeaderConfig": "leaders.potentiometer",
    "KeyboardLeader": "leaders.keyboard",
    "KeyboardLeaderConfig": "leaders.keyboard",
    "GamepadLeader": "leaders.gamepad",
    "GamepadLeaderConfig": "leaders.gamepad",
    "ScriptedLeader": "leaders.scripted",
    "WebLeader": "web.leader",
    "SafetyConfig": "safety.config",
    "TaskController": "control.task",
    "Mode": "safety.mode",
    "teleoperate": "teleoperation",
    "SimRobot": "sim.robot",
    "SimRobotConfig": "sim.robot",
    "register_environments": "sim.environments",
    "serve": "network.follower_side",
    "join": "network.operator_side",
    "Impaired": "network.impaired",
    "kinematics": "kinematics",
    "network": "network",
    "sim": "sim",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'featherweight.robot' has no attribute '{name}'")
    module = importlib.import_module(f"featherweight.robot.{_LAZY[name]}")
    value = module if _LAZY[name] == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
