"""Orders of heads under grouped queries."""

import featherweight as fw


def test_plans_exist_for_up_to_two_partly_chosen_groups():
    for chosen, exists in (([3, 4, 5], True), ([1, 2, 3, 4, 5], True), ([2, 3, 4, 5, 6], True), ([0, 4, 8], False)):
        plan = fw.s2ft.plan_heads(chosen, num_heads=9, num_groups=3)
        assert (plan is not None) == exists
        if plan is not None:
            assert sorted(plan.queries[plan.start : plan.stop]) == chosen
            assert sorted(plan.queries) == list(range(9)) and sorted(plan.groups) == [0, 1, 2]
            for position, head in enumerate(plan.queries):  # a query head keeps its keys and values
                assert head // 3 == plan.groups[position // 3]
