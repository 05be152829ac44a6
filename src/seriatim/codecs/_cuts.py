"""How byte-level vocabularies cut text before merging, by the names that GGUF files give the rules.

The names and what each stands for are llama.cpp's (`llama-vocab.cpp`). Where its expressions only
approximate a model's own, which its source then quotes, the model's own stands here. A GGUF has no
word for a normalizer, so there is none, as in llama.cpp.
"""

from typing import NamedTuple


class Cut(NamedTuple):
    """A rule: each pattern cuts what those before it left.

    Attributes:
        patterns: regular expressions; a match is a part of its own, and so is what lies between.
        whole: a part that is a token is taken as it is, not merged from smaller ones.
        start: a prompt begins with the start id where a file does not say.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    start: bool = False


_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_WORD = _HEAD + r"\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LATER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"  # ends in lower case
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"  # begins in upper case
_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_ASCII = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_MARKED = _ASCII + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
_DIGIT, _THREE = r"\p{N}", r"\p{N}{1,3}"
# Scripts with upper and lower case, as DeepSeek LLM lists them.
_LETTERS = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-"
    "\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-"
    "\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-"
    "\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-"
    "\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102"
    "\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2"
    "\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-"
    "\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = f"{_ENGLISH}|{_WORD}|{_THREE}|{_MARKS}|{_LINES}"
_QWEN2 = f"{_ENGLISH}|{_WORD}|{_DIGIT}|{_MARKS}|{_LINES}"
_QWEN35 = (
    rf"{_ENGLISH}|{_HEAD}[\p{{L}}\p{{M}}]+|{_DIGIT}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}"
)
_GPT4O = f"{_HEAD}{_LATER}{_ENGLISH}?|{_HEAD}{_UPPER}{_ENGLISH}?|{_THREE}|{_PATHS}|{_LINES}"
_TEKKEN = f"{_HEAD}{_LATER}|{_HEAD}{_UPPER}|{_DIGIT}|{_PATHS}|{_LINES}"
_BLOOM = r" ?[^(\s|.,!?" + "\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = rf"{_ENGLISH}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}"
_DEEPSEEK_LLM = (
    "[\r\n]",
    rf"\s?[{_LETTERS}]+",
    r"\s?[!-/:-~" + "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _HAN_HANGUL,
    _DIGIT,
)

_NAMES = {
    "gpt-2 phi-2 mpt olmo jais gigachat a.x-4.0 mellum exaone4 trillion granite-docling": Cut(
        (_GPT2,)
    ),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": Cut((_DIGIT, _GPT2)),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": Cut(
        (_LLAMA3,), whole=True, start=True
    ),
    "glm4 glm5": Cut((_LLAMA3,), whole=True),
    "dbrx smaug-bpe chatglm-bpe": Cut((_LLAMA3,)),
    "qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan grok-2 solar-open kormo f2llmv2": Cut(
        (_QWEN2,)
    ),
    "qwen35": Cut((_QWEN35,)),
    "deepseek-llm": Cut(_DEEPSEEK_LLM),
    "deepseek-coder": Cut(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL, _DIGIT)),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": Cut((_THREE, _HAN, rf"{_MARKED}[\r\n]*|{_LINES}")),
    "tekken": Cut((_TEKKEN,), whole=True, start=True),
    "gpt-4o llama4 kanana2 minimax-m2": Cut((_GPT4O,)),
    "bloom poro-chat gpt3-finnish": Cut((_BLOOM,)),
    "viking": Cut((_BLOOM, _DIGIT)),
    "bailingmoe bailingmoe2 llada-moe": Cut((_BAILING,)),
    "seed-coder": Cut((_SEED,)),
    "falcon": Cut((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "default": Cut((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
CUTS = {name: cut for names, cut in _NAMES.items() for name in names.split()}
