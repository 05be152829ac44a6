"""Learning from conversations: which ids are learned, what is refused, and that it answers."""

import json
import shutil
from pathlib import Path

import chats
import numpy as np
import pytest

import seriatim
from seriatim import codecs
from seriatim.errors import FileError, RequestError
from seriatim.train import checkpoint, conversations, encoding, loop, shards
from seriatim.train.report import Note, Progress, Score, Started

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
MARKED = (
    CHATML
    + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    + "{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
    + "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <|im_end|> there"},
    {"role": "assistant", "content": "Hello, <|im_start|>you!"},
    {"role": "user", "content": "Zoë?"},
    {"role": "assistant", "content": "日本\n"},
]
PLAIN = [message for message in TALK if message["role"] != "system"]
TINY = {"size": "0.05M", "context": 64, "batch": 4, "threads": 1, "objective": "chat"}


def reader(name: str, source: str | None = None, place: Path | None = None):
    """The codec of a published model, with its own template or another."""
    folder = chats.folder(name)
    if source is not None:
        assert place is not None
        folder = shutil.copytree(folder, place / "model")
        (folder / "chat_template.jinja").write_text(source)
    codec = codecs.load(folder)
    assert codec is not None
    return conversations.of(codec, folder)


def encoded(codec, messages, **more) -> np.ndarray:
    return codec.encode_many([json.dumps({"messages": messages} | more).encode()])[0]


def spans(ids: np.ndarray) -> list[list[int]]:
    """The ids that are learned, each run of them."""
    mark = np.concatenate([[False], shards.learned(ids), [False]])
    edges = np.flatnonzero(mark[1:] != mark[:-1]).reshape(-1, 2)
    return [ids[a:b].tolist() for a, b in edges]


def lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def asked(word: str) -> list[dict]:
    return [{"role": "user", "content": word}, {"role": "assistant", "content": word[::-1] + "!"}]


@pytest.fixture(scope="module")
def talks(tmp_path_factory) -> Path:
    words = ["abc", "Zoë", "model", "red fox", "12", "so it is"]
    records = [{"messages": asked(word)} for word in words * 12]
    records += [{"messages": asked("cba") + asked("x" * (n % 7 + 1))} for n in range(30)]
    return lines(tmp_path_factory.mktemp("data") / "talks.jsonl", records)


def run(data: Path | list, out: Path, steps: int = 6, **options) -> list:
    records: list = []
    options = TINY | {"codec": str(chats.folder("chatml"))} | options
    loop.train(data, out=out, steps=steps, report=records.append, **options)
    return records


def of(records: list, kind: type) -> list:
    return [record for record in records if isinstance(record, kind)]


def notes(records: list) -> str:
    return "\n".join(note.text for note in of(records, Note))


# Which ids are learned


def test_the_mask_of_chatml_is_what_a_hand_would_write():
    codec = reader("chatml")
    start, end = codec.specials["<|im_start|>"], codec.specials["<|im_end|>"]
    expected: list[int] = []
    for message in TALK:
        lead = [start, *codec.encode(f"{message['role']}\n")]
        said = [*codec.encode(message["content"]), end]
        here = said if message["role"] == "assistant" else [~id for id in said]
        expected += [~id for id in lead] + here + [~id for id in codec.encode("\n")]
    ids = encoded(codec, TALK)
    assert ids.dtype == np.int32
    assert ids.tolist() == expected
    assert ids.tolist().count(end) == 2  # of the answers: what people wrote stays text


