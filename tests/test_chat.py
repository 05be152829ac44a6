"""Chats: the template's ids are those of `transformers`, and no content is ever one of them."""

import json
import signal
import subprocess
from functools import cache
from itertools import pairwise

import chats
import pytest
import small
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import command
from test_cli import settings as environment

import seriatim
from seriatim.codecs import chat
from seriatim.codecs._reasoning import MARKERS, Splitter, of_template
from seriatim.errors import RequestError

USER = {"role": "user", "content": "Hello, who are you?"}
SAID = {"role": "assistant", "content": "I am 日本 said.\n"}
SYSTEM = {"role": "system", "content": "Be the system."}
TALKS = [
    [USER],
    [{"role": "user", "content": "  the user\n"}, SAID, USER],
    [SYSTEM, USER, SAID, {"role": "user", "content": "hello  "}],
    [USER, SAID],
]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "int"}}}}

# What a template does to a content `c`.
OPERATIONS = """<|im_{{ c }}end|>
{{ '<|im_' ~ c ~ 'end|>' }}
{{ '<|im_end' + c }}
{{ c[:3] + c[3:] }}
{{ c * 2 }}
{{ [c] }}
{{ {'a': c} }}
{{ messages }}
{{ (c, c) | last }}
{{ c if c else '' }}
{{ c | upper | lower }}
{{ c | capitalize | lower }}
{{ c | tojson }}
{{ c | indent }}
{{ c | safe }}
{{ c | escape }}
{{ c | string }}
{{ c | list | join }}
{{ c | default('x') }}
{{ c | replace('x', '') }}
{{ c | reverse | list | reverse | join }}
{{ [c] | max }}
{{ [c, 'a'] | sort | first }}
{{ messages | selectattr('content') | list }}
{{ messages | map(attribute='content') | join }}
{{ messages | map(attribute='content') | first }}
{{ messages | groupby('content') | first | first }}
{{ messages[0].items() | list }}
{{ messages[0].items() }}
{{ messages[0].values() | string }}
{{ c.split('_') | join('_') }}
{{ c.replace('_', '_') }}
{{ c.partition('_') | join }}
{{ '_'.join(c.rsplit('_', 1)) }}
{{ c.strip('x') }}
{{ c.removeprefix('x') }}
{{ c.title().lower() }}
{{ c.splitlines() | first }}
{{ dict(a=c).a }}
{{ namespace(a=c).a }}
{{ cycler(c).next() }}
{% for l in c %}{{ l }}{% endfor %}
{% set x %}{{ c }}{% endset %}{{ x }}
{% filter trim %}{{ c }}{% endfilter %}
{% macro f(x) %}{{ x }}{% endmacro %}{{ f(c) }}
{% macro f(x) %}{{ caller(x) }}{% endmacro %}{% call(x) f(c) %}{{ x }}{% endcall %}"""

HOSTILE = """{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}
{% for i in range(100000) %}{{ range(100000) | list | sort }}{% endfor %}
{% for i in messages recursive %}{{ loop(messages) }}{% endfor %}
{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}
{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}
{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}
{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}
{% set n = namespace(x=1) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}
{% set n = namespace(x=2) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}
{{ 'a' * 10**9 }}
{{ 10**9 * 'a' }}
{{ [1] * 10**9 }}
{{ 2 ** (10**9) }}
{{ range(10**9) | list }}
{{ 'a'.center(10**9) }}
{{ 'a' | center(10**9) }}
{{ 'a' | indent(10**9) }}
{{ '%999999999d' % 1 }}
{{ '{:999999999}'.format(1) }}
{{ (5).to_bytes(10**9) }}
{{ 'a' | replace('a', 'b' * 9999) | replace('b', 'c' * 9999) }}
{{ messages | tojson(indent=10**9) }}
{{ strftime_now('%999999999Y') }}
{{ ''.__class__.__mro__[1].__subclasses__() }}
{{ cycler.__init__.__globals__.os }}
{{ messages.append(1) }}
{{ messages[0].update(a=1) }}
{{ messages.x.y }}
{{ namespace(x=messages) }}
{{ [namespace(x=1)] | string }}
{{ self }}
{% include 'x' %}
{{ lipsum() }}
{{ nothing() }}
{{ messages | nothing }}
{{ 1 / 0 }}
{% if %}"""

every_template = pytest.mark.parametrize("name", chats.TEMPLATES)


