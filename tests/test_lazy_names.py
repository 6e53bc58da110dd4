"""Names of a package that load their module on first use."""

import sys
import types

import pytest

from featherweight.lazy_names import load_name


@pytest.fixture
def package(monkeypatch):
    found = types.ModuleType("a_package")
    monkeypatch.setitem(sys.modules, "a_package", found)
    return found


def test_a_name_is_looked_up_once_and_kept(package):
    assert load_name("a_package", {"sqrt": "math"}, "sqrt")(9.0) == 3.0
    assert vars(package)["sqrt"] is sys.modules["math"].sqrt


def test_another_name_is_an_attribute_error_as_of_any_module(package):
    with pytest.raises(AttributeError, match="module 'a_package' has no attribute 'sqrd'"):
        load_name("a_package", {"sqrt": "math"}, "sqrd")
    assert not hasattr(package, "sqrd")
