"""Where chat templates run: Jinja as `transformers` sets it up, traced, metered and sandboxed.

A template is hostile until shown otherwise. It reaches no attribute that begins with an underscore
and changes nothing it is given (Jinja's own sandbox); only the filters, methods and functions below
exist, none of which makes much from little; and every loop, call, comparison and string is paid for
from a budget, so that it ends, whatever it says. No clock is involved: what is refused here is
refused everywhere. Each character it puts out keeps its origin (`_traced`).
"""

import json
import re
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    KeysView,
    Mapping,
    MappingView,
    ValuesView,
)
from datetime import datetime
from functools import wraps
from inspect import isgenerator
from itertools import islice
from types import BuiltinMethodType
from typing import Any

from jinja2 import Environment, Undefined, ext, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from seriatim.codecs._traced import GIVEN, METHODS, OWN, Traced, joined, repeated, runs

# A character costs 1. Templates in use spend a few hundred for each message beside its text.
BUDGET, STEP = 1 << 24, 128
LONGEST_NUMBER = 4096  # bits
DEEPEST_INDENT = 64  # columns

FILTERS = """abs attr count d default dictsort e escape first float groupby indent int items last
length list map max min reject rejectattr reverse select selectattr sort string unique"""
MAKING = {"tojson", "string", "indent", "escape", "e"}  # text from what they are given
ORDERING = {"sort", "unique", "groupby", "max", "min", "dictsort"}
STRING_FILTERS = {n: n for n in ("upper", "lower", "title", "capitalize", "replace")}
STRING_FILTERS["trim"] = "strip"
COMPARING = """== != < > <= >= eq equalto ne lt lessthan le gt greaterthan ge in sameas"""
DICT_METHODS, LIST_METHODS = {"get", "items", "keys", "values", "copy"}, {"index", "count"}
SHOWN = str | int | float | None | list | tuple | range | Mapping | MappingView | Undefined


class Refusal(TemplateError):
    """What a template raises itself."""


