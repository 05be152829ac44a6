"""Grammars in llguidance's form of Lark, as far as they can be honoured whole.

llguidance says what is wrong with the syntax. Here is refused what acts beside the text, and a rule
without an end, which would go on until the context is full.

    check('start: item ("," item)*\nitem: /[0-9]+/')
"""

import re
from collections import defaultdict

from seriatim.errors import RequestError

# Ids by number or name, schemas that nobody has checked, options that act beside the mask.
_NEVER = (
    r"%(?!ignore\b|import\b|regex\b)\w*|<[^>\n]*>?|@\w*"
    r"|\b(?:stop|stop_capture|max_tokens|temperature)\s*="
)
_TOKENS = re.compile(
    r'(?P<text>"(?:\\.|[^"\\\n])*"i?|/(?!/)(?:\\.|[^/\\\n])+/[a-z]*|%regex\s*\{(?:"(?:\\.|[^"\\])*"|[^}])*\})'
    r"|(?P<skip>\s+|//[^\n]*|\#[^\n]*|->\s*\w+|\.\.)"
    rf"|(?P<never>{_NEVER})"
    r"|(?P<aside>%\w+)"
    r"|(?P<rule>[!?]?[A-Za-z_][\w-]*(?:\.-?\d+)?)(?P<how>\[[^\]\n]*\])?\s*:(?!:)"
    r"|(?P<name>[A-Za-z_][\w-]*)"
    r"|(?P<repeat>[?*+]|\{[^}]*\}|~\s*\d+(?:\s*\.\.\s*\d+)?)"
    r"|(?P<open>[(\[])|(?P<close>[)\]])|(?P<either>\|)|(?P<other>.)",
    re.DOTALL,
)
_OPTIONAL = re.compile(r"[?*]|\{\s*0*\s*,.*\}|\{\s*0+\s*\}|~\s*0.*", re.DOTALL)

LONGEST_PATTERNS = 1 << 12  # characters in all: some take time by their square
NAMELESS = ("", "(")  # what stands outside any rule, or in brackets

Rules = dict[str, list[list[str]]]  # by name: the ways to fulfil it, each of names it needs


def check(text: str) -> None:
    """Refuses a grammar, by line, for what cannot be honoured whole, or for a rule without an end.

    Raises:
        RequestError: that.
    """
    patterns = 0
    for found in _TOKENS.finditer(text):
        patterns += len(found[0]) if found[0][0] == "/" and found["text"] else 0
        if patterns > LONGEST_PATTERNS:
            seen = f"grammar has over {LONGEST_PATTERNS} characters of patterns"
            raise RequestError(seen, expected="fewer")
        beside = found["never"] or "".join(re.findall(_NEVER, found["how"] or ""))
        if beside:
            line = text.count("\n", 0, found.start()) + 1
            raise RequestError(
                f"grammar, line {line}: {beside!r:.40} cannot be honoured whole",
                expected="rules, terminals, %ignore and %import common",
            )


def endless(text: str) -> str | None:
    """The name of a rule that no finite text fulfils, in a grammar without other faults."""
    rules = _rules(text)
    uses, queue = defaultdict(list), []
    for name, ways in rules.items():
        for way in ways:
            needs = {need for need in way if need in rules}
            queue += [] if needs else [name]
            for need in needs:
                uses[need].append((name, needs))
    ended: set[str] = set()
    while queue:
        if (name := queue.pop()) not in ended:
            ended.add(name)
            for user, needs in uses[name]:
                needs.discard(name)
                queue += [] if needs else [user]
    return next((name for name in rules if name not in ended and name[:1] not in NAMELESS), None)


def _rules(text: str) -> Rules:
    """The rules of a grammar; what stands in brackets is one of its own."""
    rules: Rules = {"": [[]]}  # what stands outside any
    inside = [""]
    for found in _TOKENS.finditer(text):
        kind, said = found.lastgroup, found[0]
        way = rules[inside[-1]][-1]
        if found["rule"]:
            inside = [found["rule"].lstrip("!?").split(".")[0]]
            rules.setdefault(inside[0], []).append([])
        elif kind == "open":
            inside.append(f"({len(rules)}")
            rules[inside[-1]] = [[]]
        elif kind == "close" and len(inside) > 1:
            closed = inside.pop()
            rules[inside[-1]][-1].append(closed if said == ")" else "?")
        elif kind == "either":
            rules[inside[-1]].append([])
        elif kind == "repeat" and _OPTIONAL.fullmatch(said) and way:
            way[-1] = "?"
        elif kind in ("name", "text", "aside"):
            way.append(said if kind == "name" and said[0].islower() else "?")
    return rules
