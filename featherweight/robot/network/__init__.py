"""Teleoperation over networks: frames, measured delay, an operator's lease, transports, both sides, certificates."""

from featherweight.robot.network.delay import ClockEstimate, DelayStatistics
from featherweight.robot.network.frames import CommandFrame, FrameError, StateFrame
from featherweight.robot.network.impaired import Impaired, Impairment
from featherweight.robot.network.inproc import InprocBroker, InprocTransport
from featherweight.robot.network.receiver import CommandReceiver
from featherweight.robot.network.topics import Topics
from featherweight.robot.network.transport import Transport

__all__ = [
    "ClockEstimate",
    "CommandFrame",
    "CommandReceiver",
    "DelayStatistics",
    "FrameError",
    "Impaired",
    "Impairment",
    "InprocBroker",
    "InprocTransport",
    "StateFrame",
    "Topics",
    "Transport",
]
