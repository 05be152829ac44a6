"""Chat templates as models publish them, and tokenizers that have their special ids.

A plain module for tests: `TEMPLATES["qwen3"]` is a `Published`; `codec("qwen3")` is a small
vocabulary with its ids; `folder("qwen3")` is a model that has both.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import checkpoints
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

from seriatim.codecs import text


class Published(NamedTuple):
    """A template, the special texts it writes, others that are only added, and its marks."""

    source: str
    specials: tuple[str, ...]
    plain: tuple[str, ...] = ()
    start: str = ""
    end: str = ""
    spaces: bool = False  # SentencePiece's way: a space goes in front of every text


CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nreturn <tool_call>\\n{\\"name\\": <function-name>}\\n</tool_call><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

MISTRAL = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"""

PHI3 = """{{ bos_token }}{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{% generation %}{{ '<|assistant|>
'  + message['content'] + eos_token }}{% endgeneration %}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATES = {
    "chatml": Published(CHATML, _IM, end="<|im_end|>"),
    "qwen3": Published(
        QWEN3,
        _IM,
        ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>"),
        end="<|im_end|>",
    ),
    "llama2": Published(LLAMA2, ("<s>", "</s>"), start="<s>", end="</s>", spaces=True),
    "llama3": Published(
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        start="<|begin_of_text|>",
        end="<|eot_id|>",
    ),
    "mistral": Published(MISTRAL, ("<s>", "</s>"), start="<s>", end="</s>", spaces=True),
    "gemma": Published(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        start="<bos>",
        end="<end_of_turn>",
    ),
    "phi3": Published(
        PHI3,
        ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        start="<s>",
        end="<|endoftext|>",
        spaces=True,
    ),
    "deepseek": Published(
        DEEPSEEK,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        ("<think>", "</think>"),
        start="<｜begin▁of▁sentence｜>",
        end="<｜end▁of▁sentence｜>",
    ),
    "zephyr": Published(ZEPHYR, ("<s>", "</s>", "<unk>"), start="<s>", end="</s>", spaces=True),
}


def tokenizer(published: Published) -> Tokenizer:
    """Byte-level BPE, or BPE over SentencePiece's spelling, with the template's added ids."""
    return _spaced(published) if published.spaces else _bytelevel(published)


@cache
def codec(name: str) -> text.TextCodec:
    """The codec of a template's tokenizer."""
    published = TEMPLATES[name]
    made = tokenizer(published)
    return text.TextCodec(made, ends=[made.token_to_id(published.end)])


@cache
def folder(name: str) -> Path:
    """A model folder: random weights, the tokenizer, the template."""
    published, place = TEMPLATES[name], Path(_scratch().name) / name
    own = codec(name)
    checkpoints._llama(
        vocab_size=own.size,
        num_hidden_layers=1,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=own.ends[0],
    )(place)
    own.save(place)
    _complete(place, published)
    return place


def _complete(place: Path, published: Published) -> None:
    """What transformers needs beside: the template and its marks."""
    import json

    (place / "chat_template.jinja").write_text(published.source, encoding="utf-8")
    path = place / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"eos_token": published.end}
    config |= {"bos_token": published.start} if published.start else {}
    path.write_text(json.dumps(config))


def _add(made: Tokenizer, published: Published) -> None:
    tight = {"<|end|>", "<|user|>", "<|system|>", "<|assistant|>"}  # Phi-3's take what follows
    for content in published.specials:
        rstrip = published.source is PHI3 and content in tight
        made.add_special_tokens(
            [AddedToken(content, special=True, normalized=False, rstrip=rstrip)]
        )
    made.add_tokens([AddedToken(content, normalized=False) for content in published.plain])


def _bytelevel(published: Published) -> Tokenizer:
    made = Tokenizer.from_str(text.train(text.EXAMPLES, 320)._tokenizer.to_str())
    _add(made, published)
    return made


def _spaced(published: Published) -> Tokenizer:
    made = Tokenizer(models.BPE(byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=[f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    made.train_from_iterator(["the user said hello to the assistant system. "] * 3, trainer)
    content = made.to_str()
    import json

    state = json.loads(content)
    state["added_tokens"] = []  # bytes are ordinary
    made = Tokenizer.from_str(json.dumps(state))
    _add(made, published)
    return made


@cache
def _scratch() -> TemporaryDirectory:
    return TemporaryDirectory(prefix="seriatim-test-")
