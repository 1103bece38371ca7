"""Parses YAML with PyYAML, and refuses what settings do not need: tags, repeated names, and endless aliases."""

from typing import Any

import yaml

from pipeline.config.messages import one_line


class YamlLoader(yaml.SafeLoader):
    """A YAML loader that refuses tags that create objects, and names that occur twice.

    PyYAML alone would silently use the last value of such a name.
    """

    # lm-format-enforcer, which vLLM imports, turns dates into text in PyYAML's own SafeLoader for the whole process.
    yaml_constructors = yaml.SafeLoader.yaml_constructors | {
        "tag:yaml.org,2002:timestamp": yaml.SafeLoader.construct_yaml_timestamp
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in names:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} occurs twice", key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


_MAX_VALUES = 100_000  # in one file; a value that an alias repeats counts each time


def parse_yaml(text: str) -> Any:
    """Parse YAML.

    Raises:
        ValueError: the text is not YAML, or holds more values than settings can need. The message is one line.
    """
    try:
        value = yaml.load(text, YamlLoader)
        if _count_values(value, {}) > _MAX_VALUES:
            raise ValueError(f"it holds more than {_MAX_VALUES:,} values: nested anchors, or data instead of settings")
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        remedy = " (indent with spaces)" if "'\\t'" in str(error.problem) else ""
        raise ValueError(f"{line}{error.problem}{remedy}") from None
    except yaml.YAMLError as error:
        raise ValueError(one_line(error, limit=None).replace(' in "<unicode string>"', "")) from None
    except RecursionError:
        raise ValueError("its lists or sections are nested too deep") from None
    return value


def _count_values(value: Any, counts: dict[int, int]) -> int:
    """Count the values in a value, with every alias written out. A value that contains itself raises RecursionError.

    Args:
        value: a parsed YAML value.
        counts: counts of the values that were visited already, by their `id`.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counts:
        children = list(value.values()) if isinstance(value, dict) else value
        counts[id(value)] = 1 + sum(_count_values(child, counts) for child in children)
    return counts[id(value)]