class Meter:
    """What a rendering may still spend."""

    def __init__(self, budget: int) -> None:
        self.left = budget

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise SecurityError("it does too much: the budget of steps and characters is spent")

    def weigh(self, value: Any, *, data: bool = False) -> None:
        """Pays for every leaf of a value, a shared one as often as it would be shown.

        With `data`, nothing may be in it whose text would hide where it comes from.
        """
        pending = [value]
        while pending:
            item = pending.pop()
            if data and not isinstance(item, SHOWN):
                raise SecurityError(f"the text of a {type(item).__name__} is not available")
            self.spend(8 + len(item) if isinstance(item, str) else 64)
            pending += _inside(item)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template.

    Args:
        special: texts that become special ids where they are the template's own.
    """

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, special: Iterable[str]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[ext.loopcontrols, _Generation],
            finalize=self._shown,
            cache_size=0,
        )
        self.special = tuple(special)
        self.meter = Meter(BUDGET)
        self.concat = self._joined  # of macros and blocks
        self.filters = {name: self._guarded(name, f) for name, f in _chosen(self.filters).items()}
        self.filters |= {name: self._of_strings(of) for name, of in STRING_FILTERS.items()}
        self.filters |= {"_joined": self._joined, "_loop": self._loop, "join": self._join}
        self.filters |= {"_weighed": self._weighed, "_sought": self._sought}
        self.tests |= {name: self._compared(self.tests[name]) for name in COMPARING.split()}
        keep = {"range", "dict", "namespace", "cycler", "joiner"}
        self.globals = {name: self.globals[name] for name in keep}
        self.globals |= {"raise_exception": _raise, "strftime_now": _now}

    # ---- what generated code calls ----

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.meter.spend(STEP)
        if not isinstance(obj, BuiltinMethodType):
            self._weighed(args if getattr(obj, "__name__", "") == "changed" else ())
            return super().call(context, obj, *args, **kwargs)
        owner, name = obj.__self__, obj.__name__
        if isinstance(owner, str) and name in METHODS:
            own = {k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")}
            return self._method(name, owner, *map(_realised, args), **own)
        allowed = DICT_METHODS if isinstance(owner, dict) else LIST_METHODS
        if not isinstance(owner, dict | list | tuple) or name not in allowed:
            raise SecurityError(f"{type(owner).__name__}.{name} is not available")
        self._weighed(None if isinstance(owner, dict) else owner)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        many: Any
        count: Any
        texts = isinstance(left, str), isinstance(right, str)
        if operator == "+" and all(texts):
            return self._joined([left, right])
        if operator == "+" and isinstance(left, list | tuple):
            self.meter.spend(len(left) + (len(right) if isinstance(right, list | tuple) else 0))
        elif operator == "%" and texts[0]:
            raise SecurityError("formatting with % is not available")
        elif operator == "*" and (any(texts) or isinstance(left, list | tuple)):
            many, count = (right, left) if texts[1] else (left, right)
            self.meter.spend(len(many) * max(0, count))
            return repeated(many, count) if isinstance(many, str) else many * count
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length()
            if bits + right.bit_length() > LONGEST_NUMBER:
                raise SecurityError("a number is too long")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> None:
        if getattr(value, "__name__", "") in ("format", "format_map"):
            raise SecurityError("str.format is not available")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Paid().visit(super()._parse(source, name, filename))

    # ---- what is paid and traced ----

    def _shown(self, value: Any) -> str:
        """What `{{ value }}` puts out."""
        if isinstance(value, str):
            return value
        if isinstance(value, Undefined):
            return str(value)
        self.meter.weigh(value, data=True)
        return self._settled(str(value), [value])

    def _joined(self, parts: Iterable[Any], between: str = "") -> str:
        texts = [self._shown(part) for part in parts]
        self.meter.spend(sum(map(len, texts)) + len(between) * len(texts) + 1)
        return joined(texts, between)

    def _join(self, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
        if attribute is not None:
            value = (self.getitem(item, attribute) for item in value)
        return self._joined(value, d)

    def _loop(self, value: Any) -> Any:
        """What a `for` goes over: every round is paid for before the first."""
        value = _realised(value) if isgenerator(value) else value
        self.meter.spend(STEP * (1 + len(value)) if hasattr(value, "__len__") else STEP)
        return value

    def _weighed(self, value: Any) -> Any:
        self.meter.weigh(value)
        return value

    def _sought(self, value: Any) -> Any:
        """What `in` searches; a dictionary is not gone through."""
        return value if isinstance(value, Mapping) else self._weighed(value)

    def _method(self, name: str, owner: str, *args: Any, **kwargs: Any) -> Any:
        sizes = [len(arg) for arg in args if isinstance(arg, str | list | tuple)]
        self.meter.spend((STEP // 16 if "split" in name else 1) * len(owner) + sum(sizes))
        if name == "join":
            return self._joined(args[0], owner)
        if name == "replace":
            old, new = args[:2]
            self.meter.spend(owner.count(old) * len(new))
        return METHODS[name](owner, *args, **kwargs)

    def _compared(self, test: Callable[..., bool]) -> Callable[..., bool]:
        @wraps(test)
        def run(*args: Any) -> bool:
            self._weighed(args)
            return test(*args)

        return run

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that pays for what it is given."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            every = [*args, *kwargs.values()]
            given = [value for value in every if not isinstance(value, Context | Environment)]
            if name in MAKING | ORDERING:
                self.meter.weigh(given, data=name in MAKING)
            else:
                self.meter.spend(sum(map(_length, given)) * (STEP // 4 if name == "list" else 1))
            made = _realised(function(*args, **kwargs))
            self.meter.spend(STEP + _length(made))
            return self._settled(made, given) if name in MAKING else made

        return run

    def _of_strings(self, name: str) -> Callable[..., Any]:
        return lambda text, *args, **kwargs: self._method(name, self._shown(text), *args, **kwargs)

    def _settled(self, made: Any, given: Any) -> Any:
        """Text made of `given` by an operation that does not trace: the caller's, if any of it is.

        Raises:
            SecurityError: a special text of the template's own would no longer count as one.
        """
        if not isinstance(made, str) or isinstance(made, Traced):
            return made
        made = str(made) if isinstance(made, Markup) else made
        leaves = list(_texts(given))
        if not any(isinstance(leaf, Traced) for leaf in leaves):
            return made
        own = [run for leaf in leaves for run in runs(leaf, OWN)]
        if any(text in run for text in self.special for run in own):
            raise SecurityError("it mixes special texts into contents and loses them")
        return Traced(made, GIVEN)


class _Generation(ext.Extension):
    """`{% generation %}`: what an assistant said, marked for training; here only its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Paid(NodeTransformer):
    """Puts a meter before everything that generated code does without asking its environment."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.recursive:
            raise SecurityError("recursive loops are not available")
        self.generic_visit(node)  # changes it in place
        node.iter = _filtered(node.iter, "_loop")  # pyright: ignore[reportArgumentType]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)  # changes it in place
        node.expr = _filtered(node.expr, "_weighed")
        for operand in node.ops:
            name = "_sought" if operand.op in ("in", "notin") else "_weighed"
            operand.expr = _filtered(operand.expr, name)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)  # changes it in place
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_joined")


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _chosen(filters: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: filters[name] for name in FILTERS.split()}
    return own | {"tojson": tojson, "safe": _safe, "indent": _indent(own["indent"])}


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML's escapes, with the arguments `transformers` gives it."""
    if isinstance(indent, int | str) and not 0 <= _columns(indent) <= DEEPEST_INDENT:
        raise SecurityError(f"an indent of more than {DEEPEST_INDENT} columns")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _safe(value: Any) -> Any:
    return value  # nothing is escaped


def _indent(function: Callable[..., str]) -> Callable[..., str]:
    @wraps(function)
    def run(text: str, width: int | str = 4, *args: Any, **kwargs: Any) -> str:
        if not 0 <= _columns(width) <= DEEPEST_INDENT:
            raise SecurityError(f"an indent of more than {DEEPEST_INDENT} columns")
        return function(text, width, *args, **kwargs)

    return run


def _columns(width: int | str) -> int:
    return len(width) if isinstance(width, str) else width


def _raise(message: str) -> None:
    raise Refusal(f"{message!s:.500}")


def _now(format: str) -> str:
    """The time here, by `strftime`'s letters; a width could ask for any length."""
    if re.search(r"%[^A-Za-z%]*\d", format) or len(format) > 256:
        raise SecurityError("strftime_now with a width")
    return datetime.now().strftime(format)


def _realised(value: Any) -> Any:
    """A list of what a generator would give, if it is not endless."""
    if not isgenerator(value):
        return value
    items = list(islice(value, BUDGET // STEP + 1))
    if len(items) > BUDGET // STEP:
        raise SecurityError("it makes a list that is too long")
    return items


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 1


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return [*value] if isinstance(value, list | tuple | ItemsView | KeysView | ValuesView) else []


def _texts(value: Any) -> Iterable[str]:
    """Every string in a value that has been weighed."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        pending += _inside(item)
