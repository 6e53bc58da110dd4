from featherweight.training.grid import grid_points, split_axes


def test_names_of_folders_are_short_safe_and_different(recipe):
    _, axes = split_axes(["name=a,b", "optimizer=adamw,galore", f"task.hidden={','.join(map(str, range(1, 3)))}"])
    names = [point.name for point in grid_points(recipe(), axes)]
    assert names[0] == "name=a,optimizer=adamw,task.hidden=1" and len(set(names)) == 8
    long = grid_points(recipe(), {"name": ["x" * 200, "x" * 199 + "y"]})
    assert all(len(point.name) <= 120 for point in long) and len({point.name for point in long}) == 2


def test_a_value_arrives_as_it_would_alone_and_an_optimizer_keeps_the_options_that_both_share(recipe):
    _, axes = split_axes(["optimizer=galore,galore_8bit", "task.name=regression,null"])
    assert axes["task.name"] == ["regression", None]
    points = grid_points(recipe(), {"optimizer": ["galore", "galore_8bit"]})
    assert [point.recipe.optimizer["rank"] for point in points] == [4, 4]
    assert [point.setting for point in points] == ["optimizer=galore", "optimizer=galore_8bit"]
    assert grid_points(recipe(), {"seed": [0, 1]})[1].setting == "recipe"
