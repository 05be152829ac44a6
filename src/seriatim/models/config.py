"""Reading a foreign config: every key is used, known to be harmless, or refused by name.

This knows kinds of values, not models: which keys there are is said in `families/*.py`.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from seriatim.errors import ModelError, RequestError, did_you_mean, shown

Say = Callable[[str], None]  # takes one line about something ignored, defaulted or chosen
REQUIRED: Any = object()

# Limits of single dimensions: far above any model, and refused before anything is allocated.
MOST_LAYERS, MOST_WIDTH, MOST_HEADS, MOST_IDS = 1 << 12, 1 << 20, 1 << 16, 1 << 26
MOST_POSITIONS = (1 << 31) - 1


def silent(_: str) -> None:
    """A `Say` for callers that do not want the notes."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keys of any Hugging Face config that cannot change a logit, by the reason why not.
BOOKKEEPING = _words("""
    _commit_hash _name_or_path architectures dtype finetuning_task name_or_path tokenizer_class
    torch_dtype transformers.js_config transformers_version unsloth_fixed unsloth_version
""")
LABELS = _words("_num_labels id2label label2id num_labels problem_type")
TRAINING = _words("""
    attention_dropout attn_pdrop classifier_dropout embd_pdrop gradient_checkpointing hidden_dropout
    initializer_range neftune_noise_alpha resid_pdrop residual_dropout router_aux_loss_coef
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
""")
OUTPUTS = _words("""
    _attn_implementation _attn_implementation_autoset attn_implementation flash_attn
    keys_to_ignore_at_inference output_attentions output_hidden_states output_past return_dict
    tf_legacy_loss torchscript use_bfloat16 use_cache use_flash_attention
""")
SAMPLING = _words("""
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length max_new_tokens min_length no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_scores prefix remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens task_specific_params temperature
    top_k top_p typical_p
""")
IDS = _words("bos_token_id decoder_start_token_id eos_token_id pad_token_id sep_token_id")
HARMLESS = BOOKKEEPING | LABELS | TRAINING | OUTPUTS | SAMPLING | IDS

# Keys that change nothing at these values, and are refused at any other.
HARMLESS_AT: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "attn_logit_softcapping": (None,),
    "auto_map": (None, {}),  # else: code that the model brings along
    "chunk_size_feed_forward": (0, None),
    "cross_attention_hidden_size": (None,),
    "final_logit_softcapping": (None,),
    "is_decoder": (True, False),
    "is_encoder_decoder": (False, None),
    "is_llama_config": (True,),
    "logits_soft_cap": (None,),
    "per_layer_config": (None, {}),
    "pretraining_tp": (1, None),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "rope_interleaved": (False, None),
    "tie_encoder_decoder": (False, None),
    "tie_last_hidden_states": (None, True, False),
    "use_mrope": (False, None),
    "use_qk_norm": (False, None),
}


def choose_context(wanted: int | None, trained: int, most: int) -> int:
    """The context to load for: what was asked, within what the model can do, or its own.

    Raises:
        RequestError: more than the model's own, or not a positive integer.
    """
    if wanted is None:
        return trained
    if type(wanted) is not int or not 1 <= wanted <= most:
        raise RequestError(
            f"context is {wanted!r}",
            expected=f"an integer from 1 to the model's own {most}",
            fix="leave it out",
        )
    return wanted


def ids(config: Mapping[str, Any], key: str, size: int, say: Say, where: str) -> set[int]:
    """One id or a list of them; those outside a vocabulary of `size` are named and dropped.

    Raises:
        ModelError: something else than ids.
    """
    value = config.get(key)
    found = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(i) is int for i in found):
        seen = f"{where} has {key} = {shown(value)}"
        raise ModelError(seen, expected="an id, a list of ids, or null")
    if outside := [i for i in found if not 0 <= i < size]:
        say(f"{key} {outside} of {where} are outside the vocabulary of {size}: ignored")
    return set(found) - set(outside)


class Fields:
    """A mapping being read: `close()` refuses every key that nobody asked for.

    Args:
        values: the config, or one object inside it.
        where: what to call it in errors.
        say: told of each key that was absent and got a default that changes the maths.
    """

    def __init__(self, values: Mapping[str, Any], where: str, say: Say = silent) -> None:
        self.values, self.where, self.say = values, where, say
        self.read: set[str] = set()

    def get(self, key: str) -> Any:
        """The raw value; `None` when it is absent or null."""
        self.read.add(key)
        return self.values.get(key)

    def integer(self, key: str, *, most: int, default: Any = REQUIRED) -> int:
        """An integer from 1 to `most`."""
        value = self._value(key, default, f"an integer from 1 to {most}")
        if type(value) is not int or not 1 <= value <= most:
            raise self.refuse(key, f"an integer from 1 to {most}")
        return value

    def number(self, key: str, *, low: float = 0.0, default: Any = REQUIRED) -> float:
        """A finite number above `low`."""
        value = self._value(key, default, f"a number above {low:g}")
        if type(value) not in (int, float) or not math.isfinite(value) or value <= low:
            raise self.refuse(key, f"a number above {low:g}")
        return float(value)

    def flag(self, key: str, *, default: Any = REQUIRED) -> bool:
        """true or false; absence needs no note, for a part that is not named is not there."""
        value = self.get(key)
        value = default if value is None and default is not REQUIRED else value
        if type(value) is not bool:
            raise self.refuse(key, "true or false")
        return value

    def word(self, key: str, known: Mapping[str, str], *, default: Any = REQUIRED) -> str:
        """What a word of the config means here."""
        value = self._value(key, default, f"one of {', '.join(known)}")
        if not isinstance(value, str) or value not in known:
            raise self.refuse(key, f"one of {', '.join(known)}")
        return known[value]

    def only(self, allowed: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse each key whose value is not one of those listed for it."""
        for key, values in allowed.items():
            if key in self.values and not any(_same(self.get(key), value) for value in values):
                raise self.refuse(key, " or ".join(map(repr, values)))

    def close(self, harmless: Collection[str] = ()) -> None:
        """Refuse every key that was not read and is not harmless."""
        rest = [k for k in self.values if k not in self.read and k not in harmless]
        if rest:
            hint = did_you_mean(rest[0], self.read)
            raise ModelError(
                f"{self.where} has the key {rest[0]!r} = {_short(self.values[rest[0]])}, whose "
                "effect is unknown",
                expected="only known keys, so that the numbers are exact",
                fix=hint if hint.startswith("did") else "",
            )

    def refuse(self, key: str, expected: str) -> ModelError:
        """The error for one key."""
        return ModelError(
            f"{self.where} has {key} = {_short(self.values.get(key))}", expected=expected
        )

    def _value(self, key: str, default: Any, expected: str) -> Any:
        value = self.get(key)
        if value is not None:
            return value
        if default is REQUIRED:
            raise ModelError(f"{self.where} lacks the key {key!r}", expected=expected)
        if key not in self.values:
            self.say(f"{key} is not in {self.where}: {default} is the standard's default")
        return default


def _same(a: Any, b: Any) -> bool:
    """Equality that keeps 1, 1.0 and true apart."""
    return type(a) is type(b) and a == b


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
