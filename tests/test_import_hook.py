import json
import logging
import subprocess
import sys

import pytest

from featherweight.import_hook import import_after, without_kernel_advice


def run(program, folder):
    program = f"import sys\nsys.path.insert(0, {str(folder)!r})\n{program}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("order", [("import other", "watch()"), ("watch()", "import other")])
def test_ours_is_imported_after_the_other_package_in_either_order(order, tmp_path):
    (tmp_path / "other.py").write_text("value = 1\n")
    (tmp_path / "ours.py").write_text("import other\nseen = other.value\n")
    first, second = order
    found = run(
        "import json, sys\nfrom featherweight.import_hook import import_after\n"
        "watch = lambda: import_after('other', 'ours')\n"
        f"watch() if {first!r} == 'watch()' else __import__('other')\n"
        "before = 'ours' in sys.modules\n"
        f"watch() if {second!r} == 'watch()' else __import__('other')\n"
        "print(json.dumps([before, sys.modules['ours'].seen, type(sys.modules['other'].__loader__).__name__]))",
        tmp_path,
    )

    assert found == [False, 1, "SourceFileLoader"]


def test_ours_may_import_the_other_package_first(tmp_path):
    (tmp_path / "other.py").write_text("")
    (tmp_path / "ours.py").write_text("count = 1\nimport other\ncount += 1\n")
    found = run(
        "import json, sys\nfrom featherweight.import_hook import import_after\n"
        "import_after('other', 'ours')\nimport ours\nprint(json.dumps(ours.count))",
        tmp_path,
    )

    assert found == 2


def test_something_is_done_right_before_the_package(tmp_path):
    (tmp_path / "other.py").write_text("import first\nvalue = first.value\n")
    (tmp_path / "first.py").write_text("value = 0\n")
    (tmp_path / "ours.py").write_text("")
    found = run(
        "import json, sys, first\nfrom featherweight.import_hook import import_after\n"
        "import_after('other', 'ours', before=lambda: setattr(first, 'value', 1))\n"
        "import other\nprint(json.dumps(other.value))",
        tmp_path,
    )

    assert found == 1


def test_peft_behind_this_package_brings_no_advice_about_kernels():
    program = "import featherweight, peft, featherweight.methods.s2ft"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "pip install kernels" not in done.stderr


def test_a_package_that_does_not_exist_stays_missing():
    import_after("no_such_package_of_anybody", "featherweight.errors")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_anybody"):
        import no_such_package_of_anybody  # noqa: F401


def test_advice_about_kernels_that_nobody_runs_is_left_out_and_other_messages_stay(caplog):
    without_kernel_advice()
    without_kernel_advice()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'")
    logger.warning("Failed to load the library")
    assert caplog.messages == ["Failed to load the library"]
