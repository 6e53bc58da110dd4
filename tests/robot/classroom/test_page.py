"""The classroom's pages in a real browser, over TLS."""

import pytest
from robot_classes import token

from featherweight.robot.hardware.solids import box, triangles
from featherweight.robot.hardware.stl import stl_of

pytestmark = pytest.mark.slow


pytest.importorskip("manifold3d")
pytest.importorskip("trimesh")


def test_students_and_teacher_do_a_lesson_and_the_teacher_stops_it(chromium, class_folder, find_violations):
    from featherweight.robot.classroom.server import ClassServer

    server, contexts = ClassServer([class_folder], port=0).start(), []

    def open_page(name, size, language):
        options = {"viewport": {"width": size[0], "height": size[1]}, "locale": language, "bypass_csp": True}
        context = chromium.new_context(ignore_https_errors=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{server.uri}lab1/#key={token(class_folder, name)}")
        page.wait_for_selector("#classroom:not([hidden])")
        return page

    try:
        student, teacher = open_page("student01", (360, 740), "bn-BD"), open_page("teacher", (1280, 800), "en-US")
        watcher = open_page("eve", (360, 740), "ja-JP")
        student.wait_for_selector("#mode[data-mode=IDLE]")
        assert student.locator("#teacher").is_hidden() and watcher.locator("#stop").is_disabled()
        assert watcher.locator("#shoulder_pan").is_disabled() and "token" not in student.url

        student.click("#record")
        student.click("#challenge")
        student.focus("#shoulder_pan")
        student.keyboard.down("Space")
        student.wait_for_selector("#mode[data-mode=ACTIVE]")
        student.wait_for_timeout(1000)
        student.keyboard.up("Space")
        student.click("#record")
        student.click("#challenge")
        student.wait_for_selector("#board tr")
        assert student.inner_text("#board").startswith("student01")
        assert teacher.inner_text("#board") == student.inner_text("#board")

        student.set_input_files("#hand-in-gripper", {"name": "a.stl", "mimeType": "", "buffer": b"a letter" * 9000})
        student.wait_for_function("() => document.getElementById('handed-gripper').textContent.includes('no mesh')")
        block = stl_of(*triangles(box((0, 30), (0, 20), (0, 10))))
        student.set_input_files("#hand-in-master", {"name": "m.stl", "mimeType": "", "buffer": block})
        student.wait_for_function("() => document.getElementById('handed-master').textContent.includes('overhang')")

        student.select_option("#robot", "arm1")
        student.wait_for_selector("#turns:not([hidden])")
        student.click("#queue")
        student.wait_for_function("() => document.getElementById('turn').textContent.includes('আপনার পালা')")
        student.select_option("#robot", "sim-student01")
        student.wait_for_selector("#own:not([hidden])")

        teacher.click("#stop-all")
        student.wait_for_selector("#mode[data-mode=ESTOP]")
        for page in (student, teacher, watcher):
            page.wait_for_function("() => document.getElementById('all-stopped').textContent !== ''")
            assert find_violations(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
        teacher.click("#reset-all")
        student.wait_for_selector("#mode[data-mode=IDLE]")
    finally:
        for context in contexts:
            context.close()
        server.close()
    student_folder = class_folder / "students" / "student01"
    assert (student_folder / "run_0001.jsonl").exists()
    assert (student_folder / "uploads" / "master-001.stl").read_bytes() == block
    assert not (student_folder / "uploads" / "gripper-001.stl").exists()
