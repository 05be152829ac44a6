"""Models in GGUF: the same numbers as the folder they were made of, or a refusal that says why."""

from functools import cache
from pathlib import Path

import checkpoints
import gguf_files
import numpy as np
import pytest
from gguf_files import tiny

import seriatim
from seriatim.errors import ModelError, RequestError, ResourceError
from seriatim.files.gguf import Tensor
from seriatim.kernels import formats
from seriatim.measure import facts
from seriatim.models import checkpoint, ggml, memory
from seriatim.models.weights import convert

IDS = checkpoints.prompt()
EXACT = ("Q4_0", "Q8_0", "Q5_0", "Q6_K")
CLOSE = 2e-5  # as a share of the largest logit, in float32

every_kind = pytest.mark.parametrize("kind", ggml.BLOCKS)


def oracle():
    return pytest.importorskip("gguf", reason="needs the package gguf")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A variant's folder and the GGUF file made of it, once."""
    oracle()

    @cache
    def get(name: str, kind: str = "F32", dtype: str = "float32") -> tuple[Path, Path]:
        place = tmp_path_factory.mktemp(name)
        folder = checkpoints.make(name, place / "folder", dtype=dtype)
        return folder, gguf_files.convert(folder, place / "model.gguf", kind)

    return get


def logits(path: Path, **options) -> np.ndarray:
    return seriatim.load(path, threads=1, **options).logits(IDS)


def distance(seen: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(seen - expected).max() / np.abs(expected).max())


# The same maths


@pytest.mark.parametrize(
    "name", ["llama2", "llama3", "llama-yarn", "llama-linear", "smollm", "mistral-full"]
)
def test_llamas_turned_rows_give_the_logits_of_transformers(name, made):
    folder, path = made(name)
    assert distance(logits(path), checkpoints.expected_logits(folder, IDS)) < CLOSE


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gpt2"])
def test_rows_in_their_own_order_give_the_logits_of_the_folder_to_the_bit(name, made):
    folder, path = made(name)
    assert np.array_equal(logits(path), logits(folder))


@pytest.mark.parametrize("kind, dtype", [("F16", "float16"), ("BF16", "bfloat16")])
def test_halves_give_the_logits_of_the_folder_to_the_bit(kind, dtype, made):
    folder, path = made("qwen3", kind, dtype)
    assert np.array_equal(logits(path), logits(folder))


def test_facts_are_the_folders(made):
    folder, path = made("smollm")
    read, expected = checkpoint.read(path), checkpoint.read(folder)
    assert (read.ends, read.start, read.spec.tied) == (expected.ends, expected.start, True)
    assert read.dtypes == expected.dtypes and read.parameters == expected.parameters
    assert read.names["layers.1.query.weight"] == "blk.1.attn_q.weight"
    shown = facts.of(seriatim.load(path, threads=1))
    assert (shown["type"], shown["context"]) == ("llama", 256)


def test_floats_are_views_of_the_map(tmp_path):
    for array in checkpoint.read(tiny(tmp_path / "x.gguf")).weights.values():
        assert not array.flags.writeable and not array.flags.owndata


def test_the_magic_decides_and_not_the_name(tmp_path):
    path = tiny(tmp_path / "model.bin")
    assert checkpoint.read(path).model_type == "llama"


def test_ends_start_and_sampling_values_are_read(tmp_path):
    keys = {
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.eom_token_id": 99,
        "general.sampling.top_k": 20,
    }
    read = checkpoint.read(tiny(tmp_path / "x.gguf", keys=keys))
    assert (read.ends, read.start, read.defaults) == ((2, 5), 1, {"top_k": 20})
    assert any("eom_token_id [99]" in note for note in read.notes)


def test_defaults_are_said(tmp_path):
    keys = {"llama.rope.freq_base": None, "llama.attention.head_count_kv": 2}
    notes = checkpoint.read(tiny(tmp_path / "x.gguf", keys=keys)).notes
    assert any("rope.freq_base" in note and "10000" in note for note in notes)


# Blocks


