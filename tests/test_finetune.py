"""Going on from a model: all of its weights, or an adapter beside them, in PEFT's format."""

import json
import math
import shutil
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import checkpoints
import numpy as np
import pytest
import ranks
import small
import torch
from safetensors.numpy import load_file, save_file

import seriatim
from seriatim import loading
from seriatim.codecs import text
from seriatim.codecs.byte import ByteCodec
from seriatim.errors import FileError, ModelError, NumericError, RequestError
from seriatim.kernels.ops import Batch
from seriatim.kernels.reference import LowRank, ReferenceOps
from seriatim.kernels.torch_fast import TorchOps
from seriatim.models import checkpoint as models
from seriatim.models import lora, weights
from seriatim.models import peft as adapters
from seriatim.train import adapting, checkpoint, dial, loop, starting
from seriatim.train.model import Model
from seriatim.train.options import asked
from seriatim.train.report import Note, Progress, Started

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

IDS = checkpoints.prompt(70)
TEXT = "The quick brown fox, née Zoë, jumps over the lazy dog.\r\n\r\nAnd then? It rests.\n"
SMALL = {"context": 16, "batch": 2, "threads": 1, "steps": 6}

# By how their products are stored and what they add: a Llama, biases, QK-norm, windows, Conv1D.
FAMILIES: dict[str, Any] = {
    "llama": checkpoints._llama(vocab_size=257, rope_parameters=checkpoints.LLAMA3_ROPE),
    "qwen2": checkpoints._llama("Qwen2", vocab_size=257, tie_word_embeddings=True),
    "qwen3": checkpoints._llama("Qwen3", vocab_size=257, head_dim=32),
    "mistral": checkpoints._llama("Mistral", vocab_size=257, sliding_window=13),
    "gpt2": checkpoints._gpt2(vocab_size=257),
}
TARGETS = {kind: ["q_proj", "v_proj", "o_proj", "down_proj"] for kind in FAMILIES}
TARGETS["gpt2"] = ["c_attn", "mlp.c_proj"]
every_family = pytest.mark.parametrize("kind", FAMILIES)


@cache
def _scratch() -> TemporaryDirectory:
    return TemporaryDirectory(prefix="seriatim-test-")  # removed when the process ends


@cache
def base(kind: str = "llama", dtype: str = "float32") -> Path:
    """A tiny model with the codec of bytes."""
    folder = Path(_scratch().name) / f"{kind}-{dtype}"
    FAMILIES[kind](folder, dtype=dtype)
    ByteCodec().save(folder)
    return folder


def transformers_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@cache
def adapted(kind: str = "llama", config: str = "{}") -> tuple[Path, np.ndarray, np.ndarray]:
    """An adapter that `peft` wrote, with its logits beside the base and merged into it."""
    chosen = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS[kind], **json.loads(config)}
    model = peft.get_peft_model(
        transformers_model(base(kind)), peft.LoraConfig(task_type="CAUSAL_LM", **chosen)
    )
    draw = torch.Generator().manual_seed(3)
    for name, factor in model.named_parameters():
        if "lora_" in name:
            factor.data = torch.randn(factor.shape, generator=draw) * 0.1
    folder = Path(mkdtemp(dir=_scratch().name))
    model.save_pretrained(folder)
    with torch.no_grad():
        beside = model(torch.tensor([IDS])).logits[0].numpy()
        merged = model.merge_and_unload()(torch.tensor([IDS])).logits[0].numpy()
    return folder, beside, merged


@pytest.fixture
def book() -> Path:
    path = Path(_scratch().name) / "book.txt"
    path.write_bytes("".join(f"{n}. {TEXT}" for n in range(60)).encode())
    return path


@pytest.fixture
def learned(book: Path) -> Any:
    """A finished run, by family and options: made once for all tests that only read it."""
    return partial(_learned, book)


@cache
def _learned(book: Path, kind: str = "llama", **options: Any) -> Path:
    out = Path(mkdtemp(dir=_scratch().name)) / "out"
    run(book, out, init=str(base(kind)), **options)
    return out


def run(book: Path, out: Path, **options: Any) -> list:
    """The records of a short run beside or from the tiny Llama."""
    records: list = []
    given = {"init": str(base())} | SMALL | options
    loop.train(book, out=out, report=records.append, **given)
    return records


