# %% [markdown]
# # Weeks 5 to 7: where the hand is, and how it gets there
#
# Five angles say where the tool of the arm is (forward kinematics); a place says which angles (inverse kinematics). No hardware, a few seconds.

# %%
import numpy as np

from featherweight.report import Report
from featherweight.robot.control import TaskController
from featherweight.robot.kinematics import position_angles, search_integers, wrist_point
from featherweight.robot.kinematics.dh import tool_point

zero = np.zeros(5)
print("tool at zero:", tool_point(zero).round(3), "m")

# %% [markdown]
# ## There and back
# In the limits there is exactly one set of angles for a place of the wrist: what goes in comes out.

# %%
angles = np.radians(np.random.default_rng(0).uniform(-60, 60, (200, 5)))
places = wrist_point(angles)
back = np.array([position_angles(place) for place in places])
error_m = np.linalg.norm(wrist_point(np.concatenate([back, angles[:, 3:]], axis=1)) - places, axis=1)
print(f"largest error: {error_m.max():.1e} m")
assert error_m.max() < 1e-9

# %% [markdown]
# ## Whole degrees
# The servos understand whole degrees alone. Rounding costs millimetres; looking at the neighbours of the rounded angles wins most of them back.
# *To do: how far off is the tool if you cut the decimals off instead, as the official program does?*

# %%
degrees = np.degrees(angles)
rounded = np.round(degrees)
searched = np.array([search_integers(one) for one in degrees])
off_mm = {
    name: 1000 * np.linalg.norm(tool_point(np.radians(one)) - tool_point(angles), axis=1)
    for name, one in (("rounded", rounded), ("searched", searched))
}
assert off_mm["searched"].mean() < off_mm["rounded"].mean() / 2

# %% [markdown]
# ## A controller that is never stuck
# Step by step towards a place, at no more than 80 degrees a second.

# %%
controller, q, distance_mm = TaskController("analytic"), zero, []
target = wrist_point(np.radians([50, 30, -20, 0, 0]))
for _ in range(150):
    q = controller.step(q, target)
    distance_mm.append(1000 * np.linalg.norm(wrist_point(q) - target))
assert distance_mm[-1] < 0.1

# %%
report = Report("Kinematics of the arm")
share = np.linspace(0, 1, 200)
report.add_curves(
    "How far whole degrees bring the tool off its place",
    "share of 200 places",
    "error (mm)",
    {name: (share, np.sort(values)) for name, values in off_mm.items()},
)
seconds = controller.period_s * np.arange(1, 151)
report.add_curves("The way to a place", "time (s)", "distance (mm)", {"analytic": (seconds, distance_mm)})
report
