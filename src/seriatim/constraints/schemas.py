"""JSON schemas (draft 2020-12) that can be enforced whole: others are refused by path and keyword.

llguidance passes over keywords it does not know, and over some that it knows. Here every schema
within a schema is visited, and each keyword must be one that is enforced, or one that only
describes. It is also here that recursion without an end is found.

    check({"type": "object", "properties": {"age": {"type": "integer"}}})
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from math import isfinite
from typing import Any
from urllib.parse import quote, unquote

from seriatim.constraints.keywords import (
    DESCRIBE,
    HOLDERS,
    VALUES,
    escaped,
    refuse_repeats,
    root,
    unknown,
    wrong,
)
from seriatim.errors import RequestError, shown

LONGEST = 1 << 18  # characters of a schema as text
MOST_VALUES = 30_000
MOST_SCHEMAS, MOST_NAMES, MOST_PATTERNS = 2_000, 2_000, 64  # within one: compiled in a second
LONGEST_PATTERNS = 1 << 12  # characters in all: some take time by their square
DEEPEST = 48  # of values within values: llguidance's own limits are 128 of schemas, or of values
TRIES = 64  # schemas compiled on their own to find which one is at fault
NESTED = f"values within values at most {DEEPEST} deep"

# Where a document may have whitespace: none, one blank, or a line's beginning. With more, a model
# could fill its answer with blanks.
BLANKS = " |\\n[ \\t]{0,40}"


@dataclass(frozen=True)
class Node:
    """A schema within a schema: which one it is in, and what speaks of the same value."""

    content: Any
    parent: str | None = None
    same: list[str] = field(default_factory=list)  # $ref, allOf: all of them do
    either: list[list[str]] = field(default_factory=list)  # anyOf, oneOf: one of each list does


def check(given: Any) -> "Schema":
    """A schema from an object or its JSON text, all of which can be enforced.

    Raises:
        RequestError: what cannot be, by its path in the schema.
    """
    content = _parsed(given) if isinstance(given, str) else given
    if not isinstance(content, dict):
        raise RequestError(f"json_schema is {shown(given)}", expected="an object, or its JSON text")
    _plain(content)
    schema = Schema(content)
    schema.refuse_loops()
    return schema


class Schema:
    """A schema whose keywords are all known; `nodes` are the schemas in it by path."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = {k: v for k, v in content.items() if k not in ("$schema", "$id")}
        self.nodes: dict[str, Node] = {}
        for keyword in content.keys() - self.content.keys():
            root(keyword, content[keyword])
        queue = [("", Node(self.content))]
        while queue:
            path, node = queue.pop()
            self.nodes[path] = node
            if len(self.nodes) + len(queue) > MOST_SCHEMAS:
                raise wrong(path, f"there are over {MOST_SCHEMAS} schemas within the schema")
            queue += _inner(path, node)
        self._measure()
        for path, node in self.nodes.items():
            self._resolve(path, node)

    def text(self) -> str:
        """It as llguidance takes it."""
        return json.dumps(self.content | {"x-guidance": {"whitespace_pattern": BLANKS}})

    def blame(self, complaint: Callable[[str], str]) -> str:
        """The path of the innermost schema that gives the same complaint when it stands alone."""
        moved, at, tries = _moved(self.content), "", iter(range(TRIES))
        message = complaint(json.dumps({"$ref": "#/$defs/_", "$defs": {"_": moved}}))

        def same(path: str) -> bool:
            alone = {"$ref": "#/$defs/_" + quote(path), "$defs": {"_": moved}}
            return complaint(json.dumps(alone)) == message

        while True:
            inner = [path for path, node in self.nodes.items() if node.parent == at]
            found = next((path for path, _ in zip(inner, tries, strict=False) if same(path)), None)
            if found is None or not message:
                return at
            at = found

    def refuse_loops(self) -> None:
        """Refuses a schema that is its own condition, or one that no document of an end fulfils."""
        graph = {path: [*n.same, *chain(*n.either)] for path, n in self.nodes.items()}
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            seen = "the schema refers to itself for the same value"
            raise wrong(min(error.args[1]), seen, "an array or object between") from None
        endless = self.nodes.keys() - self._ended()
        if endless:
            seen = "the recursion has no end"
            raise wrong(min(endless), seen, "a value that needs no further one")

    def _measure(self) -> None:
        """Refuses what would take too long to compile."""
        all_ = [node.content for node in self.nodes.values() if isinstance(node.content, dict)]
        names = sum(len(schema.get("required", ())) for schema in all_)
        properties = [pattern for s in all_ for pattern in s.get("patternProperties", ())]
        patterns = sum(map(len, [*properties, *(s.get("pattern", "") for s in all_)]))
        for what, count, most in (
            ("required names", names, MOST_NAMES),
            ("patternProperties", len(properties), MOST_PATTERNS),
            ("characters of patterns", patterns, LONGEST_PATTERNS),
        ):
            if count > most:
                raise RequestError(f"json_schema has {count} {what}", expected=f"at most {most}")

    def _ended(self) -> set[str]:
        """Schemas that finite documents fulfil, as far as recursion goes: the least fixed point."""
        ended: set[str] = set()
        waiting: dict[str, list[str]] = {}
        queue = list(self.nodes)  # children last, and they are taken first
        while queue:
            path = queue.pop()
            missing = self._missing(path, ended)
            for other in missing:
                waiting.setdefault(other, []).append(path)
            if not missing and path not in ended:
                ended.add(path)
                queue += waiting.pop(path, ())
        return ended

    def _missing(self, path: str, ended: set[str]) -> list[str]:
        """Of which schemas it must be known that they have an end before this one has."""
        node = self.nodes[path]
        unmet = [other for other in node.same if other not in ended]
        for some in node.either:
            unmet += [] if ended.intersection(some) else some
        ways = [[part for part in way if part not in ended] for way in _ways(path, node)]
        ways = [[part for part in way if part in self.nodes] for way in ways]
        return unmet + (list(chain(*ways)) if all(ways) else [])

    def _resolve(self, path: str, node: Node) -> None:
        if isinstance(node.content, dict) and "$ref" in node.content:
            target = unquote(node.content["$ref"][1:])
            if target not in self.nodes:
                raise wrong(path, f"$ref {shown(node.content['$ref'])} leads to no schema")
            node.same.append(target)


