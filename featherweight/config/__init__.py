"""Strict, frozen options, their way into and out of files, and the one writer of files and folders.

One file per concept: `options` (the base class `Config`), `mapping_file` (YAML and JSON), `overrides` (`key=value`),
`explain` (messages), `field_types` (what may stand where), `files` (files that appear complete or not at all).
"""

from featherweight.config.files import cache_folder, write_atomically
from featherweight.config.mapping_file import SUFFIXES, read_mapping, yaml_text
from featherweight.config.options import Config

__all__ = ["SUFFIXES", "Config", "cache_folder", "read_mapping", "write_atomically", "yaml_text"]
