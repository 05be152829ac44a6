"""Options of a codec: a frozen dataclass, from a name such as "image:size=16" or codec.json."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from seriatim.errors import RequestError, did_you_mean, shown

T = TypeVar("T")

_WORDS = {"true": True, "false": False}


def parse(kind: type[T], given: Mapping[str, Any], codec: str) -> T:
    """The options that `given` says; a string stands for the number or truth that it spells.

    Args:
        kind: a frozen dataclass whose fields are int, bool, str or `Literal`s of str or int.
        given: by name.
        codec: its name, for errors.

    Raises:
        RequestError: an option that there is not, or a value that its field cannot have.
    """
    kinds = get_type_hints(kind)
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            seen = f"codec {codec} has no option {name!r}"
            expected = ", ".join(known) or "none"
            raise RequestError(seen, expected=expected, fix=did_you_mean(name, known))
    return kind(**{n: _value(f"{codec}:{n}", kinds[n], value) for n, value in given.items()})


def _value(name: str, kind: Any, value: Any) -> Any:
    if get_origin(kind) is Literal:
        among = get_args(kind)
        spelt = {str(one): one for one in among}
        if not isinstance(value, bool) and str(value) in spelt:
            return spelt[str(value)]
        raise RequestError(f"{name} is {shown(value)}", expected=" or ".join(map(str, among)))
    if kind is int and isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value[:18])
    if kind is bool and isinstance(value, str) and value in _WORDS:
        return _WORDS[value]
    if type(value) is not kind:
        expected = {int: "a whole number", bool: "true or false", str: "text"}[kind]
        raise RequestError(f"{name} is {shown(value)}", expected=expected)
    return value