def of(records: list, kind: type) -> list:
    return [record for record in records if isinstance(record, kind)]


def close(seen: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(seen - expected).max() <= 1e-5 * np.abs(expected).max())


# What peft wrote, loaded


@every_family
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_an_adapter_of_peft_gives_its_logits(kind, backend):
    folder, beside, merged = adapted(kind)
    mine = seriatim.load(base(kind), adapter=folder, backend=backend)
    seen = mine.logits(IDS)
    assert close(seen, beside)
    assert close(seen, merged)
    assert not close(seriatim.load(base(kind), backend=backend).logits(IDS), beside)


@pytest.mark.parametrize("rooted", [False, True])
def test_ranks_and_alphas_of_single_matrices_are_kept(rooted):
    patterns = {
        "rank_pattern": {"q_proj": 6, "layers.1.mlp.down_proj": 2},
        "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 2.5, "o_proj": 9},
    }
    folder, beside, _ = adapted("llama", json.dumps(patterns | {"use_rslora": rooted}))
    assert close(seriatim.load(base(), adapter=folder).logits(IDS), beside)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_merged_matrices_are_those_of_the_formula(kind):
    """Computed here from the files alone: stored [out, in], or [in, out] in GPT-2."""
    folder, _, _ = adapted(kind)
    plain = load_file(base(kind) / "model.safetensors")
    factors = load_file(folder / "adapter_model.safetensors")
    for name, a in factors.items():
        if name.endswith("lora_A.weight"):
            b = factors[name.replace("lora_A", "lora_B")].astype(np.float64)
            stem = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            delta = 6 / 4 * b @ a
            plain[f"{stem}.weight"] = plain[f"{stem}.weight"] + (
                delta.T if kind == "gpt2" else delta
            )
    found = seriatim.load(base(kind), adapter=folder).checkpoint
    sources = models.families.by_name(kind if kind == "gpt2" else "llama")[1]
    stored = models.quantised.joined(found.weights, sources.sources(found.spec, plain))
    for name, array in stored.items():
        assert np.array_equal(array, plain[name].astype(np.float32)), name


def test_a_sum_is_rounded_once_to_the_type_that_its_weight_has():
    folder, _, _ = adapted()
    half = base(dtype="bfloat16")
    kept = seriatim.load(half, adapter=folder).checkpoint
    wide = seriatim.load(half, adapter=folder, precision="f32").checkpoint
    assert set(kept.dtypes) == {"bf16"}
    changed = 0
    for name, weight in kept.weights.items():
        exact = np.asarray(wide.weights[name], np.float32)
        changed += not np.array_equal(exact, exact.astype(weight.dtype).astype(np.float32))
        assert np.array_equal(weight, exact.astype(weight.dtype)), name
    assert changed == 8


@pytest.mark.parametrize("precision", ["int8", "int4", "bf16"])
def test_an_adapter_is_merged_before_weights_are_rounded(precision, learned):
    one = seriatim.load(base(), adapter=learned(adapter="lora"), precision=precision)
    other = seriatim.load(learned(adapter="lora", merge=True), precision=precision)
    assert np.array_equal(one.logits(IDS), other.logits(IDS))


def test_weights_in_blocks_take_an_adapter_only_with_a_precision(tmp_path):
    from seriatim.quantising import quantize

    folder, beside, _ = adapted()
    quantize(base(), to="int8", out=tmp_path / "blocks")
    with pytest.raises(RequestError, match=r"merged into weights in blocks .*give a precision"):
        seriatim.load(tmp_path / "blocks", adapter=folder)
    seen = seriatim.load(tmp_path / "blocks", adapter=folder, precision="f32").logits(IDS)
    assert np.abs(seen - beside).max() < 0.1 * np.abs(beside).max()


def test_an_adapter_fits_what_was_made_of_its_base_in_another_layout(tmp_path):
    """GGUF stores rows of queries and keys in another order, in which no adapter of peft is."""
    from seriatim.exporting import export

    folder, beside, _ = adapted("qwen2")
    bare = tmp_path / "bare"
    FAMILIES["qwen2"](bare)
    export(bare, tmp_path / "base.gguf", type="f32")
    assert close(seriatim.load(tmp_path / "base.gguf", adapter=folder).logits(IDS), beside)


