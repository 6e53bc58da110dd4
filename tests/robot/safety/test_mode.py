"""No way around SYNC."""

from hypothesis import given
from hypothesis import strategies as st

from featherweight.robot.safety.mode import Mode, ModeMachine


@given(st.lists(st.sampled_from(["start", "caught_up", "hold", "stop", "reset"]), max_size=50))
def test_no_order_of_events_leads_from_rest_to_full_speed_without_sync(events):
    machine = ModeMachine()
    for event in events:
        before = machine.mode
        getattr(machine, event)(*(["x"] if event in ("hold", "stop") else []))
        if machine.mode is Mode.ACTIVE:
            assert before in (Mode.SYNC, Mode.ACTIVE)
        if before is Mode.ESTOP:
            assert machine.mode is Mode.ESTOP or (event == "reset" and machine.mode is Mode.IDLE)
