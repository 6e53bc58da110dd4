# %% [markdown]
# # Weeks 4 and 9: what the arm does when something fails, and what delay does to a person
#
# Everything runs in virtual time: the firmware, the driver, the safety pipeline and the physics are the real code.

# %%
import math

from featherweight import robot as fwr
from featherweight.report import Report
from featherweight.robot.challenge.run import parse_impairment, run_challenge
from featherweight.robot.sim.session import VirtualSession

# %% [markdown]
# ## A leader falls silent
# After 200 ms without a command the arm is held where it is. It comes back slowly: SYNC, then ACTIVE.

# %%
session = VirtualSession(scene="empty")
start_s = session.clock()


def script(time_s):
    """Wave, but say nothing between second 2 and second 3."""
    return None if 2 < time_s < 3 else (30 * math.sin(2 * time_s), 10, 0, 0, -40, 0)


seconds, pan_deg, modes = [], [], []


def look(controller):
    """Note what the arm does."""
    seconds.append(session.clock() - start_s)
    pan_deg.append(session.robot.reported_deg()[0])
    modes.append(controller.mode)


result = session.run(fwr.ScriptedLeader(script, clock=session.clock), 5.0, look)
held = [time for time, mode in zip(seconds, modes, strict=True) if mode is fwr.Mode.HOLD and time > 1]
print(f"held from {held[0]:.2f} s to {held[-1]:.2f} s; {result.counters}")
assert 2.1 < held[0] < 2.3 and result.mode is fwr.Mode.ACTIVE

# %% [markdown]
# ## The challenge, at three distances
# A model of a hand puts a cube into the bin: it moves, waits until it sees what the move did, and corrects. Each correction costs a round trip.
# *To do: what do 600 ms cost? Which part of the score falls first?*

# %%
scores = {name: run_challenge("hand", None, 10_004, parse_impairment(name)) for name in ("0ms", "300ms+-30,1%")}
for name, score in scores.items():
    print(f"{name}: {score.points:.0f} points, {score.time_s:.1f} s, {score.collisions} collisions")
assert all(score.placed == 1 for score in scores.values())

# %%
report = Report("Safety and delay")
report.add_curves("A leader falls silent for a second", "time (s)", "pan (degrees)", {"reported": (seconds, pan_deg)})
columns = ["round trip", "points", "time (s)", "path (m)", "spectral arc length"]
rows = [[name, s.points, s.time_s, s.path_m, s.spectral_arc_length] for name, s in scores.items()]
report.add_table("One layout", columns, rows)
report