def test_facts_digests_and_saved_prefixes_are_of_the_adapter(tmp_path):
    folder, _, _ = adapted()
    plain, other = seriatim.load(base()), seriatim.load(base(), adapter=folder)
    assert f"adapter {folder.name}" in repr(other)
    assert any("is merged: rank 4 beside 8 matrices" in note for note in other.checkpoint.notes)
    assert plain.checkpoint.digest != other.checkpoint.digest
    plain.save_prefix(IDS, tmp_path / "prefix")
    with pytest.raises(FileError, match="made with other weights"):
        other.load_prefix(tmp_path / "prefix")


def test_another_model_is_loaded_without_the_adapter():
    folder, beside, _ = adapted()
    model = seriatim.load(base(), adapter=folder)
    assert close(model.load(backend="torch").logits(IDS), beside)
    plain = model.load(base(), precision="stored")
    assert np.array_equal(plain.logits(IDS), seriatim.load(base()).logits(IDS))


def test_the_laws_hold_for_a_model_with_an_adapter():
    model = seriatim.load(base(), adapter=adapted()[0], threads=1)
    assert model.verify().ok


def test_a_folder_that_is_only_an_adapter_stands_for_its_base_with_it():
    folder, beside, _ = adapted()
    assert json.loads((folder / "adapter_config.json").read_bytes())["base_model_name_or_path"]
    assert close(seriatim.load(folder).logits(IDS), beside)


@pytest.mark.parametrize("name", ["owner/model", "", None, 5, "no\0where", "/nowhere/at/all"])
def test_an_adapter_whose_base_is_not_here_says_how_to_name_it(name, tmp_path):
    folder = changed(tmp_path, base_model_name_or_path=name)
    with pytest.raises(RequestError, match=r"not here.*load\(base, adapter="):
        seriatim.load(folder)
    assert seriatim.load(base(), adapter=folder).context == 256


def test_an_adapter_is_no_base(tmp_path):
    folder = changed(tmp_path, base_model_name_or_path=str(tmp_path / "adapter"))
    with pytest.raises(RequestError, match="not here"):
        seriatim.load(folder)
    with pytest.raises(FileError, match="holds only an adapter"):
        seriatim.load(folder, adapter=folder)


def test_an_adapter_beside_a_model_is_said_and_not_applied(tmp_path):
    folder = shutil.copytree(base(), tmp_path / "both")
    shutil.copyfile(adapted()[0] / "adapter_config.json", folder / "adapter_config.json")
    model = seriatim.load(folder)
    assert np.array_equal(model.logits(IDS), seriatim.load(base()).logits(IDS))
    assert any("is not applied" in note for note in model.checkpoint.notes)


# Files of strangers


def changed(place: Path, tensors: Any = None, **config: Any) -> Path:
    """The adapter of peft with some keys, or tensors, of another value; `...` removes a key."""
    folder = place / "adapter"
    shutil.copytree(adapted()[0], folder)
    values = json.loads((folder / "adapter_config.json").read_bytes()) | config
    kept = {key: value for key, value in values.items() if value is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(kept))
    if tensors is not None:
        found = load_file(folder / "adapter_model.safetensors")
        save_file(tensors(found), folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"peft_type": "LOHA"},
        {"peft_type": ...},
        {"target_modules": r"(a+)+b"},
        {"target_modules": ["q_proj", "nothing"]},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "v_proj", "o_proj", "down_proj", "up_proj"]},
        {"target_parameters": ["mlp.experts"]},
        {"layers_to_transform": [0]},
        {"exclude_modules": ["q_proj"]},
        {"init_lora_weights": "pissa"},
        {"task_type": "SEQ_CLS"},
        {"trainable_token_indices": [1, 2]},
        {"rank_pattern": {"(a+)+b": 3}},
        {"rank_pattern": {"q_proj": 10**9}},
        {"rank_pattern": {"q_proj": -1}},
        {"alpha_pattern": ["q_proj"]},
        {"alpha_pattern": {"q_proj": "2"}},
        {"r": 0},
        {"r": 10**30},
        {"r": 5},
        {"r": "4"},
        {"lora_alpha": None, "r": True},
        {"use_rslora": 1},
        {"something_new": True},
        {"kasa_config": {"beta": 1}},
    ],
    ids=str,
)
def test_what_an_adapter_asks_for_and_is_not_known_is_refused_by_name(config, tmp_path):
    folder = changed(tmp_path, **config)
    with pytest.raises(ModelError) as refused:
        seriatim.load(base(), adapter=folder)
    said = str(refused.value)
    assert any(key in said for key in config) or "adapter" in said
    assert len(said) < 1000


