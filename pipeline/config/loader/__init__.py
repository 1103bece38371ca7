"""Reads settings from a YAML file and the command line, and checks them before Ray starts.

`files` reads the file, or takes settings from Python. `overrides` reads NAME=VALUE, where the type of the setting
decides how the value is read. `yaml_values` parses YAML. `errors` describes mistakes in the user's terms, one line for
each. The settings are defined in `run.py`.
"""

from pipeline.config.loader.files import combine_config, load_alignment, load_config, parse_alignment, parse_config
from pipeline.config.loader.overrides import apply_overrides
from pipeline.config.loader.yaml_values import parse_yaml

__all__ = [
    "apply_overrides",
    "combine_config",
    "load_alignment",
    "load_config",
    "parse_alignment",
    "parse_config",
    "parse_yaml",
]