@cache
def template(name: str, source: str | None = None) -> chat.Template:
    folder, codec = chats.folder(name), chats.codec(name)
    return chat.Templates.of(folder, {}, codec).get(source)


def ids(name: str, talk, **how) -> list[int]:
    made = template(name)
    return chats.codec(name).weave(made.render(talk, **how).parts, quoted=made.controls)


def controls(name: str, ids: list[int]) -> list[int]:
    known = set(chats.codec(name).added.values())
    return [id for id in ids if id in known]


def render(source: str, *talk, name: str = "chatml", **how):
    return template(name, source).render(talk or [USER], **how).parts


# ---- the same ids as transformers


@every_template
@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("talk", TALKS, ids=range(len(TALKS)))
def test_the_ids_are_those_of_transformers(name, talk, answer):
    transformers = pytest.importorskip("transformers")
    import jinja2

    other = transformers.AutoTokenizer.from_pretrained(chats.folder(name))
    try:
        expected = other.apply_chat_template(talk, add_generation_prompt=answer, return_dict=False)
    except jinja2.TemplateError as error:
        with pytest.raises(RequestError, match="refuses") as refused:
            ids(name, talk, answer=answer)
        assert str(error) in str(refused.value)
    else:
        assert ids(name, talk, answer=answer) == expected


def test_tools_and_variables_reach_the_template_as_in_transformers():
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoTokenizer.from_pretrained(chats.folder("qwen3"))
    expected = other.apply_chat_template(
        [USER], tools=[TOOL], add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    assert ids("qwen3", [USER], tools=[TOOL], variables={"enable_thinking": False}) == expected


@every_template
def test_reasoning_in_the_history_is_dropped_as_the_template_says(name):
    transformers = pytest.importorskip("transformers")
    talk = [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}, USER]
    other = transformers.AutoTokenizer.from_pretrained(chats.folder(name))
    expected = other.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    parts = template(name).render(talk).parts
    texts = {id: text for text, id in chats.codec(name).added.items()}
    assert "".join(texts[p] if isinstance(p, int) else p for p in parts) == expected


# ---- contents are contents


@every_template
@settings(max_examples=40)
@given(data=st.data())
def test_no_content_ever_becomes_a_control_id(name, data):
    """Whole special texts, their halves at every border, and what a template searches for."""
    published = chats.TEMPLATES[name]
    special = [*published.specials, *published.plain]
    halves = [text[cut:] for text in special for cut in range(len(text))]
    halves += [text[:cut] for text in special for cut in range(1, len(text))]
    odd = ["\ufdd0", "\ufdd1", "{{ bos_token }}", "[INST]", " ", "\n", "e", "ß", "\U0010ffff", "日"]
    content = st.lists(st.sampled_from(special + halves + odd), max_size=6).map("".join)
    said, answered, asked = (data.draw(content) for _ in range(3))
    benign = [USER, {"role": "assistant", "content": "x"}, USER]
    hostile = [
        {"role": "user", "content": said},
        {"role": "assistant", "content": answered},
        {"role": "user", "content": asked},
    ]
    expected = controls(name, ids(name, benign))
    assert controls(name, ids(name, hostile)) == expected


@every_template
def test_what_a_hostile_message_says_is_all_there(name):
    said = "a".join(chats.TEMPLATES[name].specials)
    codec = chats.codec(name)
    assert said in codec.decode(ids(name, [{"role": "user", "content": said}]))


@pytest.mark.parametrize("source", OPERATIONS.splitlines())
def test_no_operation_of_a_template_makes_a_content_its_own(source):
    for content in ("<|im_end|>", "", "|>"):
        talk = {"role": "user", "content": content}
        parts = render("{% set c = messages[0].content %}" + source, talk)
        own = source == "<|im_{{ c }}end|>" or "~ c ~" in source
        assert all(isinstance(part, str) for part in parts) or (own and content == "")


def test_a_template_puts_its_own_pieces_together():
    """Phi-3's is `'<|' + message['role'] + '|>'`: a role is checked, and a template's own."""
    assert render("{{ '<|' ~ 'im_end' + '|>' }}") == [chats.codec("chatml").added["<|im_end|>"]]
    parts = render("<|{{ messages[0].role }}|>", USER, name="phi3")
    assert parts == [chats.codec("phi3").added["<|user|>"]]


@pytest.mark.parametrize("role", ["<|im_end|>", "", "us er", "é", 3, None, "a" * 65])
def test_a_role_that_is_no_word_is_refused(role):
    with pytest.raises(RequestError, match="role"):
        render("x", {"role": role, "content": "a"})


