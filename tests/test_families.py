"""Checkpoints made by `transformers`, read by us: the same logits, and nothing read silently."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import checkpoints
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from seriatim.errors import FileError, ModelError, RequestError, SeriatimError
from seriatim.files import safetensors
from seriatim.kernels.ops import Batch
from seriatim.kernels.reference import ReferenceOps
from seriatim.models import checkpoint, families
from seriatim.models import weights as weighing
from seriatim.models.families import llama
from seriatim.models.forward import forward
from seriatim.models.rope import rope
from seriatim.models.spec import weights as shapes

DATA = Path(__file__).resolve().parents[1] / "../shared/data"
CLOSE = 2e-5  # of the largest logit


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Callable[[str], Path]:
    """Folder of a variant, made once."""
    known: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in known:
            known[name] = checkpoints.make(name, tmp_path_factory.mktemp(name))
        return known[name]

    return get


def assert_close(seen: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(seen - expected).max() <= CLOSE * np.abs(expected).max()


def copy(source: Path, target: Path, **changes) -> Path:
    """A copy of a folder with some config keys replaced, or removed when `...`."""
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not ...}
    (target / "config.json").write_text(json.dumps(config))
    return target


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


# Equal logits


@pytest.mark.parametrize("name", checkpoints.VARIANTS)
def test_logits_equal_those_of_transformers(name, made):
    ids = checkpoints.prompt()
    expected = checkpoints.expected_logits(made(name), ids)
    assert_close(checkpoints.reference_logits(made(name), ids), expected)


@pytest.mark.parametrize("name", ["llama3", "gpt2"])
def test_attention_of_the_test_models_is_far_from_uniform(name, made):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        made(name), attn_implementation="eager"
    )
    ids = torch.tensor([checkpoints.prompt()])
    peaks = [a[0, :, -1].max(-1).values for a in model(ids, output_attentions=True).attentions]
    assert torch.cat(peaks).median() > 10 / ids.shape[1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["llama3", "qwen2", "gpt2"])
def test_half_weights_are_read_as_stored_and_expanded_exactly(name, dtype, tmp_path):
    folder = checkpoints.make(name, tmp_path, dtype=dtype)
    assert list(checkpoint.read(folder).dtypes) == [{"float16": "f16", "bfloat16": "bf16"}[dtype]]
    ids = checkpoints.prompt()
    expected = checkpoints.expected_logits(folder, ids)
    assert_close(checkpoints.reference_logits(folder, ids), expected)


@pytest.mark.parametrize("name", ["llama2", "gpt2", "smollm"])
def test_several_shards_read_as_one(name, made, tmp_path):
    folder = checkpoints.make(name, tmp_path, shards=3)
    assert len(list(folder.glob("*.safetensors"))) >= 3
    assert checkpoint.read(folder).digest == checkpoint.read(made(name)).digest


OLD_ROPES = {
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    | {"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "llama-linear": {"type": "linear", "factor": 4.0},
    "llama-yarn": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "mistral": None,
    "qwen3": None,
}


@pytest.mark.parametrize("name", OLD_ROPES)
def test_configs_from_before_transformers_5_mean_the_same(name, made, tmp_path):
    theta = config_of(made(name))["rope_parameters"]["rope_theta"]
    old = copy(
        made(name),
        tmp_path,
        rope_parameters=...,
        dtype=...,
        layer_types=...,
        torch_dtype="float32",
        rope_theta=theta,
        rope_scaling=OLD_ROPES[name],
        pretraining_tp=1,
    )
    assert checkpoint.read(old).spec == checkpoint.read(made(name)).spec
    ids = checkpoints.prompt(70)
    expected = checkpoints.expected_logits(old, ids)
    assert_close(checkpoints.reference_logits(old, ids), expected)


def test_keys_that_old_configs_lack_get_the_standard_default_and_a_note(made, tmp_path):
    folder = copy(made("llama2"), tmp_path, rope_parameters=..., num_key_value_heads=...)
    read = checkpoint.read(folder)
    assert read.spec == checkpoint.read(made("llama2")).spec
    assert sum("default" in note for note in read.notes) == 2


def test_real_configs_of_the_families_are_accepted():
    for values in REAL_CONFIGS:
        family, module = families.of(values)
        spec = module.spec(values)
        assert family in ("llama", "gpt2")
        assert len(module.sources(spec, ())) == len(shapes(spec))


BASE = {"model_type": "llama", "vocab_size": 9, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
REAL_CONFIGS = [
    {  # Llama 3.2 1B
        **BASE,
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "head_dim": 64,
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0",
        "use_cache": True,
    },
    {  # SmolLM2 135M
        **BASE,
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    {  # Qwen2.5 0.5B
        **BASE,
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    {  # GPT-2, as first published
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    },
]


# Rotary frequencies

LONG = {"short_factor": [1.0 + 0.1 * i for i in range(32)]} | {
    "long_factor": [2.0 + 0.5 * i for i in range(32)]
}
SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    checkpoints.LLAMA3_ROPE | {"original_max_position_embeddings": 1024},
    checkpoints.YARN_ROPE | {"original_max_position_embeddings": 1024},
    checkpoints.YARN_ROPE | {"truncate": False, "mscale": 0.7, "mscale_all_dim": 0.2},
    checkpoints.YARN_ROPE | {"attention_factor": 1.25, "beta_fast": 20, "beta_slow": 3},
    {"rope_type": "longrope", "original_max_position_embeddings": 8192, **LONG},
    {"rope_type": "longrope", "original_max_position_embeddings": 1024, "factor": 4.0, **LONG},
]


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 12_345.6])
@pytest.mark.parametrize("values", SCALINGS, ids=lambda v: v["rope_type"])
def test_frequencies_equal_those_of_transformers_to_the_last_bits(values, theta):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    values = values | {"rope_theta": theta}
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=4096, rope_parameters=values
    )
    theirs = LlamaRotaryEmbedding(config)
    long = values.get("original_max_position_embeddings", 4096) < 4096
    if values["rope_type"] == "longrope" and long:
        theirs.forward(torch.zeros(1), torch.tensor([[4095]]))
    ours = rope(values, 64, trained=4096, context=4096)
    expected = theirs.inv_freq.numpy()
    seen = np.array(ours.frequencies, np.float32)
    assert seen.tolist() == list(ours.frequencies)
    assert (
        np.abs(seen.view(np.int32) - expected.view(np.int32)).max() <= 8
    )  # bits of the last place
    assert np.mean(seen == expected) > 0.8
    assert ours.scale == pytest.approx(theirs.attention_scaling, rel=1e-12)


def test_longrope_chooses_once_by_the_loaded_context_and_says_which(made, tmp_path):
    values = {"rope_type": "longrope", "original_max_position_embeddings": 64, "factor": 4.0}
    values |= {"short_factor": [1.0] * 6, "long_factor": [3.0] * 6}
    folder = copy(made("llama2"), tmp_path, rope_parameters=values)
    long, short = checkpoint.read(folder), checkpoint.read(folder, context=64)
    assert "long_factor" in " ".join(long.notes) and "short_factor" in " ".join(short.notes)
    assert long.spec.layers[0].attention.rope != short.spec.layers[0].attention.rope


def test_context_may_be_less_than_the_models_own_and_not_more(made, tmp_path):
    assert checkpoint.read(made("llama2"), context=50).spec.context == 50
    for name in ("llama2", "gpt2"):
        with pytest.raises(RequestError, match=r"257.*256"):
            checkpoint.read(made(name), context=257)
    longer = checkpoints.YARN_ROPE | {"factor": 8.0}
    folder = copy(made("llama2"), tmp_path, rope_parameters=longer)
    assert checkpoint.read(folder, context=512).spec.context == 512


# Configs that are refused

BAD_LLAMA = {
    "unknown key": {"logit_magic": 3},
    "misspelt key": {"rms_norm_epsilon": 1e-6},
    "code of the model": {"auto_map": {"AutoModel": "modeling_x.X"}},
    "quantised": {"quantization_config": {"quant_method": "gptq"}},
    "activation": {"hidden_act": "quick_gelu"},
    "architecture": {"architectures": ["LlamaForSequenceClassification"]},
    "model_type": {"model_type": "mamba"},
    "model_type of another kind": {"model_type": ["llama"]},
    "missing key": {"hidden_size": ...},
    "missing model_type": {"model_type": ...},
    "width not shared by heads": {"hidden_size": 50, "head_dim": None},
    "odd head": {"head_dim": 11},
    "kv heads not a divisor": {"num_key_value_heads": 3},
    "negative": {"intermediate_size": -88},
    "zero": {"num_attention_heads": 0},
    "10**9 layers": {"num_hidden_layers": 10**9},
    "huge vocabulary": {"vocab_size": 10**12},
    "float": {"num_hidden_layers": 2.0},
    "string": {"num_hidden_layers": "2"},
    "boolean": {"num_hidden_layers": True},
    "flag as number": {"attention_bias": 1},
    "list of layers": {"num_hidden_layers": [2]},
    "pretraining_tp": {"pretraining_tp": 2},
    "window": {"sliding_window": 8},
    "dynamic scaling": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
    "unknown scaling": {"rope_parameters": {"rope_type": "su", "factor": 2.0}},
    "unknown scaling key": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "x": 1}},
    "scaling without factor": {"rope_parameters": {"rope_type": "linear"}},
    "scaling not an object": {"rope_parameters": [1]},
    "scaling by layer type": {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
    "two scalings": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "part of a head": {"partial_rotary_factor": 0.5},
    "theta below 1": {"rope_parameters": {"rope_theta": 0.5}},
    "window by type": {"layer_types": ["sliding_attention"] * 2},
    "types of unhashable kind": {"layer_types": [[], []]},
    "wrong vocabulary": {"vocab_size": 102},
    "wrong width": {"intermediate_size": 96},
    "end id of a wrong type": {"eos_token_id": "</s>"},
}


@pytest.mark.parametrize("case", BAD_LLAMA)
def test_a_config_that_cannot_be_honoured_is_refused_in_one_line(case, made, tmp_path):
    changes = BAD_LLAMA[case]
    folder = copy(made("llama2"), tmp_path, **changes)
    with pytest.raises(ModelError) as error:
        checkpoint.read(folder)
    key = next(iter(changes))
    assert "\n" not in str(error.value)
    if case not in ("wrong vocabulary", "wrong width", "odd head", "window by type"):
        words = [key, *(changes[key] if isinstance(changes[key], dict) else [])]
        assert any(str(word) in str(error.value) for word in words)


BAD_GPT2 = {
    "cross attention": {"add_cross_attention": True},
    "positions": {"n_ctx": 128},
    "activation": {"activation_function": "gelu_10"},
    "heads": {"n_head": 5},
    "double heads": {"architectures": ["GPT2DoubleHeadsModel"]},
    "unknown key": {"rotary_dim": 64},
}


@pytest.mark.parametrize("case", BAD_GPT2)
def test_a_gpt2_config_that_cannot_be_honoured_is_refused(case, made, tmp_path):
    folder = copy(made("gpt2"), tmp_path, **BAD_GPT2[case])
    with pytest.raises(ModelError, match=next(iter(BAD_GPT2[case]))):
        checkpoint.read(folder)


def test_layer_types_and_window_keys_of_qwen_agree_or_are_refused(made, tmp_path):
    base = config_of(made("qwen2-windows"))
    assert [a.attention.window for a in llama.spec(base).layers] == [0, 40, 40]
    kept = {k: v for k, v in base.items() if k != "layer_types"}
    assert llama.spec(kept) == llama.spec(base)
    off = base | {"use_sliding_window": False}
    with pytest.raises(ModelError, match="layer_types"):
        llama.spec(off)
    plain = {k: v for k, v in off.items() if k != "layer_types"}
    assert {a.attention.window for a in llama.spec(plain).layers} == {0}


def test_the_nearest_model_type_is_suggested():
    with pytest.raises(ModelError, match="did you mean qwen2"):
        families.of({"model_type": "qwen2a"})


# Tensors


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Path:
    tensors = {k: np.array(v) for k, v in safetensors.read_folder(folder).tensors.items()}
    safetensors.write(folder / "model.safetensors", change(tensors), {"format": "pt"})
    return folder


def test_missing_tensors_are_listed(made, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    folder = rewrite(
        copy(made("llama2"), tmp_path), lambda t: {k: v for k, v in t.items() if k != name}
    )
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        checkpoint.read(folder)


def test_unexpected_tensors_are_refused_and_known_ones_noted(made, tmp_path):
    inv_freq = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = copy(made("llama2"), tmp_path)
    rewrite(folder, lambda t: t | {inv_freq: np.ones(6, np.float32)})
    assert any(inv_freq in note for note in checkpoint.read(folder).notes)
    rewrite(folder, lambda t: t | {"model.layers.0.self_attn.q_proj.lora_A": np.ones(6)})
    with pytest.raises(ModelError, match="lora_A"):
        checkpoint.read(folder)


def test_a_wrong_shape_or_type_names_the_tensor(made, tmp_path):
    folder = copy(made("llama2"), tmp_path)
    rewrite(folder, lambda t: t | {"model.norm.weight": np.ones(47, np.float32)})
    with pytest.raises(ModelError, match=r"model\.norm\.weight has the shape \(47,\).*\(48,\)"):
        checkpoint.read(folder)
    rewrite(folder, lambda t: t | {"model.norm.weight": np.ones(48, np.int8)})
    with pytest.raises(ModelError, match=r"model\.norm\.weight has the type int8"):
        checkpoint.read(folder)


def test_a_fused_tensor_that_is_too_wide_is_refused(made, tmp_path):
    name = "transformer.h.0.attn.c_attn.weight"
    folder = copy(made("gpt2"), tmp_path)
    rewrite(folder, lambda t: t | {name: np.ones((48, 4 * 48), np.float32)})
    with pytest.raises(ModelError, match=r"c_attn\.weight has the shape \(48, 192\).*\(48, 144\)"):
        checkpoint.read(folder)


def test_masks_stored_in_gpt2_checkpoints_are_ignored_with_a_note(made, tmp_path):
    folder = copy(made("gpt2"), tmp_path)
    mask = {"transformer.h.0.attn.bias": np.ones((1, 1, 256, 256), np.uint8)}
    rewrite(folder, lambda t: t | mask)
    assert any("attn.bias" in note for note in checkpoint.read(folder).notes)


def test_a_stored_copy_of_a_tied_head_must_equal_the_embedding(made, tmp_path):
    folder = copy(made("smollm"), tmp_path)
    rewrite(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"]})
    assert checkpoint.read(folder).digest == checkpoint.read(made("smollm")).digest
    rewrite(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(ModelError, match="lm_head"):
        checkpoint.read(folder)


@pytest.mark.parametrize(("name", "prefix"), [("smollm", "model."), ("gpt2", "transformer.")])
def test_base_models_are_read_when_their_head_is_tied(name, prefix, made, tmp_path):
    folder = copy(made(name), tmp_path)
    rewrite(folder, lambda t: {k.removeprefix(prefix): v for k, v in t.items()})
    assert checkpoint.read(folder).digest == checkpoint.read(made(name)).digest


def test_a_base_model_without_a_tied_head_is_refused(made, tmp_path):
    def bare(tensors):
        kept = {k.removeprefix("model."): v for k, v in tensors.items()}
        del kept["lm_head.weight"]
        return kept

    with pytest.raises(ModelError, match=r"lacks lm_head\.weight"):
        checkpoint.read(rewrite(copy(made("llama2"), tmp_path), bare))


def test_shards_swapped_missing_or_outside_the_folder_are_refused(tmp_path):
    folder = checkpoints.make("llama2", tmp_path, shards=3)
    shards = sorted(folder.glob("*.safetensors"))
    first, second = shards[0].read_bytes(), shards[1].read_bytes()
    shards[0].write_bytes(second)
    shards[1].write_bytes(first)
    with pytest.raises(FileError, match=f"{shards[0].name} lacks"):
        checkpoint.read(folder)
    shards[0].unlink()
    with pytest.raises(FileError, match=f"lacks {shards[0].name}"):
        checkpoint.read(folder)
    index = folder / "model.safetensors.index.json"
    for place in ("../x.safetensors", "/x.safetensors", "..", "a/b.safetensors", "x.bin"):
        index.write_text(json.dumps({"weight_map": {"a": place}}))
        with pytest.raises(FileError, match=r"index\.json names the file"):
            checkpoint.read(folder)


def test_pickles_are_refused_by_name_and_never_opened(made, tmp_path):
    folder = copy(made("llama2"), tmp_path)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "pytorch_model.bin")  # opening it would wait for ever
    with pytest.raises(FileError, match=r"pytorch_model\.bin"):
        checkpoint.read(folder)


# Ids, notes, digest


def test_end_ids_come_from_both_files_and_those_outside_are_noted(made, tmp_path):
    folder = copy(made("llama2"), tmp_path, eos_token_id=[2, 5], bos_token_id=9)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 7, 101], "top_k": 3}')
    read = checkpoint.read(folder)
    assert (read.ends, read.start, read.defaults["top_k"]) == ((2, 5, 7), 9, 3)
    assert any("101" in note for note in read.notes)


def test_the_digest_changes_with_a_single_bit(made, tmp_path):
    path = copy(made("llama2"), tmp_path) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert checkpoint.read(tmp_path).digest != checkpoint.read(made("llama2")).digest


def test_weights_are_views_of_the_file(made):
    assert not any(
        array.flags.owndata for array in checkpoint.read(made("llama2")).weights.values()
    )


# Casts


def test_casts_round_to_nearest_even_exactly():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xFF7F0000], np.uint32)
    cast = weighing.convert({"x": bits.view(np.float32)}, "bf16")["x"]
    assert cast.view(np.uint16).tolist() == [0x3F80, 0x3F82, 0x3F81, 0xFF7F]
    halves = np.array([1 + 2**-11, 1 + 3 * 2**-11, 65519.0, 2**-25, 3 * 2**-26], np.float32)
    cast = weighing.convert({"x": halves}, "f16")["x"]
    assert cast.tolist() == [1.0, 1 + 2**-9, 65504.0, 0.0, 2**-24]


@pytest.mark.parametrize(("value", "precision"), [(65520.0, "f16"), (3.4e38, "bf16")])
def test_a_cast_to_infinity_is_refused_by_name(value, precision):
    with pytest.raises(RequestError, match=r"w\.x"):
        weighing.convert({"w.x": np.array([1.0, value], np.float32)}, precision)


def test_casting_keeps_what_has_the_type_already():
    array = np.ones(3, ml_dtypes.bfloat16)
    assert weighing.convert({"x": array}, "bf16")["x"] is array
    assert weighing.convert({"x": array})["x"] is array
    with pytest.raises(RequestError, match="did you mean bf16"):
        weighing.convert({"x": array}, "bfp16")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_the_first_tensor_that_is_not_finite_is_named(dtype, value):
    bad = np.zeros((3, 1 << 19), dtype)
    largest = ml_dtypes.finfo(dtype).max
    good = np.array([largest, -largest, 0], dtype)
    assert weighing.first_nonfinite({"a": good, "b": bad}) is None
    bad[2, -1] = value
    assert weighing.first_nonfinite({"a": good, "b": bad}) == "b"


# Writing


@pytest.mark.parametrize("name", ["llama2", "smollm", "llama-biases"])
def test_a_llama_that_is_written_loads_in_transformers_with_equal_logits(name, made, tmp_path):
    read = checkpoint.read(made(name))
    checkpoint.write(tmp_path, read.spec, read.weights, config={"eos_token_id": 2})
    again = checkpoint.read(tmp_path)
    assert (again.spec, again.digest, again.ends) == (read.spec, read.digest, (2,))
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = checkpoints.prompt()
    logits = model(torch.tensor([ids])).logits[0].detach().numpy()
    assert_close(logits, checkpoints.expected_logits(made(name), ids))


def test_writing_is_the_same_to_the_byte_each_time(made, tmp_path):
    read = checkpoint.read(made("llama2"))
    for name in ("a", "b"):
        checkpoint.write(tmp_path / name, read.spec, read.weights)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_model_that_its_config_cannot_describe_is_not_written(made, tmp_path):
    for name in ("mistral", "gpt2", "llama3", "qwen3"):
        read = checkpoint.read(made(name))
        with pytest.raises(ModelError):
            checkpoint.write(tmp_path / "out", read.spec, read.weights)
    assert not (tmp_path / "out").exists()
    given = config_of(made("llama3"))
    read = checkpoint.read(made("llama3"))
    checkpoint.write(tmp_path / "out", read.spec, read.weights, config=given)
    assert checkpoint.read(tmp_path / "out").spec == read.spec


# A really trained model in the llama2.c format


def test_stories260k_is_read_and_continues_sanely():
    path = DATA / "weights/stories260K/stories260K.bin"
    if not path.exists():
        pytest.skip("../shared/data is not here")
    read = checkpoint.read(path)
    assert (read.spec.vocab_size, read.spec.context, read.parameters) == (512, 512, 260032)
    tensors = {k: torch.tensor(v) for k, v in read.weights.items()}
    ids = [1]
    for _ in range(24):
        index = np.arange(len(ids), dtype=np.int32)
        batch = Batch(np.array(ids, np.int32), index, 0 * index, np.array([[-1]]), index[-1:])
        ids.append(int(forward(ReferenceOps(batch), read.spec, tensors)[0].argmax()))
    words = llama2c_words(path.with_name("tok512.bin"))
    text = b"".join(words[i] for i in ids[1:]).decode()
    assert text.startswith(" Once upon a time, there was a little girl named Lily. She")


def llama2c_words(path: Path) -> list[bytes]:
    data, words, at = path.read_bytes(), [], 4
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")  # after a score of 4 bytes
        words.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return words


# Laws


def test_reading_a_model_loads_no_torch(made):
    code = (
        "import sys; from pathlib import Path; from seriatim.models import checkpoint;"
        "checkpoint.read(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(made("gpt2"))], check=True)


def test_a_family_names_every_weight_of_its_specs(made):
    for name in checkpoints.VARIANTS:
        config = config_of(made(name))
        module = families.of(config)[1]
        spec = module.spec(config)
        assert module.sources(spec, ()).keys() == shapes(spec).keys()


def test_every_error_is_of_our_own_kind(tmp_path):
    for content in ("", "[]", "{", "null", '{"model_type": null}', '{"model_type": 3}', "\ufeff{}"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(SeriatimError):
            checkpoint.read(tmp_path)
    with pytest.raises(FileError, match="does not exist"):
        checkpoint.read(tmp_path / "absent")