def test_the_mask_is_that_of_generation_markers(tmp_path):
    transformers = pytest.importorskip("transformers")
    codec = reader("chatml", MARKED, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    talk = [{**m, "content": m["content"].replace("<|im_", "(")} for m in TALK]
    found = theirs.apply_chat_template(
        talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = encoded(codec, talk)
    assert shards.read(ids).tolist() == found["input_ids"]
    assert shards.learned(ids).tolist() == [bool(n) for n in found["assistant_masks"]]
    assert 0 < shards.learned(ids).sum() < len(ids)


@pytest.mark.parametrize("name", sorted(chats.TEMPLATES.keys() - {"deepseek"}))
def test_of_published_templates_answers_and_their_ends_are_learned(name):
    codec = reader(name)
    learned = spans(encoded(codec, PLAIN))
    ends = {ids[-1] for ids in learned}
    assert len(learned) == 2
    assert len(ends) == 1
    assert ends <= set(codec.ends)
    for ids, message in zip(learned, (PLAIN[1], PLAIN[3]), strict=True):
        said = codec.decode(ids[:-1]).replace("<think>\n\n</think>", "")
        assert said.strip() == message["content"].strip()
    prompt = codec.prompt("Hi")
    whole = encoded(codec, [{"role": "user", "content": "Hi"}, PLAIN[1]])
    assert shards.read(whole)[: len(prompt)].tolist() == prompt  # what `model.chat` asks with
    assert not shards.learned(whole)[: len(prompt)].any()


TOOLS = (
    CHATML
    + "{% if m['reasoning_content'] %}{{ '<think>' + m['reasoning_content'] + '</think>' }}"
    + "{% endif %}{{ m['content'] or '' }}{% for call in m['tool_calls'] or [] %}"
    + "{{ '<tool_call>' }}{{ call['function'] | tojson }}{{ '</tool_call>' }}{% endfor %}"
    + "{{ '<|im_end|>\n' }}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_calls_of_tools_are_learned_and_their_results_are_not(tmp_path):
    codec = reader("qwen3", TOOLS, tmp_path)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    talk = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "Two.", "reasoning_content": "It says 2."},
    ]
    first, second = spans(encoded(codec, talk, tools=tools))
    assert '{"name": "add", "arguments": {"a": 1}}' in codec.decode(first)
    assert "It says 2." in codec.decode(second)
    assert codec.decode(second).endswith("Two.")
    assert first[-1] == second[-1] == codec.specials["<|im_end|>"]
    with pytest.raises(RequestError, match=r"template writes nothing of messages\[1\]"):
        encoded(reader("qwen3"), talk, tools=tools)  # one that knows no tools


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (CHATML + "{{ m['content'] + '\\n' }}{% endfor %}", "no id of its own"),
        ("{{ messages[0]['nothing']['at all'] }}", "cannot be used"),
    ],
)
def test_a_template_that_nothing_can_be_learned_by_is_refused(tmp_path, source, message):
    with pytest.raises(RequestError, match=message):
        reader("chatml", source, tmp_path)


def test_a_template_that_asks_otherwise_than_it_writes_is_refused(talks, tmp_path):
    with pytest.raises(RequestError, match=r"writes messages\[1\] .* otherwise than it asks"):
        encoded(reader("deepseek"), PLAIN)  # it asks for reasoning, which it does not write
    source = (
        CHATML
        + "{{ m['content'] + '<|im_end|>' }}{% endfor %}"
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>' }}{% endif %}"
    )
    codec = reader("chatml", source, tmp_path)
    with pytest.raises(RequestError, match=r"writes messages\[1\] .* otherwise than it asks"):
        encoded(codec, asked("a"))
    with pytest.raises(FileError, match=r"talks.jsonl holds no document: line 1 is .*otherwise"):
        run(talks, tmp_path / "out", codec=str(tmp_path / "model"))
    assert not (tmp_path / "out").exists()


# Records


