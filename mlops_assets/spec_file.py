"""From a `defs.yaml` to what it says, or to sentences which name file, line and what is allowed.

Belongs here: reading the file, and telling what is wrong with it. Does not: what it may say (`spec.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mlops_assets.errors import MlopsError
from mlops_assets.spec import COMPONENT_TYPE, PipelineSpec
from mlops_assets.strict import StrictModel

if TYPE_CHECKING:
    from dagster_shared.yaml_utils.source_position import ValueAndSourcePositionTree
    from yaml import Node


class SpecError(MlopsError):
    """A `defs.yaml` that cannot be used; the text has one line for each thing to mend."""


class _Document(StrictModel):
    """All of a `defs.yaml`: of what else Dagster's components may have, a pipeline takes nothing."""

    type: str
    attributes: PipelineSpec


def load_spec(path: Path) -> PipelineSpec:
    """Read a `defs.yaml`.

    Raises:
        SpecError: The file is missing, is not YAML, or says something that is not allowed; one line for each problem,
            each naming file and line.
    """
    parsed = _parsed(path)
    document = parsed.value
    if not isinstance(document, dict) or document.get("type") != COMPONENT_TYPE or "attributes" not in document:
        raise SpecError(_beginning(path))
    try:
        return _Document.model_validate(document).attributes
    except ValidationError as error:
        problems = []
        for line in error.errors(include_url=False):
            position = parsed.source_position_tree.lookup_closest_and_path(line["loc"], None)[0]
            message = line["msg"].removeprefix("Value error, ")
            problems.append(f"{path}:{position.start.line}: {'.'.join(map(str, line['loc']))}: {message}")
        raise SpecError("\n".join(problems)) from None


def _parsed(path: Path) -> ValueAndSourcePositionTree:
    """The one document of a file, in which no key is lost."""
    import yaml
    from dagster_shared.yaml_utils import parse_yaml_with_source_position

    try:
        text = path.read_text(encoding="utf-8")
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        if not documents:
            raise SpecError(_beginning(path))
        if len(documents) > 1:
            line = documents[1].start_mark.line + 1
            raise SpecError(f"{path}:{line}: a second YAML document; a pipeline is one, in a folder of its own")
        if problems := [f"{path}:{problem}" for problem in _key_problems(documents[0], "", set())]:
            raise SpecError("\n".join(problems))
        return parse_yaml_with_source_position(text, str(path))
    except FileNotFoundError:
        raise SpecError(f"{path} does not exist; `mlops new NAME` writes a pipeline") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start}); save it as one") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise SpecError(f"{path}:{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


def _key_problems(node: Node, above: str, seen: set[int]) -> Iterator[str]:
    """Keys that YAML's readers would drop without a word, or that are no text: `LINE: KEYS: sentence`."""
    from yaml import MappingNode, ScalarNode

    if isinstance(node, ScalarNode) or id(node) in seen:  # an alias is the node of its anchor once more
        return
    seen.add(id(node))
    if not isinstance(node, MappingNode):
        for index, item in enumerate(node.value):
            yield from _key_problems(item, f"{above}{index}.", seen)
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, ScalarNode) else "?"
        line, where = key.start_mark.line + 1, f"{above}{name}"
        if key.tag.rpartition(":")[2] not in {"str", "timestamp", "merge"}:  # Dagster's reader leaves a date a text
            yield f"{line}: {where}: YAML reads this key as no text; only text is allowed, so put it in quotes"
        elif name in lines:
            yield f"{line}: {where}: written for the second time, after line {lines[name]}; keep one of the two"
        lines.setdefault(name, line)
        yield from _key_problems(value, f"{where}.", seen)


def _beginning(path: Path) -> str:
    return f"{path}:1: a pipeline starts with `type: {COMPONENT_TYPE}` and has `attributes:`"
