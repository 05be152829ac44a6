"""Seeded streams that go on and on beside others: what they say must never change.

A plain module for tests and for `benchmarks/serving.py`, of the tiny model of `servers.py`.
"""

import json
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any, Self

import httpx

COMMON = {"model": "tiny", "max_tokens": 120, "ignore_end": True, "logprobs": 3, "stream": True}
SONGS: tuple[dict[str, Any], ...] = (
    {"prompt": "greedy", "temperature": 0, "echo": True},
    {"prompt": "free", "seed": 1, "temperature": 1.3, "top_p": 0.9, "logit_bias": {"97": 3}},
    {"prompt": "by a rule", "seed": 2, "regex": "[a-f ]{110,}"},
    {"prompt": "guess guess guess", "seed": 3, "temperature": 0.3, "speculate": "ngram"},
)


def sung(client: httpx.Client, url: str, song: dict[str, Any]) -> str:
    """All that a stream says, however its steps were cut into frames."""
    joined: dict[str, list[Any]] = {"text": [], "token_ids": [], "logprobs": [], "ends": []}
    with client.stream("POST", f"{url}/v1/completions", json=COMMON | song) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]", lines[-1]
    for line in lines[:-1]:
        (part,) = json.loads(line.removeprefix("data: "))["choices"]
        joined["text"] += part["text"]
        joined["token_ids"] += part["token_ids"]
        joined["logprobs"] += zip(*part["logprobs"].values(), strict=True)
        joined["ends"] += [part["finish_reason"]] * bool(part["finish_reason"])
    return json.dumps(joined)


@dataclass
class Canaries:
    """Within this context they sing, each in a thread of its own.

    Attributes:
        rounds: of each, how often it was heard to its end.
        changed: what was heard and was not the same.
    """

    url: str
    rounds: list[int] = field(default_factory=lambda: [0] * len(SONGS))
    changed: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        with httpx.Client(timeout=None) as client:
            self.known = [sung(client, self.url, song) for song in SONGS]
        self._over = Event()
        self._threads = [Thread(target=self._sing, args=(n,)) for n in range(len(SONGS))]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _sing(self, number: int) -> None:
        with httpx.Client(timeout=None) as client:
            while not self._over.is_set():
                try:
                    heard = sung(client, self.url, SONGS[number])
                except Exception as error:
                    heard = f"{type(error).__name__}: {error}"
                if heard != self.known[number]:
                    self.changed.append(f"{SONGS[number]['prompt']}: {heard[:300]}")
                self.rounds[number] += 1