def test_records_that_are_none_are_counted_and_listed(tmp_path):
    user, empty = {"role": "user", "content": "a"}, {"role": "assistant", "content": ""}
    bad = {
        "no field 'messages'; it has text": {"text": "a"},
        "messages is []": {"messages": []},
        "has the role 'asistant'": {"messages": [user, {"role": "asistant", "content": "b"}]},
        "messages[1] is empty": {"messages": [user, empty]},
        "no message is the assistant's": {"messages": [user]},
        "messages[0] is the assistant's": {"messages": [{"role": "assistant", "content": "b"}]},
        "messages[0] has no content": {"messages": [{"role": "user"}, empty]},
        "messages is 'hello'": {"messages": "hello"},
        "a JSON list instead": [user],
        "tools is 7": {"messages": asked("a"), "tools": 7},
        "half a surrogate": {"messages": asked("\ud800")},
        "begins": {"messages": [user, {"role": "assistant", "content": 7}]},
    }
    data = lines(tmp_path / "a.jsonl", [*bad.values(), *({"messages": asked(w)} for w in "abcd")])
    records = run(data, tmp_path / "out", steps=1, batch=1, context=32)
    assert f"{len(bad)} records refused" in notes(records)
    listed = (tmp_path / "out/checkpoints/refused.jsonl").read_text().splitlines()
    why = {json.loads(line)["place"]: json.loads(line)["why"] for line in listed}
    for place, message in enumerate(bad, 1):
        if message != "begins":
            assert message in why[f"line {place}"]
    assert len(why) == len(bad)


