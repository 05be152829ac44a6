"""Anthropic's protocol: in its own client, and by its letter."""

import json

import anthropic
import pytest
import servers

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HI = [{"role": "user", "content": "Hi"}]
THINKS = (  # reasons between markers that it names: <think> </think>
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}assistant: "
    "{# <think> </think> #}"
)


@pytest.fixture(scope="module")
def model():
    """Never served."""
    return servers.load()


@pytest.fixture(scope="module")
def server():
    made = servers.shared(servers.load())
    echo = made.models.get("mock:echo").model
    echo.templates = servers.Templates({"default": THINKS}, echo.codec, {})
    return made


@pytest.fixture(scope="module")
def client(server):
    with servers.running(server) as (url, _):
        yield anthropic.Anthropic(base_url=url, api_key="any", max_retries=0)


def told(**body):
    return {"model": "tiny", "messages": HI, "max_tokens": 12, "seed": 5, **body}


def test_a_message_is_what_chat_gives(client, server, model):
    how = dict(template=servers.TEMPLATE, seed=5, max_tokens=12)
    talk = [{"role": "system", "content": "Be brief."}, *HI]
    expected = model.chat(talk, **how)
    said = client.messages.create(
        model="tiny", messages=HI, max_tokens=12, system="Be brief.", extra_body={"seed": 5}
    )
    assert said.content[0].text == expected.text
    assert (said.stop_reason, said.usage.output_tokens) == ("max_tokens", 12)
    assert said.usage.input_tokens == len(expected.prompt_ids)
    assert said.to_dict()["seriatim"]["token_ids"] == expected.ids
    assert said._request_id.startswith("req_")


@pytest.mark.parametrize("text", ["just said", "<think>hm</think>said", "<think>only thought", ""])
def test_a_stream_adds_up_to_the_whole(client, text):
    talk = [{"role": "user", "content": text or [{"type": "text", "text": ""}]}]
    how = dict(model="mock:echo", messages=talk, max_tokens=100)
    whole = client.messages.create(**how)
    with client.messages.stream(**how) as stream:
        names = [event.type for event in stream]
        final = stream.get_final_message()
    said = [
        [(block.type, getattr(block, block.type)) for block in m.content] for m in (whole, final)
    ]
    assert said[0] == said[1] and final.stop_reason == whole.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens == len(text) + 1
    marks = {"thinking": ("hm", "thought"), "text": ("said",)}
    kinds = [kind for kind, words in marks.items() if any(word in text for word in words)]
    assert [block.type for block in whole.content] == kinds
    assert names[0] == "message_start" and names[-1] == "message_stop"


def test_how_it_ended_is_said_in_its_words(client, server):
    def said(**how):
        talk = [{"role": "user", "content": "one, two, three"}]
        return client.messages.create(**{"model": "mock:echo", "messages": talk} | how)

    stopped = said(max_tokens=50, stop_sequences=["two", "zzz"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "two")
    assert stopped.content[0].text == "one, "
    assert said(max_tokens=3).stop_reason == "max_tokens"
    full = servers.ask(server, MESSAGES, told(max_tokens=10**6, ignore_end=True)).json()
    assert full["stop_reason"] == "model_context_window_exceeded"


def test_a_last_message_of_the_assistant_goes_on(server, model):
    talk = [*HI, {"role": "assistant", "content": "Well"}]
    body = servers.ask(server, MESSAGES, told(messages=talk)).json()
    how = dict(template=servers.TEMPLATE, seed=5, max_tokens=12, continue_final=True)
    expected = model.chat(talk, **how)
    assert body["seriatim"]["token_ids"] == expected.ids
    assert "Well" + body["content"][0]["text"] == expected.message["content"]


def test_neighbours_of_one_role_are_one_message(server):
    blocks = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]
    talk = [{"role": "user", "content": blocks}, {"role": "user", "content": "b"}]
    one = servers.ask(server, COUNT, {"model": "tiny", "messages": talk}).json()
    whole = {"model": "tiny", "messages": [{"role": "user", "content": "a\nb"}]}
    assert one == servers.ask(server, COUNT, whole).json()


def test_tokens_are_counted(client):
    said = client.messages.create(model="tiny", messages=HI, max_tokens=1)
    count = client.messages.count_tokens(model="tiny", messages=HI)
    read = said.usage.input_tokens + said.usage.cache_read_input_tokens
    assert count.input_tokens == read


def test_structured_output_is_a_constraint(server):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    wanted = {"format": {"type": "json_schema", "schema": schema}}
    body = servers.ask(server, MESSAGES, told(output_config=wanted, max_tokens=200)).json()
    assert json.loads(body["content"][0]["text"]).keys() == {"a"}
    assert body["stop_reason"] == "end_turn"


WRONG = {
    "max_tokens": [None, 0, "1"],
    "temperature": [1.1],
    "messages": [[], [{"role": "system", "content": "a"}], [{"role": "user"}], "a"],
    "system": [1, [{"type": "image"}]],
    "stop_sequences": ["a", [""]],
    "thinking": [True, {"type": "enabled"}, {"type": "enabled", "budget_tokens": 5}],
    "tools": [[{"name": "x"}]],
    "output_config": [{"effort": "low"}],
}


@pytest.mark.parametrize("name, value", [(n, v) for n, values in WRONG.items() for v in values])
def test_a_wrong_field_is_refused_by_its_name(server, name, value):
    response = servers.ask(server, MESSAGES, told() | {name: value})
    said = response.json()
    assert response.status_code == 400, response.text
    assert said["type"] == "error" and said["error"]["type"] == "invalid_request_error"
    assert said["request_id"] == response.headers["request-id"]
    fixed = {"thinking": "think_budget", "messages": "messages"}.get(name, name)
    assert name in said["error"]["message"] or fixed in said["error"]["message"]


def test_its_errors(client, server):
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="other", messages=HI, max_tokens=1)
    gate = server.models.get("tiny").gate
    kept, gate.inside = gate.inside, gate.most
    with pytest.raises(anthropic.InternalServerError) as caught:
        client.messages.create(model="tiny", messages=HI, max_tokens=1)
    gate.inside = kept
    assert caught.value.status_code == 529
    assert caught.value.body["error"]["type"] == "overloaded_error"
    assert int(caught.value.response.headers["retry-after"]) >= 1
