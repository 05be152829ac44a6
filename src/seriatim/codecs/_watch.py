"""Stop strings, found in generated text across and inside ids; no part of one is ever shown.

The one that completes first is met (of several that complete at the same character, the longest),
so what is found depends on the text only, never on how ids cut it. A rule (`_until`) is met
likewise, and holds back what may turn out to lie behind the end.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seriatim.codecs._until import Rule
from seriatim.errors import RequestError

if TYPE_CHECKING:
    from seriatim.codecs import Stream


class Watch:
    """A stream that ends before the first stop string.

    Args:
        stream: gives the text of each id.
        stop: the strings to watch for.
        minimum: how many ids pass unwatched at first.
        rule: ends the stream too; it sees what passes unwatched.

    Raises:
        RequestError: a stop string is empty or no string.
    """

    def __init__(
        self,
        stream: "Stream",
        stop: Sequence[str] = (),
        *,
        minimum: int = 0,
        rule: Rule | None = None,
    ) -> None:
        for text in stop:
            if not isinstance(text, str) or not text:
                raise RequestError(f"stop string {text!r}", expected="a string that is not empty")
        self._stream, self._held, self._met = stream, "", None
        self._unwatched = minimum
        self._rules = [] if rule is None else [rule]
        self._stops: list[Rule] = [*map(_Progress, dict.fromkeys(stop)), *self._rules]

    def feed(self, id: int, /) -> tuple[str, str | None]:
        """The text that may be shown now, and the stop string or rule that `id` met, if any."""
        if self._unwatched > 0:
            self._unwatched -= 1
            text = self._stream.feed(id)
            for rule in self._rules:
                for letter in text:
                    rule.advance(letter)  # no end counts yet
            return text, None
        if self._met is None:
            for letter in self._stream.feed(id):
                self._advance(letter)
                if self._met is not None:
                    break
        return self._shown(), self._met

    def finish(self) -> str:
        """The rest: what could have begun a stop string, and U+FFFD for an unfinished character."""
        if self._met is not None:
            return ""
        rest, self._held = self._held + self._stream.finish(), ""
        return rest

    def _advance(self, letter: str) -> None:
        self._held += letter
        met = [stop for stop in self._stops if stop.advance(letter)]
        if met:
            longest = max(met, key=lambda stop: stop.done)
            self._met = longest.text
            self._held = self._held[: max(0, len(self._held) - longest.done)]

    def _shown(self) -> str:
        """Takes all but the longest tail that could still begin a stop string."""
        hold = 0 if self._met is not None else max((stop.done for stop in self._stops), default=0)
        cut = max(0, len(self._held) - hold)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown


class _Progress:
    """How much of one string the text so far ends with (Knuth, Morris and Pratt 1977)."""

    def __init__(self, text: str) -> None:
        self.text, self.done = text, 0
        self._shorter = [0] * (len(text) + 1)  # [done] -> the next shorter prefix that also fits
        for end in range(1, len(text)):
            self._shorter[end + 1] = self._extended(self._shorter[end], text[end])

    def advance(self, letter: str) -> bool:
        """Takes one letter; whether it completes the string."""
        self.done = self._extended(self.done, letter)
        return self.done == len(self.text)

    def _extended(self, done: int, letter: str) -> int:
        while done and self.text[done] != letter:
            done = self._shorter[done]
        return done + (self.text[done] == letter)
