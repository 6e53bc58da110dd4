"""A scripted expert puts a cube into the bin, in MuJoCo, with the whole degrees and the speed of the real servos."""

import numpy as np

from featherweight.robot.sim.expert import pick_and_place
from featherweight.robot.sim.world import World

world = World("challenge", seed=3, cubes=1)
print(f"cube at {np.round(world.cube_m(), 3)}, bin at {np.round(world.bin_m, 3)}")
servo = np.zeros(6)
steps = 0
for target in pick_and_place(world.cube_m(), world.bin_m):  # one target each thirtieth of a second
    for _ in range(3):
        servo += np.clip(np.round(target) - servo, -1, 1)  # the firmware: one degree per loop
        world.step(servo, 1 / 90)
    steps += 1
world.step(servo, 0.5)
print(f"in the bin: {world.is_placed()}, after {steps / 30:.1f} s")
assert world.is_placed()
