"""Protein models that others trained: ProGen2's layout, and GPT-2 folders in ProtGPT2's manner."""

import json
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import seriatim
from seriatim.errors import ModelError, SeriatimError
from seriatim.files import safetensors
from seriatim.measure import variants
from seriatim.models import checkpoint
from seriatim.verify import reference


@pytest.fixture(scope="module")
def progen(tmp_path_factory) -> Path:
    return checkpoints.make("progen", tmp_path_factory.mktemp("progen"))


def changed(source: Path, target: Path, **config) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    values = json.loads((source / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(values))
    return target


# ProGen2


def test_the_independent_definition_of_verify_agrees_on_parallel_layers(progen):
    model, ids = seriatim.load(progen, threads=1), checkpoints.prompt(40)
    expected = reference.logits(model.checkpoint.spec, model.checkpoint.weights, ids, kv="f32")
    assert np.abs(model.logits(ids) - expected).max() <= 2e-5 * np.abs(expected).max()


def test_a_fine_tuned_progen_is_written_in_its_own_layout(progen, tmp_path):
    read = checkpoint.read(progen)
    checkpoint.write_again(tmp_path / "again", read, dict(read.weights))
    again = checkpoint.read(tmp_path / "again")
    assert again.digest == read.digest
    name = "transformer.h.1.attn.qkv_proj.weight"
    files = [safetensors.read(f / "model.safetensors") for f in (progen, tmp_path / "again")]
    assert np.array_equal(files[0].tensors[name], files[1].tensors[name])


def test_progen_runs_in_blocks_made_at_load_but_not_from_a_quantised_file(progen, tmp_path):
    exact = seriatim.load(progen, threads=1)
    ids = checkpoints.prompt(30)
    rounded = seriatim.load(progen, threads=1, precision="int8").logits(ids)
    assert np.corrcoef(rounded.ravel(), exact.logits(ids).ravel())[0, 1] > 0.99
    from seriatim.quantising import quantize

    with pytest.raises(ModelError, match=r"rows of transformer\.h\.0\.attn\.qkv_proj\.weight are"):
        quantize(progen, to="int8", out=tmp_path / "int8")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"n_head": 4}, "n_head = 4; expected a multiple of 8"),
        ({"rotary_dim": 3}, "rotary_dim = 3; expected an even number"),
        ({"rotary_dim": 10}, "rotary_dim = 10; expected an integer from 1 to 8"),
        ({"n_ctx": 100}, "n_ctx"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"embed_dim": 128}, "'embed_dim'"),
        ({"auto_map": {"AutoModel": "modeling.py"}}, "auto_map"),
        ({"architectures": ["ProGenModel"]}, "ProGenForCausalLM"),
    ],
)
def test_a_progen_of_another_kind_is_refused_by_name(progen, tmp_path, config, names):
    with pytest.raises(ModelError, match=names):
        seriatim.load(changed(progen, tmp_path / "odd", **config))


def test_a_fused_tensor_of_another_size_is_refused(progen, tmp_path):
    folder = changed(progen, tmp_path / "odd")
    path = folder / "model.safetensors"
    tensors = {k: v.copy() for k, v in safetensors.read(path).tensors.items()}
    name = "transformer.h.0.attn.qkv_proj.weight"
    tensors[name] = tensors[name][:-24]
    safetensors.write(path, tensors, {"format": "pt"})
    with pytest.raises(ModelError, match=r"qkv_proj.weight has the shape \(360, 128\)"):
        seriatim.load(folder)


def test_layers_one_after_another_are_another_model(progen):
    """The test above cannot pass by ignoring `parallel`."""
    from dataclasses import replace

    read = checkpoint.read(progen)
    weights = dict(read.weights)
    layers = tuple(replace(layer, parallel=False) for layer in read.spec.layers)
    for index in range(len(layers)):
        for end in ("weight", "bias"):
            weights[f"layers.{index}.mlp_norm.{end}"] = weights[
                f"layers.{index}.attention_norm.{end}"
            ]
    ids = checkpoints.prompt(20)
    serial = reference.logits(replace(read.spec, layers=layers), weights, ids, kv="f32")
    parallel = reference.logits(read.spec, read.weights, ids, kv="f32")
    assert np.abs(serial - parallel).max() > 0.1


# ProtGPT2

FRAME = "<|endoftext|>"


@pytest.fixture(scope="module")
def protgpt2(tmp_path_factory) -> Path:
    """GPT-2 over pieces of several residues, a newline after each 60, framed by <|endoftext|>."""
    import transformers

    folder = tmp_path_factory.mktemp("protgpt2")
    letters = sorted({*"ACDEFGHIKLMNPQRSTVWYX", "Ċ"})
    vocab = {piece: id for id, piece in enumerate([FRAME, *letters, "MK", "LL", "LLA"])}
    made = Tokenizer(models.BPE(vocab, [("M", "K"), ("L", "L"), ("LL", "A")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([FRAME])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=FRAME, eos_token=FRAME
    )
    fast.save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=len(vocab), n_embd=32, n_layer=2, n_head=2, n_positions=128,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    checkpoints.randomise(model)
    model.save_pretrained(folder)
    return folder


def test_a_gpt2_of_proteins_loads_with_its_tokenizer_and_generates_by_motif(protgpt2):
    import transformers

    model = seriatim.load(protgpt2, threads=1)
    assert [model.decode([id]) for id in model.encode("MKLLA\n")] == ["MK", "LLA", "\n"]
    ids = [0, *model.encode("\nMKLLAC")]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(protgpt2)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(model.logits(ids) - expected).max() < 1e-4
    text = model.generate([0], regex="\nM[A-Z]{2}C[KR]", seed=0).text
    assert (len(text), text[4]) == (6, "C")


def test_variants_of_a_text_model_stand_in_their_frame(protgpt2):
    model = seriatim.load(protgpt2, threads=1)
    wild = "MKLLAC" * 12
    (row,) = variants.ratios(
        model, wild, [variants.parse("L3V", wild)], template="\n{}\n", width=60
    )
    lines = f"{wild[:60]}\n{wild[60:]}"
    assert row.wild_log_likelihood == -model.score(f"\n{lines}\n").nats
    mutant = f"\nMKVLAC{lines[6:]}\n"
    assert row.log_likelihood == -model.score(mutant).nats
    assert row.log_ratio == row.log_likelihood - row.wild_log_likelihood
    for options in ({"template": "MK"}, {"width": -1}, {"family": "PF1"}):
        with pytest.raises(SeriatimError, match=next(iter(options))):
            [*variants.ratios(model, wild, [], **options)]
