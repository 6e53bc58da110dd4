# %% [markdown]
# # Week 11: demonstrations that survive
#
# What an operator does becomes a data set that the ecosystem reads (LeRobot v3.0). Every finished episode is whole, whatever happens to the writer.

# %%
from pathlib import Path

from featherweight.report import Report
from featherweight.robot.recording.check import check, repair
from featherweight.robot.recording.demo_dataset import DemoDataset
from featherweight.robot.recording.demonstrations import demonstrate, expert_writer
from featherweight.robot.recording.replay import replay
from featherweight.robot.sim.session import VirtualSession

# %% [markdown]
# ## Two demonstrations of the scripted expert
# The same as `fw robot record --leader expert --episodes 2 --out demos`.

# %%
kept = demonstrate(expert_writer("demos"), seeds=range(2))
data = DemoDataset("demos")
print(f"{kept} episodes, {len(data)} frames at {data.fps} Hz, {list(data.features)}")

# %% [markdown]
# ## Replay
# Through the same safety pipeline: slowly to the first frame, then at the recorded rate. The cube lies in the bin again.

# %%
session = VirtualSession(seed=0)
result = replay(data, 0, session.robot, clock=session.clock, sleep=session.robot.sleep)
print(f"ended {result.end_error_deg:.0f} degrees from the recording; in the bin: {session.world.is_placed()}")
assert result.end_error_deg <= 1 and session.world.is_placed()

# %% [markdown]
# ## Damage
# Half of a file is gone. `check` says which episode it belongs to, `repair` keeps those before it and throws nothing away.
# *To do: kill a recording with Ctrl-\ and look at what is there.*

# %%
table = Path("demos/data/chunk-000/file-001.parquet")
table.write_bytes(table.read_bytes()[:1000])
found = check("demos")
print(found.problems)
print(f"{repair('demos').whole} episode is whole; aside: {[path.name for path in Path().glob('demos-removed-*')]}")
assert found.whole == 1 and check("demos").problems == []

# %%
episode = DemoDataset("demos").episode(0)
time_s = episode["timestamp"]
report = Report("A demonstration")
names = data.features["action"]["names"]
curves = {name.removesuffix(".pos"): (time_s, episode["action"][:, i]) for i, name in enumerate(names)}
report.add_curves("What the expert asked for", "time (s)", "degrees", curves)
report
