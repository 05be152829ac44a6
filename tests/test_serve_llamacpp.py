"""llama.cpp's routes: as an editor that completes code asks them."""

import json

import pytest
import servers

from seriatim.serve.served import Models, Served
from seriatim.serve.shared import Shared

GAP = {"input_prefix": "def f(x):\n", "input_suffix": "\nprint(f(2))\n", "prompt": "    ret"}


@pytest.fixture(scope="module")
def model():
    """Never served."""
    return servers.code()


@pytest.fixture(scope="module")
def server():
    made = Shared(models=Models())
    made.models.add(Served("code", servers.code(), made.limits))
    made.models.loading = False
    yield made
    made.stop()


def chunks(response) -> list[dict]:
    assert response.status_code == 200, response.text
    return [json.loads(frame[6:]) for frame in response.text.split("\n\n")[:-1]]


def test_a_completion_is_what_generate_gives(server, model):
    body = {"prompt": "def f", "n_predict": 8, "seed": 5, "n_probs": 2, "ignore_end": True}
    said = servers.ask(server, "/completion", body).json()
    expected = model.generate("def f", max_tokens=8, seed=5, logprobs=2, ignore_end=True)
    assert (said["tokens"], said["content"]) == (expected.ids, expected.text)
    assert said["stop_type"] == "limit" and said["tokens_predicted"] == 8
    assert [p["logprob"] for p in said["completion_probabilities"]] == expected.logprobs
    parts = chunks(servers.ask(server, "/completion", body | {"stream": True}))
    assert "".join(p["content"] for p in parts) == expected.text
    assert [i for p in parts for i in p["tokens"]] == expected.ids
    assert [p["stop"] for p in parts] == [False] * (len(parts) - 1) + [True]


def test_a_gap_is_filled_after_how_it_begins(server, model):
    said = servers.ask(server, "/infill", GAP | {"n_predict": 8, "seed": 5}).json()
    alone = model.generate(prefix=GAP["input_prefix"], suffix=GAP["input_suffix"], max_tokens=1)
    prompt = [*alone.prompt_ids, *model.encode(GAP["prompt"])]
    ids = model.generate(prompt, max_tokens=8, seed=5).ids
    assert said["tokens"] == ids[: len(said["tokens"])]  # marks end it too
    assert said["tokens_evaluated"] == len(prompt)


def test_what_an_editor_sends_besides_is_named(server):
    more = {"input_extra": [{"filename": "a", "text": "b"}], "samplers": ["top_k"], "n_indent": 1}
    response = servers.ask(server, "/infill", GAP | more | {"n_predict": 1, "cache_prompt": True})
    named = {"input_extra", "samplers", "n_indent", "cache_prompt"}
    assert set(response.json()["seriatim"]["ignored"]) == named


def test_nothing_to_predict_reads_the_prompt(server):
    said = servers.ask(server, "/completion", {"prompt": "def", "n_predict": 0}).json()
    assert (said["content"], said["stop_type"]) == ("", "limit")


def test_text_is_ids_and_back(server, model):
    words = "def f(x): <fim_middle> né"
    ids = servers.ask(server, "/tokenize", {"content": words * 9}).json()["tokens"]
    assert ids == model.encode(words * 9)  # of any length
    ids = servers.ask(server, "/tokenize", {"content": words}).json()["tokens"]
    assert ids == model.encode(words)  # special-looking text is plain
    assert servers.ask(server, "/detokenize", {"tokens": ids}).json()["content"] == words
    pieces = servers.ask(server, "/tokenize", {"content": "def", "with_pieces": True}).json()
    assert "".join(p["piece"] for p in pieces["tokens"]) == "def"


@pytest.mark.parametrize(
    "path, body, name",
    [
        ("/completion", {"n_predict": -2}, "n_predict"),
        ("/completion", {"seed": -2}, "seed"),
        ("/completion", {"prompt": [[1]]}, "prompt"),
        ("/completion", {"prompt": [10**6]}, "prompt"),
        ("/infill", {"input_prefix": 1}, "input_prefix"),
        ("/tokenize", {}, "content"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(server, path, body, name):
    response = servers.ask(server, path, body)
    assert response.status_code == 400 and name in response.json()["error"]["message"]


def test_props_say_how_long_a_prompt_may_be(server):
    said = servers.ask(server, "/props").json()
    assert said["default_generation_settings"]["n_ctx"] == 256
    assert "/" not in said["model_alias"]
