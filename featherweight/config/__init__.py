"""Strict, frozen options, their way into and out of files, and the one writer of files and folders.

One file per concept: `options` (the base class `Config`), `mapping_file` (YAML and JSON), `overrides` (`key=value`),
`explain` (messages), `field_types` (what may stand where), `sizes` (bytes with a unit), `files` (files that appear
complete or not at all). `Config` loads on first use: the command line reads files without pydantic.
"""

from typing import TYPE_CHECKING, Any

from featherweight.config.files import cache_folder, write_atomically
from featherweight.config.mapping_file import SUFFIXES, read_mapping, yaml_text
from featherweight.config.sizes import parse_bytes
from featherweight.lazy_names import load_name

if TYPE_CHECKING:
    from featherweight.config.options import Config

__all__ = ["SUFFIXES", "Config", "cache_folder", "parse_bytes", "read_mapping", "write_atomically", "yaml_text"]


def __getattr__(name: str) -> Any:
    return load_name(__name__, {"Config": "featherweight.config.options"}, name)