def _with(name: str, make: Any) -> Any:
    """A change of one tensor; it may return None to drop it."""
    full = f"base_model.model.model.layers.0.self_attn.{name}.weight"

    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        new = make(tensors[full])
        return {k: v for k, v in (tensors | {full: new}).items() if v is not None}

    return change


def _renamed(old: str, new: str) -> Any:
    return lambda tensors: {k.replace(old, new): v for k, v in tensors.items()}


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (_with("q_proj.lora_A", lambda a: a * np.nan), NumericError, "lora_A.* not finite"),
        (_with("q_proj.lora_B", lambda b: b + np.inf), NumericError, "lora_B.* not finite"),
        (_with("q_proj.lora_A", lambda a: a[:, 1:].copy()), ModelError, r"\(4, 47\).*\(4, 48\)"),
        (_with("q_proj.lora_B", lambda b: b.T.copy()), ModelError, r"\(4, 48\).*\(48, 4\)"),
        (_with("q_proj.lora_A", lambda a: a[0].copy()), ModelError, r"\(48,\)"),
        (_with("q_proj.lora_A", lambda a: a.astype(np.int32)), ModelError, "int32"),
        (_with("q_proj.lora_A", lambda a: None), ModelError, "lacks .*q_proj.lora_A"),
        (_renamed("layers.1", "layers.7"), ModelError, "layers.7"),
        (_renamed("base_model.model.", ""), ModelError, "beside no matrix"),
        (_renamed("lora_A.weight", "lora_A.bias"), ModelError, "lora_A.bias"),
        (_renamed("q_proj.lora_A.weight", "q_proj.lora_magnitude_vector"), ModelError, "magnitude"),
        (lambda tensors: {}, FileError, "no tensors"),
        (_with("q_proj.lora_A", lambda a: np.full_like(a, 3e38)), NumericError, "add up"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(change, error, named, tmp_path):
    folder = changed(tmp_path, tensors=change)
    if named == "add up":
        path = folder / "adapter_model.safetensors"
        save_file({k: v if "lora_A" in k else v * 1e5 for k, v in load_file(path).items()}, path)
    with pytest.raises(error, match=named):
        seriatim.load(base(), adapter=folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"r": NaN}', b'{"r": 1, "r": 2}', b"[" * 10**5, b"\xff{}"]
)
def test_a_config_that_is_not_json_is_refused(content, tmp_path):
    folder = changed(tmp_path)
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(FileError, match=r"adapter_config.json"):
        seriatim.load(base(), adapter=folder)


