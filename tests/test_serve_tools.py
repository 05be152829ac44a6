"""Calls of tools: in every way that templates teach, cut anywhere, and in OpenAI's own words."""

import json

import pytest
import servers

from seriatim.serve.tools import FORMATS, Call, Caller, of_template

CHAT = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
HERMES, PHI, GRANITE, MISTRAL, LLAMA = FORMATS
ADD, NOW = Call("add", {"a": 1}), Call("now", {})

SAID = [
    (HERMES, 'Sure.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
             '<tool_call>{"name":"now","arguments":"{}"}</tool_call>\n', ("Sure.", [ADD, NOW])),
    (HERMES, "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx y\n"
             "</parameter>\n</function>\n</tool_call>", ("", [Call("add", {"a": 1, "b": "x y"})])),
    (HERMES, '<tool_call>{"name":"now","arguments":{}}', ("", [NOW])),
    (PHI, '<|tool_call|>[{"name":"add","arguments":{"a":1}}]<|/tool_call|>', ("", [ADD])),
    (GRANITE, '<|tool_call|>[{"name":"now","arguments":{}}]', ("", [NOW])),
    (MISTRAL, '[TOOL_CALLS][{"name":"add","arguments":{"a":1}},{"name":"now","arguments":{}}]',
     ("", [ADD, NOW])),
    (MISTRAL, 'Well [TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]now[ARGS]{}', ("Well", [ADD, NOW])),
    (LLAMA, '{"name":"add","parameters":{"a":1}}; {"name":"now","parameters":{}}',
     ("", [ADD, NOW])),
]  # fmt: skip
TEXT = [
    (HERMES, "a <tool_call>nope</tool_call> b"),
    (HERMES, '<tool_call>{"name":"other","arguments":{}}</tool_call>'),
    (HERMES, '<tool_call>{"name":"add","arguments":[1]}</tool_call>'),
    (HERMES, '<tool_call>{"name":"add","arguments":{"a":NaN}}</tool_call>'),
    (HERMES, '<tool_call>{"name":"add","arguments":{"a":1e999}}</tool_call>'),
    (HERMES, "<tool_call></tool_call>x"),
    (HERMES, "<tool_call>" + "[" * 5000),
    (HERMES, "x < y <tool"),
    (HERMES, " plain \n"),
    (MISTRAL, "[TOOL_CALLS]no[ARGS]{"),
    (LLAMA, 'Well {"name":"add","parameters":{}}'),
    (LLAMA, '{"a": 1}'),
    (LLAMA, "  hi {"),
    (LLAMA, ""),
]


def read(format, text: str, step: int) -> tuple[str, list[Call]]:
    caller, said, calls = Caller(format, {"add", "now"}), "", []
    parts = [text[at : at + step] for at in range(0, len(text), step)]
    for more, some in [*map(caller.feed, parts), caller.finish()]:
        said, calls = said + more, calls + some
    return said, calls


@pytest.mark.parametrize("step", [1, 2, 3, 7, 10**6])
@pytest.mark.parametrize("format, text, expected", SAID, ids=range(len(SAID)))
def test_calls_are_found_however_the_text_is_cut(format, text, expected, step):
    assert read(format, text, step) == expected


@pytest.mark.parametrize("step", [1, 3, 10**6])
@pytest.mark.parametrize("format, text", TEXT, ids=range(len(TEXT)))
def test_what_is_no_call_stays_text(format, text, step):
    assert read(format, text, step) == (text, [])


def test_a_template_is_known_by_what_it_teaches():
    assert of_template("{{ tools }} <tool_call>") is HERMES
    assert of_template("{{ tools }} <|tool_call|> <|/tool_call|>") is PHI
    assert of_template("{{ tools }}") is None and of_template("<tool_call>") is None


@pytest.fixture(scope="module")
def server():
    made = servers.shared(servers.load())
    yield made
    made.stop()


def told(content: str, **more):
    talk = [{"role": "user", "content": content}]
    return {"model": "mock:echo", "messages": talk, "tools": TOOLS, **more}


CALL = 'Sure. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


def test_an_answer_that_calls_says_so(server):
    choice = servers.ask(server, CHAT, told(CALL)).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["message"]["content"] == "Sure." and choice["finish_reason"] == "tool_calls"
    assert (call["type"], call["function"]["name"]) == ("function", "add")
    assert json.loads(call["function"]["arguments"]) == {"a": 1}
    chunks = servers.events(servers.ask(server, CHAT, told(CALL, stream=True)))
    parts = [c["choices"][0] for c in chunks]
    assert "".join(p["delta"].get("content", "") for p in parts) == "Sure."
    (streamed,) = [c for p in parts for c in p["delta"].get("tool_calls", [])]
    assert streamed["index"] == 0 and streamed["function"] == call["function"]
    assert parts[-1]["finish_reason"] == "tool_calls"


def test_without_tools_the_same_words_are_text(server):
    for more in ({"tools": None}, {"tool_choice": "none"}):
        choice = servers.ask(server, CHAT, told(CALL, **more)).json()["choices"][0]
        assert choice["message"]["content"] == CALL and choice["finish_reason"] == "stop"
        assert "tool_calls" not in choice["message"]


def test_what_a_tool_answered_is_part_of_the_conversation(server):
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    talk = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "two"},
    ]
    choice = servers.ask(server, CHAT, told("", messages=talk)).json()["choices"][0]
    assert choice["message"]["content"] == "two"


def test_strict_tools_are_said_to_be_read_and_not_constrained(server):
    strict = [{"type": "function", "function": {"name": "add", "strict": True}}]
    said = servers.ask(server, CHAT, told("a", tools=strict)).json()
    assert said["seriatim"]["ignored"] == ["tools.function.strict"]


@pytest.mark.parametrize(
    "more",
    [
        {"tools": []},
        {"tools": [{}]},
        {"tools": TOOLS * 2},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": TOOLS, "model": "tiny"},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "missing"}}},
    ],
)
def test_tools_that_cannot_be_honoured_are_refused(server, more):
    response = servers.ask(server, CHAT, told("a") | more)
    assert response.status_code == 400 and "tool" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "2"},
        {"role": "assistant", "tool_calls": "a"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "nope"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "[1]"}}]},
    ],
)
def test_messages_of_tools_that_are_none_are_refused(server, message):
    body = told("", messages=[{"role": "user", "content": "a"}, message])
    response = servers.ask(server, CHAT, body)
    assert response.status_code == 400 and "messages[1]" in response.json()["error"]["message"]
