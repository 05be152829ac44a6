"""`load`: names, files that are not as they should be, options, and what it takes of memory."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

import seriatim
from seriatim import loading, zoo
from seriatim.errors import FileError, ModelError, NumericError, RequestError, ResourceError
from seriatim.files import safetensors
from seriatim.files.llama2c_vocab import read_vocab

IDS = [1, 200, 3, 44, 5, 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def own(tmp_path) -> Path:
    """A folder that a test may damage."""
    return tiny.write(tmp_path / "own")


@pytest.fixture
def shipped(monkeypatch, tmp_path) -> Path:
    """A zoo that holds one model, `tales`."""
    monkeypatch.setattr(zoo, "_HERE", tmp_path / "zoo")
    return tiny.write(tmp_path / "zoo" / "tales")


def load(path: Path | str, **options) -> seriatim.Model:
    return seriatim.load(path, **{"threads": 1} | options)


def reconfigure(folder: Path, **changes) -> Path:
    """The folder with keys of its config.json replaced, or removed when `...`."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in config.items() if v is not ...}))
    return folder


def shard(folder: Path) -> tuple[Path, Path]:
    """The same model in two files and their index."""
    tensors = {
        k: v.copy() for k, v in safetensors.read(folder / safetensors.SINGLE).tensors.items()
    }
    (folder / safetensors.SINGLE).unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, mine in parts.items():
        safetensors.write(folder / file, {name: tensors[name] for name in mine}, {"format": "pt"})
    places = {name: file for file, mine in parts.items() for name in mine}
    (folder / safetensors.INDEX).write_text(json.dumps({"weight_map": places}))
    return folder / "model-1.safetensors", folder / "model-2.safetensors"


