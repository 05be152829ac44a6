"""The keywords of JSON schemas that are enforced, and what their values may be.

Each check takes the path of a schema, a keyword of it and the keyword's value; those in `HOLDERS`
give the schemas within the value, by path. Every other keyword is refused by name.
"""

import re
from collections.abc import Callable
from typing import Any

from seriatim.errors import RequestError, did_you_mean, shown

MOST_REPEATS = 1 << 16  # minItems, minLength, minProperties: nothing longer is ever generated
LARGEST = 1 << 53  # numbers are compared as float64
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS = (
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid",
)  # fmt: skip
DESCRIBE = {
    "$comment", "default", "deprecated", "description", "examples", "readOnly", "title",
    "writeOnly",
}  # fmt: skip
UNENFORCED = {
    "$anchor", "$dynamicAnchor", "$dynamicRef", "$id", "$recursiveAnchor", "$recursiveRef",
    "$schema", "$vocabulary", "additionalItems", "contains", "contentEncoding",
    "contentMediaType", "contentSchema", "dependencies", "dependentRequired", "dependentSchemas",
    "else", "if", "maxContains", "minContains", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties", "uniqueItems",
}  # fmt: skip
DRAFTS = re.compile(r"https?://json-schema\.org/(draft/2020-12|draft/2019-09|draft-07)/schema#?")


def refuse_repeats(path: str, content: dict[str, Any]) -> None:
    """Free properties may come twice under one name, and count once."""
    least, named = content.get("minProperties", 0), content.get("required", ())
    if least > max(1, len(named)):
        raise wrong(
            path,
            f"minProperties is {least}",
            f"at most {max(1, len(named))}",
            "name them: required",
        )


def _one(path: str, keyword: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, list):
        raise wrong(path, f"{keyword} is a list", "a schema", "prefixItems takes a list")
    return [(f"{path}/{keyword}", value)]


def _several(path: str, keyword: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, list) or not value:
        raise wrong(path, f"{keyword} is {shown(value)}", "a list of schemas that is not empty")
    return [(f"{path}/{keyword}/{n}", inner) for n, inner in enumerate(value)]


def _by_name(path: str, keyword: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise wrong(path, f"{keyword} is {shown(value)}", "an object of schemas")
    return [(f"{path}/{keyword}/{escaped(name)}", inner) for name, inner in value.items()]


def _type(path: str, keyword: str, value: Any) -> None:
    names = value if isinstance(value, list) and value else [value]
    if bad := [name for name in names if not isinstance(name, str) or name not in TYPES]:
        raise wrong(path, f"{keyword} is {shown(bad[0])}", f"one of {', '.join(TYPES)}")


def _format(path: str, keyword: str, value: Any) -> None:
    if not isinstance(value, str) or value not in FORMATS:
        raise wrong(path, f"{keyword} is {shown(value)}", f"one of {', '.join(FORMATS)}")


def _reference(path: str, keyword: str, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch("#(/.*)?", value, re.DOTALL):
        expected = "# or a path within this schema such as #/$defs/name"
        raise wrong(path, f"{keyword} is {shown(value)}", expected, "nothing is fetched")


def _string(path: str, keyword: str, value: Any) -> None:
    if not isinstance(value, str):
        raise wrong(path, f"{keyword} is {shown(value)}", "a string")


def _names(path: str, keyword: str, value: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise wrong(path, f"{keyword} is {shown(value)}", "a list of strings")
    if len(set(value)) < len(value):
        raise wrong(path, f"{keyword} names something twice", "distinct names")


def _values(path: str, keyword: str, value: Any) -> None:
    if not isinstance(value, list) or not value:
        raise wrong(path, f"{keyword} is {shown(value)}", "a list of values that is not empty")
    _exact(path, keyword, value)


def _exact(path: str, keyword: str, value: Any) -> None:
    """Numbers in it are such that float64 holds them."""
    queue = [value]
    while queue:
        match queue.pop():
            case dict(inner):
                queue += inner.values()
            case list(inner):
                queue += inner
            case bool():
                pass
            case int() | float() as number:
                _real(path, keyword, number)


def _real(path: str, keyword: str, value: Any) -> None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not abs(value) <= LARGEST:
        raise wrong(path, f"{keyword} is {shown(value)}", "a number, within 2^53 of 0")


def _factor(path: str, keyword: str, value: Any) -> None:
    _real(path, keyword, value)
    if value <= 0:
        raise wrong(path, f"{keyword} is {shown(value)}", "a number above 0")


def _count(path: str, keyword: str, value: Any, most: int = LARGEST) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise wrong(path, f"{keyword} is {shown(value)}", f"a whole number, 0 to {most}")


def _least(path: str, keyword: str, value: Any) -> None:
    _count(path, keyword, value, MOST_REPEATS)


def root(keyword: str, value: Any) -> None:
    """Keywords of the outermost schema only: they say where it is from."""
    _string("", keyword, value)
    if keyword == "$schema" and not DRAFTS.fullmatch(value):
        raise wrong("", f"$schema is {shown(value)}", "draft 2020-12, 2019-09 or 7")


HOLDERS: dict[str, Callable[[str, str, Any], list[tuple[str, Any]]]] = {
    **dict.fromkeys(("items", "additionalProperties"), _one),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), _several),
    **dict.fromkeys(("$defs", "definitions", "properties", "patternProperties"), _by_name),
}
VALUES: dict[str, Callable[[str, str, Any], None]] = {
    "$ref": _reference,
    "const": _exact,
    "enum": _values,
    "format": _format,
    "multipleOf": _factor,
    "pattern": _string,
    "required": _names,
    "type": _type,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _real),
    **dict.fromkeys(("minItems", "minLength", "minProperties"), _least),
    **dict.fromkeys(("maxItems", "maxLength", "maxProperties"), _count),
}


def unknown(path: str, keyword: str) -> RequestError:
    if keyword in UNENFORCED:
        return wrong(path, f"keyword {keyword!r} cannot be enforced", fix="leave it out")
    known = {*HOLDERS, *VALUES, *DESCRIBE}
    return wrong(path, f"unknown keyword {keyword!r:.80}", fix=did_you_mean(keyword, known))


def escaped(name: str) -> str:
    """A name as a part of a path (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def wrong(path: str, seen: str, expected: str = "", fix: str = "") -> RequestError:
    return RequestError(f"json_schema: at {path or 'its root'}: {seen}", expected=expected, fix=fix)
