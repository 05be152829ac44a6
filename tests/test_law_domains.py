"""The engine's laws over every codec there is: text, code, music, proteins, images, one engine.

What a request yields is the same alone, in company, streamed, guessed ahead and served, to the bit;
it keeps to the codec's own mask and to what is given of its object.
"""

from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import servers
import tiny
from test_law_codec import every_codec

import seriatim
from seriatim.codecs import Codec, Fillable, Lawful
from seriatim.engine.constrain import allows
from seriatim.results import Result
from seriatim.serve.served import Served

HOW: dict[str, Any] = dict(max_tokens=24, temperature=1.5, logprobs=True)


@cache
def scratch() -> TemporaryDirectory:
    return TemporaryDirectory(prefix="seriatim-test-")  # removed when the process ends


@cache
def folder(codec: Codec) -> Path:
    """A model of random weights whose ids the codec has."""
    place = Path(scratch().name) / str(folder.cache_info().misses)
    ids = {"bos_token_id": codec.start, "eos_token_id": codec.ends}
    known = {name: some[0] for name, some in ids.items() if some}
    tiny.write(place, codec=False, ids=known, vocab_size=codec.size)
    codec.save(place)
    return place


@cache
def model(codec: Codec) -> seriatim.Model:
    return seriatim.load(folder(codec), threads=1)


def prompts(codec: Codec) -> list[list[int]]:
    """The first half of each example, at most a few ids; that one is given alone as well."""
    every = [codec.encode(raw) for raw in codec.examples()[:4]]
    found = [[*codec.start, *ids[: min(len(ids) // 2, 40)]] for ids in every]
    return [ids or [0] for ids in found]


def facts(result: Result) -> tuple[Any, ...]:
    """Everything that the laws speak of, floats by their bits."""
    assert result.logprobs is not None
    exact = [value.hex() for value in result.logprobs]
    return result.ids, result.stop, exact, result.text, result.reencodes


def alone(codec: Codec, prompt: Sequence[int], **how: Any) -> Result:
    """From an engine that has seen nothing."""
    return seriatim.load(folder(codec), threads=1).generate(list(prompt), **how)


@every_codec
def test_a_request_yields_what_it_yields_alone(codec):
    """In company, from a cache, with several samples, and with guesses."""
    asked = prompts(codec)
    expected = [facts(alone(codec, prompt, seed=3, **HOW)) for prompt in asked]
    assert [facts(r) for r in model(codec).generate(asked, seed=3, **HOW)] == expected
    assert [facts(r) for r in model(codec).generate(asked, seed=3, n=2, **HOW)] == expected
    for way in ("ngram", "suffix"):
        guessed = model(codec).generate(asked, seed=3, speculate=way, draft_tokens=4, **HOW)
        assert [facts(r) for r in guessed] == expected


@every_codec
def test_a_stream_is_the_whole_answer(codec):
    for prompt in prompts(codec):
        whole = model(codec).generate(prompt, seed=5, **HOW)
        stream = model(codec).stream(prompt, seed=5, **HOW)
        pieces = list(stream)
        assert [id for piece in pieces for id in piece.ids] == whole.ids
        assert "".join(piece.text for piece in pieces) == whole.text
        assert facts(stream.result()) == facts(whole)


@every_codec
def test_a_score_is_what_a_request_says_of_its_prompt(codec):
    for prompt in prompts(codec):
        if len(prompt) > 1:
            read = model(codec).generate(prompt, max_tokens=1, prompt_logprobs=True)
            assert model(codec).score(prompt).logprobs == read.prompt_logprobs[1:]


@every_codec
def test_what_is_generated_keeps_to_the_mask(codec):
    if not isinstance(codec, Lawful):
        pytest.skip("it has no masks")
    for prompt in prompts(codec):
        result = model(codec).generate(prompt, seed=1, **HOW)
        for place, id in enumerate(result.ids):
            assert allows(codec.legal(result.ids[:place], after=prompt), id)


@every_codec
def test_what_is_given_in_part_is_kept(codec):
    """An object given whole comes out as it went in, whatever the model would rather say."""
    if not isinstance(codec, Fillable):
        pytest.skip("its objects are not given in part")
    raw = min((r for r in codec.examples() if codec.encode(r)), key=lambda r: len(codec.encode(r)))
    result = model(codec).generate(list(codec.start), given=raw, seed=1)
    expected = codec.encode(raw)
    assert result.ids[len(result.ids) - len(expected) :] == expected
    assert len(result.ids) == len(expected) or result.ids[0] in getattr(codec, "labels", ())


@every_codec
def test_what_is_given_to_a_server_is_kept_as_by_the_library(codec, tmp_path):
    if not isinstance(codec, Fillable):
        pytest.skip("its objects are not given in part")
    raw = next(raw for raw in codec.examples() if codec.encode(raw))
    codec.write(raw, path := tmp_path / f"part{codec.suffixes[0]}")
    file = {"base64": b64encode(path.read_bytes()).decode(), "name": path.name}
    expected = model(codec).generate(given=path, seed=7)
    made = servers.shared(servers.load())
    try:
        served = seriatim.load(folder(codec), threads=1)
        made.models.add(Served("it", served, made.limits))
        body = {"model": "it", "seed": 7, "given": file}
        answer = servers.ask(made, "/v1/completions", body)
        assert answer.json()["choices"][0]["token_ids"] == expected.ids
        answer = servers.ask(made, "/v1/completions", body | {"given": [1]})
        assert "given is [1]; expected text, or a file" in answer.text
    finally:
        made.stop()


@every_codec
def test_a_server_gives_the_librarys_ids_whole_or_streamed(codec):
    made = servers.shared(servers.load())
    try:
        served = seriatim.load(folder(codec), threads=1)
        made.models.add(Served("it", served, made.limits))
        body = {"model": "it", "max_tokens": 24, "temperature": 1.5, "seed": 7}
        bodies = [body | {"prompt": prompt} for prompt in prompts(codec)]
        whole = servers.asked(made, [("/v1/completions", one) for one in bodies])
        parts = servers.asked(made, [("/v1/completions", one | {"stream": True}) for one in bodies])
        for prompt, answer, stream in zip(prompts(codec), whole, parts, strict=True):
            expected = model(codec).generate(prompt, max_tokens=24, temperature=1.5, seed=7)
            (choice,) = answer.json()["choices"]
            assert (choice["token_ids"], choice["text"]) == (expected.ids, expected.text)
            chunks = [chunk["choices"][0] for chunk in servers.events(stream)]
            assert [id for chunk in chunks for id in chunk["token_ids"]] == expected.ids
            assert "".join(chunk["text"] for chunk in chunks) == expected.text
    finally:
        made.stop()
