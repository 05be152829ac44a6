"""Speculation changes how fast ids come, and nothing else."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import small
import tiny

import seriatim
from seriatim.engine.engine import Engine
from seriatim.engine.request import Request, Speculator
from seriatim.errors import NumericError


class Oracle(Speculator):
    """Knows what comes after each prompt, and is wrong wherever `spoil` says so."""

    def __init__(self, truth: Sequence[int], spoil: Callable[[int], bool] = lambda place: False):
        self.truth, self.spoil = truth, spoil
        self.released = 0

    def propose(self, asked: Sequence[tuple[Request, int]], tokens: int) -> list[list[int]]:
        return [self.after(len(request.ids), most) for request, most in asked]

    def after(self, place: int, most: int) -> list[int]:
        real = self.truth[place : place + most]
        return [(id + self.spoil(place + i)) % 101 for i, id in enumerate(real)]

    def release(self, request: Request) -> None:
        self.released += 1


@pytest.fixture
def engine():
    """An engine of a model of its own."""
    return Engine(small.load("llama3"))


def run(engine: Engine, *requests: Request) -> int:
    """Step until all are done; how often."""
    for steps in range(5000):
        if all(r.done for r in requests):
            return steps
        engine.step()
        engine.check()
    raise AssertionError("the engine makes no progress")


PROMPT = [5] * 10
HOW: dict[str, Any] = dict(max_tokens=30, seed=2, logprobs=2, ignore_end=True)


def alone(engine: Engine, prompt: Sequence[int] = PROMPT, **options: Any) -> Request:
    request = engine.add(prompt, **HOW | options)
    run(engine, request)
    return request


def test_right_guesses_are_all_accepted_and_none_beyond_the_end(engine):
    truth = alone(engine)
    oracle = Oracle(truth.ids)
    told = engine.add(PROMPT, speculator=oracle, **HOW)
    assert run(engine, told) == 1
    assert (told.ids, told.draws) == (truth.ids, truth.draws)
    assert (told.usage.drafted, told.usage.accepted) == (29, 29)
    assert oracle.released == 1


@pytest.mark.parametrize("spoil", [lambda i: True, lambda i: i % 2, lambda i: i % 5 == 0])
def test_wrong_guesses_change_nothing(engine, spoil):
    truth = alone(engine)
    told = engine.add(PROMPT, speculator=Oracle(truth.ids, spoil), **HOW)
    run(engine, told)
    assert (told.ids, told.draws) == (truth.ids, truth.draws)
    assert told.usage.accepted < told.usage.drafted


@pytest.mark.parametrize(
    "guessed, words",
    [
        (lambda: [[10**6]], "draft[0] is 1000000"),
        (lambda: [[3, "a"]], "draft[1] is 'a'"),
        (lambda: [[], [], []], "3 drafts were proposed"),
        (lambda: None, "TypeError"),
        (lambda: 1 // 0, "ZeroDivisionError"),
    ],
)
def test_a_speculator_at_fault_is_switched_off_where_it_failed(engine, guessed, words):
    class Faulty(Oracle):
        def propose(self, asked, tokens):
            at_fault = any(request is bad for request, _ in asked)
            return guessed() if at_fault else super().propose(asked, tokens)

    truth = alone(engine)
    oracle = Faulty(truth.ids)
    good, bad = (engine.add(PROMPT, speculator=oracle, **HOW) for _ in range(2))
    run(engine, good, bad)
    assert words in bad.usage.undrafted
    assert good.usage.undrafted == ""
    assert good.draws == bad.draws == truth.draws
    assert (good.usage.accepted, bad.usage.drafted) == (29, 0)
    assert oracle.released == 2


@pytest.mark.parametrize("backend", [dict(threads=1), dict(backend="torch")])
def test_guesses_whose_logits_are_not_finite_are_left_out(tmp_path, backend):
    """The request might never have met that id, and no other's bits may change."""
    folder = tiny.write(tmp_path / "poisoned")
    tiny.change(folder, lambda tensors: tensors["model.embed_tokens.weight"][7].fill(np.nan))
    model = seriatim.load(folder, **backend)
    engine, how = Engine(model), dict(HOW, banned_ids=[7])
    good = alone(engine, **how)
    model.pool.forget()
    at = Oracle(good.ids)
    at.after = lambda place, most: [*at.truth[place : place + 2], 7, *at.truth[place + 3 :]][:most]
    told, other = engine.add(PROMPT, speculator=at, **how), engine.add(PROMPT, **how)
    run(engine, told, other)
    assert told.ids == other.ids == good.ids
    assert told.usage.accepted == told.usage.drafted < 29
    if "backend" not in backend:  # torch's products depend on the batch, in the last bits
        assert told.draws == other.draws == good.draws
    forced = engine.add(PROMPT, speculator=at, **dict(how, forced_ids=[5, 5, 7]))
    run(engine, forced)
    assert isinstance(forced.error, NumericError)