@every_kind
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 512 * 2 + 5])
def test_blocks_hold_the_values_that_the_package_reads(kind, rows):
    package = oracle()
    stored = gguf_files.blocks(kind, rows, 512)
    expected = package.quants.dequantize(stored, package.GGMLQuantizationType[kind])
    made = ggml.blocks(Tensor(kind, (rows, 512), stored.reshape(-1)), "x")
    assert made.data.nbytes == ggml.block_bytes(Tensor(kind, (rows, 512), stored))
    factors = formats.factors_of(made) if made.format.factors else None
    again = formats.pack(made.kind, *formats.unpack(made), factors)
    assert np.array_equal(again.data, made.data)
    values = formats.expand(made)
    if kind in EXACT:
        assert np.array_equal(values, expected)
        return
    assert np.array_equal(ggml.expand(kind, stored), expected)
    steps = np.repeat(formats.unpack(made)[1].astype(np.float32), 32, axis=1)
    # Half a step, and what the rounding of the scale adds to 127 of them.
    assert (np.abs(values - expected) <= 0.57 * steps + 4e-6).all()


@every_kind
def test_a_whole_model_of_blocks_holds_what_the_package_reads(kind, tmp_path):
    package, multiple = oracle(), {"llama.embedding_length": 256, "llama.feed_forward_length": 512}
    sizes = {64: 256, 96: 512, 40: 40, 32: 128}
    shapes = {n: tuple(sizes[x] for x in shape) for n, shape in gguf_files.SHAPES.items()}
    path = tiny(tmp_path / "x.gguf", keys=multiple, shapes=shapes, kind=kind)
    read = checkpoint.read(path)
    weights, expected = convert(read.weights, "f32"), {}
    for tensor in package.GGUFReader(path).tensors:
        expected[tensor.name] = package.quants.dequantize(tensor.data, tensor.tensor_type)
    for name, array in weights.items():
        whole = expected[read.names[name]].reshape(array.shape)
        assert np.abs(array - whole).max() <= (0 if kind in EXACT else 0.005) * np.abs(whole).max()
    assert any(kind in note for note in read.notes) == (kind not in EXACT)
    assert set(read.dtypes) == {ggml.BLOCKS[kind], "f32"}


def test_a_fused_tensor_of_blocks_is_cut_between_rows(tmp_path):
    package = oracle()
    checkpoints._gpt2(n_embd=64)(tmp_path / "folder")
    path = gguf_files.convert(tmp_path / "folder", tmp_path / "x.gguf", "Q8_0")
    stored = {tensor.name: tensor.data for tensor in package.GGUFReader(path).tensors}
    whole = package.quants.dequantize(
        stored["blk.1.attn_qkv.weight"], package.GGMLQuantizationType.Q8_0
    )
    weights = checkpoint.read(path).weights
    for index, part in enumerate(("query", "key", "value")):
        rows = slice(64 * index, 64 * (index + 1))
        assert np.array_equal(formats.expand(weights[f"layers.1.{part}.weight"]), whole[rows])
        bias = stored["blk.1.attn_qkv.bias"][rows]
        assert np.array_equal(weights[f"layers.1.{part}.bias"], bias)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q5_0"])
def test_blocks_run_as_they_are(kind, tmp_path):
    path, ids = tiny(tmp_path / "x.gguf", kind=kind), [i % 40 for i in IDS[:50]]
    exact, seen = (
        seriatim.load(path, threads=1, precision=p).logits(ids) for p in ("f32", "stored")
    )
    assert 0 < distance(seen, exact) < 0.02  # activations are rounded to int8


@pytest.mark.parametrize("value", [np.inf, np.nan, 6e4])
def test_what_cannot_be_rounded_is_refused_by_name(value):
    stored = gguf_files.blocks("Q4_K", 4, 512)
    stored[2, :2] = np.array([value], "<f2").view(np.uint8)
    with pytest.raises(ModelError, match=r"blk\.0\.x .*not finite"):
        ggml.blocks(Tensor("Q4_K", (4, 512), stored.reshape(-1)), "blk.0.x")


def test_blocks_of_zeros_stay_zeros():
    stored = np.zeros((3, 420), np.uint8)
    assert not formats.expand(ggml.blocks(Tensor("Q6_K", (3, 512), stored.reshape(-1)), "x")).any()