def test_special_texts_in_tools_and_names_are_plain():
    tool = {"role": "<|im_end|>", "<|im_start|>": ["<|im_end|>"]}
    talk = {"role": "user", "name": "<|im_end|>", "content": "a"}
    parts = render("{{ tools | tojson }}{{ tools }}{{ messages[0].name }}", talk, tools=[tool])
    assert all(isinstance(part, str) for part in parts)


def test_special_texts_that_an_operation_would_lose_are_refused():
    with pytest.raises(RequestError, match="mixes special texts"):
        render("{{ ('<|im_start|>' ~ messages[0].content) | indent }}")


# ---- hostile templates


@pytest.mark.parametrize("source", [*HOSTILE.splitlines(), "{{" + "(" * 100_000, "x" * (1 << 21)])
def test_a_hostile_template_ends_in_an_error(source):
    with pytest.raises(RequestError, match="template") as error:
        render(source)
    assert "\n" not in str(error.value)


def test_after_a_hostile_template_the_same_object_still_works():
    made = template("chatml", "{% if messages[1] %}{{ 'a' * 10**9 }}{% endif %}b")
    with pytest.raises(RequestError, match="budget"):
        made.render([USER, USER])
    assert made.render([USER]).parts == ["b"]


def test_a_long_conversation_is_within_the_budget():
    talk = [USER, SAID] * 2000 + [USER]
    assert len(render(chats.TEMPLATES["qwen3"].source, *talk, name="qwen3")) > 4000


@pytest.mark.parametrize(
    ("talk", "names"),
    [
        (None, "messages is None"), ("hi", "messages is 'hi'"), ([], r"messages is \[\]"),
        ([{}], r"messages\[0\] has the role None"), ([USER, 3], r"messages\[1\] is 3"),
        ([{"role": "user"}], "no content"), ([{"role": "user", "content": 1}], "is 1"),
        ([{"role": "user", "content": [{"type": "image"}]}], "only text"),
        ([{**USER, "x": object()}], "'x'"), ([{**USER, 3: 1}], "key 3"),
    ],
)  # fmt: skip
def test_messages_that_are_none_are_refused(talk, names):
    with pytest.raises(RequestError, match=names):
        template("chatml").render(talk)


def test_a_content_in_parts_is_its_lines():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render("{{ messages[0].content }}", {"role": "user", "content": parts}) == ["a\nb"]


def test_a_variable_cannot_take_the_place_of_an_option():
    with pytest.raises(RequestError, match="messages"):
        render("x", variables={"messages": []})


# ---- where templates are


def test_the_named_form_and_the_files_of_a_folder(tmp_path):
    codec = chats.codec("chatml")
    config = {"chat_template": [
        {"name": "default", "template": "d{{ bos_token }}"}, {"name": "tool_use", "template": "t"},
    ], "bos_token": {"content": "<|im_start|>"}}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = chat.Templates.of(tmp_path, {}, codec)
    assert found.get(None, tools=True).source == "t"
    assert found.get(None).render([USER]).parts == ["d", codec.added["<|im_start|>"]]
    (tmp_path / "chat_template.jinja").write_text("j")
    assert chat.Templates.of(tmp_path, {}, codec).get(None, tools=True).source == "j"


def test_the_template_of_a_gguf_file(tmp_path):
    metadata = {"tokenizer.chat_template": "{{ bos_token }}!", "tokenizer.ggml.bos_token_id": 1}
    metadata["tokenizer.ggml.tokens"] = ["a", "<|im_start|>"]
    made = chat.Templates.of(tmp_path / "x.gguf", metadata, chats.codec("chatml")).get(None)
    assert made.render([USER]).parts == [chats.codec("chatml").added["<|im_start|>"], "!"]


def test_without_a_template_the_refusal_names_the_option():
    model = small.shared("bytes")
    with pytest.raises(RequestError, match="--template"):
        model.chat([USER])


def test_without_a_codec_there_is_no_chat(tmp_path):
    model = seriatim.load(tiny.write(tmp_path / "bare", codec=False), threads=1)
    with pytest.raises(RequestError, match="codec"):
        model.chat([USER])


# ---- answers


@pytest.fixture(scope="module")
def model() -> seriatim.Model:
    return seriatim.load(chats.folder("qwen3"), threads=1)