# ---- the text --------------------------------------------------------------------------------


def _parsed(text: str) -> Any:
    if len(text) > LONGEST:
        seen = f"json_schema has {len(text)} characters"
        raise RequestError(seen, expected=f"at most {LONGEST}")
    try:
        return json.loads(text, object_pairs_hook=_distinct, parse_constant=_constant)
    except RecursionError:
        raise RequestError("json_schema is nested too deeply", expected=NESTED) from None
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"json_schema is no JSON: {error}") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"json_schema has the key {twice!r:.80} twice in one object")
    return made


def _constant(name: str) -> Any:
    raise RequestError(f"json_schema holds {name}", expected="JSON, which has no such number")


def _plain(content: dict[str, Any]) -> None:
    """Refuses what JSON cannot say, and what is too large or deep to look at."""
    queue: list[tuple[str, Any, int]] = [("", content, 0)]
    values, characters = 1, 0
    while queue:
        path, value, depth = queue.pop()
        if depth > DEEPEST:
            raise wrong(f"{path:.200}", f"values are nested over {DEEPEST} deep", NESTED)
        values += len(value) if isinstance(value, dict | list) else 0
        if values > MOST_VALUES:
            seen = f"json_schema has {values} values or more, the last at {path or 'its root'}"
            raise RequestError(seen, expected=f"at most {MOST_VALUES}")
        characters += sum(map(len, _texts(path, value)))
        if isinstance(value, dict):
            queue += [(f"{path}/{escaped(k)}", v, depth + 1) for k, v in value.items()]
        elif isinstance(value, list):
            queue += [(f"{path}/{n}", v, depth + 1) for n, v in enumerate(value)]
    if characters > LONGEST:
        seen = f"json_schema has {characters} characters"
        raise RequestError(seen, expected=f"at most {LONGEST}")


def _texts(path: str, value: Any) -> list[str]:
    """The strings that a value is, or that are its keys."""
    if isinstance(value, float) and isfinite(value):
        return []
    if not (value is None or isinstance(value, str | int | list | dict)):
        raise wrong(path, f"the value is {shown(value)}", "what JSON can say")
    texts = [value] if isinstance(value, str) else [*value] if isinstance(value, dict) else []
    if bad := [key for key in texts if not isinstance(key, str)]:
        raise wrong(path, f"a key is {shown(bad[0])}", "strings")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        seen = "a text has half a surrogate pair"
        raise wrong(path, seen, "what UTF-8 can hold") from None
    return texts


def _inner(path: str, node: Node) -> list[tuple[str, Node]]:
    """The schemas that a schema holds, its own keywords checked."""
    found: list[tuple[str, Node]] = []
    if isinstance(node.content, bool):
        return found
    if not isinstance(node.content, dict):
        raise wrong(path, f"a schema is {shown(node.content)}", "an object, true or false")
    for keyword, value in node.content.items():
        if keyword in HOLDERS:
            inner = HOLDERS[keyword](path, keyword, value)
            found += [(name, Node(held, path)) for name, held in inner]
            names = [name for name, _ in inner]
            node.same.extend(names if keyword == "allOf" else [])
            node.either.extend([names] if keyword in ("anyOf", "oneOf") else [])
        elif keyword in VALUES:
            VALUES[keyword](path, keyword, value)
        elif keyword not in DESCRIBE:
            raise unknown(path, keyword)
    refuse_repeats(path, node.content)
    return found


def _ways(path: str, node: Node) -> list[list[str]]:
    """For each type of document: the schemas of the parts that it must have."""
    content = node.content
    if not isinstance(content, dict) or {"enum", "const"} & content.keys():
        return [[]]
    types = content.get("type", "null")
    return [
        _parts(path, type_, content) for type_ in (types if isinstance(types, list) else [types])
    ]


def _parts(path: str, type_: str, content: dict[str, Any]) -> list[str]:
    if type_ == "array":
        least, listed = content.get("minItems", 0), len(content.get("prefixItems", ()))
        held = [f"{path}/prefixItems/{n}" for n in range(min(least, listed))]
        return held + [f"{path}/items"] * (least > listed)
    if type_ == "object":
        names, own = content.get("required", ()), content.get("properties", {})
        held = [f"{path}/properties/{escaped(name)}" for name in names if name in own]
        return held + [f"{path}/additionalProperties"] * (len(held) < len(names))
    return []


def _moved(content: Any) -> Any:
    """The same schema as a part of another, at #/$defs/_."""
    if isinstance(content, list):
        return [_moved(value) for value in content]
    if not isinstance(content, dict):
        return content
    moved = {key: _moved(value) for key, value in content.items()}
    if isinstance(reference := content.get("$ref"), str):
        moved["$ref"] = "#/$defs/_" + reference[1:]
    return moved