def test_files_that_are_missing_cut_or_pickled_are_refused(tmp_path):
    folder = changed(tmp_path)
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    for end in range(0, len(whole), len(whole) // 9):
        path.write_bytes(whole[:end])
        with pytest.raises(FileError):
            seriatim.load(base(), adapter=folder)
    path.rename(folder / "adapter_model.bin")
    with pytest.raises(FileError, match="can run code"):
        seriatim.load(base(), adapter=folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(FileError, match=r"holds no adapter_config.json"):
        seriatim.load(base(), adapter=folder)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="c_attn"):
        seriatim.load(base(), adapter=adapted("gpt2")[0])


# All weights


@every_family
def test_a_tuned_model_is_an_ordinary_checkpoint_of_its_family(kind, learned):
    out = learned(kind)
    before, after = (json.loads((f / "config.json").read_bytes()) for f in (base(kind), out))
    assert before == after
    stored = [load_file(folder / "model.safetensors") for folder in (base(kind), out)]
    assert stored[0].keys() == stored[1].keys()
    assert not any(np.array_equal(stored[0][n], stored[1][n]) for n in stored[0] if "proj" in n)
    with torch.no_grad():
        theirs = transformers_model(out)(torch.tensor([IDS])).logits[0].numpy()
    mine = seriatim.load(out)
    assert close(mine.logits(IDS), theirs)
    assert mine.context == 256  # a shorter row to learn from takes nothing away
    for name in ("tokenizer.json", "codec.json", "generation_config.json"):
        assert (out / name).read_bytes() == (base(kind) / name).read_bytes()


def test_a_tuned_model_learns_from_where_it_was(book, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    options = {"context": 16, "batch": 8, "threads": 1, "codec": "byte", "size": "0.02M"}
    records: list = []
    loop.train(book, out=first, steps=40, report=records.append, **options)
    then = run(book, second, init=str(first), batch=8, steps=20)
    assert of(then, Progress)[0].loss < 0.6 * of(records, Progress)[0].loss
    assert of(then, Progress)[-1].loss < of(then, Progress)[0].loss


def test_the_numbers_follow_from_the_parameters(book, tmp_path):
    source = seriatim.load("tales").checkpoint
    start = starting.of(asked({"init": "tales", "steps": 1, "out": "x"}))
    numbers = start.numbers(0)
    assert (numbers.parameters, numbers.frozen) == (source.parameters, 0)
    new = dial.rate_of(source.parameters, "adamw")
    assert numbers.learning_rate == pytest.approx(new / 10, rel=0.05)
    ids = dial.ids_of(source.parameters)
    assert numbers.batch * numbers.context == pytest.approx(ids / 4, rel=0.3)
    beside = starting.of(asked({"init": "tales", "adapter": "lora", "steps": 1, "out": "x"}))
    assert beside.numbers(0).learning_rate == pytest.approx(new, rel=0.05)
    assert beside.numbers(0).frozen == source.parameters
    chosen = {"batch": 3, "context": 33, "learning_rate": 0.1, "optimizer": "muon"}
    given = asked({"init": "tales", "steps": 1, "out": "x"} | chosen)
    assert vars(starting.of(given).numbers(0)).items() >= chosen.items()


def test_a_float_gguf_can_be_gone_on_from_and_blocks_cannot(book, tmp_path):
    from seriatim.exporting import export
    from seriatim.quantising import quantize

    export(small.folder("text"), tmp_path / "f16.gguf", type="f16")
    quantize(small.folder("text"), to="int8", out=tmp_path / "int8")
    run(book, tmp_path / "out", init=str(tmp_path / "f16.gguf"))
    ids = list(range(1, 60))
    with torch.no_grad():
        theirs = transformers_model(tmp_path / "out")(torch.tensor([ids])).logits[0].numpy()
    assert close(seriatim.load(tmp_path / "out").logits(ids), theirs)
    with pytest.raises(ModelError, match=r"int8 .*floats"):
        run(book, tmp_path / "no", init=str(tmp_path / "int8"))


def test_what_cannot_be_written_back_is_refused_before_the_run(book, tmp_path):
    """A GGUF of Qwen2 has biases that Llama's config.json, which it would get, cannot say."""
    from seriatim.exporting import export

    codec, path = text.specimens()[0], tmp_path / "base.gguf"
    checkpoints._llama("Qwen2", vocab_size=codec.size)(tmp_path / "base")
    codec.save(tmp_path / "base")
    export(tmp_path / "base", path, type="f32")
    with pytest.raises(ModelError, match=r"cannot describe.*adapter='lora'"):
        run(book, tmp_path / "out", init=str(path))
    assert not (tmp_path / "out").exists()
    run(book, tmp_path / "out", init=str(path), adapter="lora", steps=1)
    assert "adapter out" in repr(seriatim.load(path, adapter=tmp_path / "out"))


# An adapter beside them


@every_family
def test_peft_loads_what_was_learned_and_gives_its_logits(kind, learned):
    out = learned(kind, adapter="lora")
    theirs = peft.PeftModel.from_pretrained(transformers_model(base(kind)), out)
    with torch.no_grad():
        expected = theirs(torch.tensor([IDS])).logits[0].numpy()
    assert close(seriatim.load(base(kind), adapter=out).logits(IDS), expected)
    assert close(seriatim.load(out).logits(IDS), expected)
    assert not close(seriatim.load(base(kind)).logits(IDS), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_files_of_an_adapter_are_those_that_peft_writes(kind, learned, tmp_path):
    out, theirs = learned(kind, adapter="lora"), tmp_path / "theirs"
    peft.PeftModel.from_pretrained(transformers_model(base(kind)), out).save_pretrained(theirs)
    seen, expected = (json.loads((f / "adapter_config.json").read_bytes()) for f in (out, theirs))
    expected["target_modules"] = sorted(expected["target_modules"])
    assert expected.items() >= (seen | {"base_model_name_or_path": str(base(kind))}).items()
    mine, other = (load_file(f / "adapter_model.safetensors") for f in (out, theirs))
    assert mine.keys() == other.keys()
    assert all(np.array_equal(mine[name], other[name]) for name in mine)


def test_a_new_adapter_changes_no_bit_of_the_logits():
    source = models.read(base())
    held = {name: torch.tensor(array) for name, array in source.weights.items()}
    made = adapting.new(source, name="x", targets=None, rank=8, alpha=16, seed=0)
    beside = adapting.Beside(made, held)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        plain = Model(source.spec, held).logits(ids)
        assert torch.equal(Model(source.spec, beside.factors, beside=beside).logits(ids), plain)
    assert {p.module.name.rpartition(".")[2] for p in made.pairs} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    for pair in made.pairs:  # kaiming_uniform(a=sqrt(5)): within 1 / sqrt(inputs), spread over it
        bound = 1 / math.sqrt(pair.down.shape[1])
        assert 0.9 * bound < np.abs(pair.down).max() <= bound
        assert np.abs(pair.down.mean()) < 0.1 * bound
        assert not pair.up.any()


def test_frozen_weights_keep_every_bit(book, tmp_path):
    whole = tmp_path / "whole"
    before = {p: p.read_bytes() for p in base().iterdir()}
    run(book, whole, adapter="lora", merge=True, lora_targets="q_proj,down_proj")
    assert before == {p: p.read_bytes() for p in base().iterdir()}
    old, new = (load_file(folder / "model.safetensors") for folder in (base(), whole))
    for name, array in old.items():
        learned = "q_proj" in name or "down_proj" in name
        assert np.array_equal(array, new[name]) != learned, name


def test_merged_or_beside_is_the_same_model(learned):
    whole, out = learned(adapter="lora", merge=True), learned(adapter="lora")
    beside = seriatim.load(base(), adapter=out).checkpoint.weights
    for name, array in models.read(whole).weights.items():
        assert np.array_equal(array, beside[name]), name
    with torch.no_grad():
        theirs = transformers_model(whole)(torch.tensor([IDS])).logits[0].numpy()
    assert close(seriatim.load(out).logits(IDS), theirs)


def test_checkpoints_hold_the_factors_and_nothing_else(learned):
    found, _ = checkpoint.newest(learned(adapter="lora"))
    assert found is not None
    names = {
        f"{module.key}.lora_{side}.weight"
        for name, module in lora.modules(models.read(base())).items()
        for side in "AB"
        if name != "lm_head"
    }
    assert set(found.weights) == names
    assert set(found.optimizer) == {f"{m}.{name}" for m in ("first", "second") for name in names}


@pytest.mark.parametrize(
    "chosen", [{}, {"adapter": "lora"}, {"adapter": "lora", "ema": 0.9}], ids=str
)
def test_a_resumed_run_ends_with_the_same_bits(book, tmp_path, chosen):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(book, whole, save_every=2, **chosen)

    class Killed(Exception):
        pass

    def kill(record) -> None:
        if isinstance(record, Progress) and record.step == 5:
            raise Killed

    options = {"init": str(base())} | SMALL | chosen
    with pytest.raises(Killed):
        loop.train(book, out=cut, save_every=2, report=kill, **options)
    records = run(book, cut, save_every=2, resume=True, **chosen)
    assert of(records, Started)[0].first == 4
    name = "adapter_model.safetensors" if chosen else "model.safetensors"
    assert (whole / name).read_bytes() == (cut / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"init": "bfloat16"}, "trained with init [0-9a-f]+, not"),
        ({"lora_rank": 4}, "lora_rank None, not 4"),
        ({"lora_targets": "q_proj"}, r"lora_targets .*not \['q_proj'\]|parameters \d+, not"),
        ({"merge": True}, "merge False, not True"),
        ({"adapter": None}, "trained with"),
    ],
    ids=str,
)
def test_resume_refuses_another_start_by_name(book, learned, tmp_path, change, named):
    out = shutil.copytree(learned(adapter="lora"), tmp_path / "out")
    given = {"adapter": "lora", "out": out}
    change = change | ({"init": str(base(dtype=change["init"]))} if "init" in change else {})
    with pytest.raises(FileError, match=named):
        run(book, resume=True, **(given | change))