HOW = dict(max_tokens=40, seed=3, ignore_end=True)


def test_an_answer_is_what_generate_gives_on_the_rendered_ids(model):
    result = model.chat([USER], **HOW)
    same = model.generate(ids("qwen3", [USER]), **HOW)
    assert result.ids == same.ids
    assert result.prompt_ids == ids("qwen3", [USER])
    assert result.message["role"] == "assistant"


def test_the_pieces_of_a_stream_fold_into_the_message(model):
    for budget in (None, 0, 5):
        how = HOW | {"think_budget": budget, "template": chats.TEMPLATES["deepseek"].source}
        stream = model.chat([USER], stream=True, **how)
        pieces = list(stream)
        message = stream.result().message
        assert message == model.chat([USER], **how).message
        assert "".join(p.text for p in pieces) == message["content"]
        assert "".join(p.reasoning for p in pieces) == message.get("reasoning_content", "")
        assert [id for p in pieces for id in p.ids] == stream.result().ids


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_a_budget_of_reasoning_forces_the_marker_and_nothing_else(model, budget):
    """Until it is spent the ids are those without it; then the marker; then the model again."""
    how = HOW | {"template": chats.TEMPLATES["deepseek"].source}
    free = model.chat([USER], **how)
    close = model.codec.added["</think>"]
    assert close not in free.ids
    held = model.chat([USER], think_budget=budget, **how)
    assert held.ids[: budget + 1] == [*free.ids[:budget], close]
    assert held.ids.count(close) == 1
    follow = model.generate(held.prompt_ids + held.ids[: budget + 1], **HOW | {"max_tokens": 9})
    assert held.ids[budget + 1 :][:9] == follow.ids


def test_a_budget_of_several_ids_and_none_that_is_needed(model):
    """Markers that are no ids of their own are written out; one that comes by itself stays."""
    source = (
        "{{ messages[0].content }}{% if add_generation_prompt %}[THINK]{% endif %}{# [/THINK] #}"
    )
    marker = model.codec.encode("[/THINK]")
    assert len(marker) > 1
    held = model.chat([USER], template=source, think_budget=4, **HOW)
    assert held.ids[4 : 4 + len(marker)] == marker
    forced = [*model.codec.encode("ab"), *marker]
    early = model.chat([USER], template=source, think_budget=30, forced_ids=forced, **HOW)
    assert early.message["reasoning_content"] == "ab"
    assert "[/THINK]" not in early.message["content"]


def test_the_budget_is_kept_by_each_of_several_samples_and_by_guesses(model):
    how = HOW | {"template": chats.TEMPLATES["deepseek"].source, "think_budget": 6}
    alone = model.chat([USER], **how)
    several = model.chat([USER], n=3, **how)
    assert several.samples[0].ids == alone.ids
    assert len({tuple(s.ids) for s in several.samples}) == 3
    assert all(s.message["reasoning_content"] for s in several.samples)
    assert model.chat([USER], speculate="ngram", **how).ids == alone.ids


def test_thinking_that_the_prompt_has_closed_is_no_reasoning(model):
    off = {"enable_thinking": False}
    result = model.chat([USER], variables=off, think_budget=0, **HOW)
    assert "reasoning_content" not in result.message
    assert result.ids == model.generate(result.prompt_ids, **HOW).ids


def test_a_budget_without_markers_is_refused(model):
    with pytest.raises(RequestError, match="markers"):
        model.chat([USER], template=chats.TEMPLATES["chatml"].source, think_budget=3)


def test_the_last_message_goes_on(model):
    begun = {"role": "assistant", "content": "I am <|im_end|>"}
    result = model.chat([USER, begun], continue_final=True, **HOW)
    prompt = model.decode(result.prompt_ids)
    assert prompt.endswith("I am <|im_end|>")
    assert result.message["content"].startswith("I am <|im_end|>")
    for wrong in ([USER], [USER, {"role": "assistant", "content": ""}]):
        with pytest.raises(RequestError, match="continue_final"):
            model.chat(wrong, continue_final=True)
    with pytest.raises(RequestError, match="shows nothing"):
        model.chat([USER, begun], continue_final=True, template="x")


def test_a_second_turn_reads_the_first_from_the_cache(model):
    long = [{"role": "user", "content": "the user said hello " * 20}]
    first = model.chat(long, **HOW)
    second = model.chat([*long, first.message, USER], **HOW)
    assert second.usage.cached >= first.usage.prompt // 64 * 64 > 0


