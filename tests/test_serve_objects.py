"""Notes, residues and pixels over the API: the same objects as the library's, in every form."""

import re
from base64 import b64decode, b64encode
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import servers
import tiny

import seriatim
from seriatim.serve.served import Served

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
OBJECTS = {
    "music": ("music:form=chorale", ".mid"),
    "protein": ("protein", ".fasta"),
    "image": ("image:size=6,mode=grey,levels=4", ".png"),
}


def loaded(name: str) -> seriatim.Model:
    with TemporaryDirectory() as folder:
        return servers.of_codec(Path(folder), OBJECTS[name][0])


@pytest.fixture(scope="module")
def models():
    """Never served."""
    return {name: loaded(name) for name in OBJECTS}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = servers.shared(servers.load())
    for name in OBJECTS:
        made.models.add(Served(name, loaded(name), made.limits))
    bare = seriatim.load(tiny.write(tmp_path_factory.mktemp("bare"), codec=False), threads=1)
    made.models.add(Served("bare", bare, made.limits))
    yield made
    made.stop()


def told(model, **body):
    return {"model": model, "prompt": "", "max_tokens": 36, "seed": 5, **body}


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_what_generate_gives_whole_and_streamed(server, models, name):
    codec = models[name].codec
    expected = models[name].generate("", max_tokens=36, seed=5, logprobs=True)
    bundle = codec.render(expected.output)
    assert any(isinstance(value, bytes) for value in bundle.values()) or name == "protein"
    body = told(name, render=[*bundle], logprobs=0)
    (whole,) = servers.ask(server, COMPLETIONS, body).json()["choices"]
    assert (whole["token_ids"], whole["text"]) == (expected.ids, expected.text)
    assert whole["logprobs"]["token_logprobs"] == expected.logprobs
    for kind, value in bundle.items():
        said = whole["rendered"][kind]
        assert (b64decode(said) if isinstance(value, bytes) else said) == value
    chunks = servers.events(servers.ask(server, COMPLETIONS, body | {"stream": True}))
    parts = [part for chunk in chunks for part in chunk["choices"]]
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert [id for part in parts for id in part["token_ids"]] == whole["token_ids"]
    assert parts[-1]["rendered"] == whole["rendered"]
    assert all("rendered" not in part for part in parts[:-1])


@pytest.mark.parametrize("name", OBJECTS)
def test_a_file_goes_on_as_its_object_does(server, models, name, tmp_path):
    model, path = models[name], tmp_path / f"a{OBJECTS[name][1]}"
    raw = next(o for o in model.codec.examples() if 0 < len(model.codec.encode(o)) < 40)
    model.codec.write(raw, path)
    file = {"base64": b64encode(path.read_bytes()).decode(), "name": f"Any name{path.suffix}"}
    body = told(name, prompt=file, return_token_ids=True, max_tokens=8)
    (said,) = servers.ask(server, COMPLETIONS, body).json()["choices"]
    expected = model.generate(path, max_tokens=8, seed=5)
    assert said["prompt_token_ids"] == expected.prompt_ids
    assert said["token_ids"] == expected.ids
    ids = servers.ask(server, COMPLETIONS, body | {"prompt": expected.prompt_ids}).json()
    assert ids["choices"][0]["token_ids"] == expected.ids


def test_a_motif_holds_in_every_design(server, models):
    motif = "M[A-Z]{4,8}C[KR]"
    body = told("protein", regex=motif, n=4, max_tokens=20)
    choices = servers.ask(server, COMPLETIONS, body).json()["choices"]
    expected = models["protein"].generate("", regex=motif, n=4, max_tokens=20, seed=5).samples
    assert [c["token_ids"] for c in choices] == [r.ids for r in expected]
    for choice in choices:
        assert choice["finish_reason"] == "stop" and re.fullmatch(motif, choice["text"])


def test_a_given_length_and_banned_symbols_hold(server, models):
    no_x = models["protein"].encode("X")
    body = told("protein", regex="[A-Z]{12}", banned_ids=no_x)
    (choice,) = servers.ask(server, COMPLETIONS, body).json()["choices"]
    assert len(choice["text"]) == 12 and "X" not in choice["text"]


def test_a_score_is_the_librarys(server, models):
    """Read, not written: the log-probability of each residue."""
    body = told("protein", prompt="MKVLAAG", max_tokens=0, echo=True, logprobs=0)
    (choice,) = servers.ask(server, COMPLETIONS, body).json()["choices"]
    score = models["protein"].score("MKVLAAG")
    said = choice["logprobs"]["token_logprobs"]
    assert said[0] is None and said[1 : 1 + 7] == [*score.logprobs][-7:]


WRONG = [
    ("image", {"regex": ".*"}, "regex"),
    ("music", {"choices": ["a"]}, "choices"),
    ("music", {"json_schema": {"type": "object"}}, "json_schema"),
    ("protein", {"regex": "[a-z]{3}"}, "regex"),
    ("protein", {"prompt": "MKV!"}, "prompt"),
    ("protein", {"suffix": "MKV"}, "suffix"),
    ("image", {"prompt": [10**6]}, "prompt"),
    ("bare", {"prompt": "text"}, "codec"),
    ("bare", {"prompt": [1], "render": ["text/plain"]}, "codec"),
]


@pytest.mark.parametrize("model, more, name", WRONG)
def test_what_a_codec_cannot_is_refused_by_its_name(server, model, more, name):
    response = servers.ask(server, COMPLETIONS, told(model) | more)
    said = response.json()["error"]
    assert response.status_code == 400, response.text
    assert name in said["message"] + str(said["param"])


FILES = [
    ("protein", b">a\nMK1V\n", "a.fasta", "line 2"),
    ("protein", b">a\nMKV\n>b\nMKV\n", "a.fasta", "prompt"),
    ("protein", b"", "a.fasta", "prompt"),
    ("protein", b"\x1f\x8b" + b"\0" * 30, "a.fasta.gz", "prompt"),
    ("music", b"MThd", "a.mid", "prompt"),
    ("music", b"PK\3\4", "a.mid", "prompt"),
    ("image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "a.png", "prompt"),
    ("image", b"<svg/>", "a.png", "prompt"),
]


@pytest.mark.parametrize("model, data, name, words", FILES)
def test_a_file_that_is_none_is_refused_without_its_place(server, model, data, name, words):
    file = {"base64": b64encode(data).decode(), "name": name}
    response = servers.ask(server, COMPLETIONS, told(model, prompt=file))
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"]
    assert "/tmp" not in response.text and "Traceback" not in response.text


@pytest.mark.parametrize("name", [*OBJECTS, "bare"])
def test_there_is_no_chat_with_them(server, name):
    response = servers.ask(server, CHAT, {"model": name, "messages": HI})
    assert response.status_code == 400
    assert "template" in response.text or "codec" in response.text


def test_without_a_codec_there_are_ids(server):
    body = told("bare", prompt=[1, 2, 3], stream=True, max_tokens=4, ignore_end=True)
    whole = servers.ask(server, COMPLETIONS, body | {"stream": False}).json()["choices"][0]
    parts = [
        p for c in servers.events(servers.ask(server, COMPLETIONS, body)) for p in c["choices"]
    ]
    assert [id for part in parts for id in part["token_ids"]] == whole["token_ids"]
    assert (len(whole["token_ids"]), whole["text"]) == (4, "")
