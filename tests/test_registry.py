import sys
from collections import OrderedDict

import pytest

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.registry import Registry


@pytest.fixture
def registry():
    registry = Registry("container")
    registry.register("ordered", "collections:OrderedDict")
    registry.register("plain", dict)
    return registry


@pytest.fixture
def module_on_path(tmp_path, monkeypatch):
    """Return a function that writes a module which exists for this test alone."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


def test_get_returns_what_was_registered_and_imports_addresses(registry):
    assert registry.get("plain") is dict
    assert registry.get("ordered") is OrderedDict


def test_an_address_is_imported_only_when_somebody_asks_for_it(module_on_path, registry):
    name = module_on_path("registry_probe_lazy", "class Probe: pass\n")
    registry.register("probe", f"{name}:Probe")
    assert name not in sys.modules

    assert registry.get("probe").__name__ == "Probe"
    assert registry.get("probe") is registry.get("probe")
    assert name in sys.modules


def test_names_keep_the_order_of_registration(registry):
    assert registry.names() == ["ordered", "plain"]
    assert list(registry) == registry.names()
    assert len(registry) == 2
    assert "plain" in registry and "other" not in registry


def test_changing_the_returned_names_does_not_change_the_registry(registry):
    registry.names().clear()

    assert registry.names() == ["ordered", "plain"]


def test_unknown_name_is_refused_with_the_nearest_one(registry):
    with pytest.raises(ConfigError, match="container: name='ordred' is unknown; .*Did you mean 'ordered'"):
        registry.get("ordred")


def test_a_name_that_is_no_text_is_unknown_like_any_other(registry):
    with pytest.raises(ConfigError, match="name=3 is unknown"):
        registry.get(3)


def test_a_name_cannot_be_given_to_a_second_thing(registry):
    with pytest.raises(ConfigError, match="name='plain' is taken by .*dict"):
        registry.register("plain", list)
    assert registry.get("plain") is dict


@pytest.mark.parametrize("again", ["collections:OrderedDict", OrderedDict])
def test_registering_the_same_value_again_is_no_error(registry, again):
    registry.register("ordered", again)

    assert registry.get("ordered") is OrderedDict
    assert len(registry) == 2


def test_comparing_an_address_with_a_value_imports_nothing(module_on_path, registry):
    name = module_on_path("registry_probe_compare", "value = 1\n")
    registry.register("probe", f"{name}:value")

    with pytest.raises(ConfigError, match="is taken"):
        registry.register("probe", object())
    assert name not in sys.modules


@pytest.mark.parametrize("address", ["collections", "collections:", ":OrderedDict", ""])
def test_text_that_is_no_address_is_refused_at_registration(registry, address):
    with pytest.raises(ConfigError, match="expected 'module:attribute'"):
        registry.register("broken", address)


@pytest.mark.parametrize("address", ["no_such_package:x", "collections.no_such_module:x"])
def test_an_address_of_a_missing_module_names_it(registry, address):
    registry.register("broken", address)

    with pytest.raises(ConfigError, match=f"broken='{address}' leads to module .*does not exist"):
        registry.get("broken")


def test_an_address_of_a_missing_attribute_names_the_nearest(registry):
    registry.register("broken", "collections:OrderdDict")

    with pytest.raises(ConfigError, match="Did you mean 'OrderedDict'"):
        registry.get("broken")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import a_package_that_is_not_installed\n", ModuleNotFoundError),
        (
            "from featherweight.errors import MissingExtraError\nraise MissingExtraError('install the extra')\n",
            MissingExtraError,
        ),
    ],
)
def test_what_the_module_itself_lacks_is_reported_as_it_is(module_on_path, registry, source, error):
    name = module_on_path(f"registry_probe_{error.__name__.lower()}", source)
    registry.register("probe", f"{name}:Probe")

    with pytest.raises(error) as caught:
        registry.get("probe")
    assert not isinstance(caught.value, ConfigError)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a tiny package: a module and the metadata that pip would write."""
    (tmp_path / "tiny_package.py").write_text("import math\nclass Thing: pass\nthing = Thing()\n")
    metadata = tmp_path / "tiny_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-package\nVersion: 1.0\n")
    points = "[tests.containers]\nthing = tiny_package:thing\nordered = tiny_package:Thing\nlost = no_package:thing\n"
    (metadata / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("tiny_package", None)


def test_an_installed_package_adds_names_and_is_imported_when_one_is_used(installed):
    registry = Registry("container", "tests.containers")
    registry.register("ordered", "collections:OrderedDict")
    assert registry.get("ordered") is OrderedDict
    with pytest.warns(UserWarning, match="name='ordered' of the package tiny-package .* is taken and passed over"):
        assert registry.names() == ["ordered", "thing", "lost"]
    assert "thing" in registry and "tiny_package" not in sys.modules
    assert type(registry.get("thing")).__name__ == "Thing"
    with pytest.raises(ConfigError, match="leads to module 'no_package', which does not exist"):
        registry.get("lost")