def test_an_adapter_can_be_gone_on_with(book, tmp_path):
    """It keeps its ranks, scales and targets, and begins where it was."""
    folder, _, _ = adapted("llama", '{"use_rslora": true}')
    out = tmp_path / "out"
    records = run(book, out, init=None, adapter=str(folder), learning_rate=1e-12, steps=1)
    before, after = (load_file(f / "adapter_model.safetensors") for f in (folder, out))
    assert before.keys() == after.keys()
    assert all(np.allclose(before[name], after[name], atol=1e-9) for name in before)
    config = json.loads((out / "adapter_config.json").read_bytes())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 6, True)
    assert close(seriatim.load(out).logits(IDS), seriatim.load(folder).logits(IDS))
    plain = run(book, tmp_path / "new", adapter="lora", learning_rate=1e-12, steps=1)
    assert of(plain, Progress)[0].loss != of(records, Progress)[0].loss


def test_dropout_that_an_adapter_was_trained_with_is_said(book, tmp_path):
    folder = changed(tmp_path, lora_dropout=0.1)
    records = run(book, tmp_path / "out", adapter=str(folder), steps=1)
    assert any("lora_dropout" in note.text for note in of(records, Note))
    assert json.loads((tmp_path / "out/adapter_config.json").read_bytes())["lora_dropout"] == 0


