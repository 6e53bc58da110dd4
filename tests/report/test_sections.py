import numpy as np
import torch

from featherweight.report import Report


def test_numbers_of_numpy_and_torch_become_plain():
    report = Report("Plain")
    report.add_table("T", ["a"], [[np.float32(0.5)], [torch.tensor(3)], [np.bool_(True)]])
    report.add_curves("C", "x", "y", {"a": (np.arange(2), torch.tensor([0.5, 1.5]))})

    assert [type(row[0]) for row in report.section("T").rows] == [float, int, bool]
    assert report.section("C").curves == {"a": [[0, 1], [0.5, 1.5]]}
    assert Report.from_json(report.to_json()) == report
