"""Demonstrations as LeRobot data sets (v3.0): layout, tables, videos, statistics, writer, reader, check and repair.

Each episode is a set of complete files of its own, written beside their places and renamed, so that a kill at any
moment loses the present episode at most. LeRobot is not imported, and neither is torch.
"""