def refused(kind: type[Exception], *words: str, path: Path | str, **options) -> str:
    """The message with which `load` refuses; it is one line and holds the words."""
    with pytest.raises(kind) as caught:
        load(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert not [word for word in words if word not in text], text
    return text


# Names


def test_a_shipped_model_is_loaded_by_its_name_alone(shipped, monkeypatch, tmp_path):
    assert load("tales").checkpoint.path == shipped
    assert repr(load("tales")).startswith("<seriatim.Model tales: llama, ")
    monkeypatch.chdir(tiny.write(tmp_path / "elsewhere" / "tales").parent)
    assert load("tales").checkpoint.path == shipped, "a name without a separator is the shipped one"
    assert load("./tales").checkpoint.path == Path("./tales")
    assert load(Path("tales")).checkpoint.path == Path("tales")


def test_the_nearest_shipped_name_is_suggested(shipped):
    refused(RequestError, "no model 'tles'", "did you mean tales?", path="tles")
    refused(RequestError, "no model 'zzz'", "known: tales", path="zzz")


def test_a_path_that_exists_beats_a_hub_id(monkeypatch, tmp_path):
    tiny.write(tmp_path / "owner" / "model")
    monkeypatch.setattr(loading, "_download", lambda name: pytest.fail(f"{name} was looked for"))
    monkeypatch.chdir(tmp_path)
    assert load("owner/model").vocab_size == tiny.VOCAB


NOWHERE = ["./x", "../x", "a/b/c", "/no/such", "x.bin", "~", "-x", "a b", "é/ü", "x" * 5000]


@pytest.mark.parametrize("name", [*NOWHERE, "\ud800", "two\nlines"])
def test_only_what_looks_like_a_hub_id_is_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(loading, "_download", lambda name: pytest.fail(f"{name} was looked for"))
    refused(RequestError, "there is no model", "a path that exists, a hub id", path=name)


@pytest.mark.parametrize("name", ["", None, 5, b"tales", "a\0b", ["tales"]])
def test_what_is_no_name_is_refused(name):
    refused(RequestError, "the model name is", "a name, a path or a hub id", path=name)


def test_the_line_that_a_model_prints_says_what_was_loaded(folder):
    assert repr(load(folder, isa="plain", context=100)) == (
        "<seriatim.Model tiny: llama, 35,040 weights (f32), 2 layers of 32, vocabulary 257, "
        "context 100, kv f32, native plain, 1 thread>"
    )


@pytest.mark.parametrize("name", ["two words", "two\nlines", "naïve 日本", "tab\t", "-m", "a.b"])
def test_a_folder_may_have_any_name(name, folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / name)
    model = load(path)
    assert model.logits(IDS).shape == (6, tiny.VOCAB)
    assert "\n" not in repr(model)
    assert load(str(path)).facts == model.facts


# The hub: each in a process of its own, for the library reads its settings once


def hub(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess:
    source = str(Path(seriatim.__file__).parents[1])
    settings = {"PYTHONPATH": source, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-c", f"import seriatim.loading as l\n{code}"],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_a_network_a_hub_id_is_refused_and_a_kept_copy_is_loaded(folder, tmp_path):
    kept = tmp_path / "hub" / "models--owner--kept"
    shutil.copytree(folder, kept / "snapshots" / ("0" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    code = "print(l.load('owner/kept', threads=1))\nl.load('owner/other')"
    done = hub(code, tmp_path, HF_HUB_OFFLINE="1")
    assert done.stdout.startswith("<seriatim.Model owner/kept: llama, 35,040 weights (f32)")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("seriatim.errors.FileError: no path 'owner/other', and as a hub id it")
    assert "check the name and the network" in last


def test_a_hub_that_never_answers_is_given_up(tmp_path):
    """The hub's library waits without limit for the first answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code = "l.PATIENCE = 0.2\nl.load('owner/other')"
        done = hub(code, tmp_path, HF_ENDPOINT=endpoint, NO_PROXY="127.0.0.1")
    assert "FileError: no path 'owner/other'" in done.stderr.strip().splitlines()[-1]


# Codecs


def test_a_folder_without_a_tokenizer_takes_ids_and_gives_ids(own):
    for path in own.glob("*token*"):
        path.unlink()
    (own / "codec.json").unlink()
    model = load(own)
    assert model.codec is None
    answer = model.generate(IDS, max_tokens=4, seed=1)
    assert (answer.output, answer.text, len(answer.ids)) == (None, "", 4)
    assert model.score(IDS).bits_per_unit is None
    assert [piece.ids for piece in model.stream(IDS, max_tokens=4, seed=1)] == [
        [i] for i in answer.ids
    ]
    for call in (
        lambda: model.generate("text"),
        lambda: model.generate(["text", "more"]),
        lambda: model.generate(own / "config.json"),
        lambda: model.score("text"),
        lambda: model.encode("text"),
        lambda: model.decode(IDS),
    ):
        with pytest.raises(RequestError, match=r"needs a codec.*a tokenizer or codec\.json"):
            call()
    with pytest.raises(RequestError, match="stop strings need a codec"):
        model.generate(IDS, stop=["x"])


@pytest.mark.parametrize("vocab", [256, 300, 384])
def test_a_vocabulary_of_another_size_is_refused_with_both_sizes(vocab, tmp_path):
    none = dict(bos_token_id=None, eos_token_id=None)
    path = tiny.write(tmp_path, vocab_size=vocab, ids=none)
    refused(ModelError, "has 257 ids", f"the model {vocab}", path=path)


def test_a_vocabulary_padded_to_a_multiple_of_64_is_accepted(tmp_path):
    model = load(tiny.write(tmp_path, vocab_size=320))
    assert (model.vocab_size, model.codec.size) == (320, 257)
    answer = model.generate("ab", allowed_ids=[300, 97], max_tokens=20, seed=1)
    assert set(answer.ids) == {300, 97}
    assert answer.output == b"a" * answer.ids.count(97), "an id of no byte is nothing"


def test_a_codec_json_of_an_unknown_codec_suggests_the_nearest(own):
    (own / "codec.json").write_text('{"codec": "bite", "version": 1, "options": {}}')
    refused(RequestError, "'bite'", "did you mean byte?", path=own)


def test_a_llama2c_file_takes_the_vocabulary_beside_it(data, tmp_path):
    source = data / "weights" / "stories260K"
    weights = tmp_path / "stories.bin"
    weights.write_bytes((source / "stories260K.bin").read_bytes())
    assert load(weights).codec is None
    vocabulary = (source / "tok512.bin").read_bytes()
    (tmp_path / "tok512.bin").write_bytes(vocabulary)
    model = load(weights)
    assert model.codec.decode(model.encode("Once upon a time")) == "Once upon a time"
    assert (model.start, model.ends, model.context) == ((1,), (1, 2), 512)
    (tmp_path / "tok_more.bin").write_bytes(vocabulary)
    refused(FileError, "tok512.bin, tok_more.bin", "expected one", path=weights)


def test_a_vocabulary_of_another_llama2c_model_is_refused(data, tmp_path):
    source = data / "weights" / "stories260K"
    (tmp_path / "stories.bin").write_bytes((source / "stories260K.bin").read_bytes())
    pieces = read_vocab(source / "tok512.bin")[0][:400]
    size = 4 + sum(8 + len(piece.encode()) for piece in pieces)
    (tmp_path / "tok.bin").write_bytes((source / "tok512.bin").read_bytes()[:size])
    refused(ModelError, "has 400 ids", "the model 512", path=tmp_path / "stories.bin")


# Options


@pytest.mark.parametrize("stored", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("precision", ["f32", "f16", "bf16"])
def test_a_precision_is_what_weights_become(stored, precision, tmp_path):
    path = tiny.write(tmp_path, dtype=stored)
    asis, model = load(path), load(path, precision=precision)
    assert f"weights ({stored})" in asis.facts
    assert f"weights ({precision})" in model.facts
    assert f"kv {'f32' if precision == 'f32' else 'bf16'}" in model.facts
    full = load(path, precision="f32").logits(IDS)
    for seen in (asis, model):
        assert np.abs(seen.logits(IDS) - full).max() <= 0.03 * np.abs(full).max()
    if stored == precision:
        assert np.array_equal(asis.logits(IDS), model.logits(IDS))


@pytest.mark.parametrize("kv, tolerance", [("bf16", 0.01), ("int8", 0.02)])
def test_keys_and_values_are_kept_as_asked(kv, tolerance, tmp_path):
    path = tiny.write(tmp_path)
    full, model = load(path).logits(IDS), load(path, kv=kv)
    assert f"kv {kv}" in model.facts
    seen = model.logits(IDS)
    assert 0 < np.abs(seen - full).max() <= tolerance * np.abs(full).max()
    reference = load(path, kv=kv, backend="torch", threads=None).logits(IDS)
    assert np.abs(seen - reference).max() <= 1e-4 * np.abs(full).max()


BAD_OPTIONS = [
    (dict(precision="int5"), ["'int5'", "did you mean int8?"]),
    (dict(precision="F32"), ["'F32'", "did you mean f32?"]),
    (dict(precision=None), ["precision is None", "known: bf16, f16, f32, int4, int8, stored"]),
    (dict(precision=["f32"]), ["precision is ['f32']"]),
    (dict(kv="int4"), ["kv is 'int4'", "'f32', 'bf16' or 'int8'"]),
    (dict(kv=8), ["kv is 8", "'f32', 'bf16' or 'int8'"]),
    (dict(backend="cuda"), ["backend is 'cuda'", "'native' or 'torch'"]),
    (dict(backend=None), ["backend is None", "'native' or 'torch'"]),
    (dict(device="cuda"), ["device is 'cuda'", "backend='torch'"]),
    (dict(device=0), ["device is 0", "'cuda'"]),
    (dict(isa="neon"), ["isa is 'neon'", "plain"]),
    (dict(threads=0), ["threads is 0", "1 to 1024"]),
    (dict(threads=1.5), ["threads is 1.5", "1 to 1024"]),
    (dict(threads=True), ["threads is True", "1 to 1024"]),
    (dict(threads=10**6), ["threads is 1000000", "1 to 1024"]),
    (dict(context=0), ["context is 0", "1 to the model's own 256"]),
    (dict(context=257), ["context is 257", "1 to the model's own 256"]),
    (dict(context="9"), ["context is '9'", "1 to the model's own 256"]),
    (dict(cache_bytes=0), ["cache_bytes is 0", "1 or more"]),
    (dict(cache_bytes=1.5), ["cache_bytes is 1.5", "1 or more"]),
    (dict(cache_bytes="1G"), ["cache_bytes is '1G'", "1 or more"]),
    (dict(treads=2), ["unknown option 'treads'", "did you mean threads?"]),
    (dict(lora="x"), ["unknown option 'lora'", "known: adapter, backend", "threads"]),
    (dict(backend="torch", isa="avx2", threads=None), ["isa is 'avx2'", "backend='native'"]),
    (dict(backend="torch"), ["threads is 1", "backend='native'"]),
]


@pytest.mark.parametrize("options, words", BAD_OPTIONS, ids=lambda v: str(v)[:40])
def test_an_option_that_cannot_be_honoured_is_refused(options, words, folder):
    refused(RequestError, *words, path=folder, **options)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(device, folder):
    words = [f"device {device!r} cannot be used", "use device='cpu'"]
    refused(RequestError, *words, path=folder, backend="torch", device=device, threads=None)


def test_a_cache_too_small_for_one_block_is_refused_with_the_numbers(folder):
    least = load(folder).runtime.block_bytes
    text = refused(ResourceError, "cache_bytes is 10", "64 positions", path=folder, cache_bytes=10)
    assert f"at least {least:,}" in text


def test_a_small_cache_shortens_the_context_and_says_so(folder):
    block = load(folder).runtime.block_bytes
    model = load(folder, cache_bytes=2 * block + 1)
    assert model.context == 128
    assert "context 128 of 256 (what cache_bytes holds)" in model.facts
    assert model.generate([1] * 120, ignore_end=True, seed=1).stop == "context"
    with pytest.raises(RequestError, match="has 200 ids and the context is 128"):
        model.generate([1] * 200)


def test_a_context_that_was_asked_for_must_fit_the_cache(folder):
    block = load(folder).runtime.block_bytes
    words = [f"cache_bytes is {2 * block:,}", f"at least {4 * block:,} for 200 positions"]
    refused(ResourceError, *words, path=folder, cache_bytes=2 * block, context=200)
    assert load(folder, cache_bytes=4 * block, context=200).context == 200


def test_a_context_that_was_asked_for_is_the_limit(folder):
    model = load(folder, context=100)
    assert model.context == 100
    assert len(model.generate([1] * 90, ignore_end=True, seed=1).ids) == 10
    with pytest.raises(
        RequestError, match="has 100 ids and the context is 100; expected at most 99"
    ):
        model.generate([1] * 100)


# Files


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("model.gguf", b"GGUF\x01\0\0\0" + bytes(60), ["is GGUF of version 1", "2 or 3"]),
        ("model.pt", b"PK\x03\x04" + bytes(60), ["PyTorch zip of pickles", "can run code"]),
        ("model.pkl", b"\x80\x04\x95" + bytes(60), ["is a pickle"]),
        ("model.bin", b"ak42" + bytes(60), ["version 1 or later"]),
        ("model.bin", b"", ["0 bytes", "a llama2.c file"]),
        ("model.bin", bytes(100), ["says dim = 0"]),
        ("config.json", b"{}", ["is one file of a model", "the folder"]),
        ("model.safetensors", bytes(16), ["is one file of a model", "the folder"]),
    ],
)
def test_a_file_of_another_kind_is_refused_by_its_name(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(FileError, name, *words, path=tmp_path / name)


def test_a_folder_of_pickles_is_refused_and_nothing_in_it_runs(own, tmp_path):
    canary = tmp_path / "canary"
    (own / safetensors.SINGLE).unlink()
    payload = f"cposix\nsystem\n(S'touch {canary}'\ntR."
    (own / "pytorch_model.bin").write_bytes(payload.encode())
    refused(FileError, "pytorch_model.bin", "can run code", "convert", path=own)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "codec.json"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(name, own):
    (own / name).unlink()
    os.mkfifo(own / name)
    refused(FileError, name, path=own)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(model_type="lama"), ["'lama'", "did you mean llama?"]),
        (dict(model_type=...), ["no model_type"]),
        (dict(architectures=["BertModel"]), ["BertModel", "LlamaForCausalLM"]),
        (dict(hidden_act="glu"), ["hidden_act", "'glu'"]),
        (dict(hidden_size=33), ["the shape (257, 32)", "(257, 33)"]),
        (dict(hidden_size=33, head_dim=...), ["hidden_size = 33", "num_attention_heads = 4"]),
        (dict(num_hidden_layers=10**9), ["num_hidden_layers"]),
        (dict(num_hidden_layers=3), ["lacks", "model.layers.2."]),
        (dict(num_hidden_layers=1), ["holds", "model.layers.1."]),
        (dict(intermediate_size=72), ["the shape (64, 32)", "(72, 32)"]),
        (dict(attention_chunk_size=64), ["attention_chunk_size"]),
        (dict(quantization_config={"bits": 4}), ["quantization_config"]),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_honoured_is_refused(changes, words, own):
    refused(ModelError, *words, path=reconfigure(own, **changes))


def test_shards_are_read_as_one(own, folder):
    shard(own)
    assert np.array_equal(load(own).logits(IDS), load(folder).logits(IDS))


def test_a_missing_shard_is_named(own):
    shard(own)[1].unlink()
    refused(FileError, "lacks model-2.safetensors", "index.json lists", path=own)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 30_000, -1])
def test_a_shard_that_is_cut_is_named(keep, own):
    cut = shard(own)[0]
    cut.write_bytes(cut.read_bytes()[:keep])
    refused(FileError, "model-1.safetensors", path=own)


def test_shards_that_changed_places_are_refused(own):
    one, two = shard(own)
    one_bytes, two_bytes = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_bytes)
    two.write_bytes(one_bytes)
    refused(FileError, "lacks", "index.json", path=own)


def test_an_index_that_leads_out_of_the_folder_is_refused(own):
    shard(own)
    index = own / safetensors.INDEX
    index.write_text(index.read_text().replace("model-1", "../../model-1"))
    refused(FileError, "../../model-1.safetensors", "plain name", path=own)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_weights_that_are_not_finite_are_named_as_on_disk(value, backend, own):
    bad = "model.layers.1.mlp.down_proj.weight"
    tiny.change(own, lambda tensors: tensors[bad].__setitem__((3, 4), value))
    model = seriatim.load(own, backend=backend)
    for call in (lambda: model.generate("ab", max_tokens=3), lambda: model.score("ab")):
        with pytest.raises(NumericError, match=rf"not finite.*{bad}"):
            call()
        model.engine.check()
        assert model.pool.available == model.pool.limit


# Memory

MEMORY = """
import gc, sys
import seriatim
def resident():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmRSS"].split()[0]) * 1024
seriatim.load(sys.argv[1], threads=1).generate([1], max_tokens=2)  # what code itself takes
before = resident()
model = seriatim.load(sys.argv[2], threads=1, context=64, precision=sys.argv[3])
mapped = resident() - before
model.generate([1], max_tokens=2)
print(mapped, resident() - before, "torch" in sys.modules)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("precision, share", [("stored", 1.0), ("bf16", 0.5)])
def test_weights_are_resident_once(precision, share, folder, tmp_path):
    sizes = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=4)
    big = tiny.write(tmp_path, **sizes)
    size = (big / safetensors.SINGLE).stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, folder, big, precision],
        env=os.environ | {"PYTHONPATH": str(Path(seriatim.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    mapped, used, torch = done.stdout.split()
    assert 0.9 * share * size < int(used) < share * size + 8e6
    if precision == "stored":
        assert int(mapped) < 0.1 * size, "loading reads no weights"
    assert torch == "False"


@pytest.mark.parametrize("precision", ["f32", "int8", "int4"])
def test_weights_that_would_not_fit_are_refused_before_they_are_made(precision, monkeypatch):
    monkeypatch.setattr(loading.memory, "available", lambda: 1000)
    with pytest.raises(ResourceError, match=r"bytes of weights and 1,000 are available"):
        seriatim.load("tales", precision=precision)
