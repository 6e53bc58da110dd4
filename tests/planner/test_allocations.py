from featherweight.memory import Allocation
from featherweight.planner.allocations import add_largest, allocation_dict, allocation_line
from featherweight.report import Report


def allocation(module):
    return Allocation(
        3 * 2**20, "optimizer_state", "optimizer", "aten.zeros.default", module, (3, 256), "torch.float32"
    )


def test_a_kind_of_storages_is_named_by_its_module_and_else_by_its_operator():
    assert allocation_line((allocation("lm_head.weight"), 1)).endswith("optimizer state: 3x256 lm_head.weight")
    line = allocation_line((allocation(""), 4))
    assert line.endswith("optimizer state: 4 x 3x256 aten.zeros.default") and line.split()[:2] == ["12.00", "MiB"]


def test_line_values_and_table_say_the_same():
    one = allocation("lm_head.weight")
    assert allocation_dict((one, 2)) == {
        "bytes": one.size_bytes, "count": 2, "category": "optimizer_state", "module": "lm_head.weight",
        "op": "aten.zeros.default", "shape": [3, 256],
    }  # fmt: skip
    report = Report("Memory")
    add_largest(report, "Largest", [(one, 2)])
    assert report.section("Largest").rows == [["lm_head.weight", "optimizer state", "3x256", 2, 6 / 1024]]