def test_options_of_a_chat_are_checked(model):
    for wrong in (dict(stream=True, n=2), dict(stream=1), dict(tools=[3]), dict(template=3),
                  dict(variables=3), dict(continue_final=1), dict(think_budget=-1),
                  dict(max_token=3)):  # fmt: skip
        with pytest.raises(RequestError):
            model.chat([USER], **wrong)


# ---- reasoning told apart


@pytest.mark.parametrize("markers", MARKERS, ids=lambda m: m.open)
@settings(max_examples=40)
@given(data=st.data())
def test_reasoning_is_told_apart_however_the_text_is_cut(markers, data):
    texts = st.text("ab <\n/think>|", max_size=12)
    thought, said = data.draw(texts).strip(), data.draw(texts).lstrip()
    whole = f"{markers.open}\n{thought}\n{markers.close}\n\n{said}"
    if markers.close in thought + markers.close[:-1]:
        return
    places = st.integers(0, len(whole))
    cuts = sorted({0, len(whole), *data.draw(st.lists(places, max_size=8))})
    splitter = Splitter(markers)
    pairs = [splitter.feed(whole[a:b]) for a, b in pairwise(cuts)] + [splitter.finish()]
    assert tuple(map("".join, zip(*pairs, strict=True))) == (thought, said)


@pytest.mark.parametrize(
    ("before", "text", "parts"),
    [
        ("", "hi <think>a</think>", ("", "hi <think>a</think>")),
        ("", "  <thin", ("", "  <thin")),
        ("<think>\n", "a b", ("a b", "")),
        ("<think>\n\n</think>\n\n", "a <think>", ("", "a <think>")),
        ("<think>\n", "a </thi", ("a </thi", "")),
    ],
)
def test_what_opens_no_reasoning_is_answer(before, text, parts):
    splitter = Splitter(of_template("<think>"), before)
    pairs = [splitter.feed(text), splitter.finish()]
    assert tuple(map("".join, zip(*pairs, strict=True))) == parts


# ---- the command


def run(*words, text: str):
    return subprocess.run(
        command("chat", "--threads", 1, "--max-tokens", 6, "--seed", 1, "--ignore-end", *words),
        input=text.encode(), capture_output=True, env=environment(), timeout=120, check=False,
    )  # fmt: skip


def test_lines_are_messages_and_stdout_is_the_answers(model):
    ran = run("-m", chats.folder("chatml"), "--system", "Be", text="Hi\n/usage\n/what\n\nAnd?")
    assert ran.returncode == 0, ran.stderr
    own = seriatim.load(chats.folder("chatml"), threads=1)
    talk, expected = [{"role": "system", "content": "Be"}], ""
    for line in ("Hi", "And?"):
        talk.append({"role": "user", "content": line})
        talk.append(own.chat(talk, max_tokens=6, seed=1, ignore_end=True).message)
        expected += talk[-1]["content"] + "\n"
    assert ran.stdout.decode() == expected
    assert b"ids of prompt" in ran.stderr
    assert b"'/what'" in ran.stderr


def test_reset_forgets_exit_ends_and_a_template_may_be_given(tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages | length }}")
    ran = run(
        "-m", chats.folder("chatml"), "--template", tmp_path / "t.jinja",
        text="a\n/reset\na\n/exit\nb\n",
    )  # fmt: skip
    first, second = ran.stdout.decode().splitlines()
    assert first == second


def test_without_a_template_the_command_says_which_option_gives_one(tmp_path):
    ran = run("-m", tiny.write(tmp_path / "tiny"), text="Hi\n")
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert b"--template" in ran.stderr


def test_an_interrupt_ends_the_answer_and_not_the_conversation(tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages | length }}")
    endless = tiny.write(tmp_path / "endless", max_position_embeddings=10**6)
    talk = subprocess.Popen(
        command("chat", "-m", endless, "--template", tmp_path / "t.jinja", "--ignore-end",
                "--threads", 1, "--context", 20_000, "--seed", 1),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert talk.stdin is not None
    assert talk.stdout is not None
    talk.stdin.write(b"Hi\n")
    talk.stdin.flush()
    assert talk.stdout.read(1)  # it is under way
    talk.send_signal(signal.SIGINT)
    _, remarks = talk.communicate(b"/usage\n/exit\n", timeout=60)
    assert talk.returncode == 0
    assert b"ids of prompt" in remarks