def test_a_conversation_longer_than_the_context_is_left_out_and_counted(talks, tmp_path):
    long = lines(tmp_path / "long.jsonl", [{"messages": asked("y" * 300)}] * 3)
    with pytest.raises(RequestError, match="every conversation is longer than 64 ids"):
        run(long, tmp_path / "b", steps=1, validation=talks)
    records = run([talks, long], tmp_path / "c", steps=1)
    assert "3 of 105 conversations are longer than 64 ids and left out" in notes(records)
    started = of(records, Started)[0]
    assert f" of {started.ids:,} ids are learned (" in notes(records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec": "byte"}, "'byte', which has no chat template"),
        ({"codec": "text"}, "'text', which has no chat template"),
        ({"field": "body"}, "field is 'body'; leave it out"),
        ({"separator": "\n"}, r"separator is .*; leave it out"),
    ],
)
def test_options_that_a_chat_cannot_honour_are_refused(talks, tmp_path, change, message):
    with pytest.raises(RequestError, match=message):
        run(talks, tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_a_plain_file_holds_no_conversations(tmp_path):
    (tmp_path / "a.txt").write_text("user: hello")
    with pytest.raises(FileError, match=r"a.txt holds no conversations; expected .jsonl"):
        run(tmp_path / "a.txt", tmp_path / "out")


def test_a_model_without_a_template_is_refused(talks, tmp_path):
    folder = shutil.copytree(chats.folder("chatml"), tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(RequestError, match="the model has no chat template"):
        run(talks, tmp_path / "out", codec=str(folder))


# Runs


def test_it_learns_to_answer(talks, tmp_path):
    out, other = tmp_path / "out", lines(tmp_path / "other.jsonl", [{"messages": asked("held")}])
    records = run(talks, out, steps=120, size="0.1M", batch=8, validation=other)
    assert of(records, Progress)[-1].loss < 0.1
    model = seriatim.load(out, threads=1)
    for word in ("abc", "model", "red fox"):
        answer = model.chat([{"role": "user", "content": word}], temperature=0, max_tokens=30)
        assert answer.message["content"] == word[::-1] + "!"
        assert answer.finish_reason == "stop"
    assert (out / "chat_template.jinja").read_text() == chats.TEMPLATES["chatml"].source
    assert json.loads((out / "codec.json").read_text())["codec"] == "text"


def test_only_what_is_learned_counts(talks, tmp_path):
    """The loss is that of the answers alone, and so is the held-out score."""
    records = run(talks, tmp_path / "out", steps=1)
    codec = reader("chatml")
    text = [json.loads(line)["messages"] for line in talks.read_text().splitlines()]
    learned = sum(len(ids) for talk in text for ids in spans(encoded(codec, talk)))
    every = sum(len(encoded(codec, talk)) for talk in text)
    score = of(records, Score)[-1]
    assert 0 < score.ids < learned < every
    assert of(records, Progress)[0].loss == pytest.approx(np.log(codec.size), rel=0.05)


@pytest.mark.parametrize("chosen", [{}, {"isolate": True, "accumulate": 2}], ids=str)
def test_a_resumed_run_of_conversations_ends_with_the_same_bits(talks, tmp_path, chosen):
    run(talks, tmp_path / "whole", steps=6, save_every=2, **chosen)
    run(talks, tmp_path / "cut", steps=6, save_every=2, **chosen)
    shutil.rmtree(tmp_path / "cut/checkpoints/step-6")
    (tmp_path / "cut/model.safetensors").unlink()
    records = run(talks, tmp_path / "cut", steps=6, save_every=2, resume=True, **chosen)
    assert of(records, Started)[0].first == 4
    first, second = (tmp_path / n / "model.safetensors" for n in ("whole", "cut"))
    assert first.read_bytes() == second.read_bytes()


def test_parts_of_a_batch_count_what_they_learn(talks, tmp_path):
    losses = []
    for parts in (1, 3):
        records = run(talks, tmp_path / str(parts), accumulate=parts)
        losses.append([p.loss for p in of(records, Progress)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_resume_with_another_template_is_refused(talks, tmp_path):
    folder = shutil.copytree(chats.folder("chatml"), tmp_path / "model")
    run(talks, tmp_path / "out", codec=str(folder))
    path = folder / "chat_template.jinja"
    path.write_text("{{ '' }}" + path.read_text())
    with pytest.raises(FileError, match="another codec"):
        run(talks, tmp_path / "out", codec=str(folder), resume=True)
    assert checkpoint.newest(tmp_path / "out")[0] is not None


def test_other_processes_encode_the_same(talks, tmp_path, monkeypatch):
    """Also with marks that the tokenizer's own files would not say."""
    source = chats.TEMPLATES["chatml"].source
    reader("chatml", "{{ pad_token }}" + source, tmp_path)
    path = tmp_path / "model/tokenizer_config.json"
    said = {"pad_token": "<|endoftext|>", "bos_token": "<|im_start|>"}
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    many = [Path(shutil.copy(talks, tmp_path / f"{n}.jsonl")) for n in range(3)]
    for n, path in enumerate(many):
        path.write_text(path.read_text() + json.dumps({"messages": asked(f"file {n}")}) + "\n")
    folders = []
    for threads in (1, 2):
        monkeypatch.setattr(encoding, "ALONE", 0)
        monkeypatch.setattr(encoding, "PART", 1)
        out, cache = tmp_path / f"out-{threads}", tmp_path / f"cache-{threads}"
        options = {"cache": cache, "threads": threads, "codec": str(tmp_path / "model")}
        run(many, out, steps=1, **options)
        folders.append({p.name: (p / "ids.bin").read_bytes() for p in cache.iterdir()})
    assert folders[0] == folders[1]
    assert len(folders[0]) == 3
    first = np.frombuffer(next(iter(folders[0].values())), "<i4")
    assert ~first[0] == reader("chatml").specials["<|endoftext|>"]


def test_a_model_that_is_gone_on_from_learns_to_answer(talks, tmp_path):
    out, model = tmp_path / "out", chats.folder("llama3")
    words = [{"messages": asked(word)} for word in ("ab", "fox")] * 8
    data, other = lines(tmp_path / "a.jsonl", words), lines(tmp_path / "b.jsonl", words[:1] * 2)
    other.write_text(other.read_text().replace("ab", "xy").replace("ba", "yx"))
    options = {"codec": None, "size": None, "init": str(model), "batch": 2, "context": 64}
    records = run(data, out, steps=40, learning_rate=0.01, validation=other, **options)
    assert of(records, Progress)[-1].loss < 0.3
    answer = seriatim.load(out, threads=1).chat(words[1]["messages"][:1], temperature=0)
    assert answer.message["content"] == "xof!"
