"""One recipe of a plan as plain values."""

import json


def test_a_row_is_plain_values_whose_bytes_are_those_of_its_need(tiny_plan):
    row = tiny_plan.best
    content = json.loads(json.dumps(row.to_dict()))
    low, high = content["interval"]
    assert content["family"] == row.family and low <= content["total_bytes"] <= high
    assert content["peak_allocated_bytes"] <= content["peak_reserved_bytes"] <= content["total_bytes"]
    assert 1 <= len(content["top_allocations"]) <= 10 and content["recipe"] == row.recipe.to_dict()