@pytest.mark.parametrize(
    "chosen",
    [
        {"recompute": True},
        {"accumulate": 2},
        {"accumulate": 2, "isolate": True},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_how_a_batch_is_computed_changes_only_rounding(book, tmp_path, chosen):
    isolated = {"isolate": True} if "isolate" in chosen else {}
    losses = [
        [p.loss for p in of(run(book, tmp_path / name, adapter="lora", **given), Progress)]
        for name, given in (("plain", isolated), ("other", chosen | isolated))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_an_adapter_learns_under_either_optimizer(book, tmp_path):
    for optimizer in ("adamw", "muon"):
        records = run(
            book, tmp_path / optimizer, adapter="lora", optimizer=optimizer, steps=16, batch=4
        )
        losses = [p.loss for p in of(records, Progress)]
        assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])


@pytest.mark.parametrize("ops", [ReferenceOps, TorchOps])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 2), (48, 33, 8)])
def test_a_product_of_low_rank_is_that_with_the_sum(ops, shape):
    outer, inner, rank = shape
    draw = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64)

    index = np.arange(6, dtype=np.int32)
    batch = Batch(index, index, np.zeros_like(index), np.zeros((1, 1), np.int32), index)
    made = ops(torch.tensor([[0, 1, 2]])) if ops is TorchOps else ops(batch)
    x, bias = drawn(6, inner), drawn(outer)
    low = LowRank(drawn(outer, inner), drawn(rank, inner), drawn(outer, rank), 1.5)
    whole = low.weight + 1.5 * low.up @ low.down
    assert torch.allclose(made.linear(x, low, bias), made.linear(x, whole, bias))


def test_several_ranks_learn_the_same_adapter(book, learned, tmp_path):
    ways = ("ddp", "fsdp")
    given = SMALL | {"init": str(base()), "adapter": "lora", "cache": tmp_path / "cache"}
    runs = [given | {"out": tmp_path / way, "parallel": way} for way in ways]
    runs.append(runs[-1] | {"out": tmp_path / "whole", "merge": True})
    assert not any(run["error"] for seen in ranks.together(book, runs) for run in seen)
    expected = load_file(learned(adapter="lora") / "adapter_model.safetensors")
    for way in ways:
        found = load_file(tmp_path / way / "adapter_model.safetensors")
        assert found.keys() == expected.keys()
        assert max(np.abs(found[name] - expected[name]).max() for name in found) < 2e-3
    merged = seriatim.load(tmp_path / "whole").logits(IDS)
    assert close(merged, seriatim.load(base(), adapter=tmp_path / "fsdp").logits(IDS))


