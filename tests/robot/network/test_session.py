"""Sessions are secret, their tags public."""

from featherweight.robot.network.session import new_session, session_tag


def test_a_tag_tells_sessions_apart_and_does_not_hold_them():
    sessions = {new_session() for _ in range(100)}
    assert len(sessions) == 100 and all(0 < session < 2**63 for session in sessions)
    assert len({session_tag(session) for session in sessions}) == 100
    session = sessions.pop()
    assert session_tag(session) == session_tag(session) and f"{session:x}" not in session_tag(session)
