"""The part of an answer that a model thinks before it speaks, by the markers of its template."""

from typing import NamedTuple


class Markers(NamedTuple):
    """The texts around reasoning, which comes first in an answer if it comes at all."""

    open: str
    close: str


# From the chat templates of: DeepSeek-R1, QwQ, Qwen3, SmolLM3; Magistral; Seed-OSS; Command A;
# gpt-oss, whose answer follows a header of its own.
MARKERS = (
    Markers("<think>", "</think>"),
    Markers("[THINK]", "[/THINK]"),
    Markers("<seed:think>", "</seed:think>"),
    Markers("<|START_THINKING|>", "<|END_THINKING|>"),
    Markers(
        "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"
    ),
)


def of_template(source: str) -> Markers | None:
    """The markers that a template names, if any."""
    return next((m for m in MARKERS if m.open in source or m.close in source), None)


class Splitter:
    """Text as it comes, told apart into reasoning and answer.

    Whitespace around the reasoning belongs to neither. What could begin a marker is held back.

    Args:
        markers: None for a model that does not reason.
        before: what the prompt ends with: reasoning may have begun there.
    """

    def __init__(self, markers: Markers | None, before: str = "") -> None:
        self._markers, self._held, self._fresh = markers, "", False
        self._state = "answer" if markers is None else "start"
        if markers is not None and before.rfind(markers.open) > before.rfind(markers.close):
            self._state, self._fresh = "reasoning", True
        elif markers is not None and markers.close in before:
            self._state, self._fresh = "answer", True

    @property
    def reasoning(self) -> bool:
        """Whether what comes next is reasoning, unless it closes it."""
        return self._state == "reasoning"

    @property
    def undecided(self) -> bool:
        """Whether reasoning may still begin."""
        return self._state == "start"

    def feed(self, text: str) -> tuple[str, str]:
        """What `text` adds to the reasoning, and to the answer."""
        self._held += text
        thought = ""
        if self._state == "start":
            self._open()
        if self._state == "reasoning":
            thought = self._think()
        return thought, self._take() if self._state == "answer" else ""

    def finish(self) -> tuple[str, str]:
        """What was held back, for nothing more will come."""
        rest, self._held = self._held, ""
        return (rest.rstrip(), "") if self.reasoning else ("", rest)

    def _open(self) -> None:
        assert self._markers is not None
        begun = self._held.lstrip()
        if begun.startswith(self._markers.open):
            self._held = begun[len(self._markers.open) :]
            self._state, self._fresh = "reasoning", True
        elif not self._markers.open.startswith(begun):
            self._state = "answer"

    def _think(self) -> str:
        assert self._markers is not None
        if self._fresh:
            self._held = self._held.lstrip()
        thought, found, rest = self._held.partition(self._markers.close)
        if found:
            self._held, self._state, self._fresh = rest, "answer", True
            return thought.rstrip()
        thought = thought[: len(thought) - _begun(thought, self._markers.close)].rstrip()
        self._held, self._fresh = self._held[len(thought) :], self._fresh and not thought
        return thought

    def _take(self) -> str:
        text, self._held = self._held.lstrip() if self._fresh else self._held, ""
        self._fresh = self._fresh and not text
        return text


def _begun(text: str, marker: str) -> int:
    """The length of the longest end of `text` that begins `marker`."""
    most = min(len(text), len(marker) - 1)
    return next((n for n in range(most, 0, -1) if marker.startswith(text[-n:])), 0)
