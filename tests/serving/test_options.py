import pytest

from featherweight.errors import ConfigError
from featherweight.serving.options import ServeOptions, is_loopback


def test_an_address_that_others_reach_needs_a_key():
    for host in ("0.0.0.0", "192.168.1.4", "::", "example.org"):
        with pytest.raises(ConfigError, match="asks for no api_key"):
            ServeOptions(host=host)
        assert ServeOptions(host=host, api_key="secret").host == host


def test_this_machine_alone_needs_none():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