def test_memory_is_asked_for_before_any_block_is_made(tmp_path, monkeypatch):
    path = tiny(tmp_path / "x.gguf", kind="Q4_0")
    need = sum(w.nbytes for w in checkpoint.read(path).weights.values() if hasattr(w, "kind"))
    monkeypatch.setattr(memory, "available", lambda: need - 1)
    monkeypatch.setattr(ggml, "blocks", lambda *_: pytest.fail("a block was made"))
    with pytest.raises(ResourceError, match=f"{need:,} bytes and {need - 1:,}"):
        checkpoint.read(path)


# What is refused

REFUSED = {
    "another architecture": (dict(keys={"general.architecture": "falcon"}), "falcon"),
    "no architecture": (dict(keys={"general.architecture": None}), "architecture"),
    "an adapter": (dict(keys={"general.type": "adapter"}), "general.type"),
    "one of several files": (dict(keys={"split.count": 3}), "split.count"),
    "old blocks": (dict(keys={"general.quantization_version": 1}), "quantization_version"),
    "an unknown key": (dict(keys={"llama.logit_scale": 0.5}), "logit_scale"),
    "experts": (dict(keys={"llama.expert_count": 8}), "expert_count"),
    "a key that is missing": (dict(keys={"llama.block_count": None}), "block_count"),
    "a key of another type": (dict(keys={"llama.block_count": "1"}), "block_count"),
    "many layers": (dict(keys={"llama.block_count": 2**31}), "block_count"),
    "another vocabulary": (dict(keys={"llama.vocab_size": 41}), "vocab_size"),
    "heads that do not divide": (dict(keys={"llama.attention.head_count_kv": 3}), "head_count_kv"),
    "half a rotation": (dict(keys={"llama.rope.dimension_count": 8}), "dimension_count"),
    "odd heads": (dict(keys={"llama.attention.key_length": 15}), "even"),
    "unknown scaling": (dict(keys={"llama.rope.scaling.type": "longrope"}), "scaling.type"),
    "scaling of cosines": (dict(keys={"llama.rope.scaling.attn_factor": 1.5}), "attn_factor"),
    "no causality": (dict(keys={"llama.attention.causal": False}), "causal"),
    "a start id of text": (dict(keys={"tokenizer.ggml.bos_token_id": "1"}), "bos_token_id"),
    "start ids": (dict(keys={"tokenizer.ggml.bos_token_id": ["1"] * 9999}), "bos_token_id"),
    "no embedding": (dict(shapes={"token_embd.weight": None}), "token_embd"),
    "an embedding of three axes": (dict(shapes={"token_embd.weight": (40, 8, 8)}), "token_embd"),
    "a tensor missing": (dict(shapes={"blk.0.attn_k.weight": None}), "blk.0.attn_k.weight"),
    "a tensor too many": (dict(shapes={"blk.0.extra": (4,)}), "blk.0.extra"),
    "another shape": (dict(shapes={"blk.0.attn_k.weight": (64, 64)}), "blk.0.attn_k.weight"),
    "other factors": (dict(shapes={"rope_freqs.weight": (9,)}), "rope_freqs"),
    "factors of 0": (
        dict(shapes={"rope_freqs.weight": (8,)}, given={"rope_freqs.weight": bytes(32)}),
        "rope_freqs",
    ),
    "a base of 1": (dict(keys={"llama.rope.freq_base": 1.0}), "rope.freq_base"),
    "an infinite factor": (
        dict(keys={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": float("inf")}),
        "scaling.factor",
    ),
    "an unknown block": (dict(kind="IQ4_NL"), "IQ4_NL"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_run_exactly_is_refused(case, tmp_path):
    how, word = REFUSED[case]
    with pytest.raises(ModelError) as error:
        checkpoint.read(tiny(tmp_path / "x.gguf", **how))
    message = str(error.value)
    assert word in message and "\n" not in message and len(message) < 600


def test_a_context_beyond_the_models_own_is_refused(tmp_path):
    path = tiny(tmp_path / "x.gguf")
    assert checkpoint.read(path, context=10).spec.context == 10
    with pytest.raises(RequestError, match="64"):
        checkpoint.read(path, context=65)


def test_vocabularies_without_a_model_are_refused(data):
    path = data / "tokenizers" / "ggml-vocab" / "ggml-vocab-gpt-2.gguf"
    with pytest.raises(ModelError, match="token_embd"):
        checkpoint.read(path)
