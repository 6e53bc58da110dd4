from featherweight import models
from featherweight.text import model


def test_the_first_path_of_the_loaders_leads_to_the_same_functions():
    assert all(getattr(model, name) is getattr(models, name) for name in model.__all__)
