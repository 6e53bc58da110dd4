"""Policies that learn from demonstrations: features of the state, a network, a task for `fw train`, runs in simulation.

This is the one room of the robot that needs torch.
"""