# What is refused


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"size": "1M"}, "size is '1M'.*leave it out"),
        ({"codec": "byte"}, "codec is 'byte'.*leave it out"),
        ({"width": 64}, "width is 64; expected 48"),
        ({"depth": 3}, "depth is 3; expected 2"),
        ({"heads": 2}, "heads is 2; expected 4"),
        ({"vocab_size": 300}, "vocab_size is 300; expected 257"),
        ({"context": 513}, "context is 513; expected .*512"),
        ({"init": "tale"}, "did you mean tales"),
        ({"merge": True}, "merge is given without an adapter"),
        ({"lora_rank": 4}, "lora_rank is given without an adapter"),
        ({"lora_alpha": 4.0}, "lora_alpha is given without an adapter"),
        ({"lora_targets": "q_proj"}, "lora_targets is given without an adapter"),
        ({"adapter": "lora", "lora_rank": 49}, "lora_rank is 49; expected 1 to 48"),
        ({"adapter": "lora", "lora_rank": 10**12}, "lora_rank"),
        ({"adapter": "lora", "lora_rank": 0}, "lora_rank is 0"),
        ({"adapter": "lora", "lora_alpha": math.inf}, "lora_alpha is inf"),
        ({"adapter": "lora", "lora_targets": "q_prox"}, "'q_prox'; expected one of .*q_proj"),
        ({"adapter": "lora", "lora_targets": "embed_tokens"}, "embed_tokens"),
        ({"adapter": "lora", "lora_targets": ""}, "lora_targets is empty"),
        ({"adapter": "lora", "lora_targets": [3]}, "lora_targets is"),
        ({"adapter": "lora", "init": None}, "adapter is 'lora' without a model"),
        ({"adapter": "lore"}, "no model 'lore'"),
        ({"init": None}, "size is missing"),
    ],
    ids=str,
)
def test_options_that_contradict_are_refused(book, tmp_path, chosen, named):
    with pytest.raises((RequestError, ModelError), match=named):
        run(book, tmp_path / "out", **chosen)
    assert not (tmp_path / "out").exists()


def test_options_that_an_adapter_has_itself_are_refused(book, tmp_path):
    with pytest.raises(RequestError, match=r"lora_rank is 8.*the adapter has its own"):
        run(book, tmp_path / "out", adapter=str(adapted()[0]), lora_rank=8)


def test_a_model_without_a_codec_is_refused(book, tmp_path):
    folder = checkpoints.make("llama2", tmp_path / "bare")
    with pytest.raises(RequestError, match="has no codec"):
        run(book, tmp_path / "out", init=str(folder))


def test_shape_options_that_agree_are_accepted(book, tmp_path):
    run(book, tmp_path / "out", width=48, depth=2, heads=4, kv_heads=2, ffn=88, steps=1)
    assert models.read(tmp_path / "out").spec == models.read(base()).spec


# The command


def test_the_command_trains_loads_and_says_the_adapter(book, tmp_path, capsys):
    from seriatim import cli

    out = tmp_path / "out"
    command = f"train {book} --init {base()} --adapter lora --lora-targets q_proj --lora-targets"
    command += f" v_proj --steps 2 --context 16 --batch 2 --threads 1 --out {out}"
    for words in (
        command.split(),
        ["score", str(book), "-m", str(base()), "--adapter", str(out), "--json"],
        ["generate", "The", "-m", str(out), "--max-tokens", "3", "--seed", "1"],
    ):
        with pytest.raises(SystemExit) as done:
            cli.main(words)
        said = capsys.readouterr()
        assert done.value.code in (0, None), said.err
    card = (out / "README.md").read_text()
    assert "A LoRA adapter of" in card
    assert "--adapter lora --lora-targets q_proj --lora-targets v_proj" in card


def test_modules_are_named_as_peft_names_them():
    for kind in FAMILIES:
        theirs = dict(transformers_model(base(kind)).named_modules())
        found = lora.modules(loading.checkpoint.read(base(kind)))
        for name, module in found.items():
            shape = tuple(theirs[name].weight.shape)
            assert shape == (module.shape[::-1] if module.turned else module.shape)
            assert module.key.startswith("layers.") or name == "lm_head"


def test_an_adapter_is_written_and_read_with_the_same_bits(tmp_path):
    source = models.read(base())
    found = adapters.read(adapted()[0], source)
    adapters.write(tmp_path / "again", found, "f32")
    again = adapters.read(tmp_path / "again", source)
    for one, other in zip(found.pairs, again.pairs, strict=True):
        assert np.array_equal(one.down, other.down)
        assert np.array_equal(one.up, other.up)
    assert weights.digest(lora.summed(source.weights, found.pairs)) == weights.digest(
        lora.summed(source.weights, again.pairs)
    )
