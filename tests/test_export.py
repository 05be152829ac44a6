"""GGUF files as we write them: what llama.cpp's own package would write, and what it then runs."""

import json
import sys
from functools import cache
from math import prod
from pathlib import Path

import checkpoints
import gguf_files
import llama_process
import numpy as np
import pytest
import small
import tiny

import seriatim
from seriatim import cli
from seriatim.codecs import text
from seriatim.errors import FileError, ModelError, RequestError, SeriatimError
from seriatim.exporting import export
from seriatim.files import gguf
from seriatim.kernels.formats import GROUP, pack
from seriatim.models import ggml
from seriatim.models import gguf as models_gguf
from seriatim.models.families import llama
from seriatim.models.spec import weights as shapes
from seriatim.quant.export import TYPES, write
from seriatim.quant.gguf_header import header

library = pytest.importorskip("gguf", reason="needs the package gguf")

IDS = checkpoints.prompt(40)
WRITTEN = [
    "llama2",
    "llama3",
    "llama-linear",
    "llama-yarn",
    "smollm",
    "mistral-full",
    "qwen2",
    "qwen3",
    "gpt2",
]
BLOCKS = {"q4_0": "int4", "q8_0": "int8"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A variant's folder and our file of it, once."""

    @cache
    def get(name: str, type: str = "f32") -> tuple[Path, Path]:
        place = tmp_path_factory.mktemp(name)
        folder = checkpoints.make(name, place / "folder")
        export(folder, place / "model.gguf", type=type)
        return folder, place / "model.gguf"

    return get


def close(seen: np.ndarray, expected: np.ndarray, share: float = 2e-5) -> bool:
    return bool(np.abs(seen - expected).max() < share * np.abs(expected).max())


# What is in the file


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("name", ["llama3", "gpt2"])
def test_tensors_are_those_of_llama_cpps_converter(name, type, made, tmp_path):
    folder, path = made(name, type)
    theirs = gguf.read(gguf_files.convert(folder, tmp_path / "their.gguf")).tensors
    ours = gguf.read(path).tensors
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        values = tensor.data.view(np.float32).reshape(tensor.shape)
        if name == "rope_freqs.weight":
            continue  # they go with a base: compared in the model they give
        kind = ours[name].kind
        assert kind == expected_type(name, tensor.shape, type)
        assert ours[name].shape == tensor.shape
        assert ours[name].data.tobytes() == as_theirs(values, kind)


def expected_type(name: str, shape: tuple[int, ...], type: str) -> str:
    if len(shape) == 1 or "position" in name:
        return "F32"
    return "F16" if type in BLOCKS and shape[-1] % GROUP else type.upper()


def as_theirs(values: np.ndarray, kind: str) -> bytes:
    """What the package makes of values; it has no BF16 that keeps one that is not a number."""
    from gguf import GGMLQuantizationType, quants

    return np.ascontiguousarray(quants.quantize(values, GGMLQuantizationType[kind])).tobytes()


@pytest.mark.parametrize("name", WRITTEN)
def test_keys_say_what_the_converters_say(name, made, tmp_path):
    folder, path = made(name)
    theirs = dict(gguf.read(gguf_files.convert(folder, tmp_path / "their.gguf")).metadata)
    ours = dict(gguf.read(path).metadata)
    for key in theirs.keys() - {"GGUF.version"}:
        if key.endswith("token_id") or (name == "llama3" and key.endswith("freq_base")):
            continue  # without a tokenizer there is no place for them; with factors any base does
        assert ours[key] == pytest.approx(theirs[key]), key


@pytest.mark.parametrize("name", WRITTEN)
def test_the_package_reads_what_is_written(name, made):
    _, path = made(name)
    reader = library.GGUFReader(path)
    ours = gguf.read(path)
    assert {tensor.name for tensor in reader.tensors} == ours.tensors.keys()
    for tensor in reader.tensors:
        assert tuple(tensor.shape[::-1]) == ours.tensors[tensor.name].shape
        assert tensor.data_offset % 32 == 0


@pytest.mark.parametrize("name", WRITTEN)
def test_the_file_is_the_same_model(name, made):
    folder, path = made(name)
    model, again = (seriatim.load(place, threads=1) for place in (folder, path))
    assert close(again.logits(IDS), model.logits(IDS))
    assert (again.context, again.vocab_size) == (model.context, model.vocab_size)
    turns = [m.checkpoint.spec.layers[0].attention.rope for m in (model, again)]
    assert turns[0] is turns[1] or turns[0].frequencies == turns[1].frequencies


def test_a_files_file_is_the_same_file(tmp_path):
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    export("tales", first)
    export(first, second)
    a, b = gguf.read(first), gguf.read(second)
    assert {k: v for k, v in a.metadata.items() if not isinstance(v, np.ndarray)} | {
        "general.name": "a.gguf"
    } == {k: v for k, v in b.metadata.items() if not isinstance(v, np.ndarray)}
    for name, tensor in a.tensors.items():
        np.testing.assert_array_equal(tensor.data, b.tensors[name].data)


SCALINGS = [
    dict(rope_type="default"),
    dict(rope_type="linear", factor=2.5),
    dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768),
]


@pytest.mark.parametrize("theta", [10_000.0, 34567.8, 5e6])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
@pytest.mark.parametrize("channels", [16, 64, 128])
def test_what_a_config_said_of_positions_is_found_again(channels, scaling, theta):
    values = scaling | dict(rope_theta=theta)
    shape = dict(head_dim=channels, max_position_embeddings=131072, rope_parameters=values)
    keys, factors = header(llama.spec(tiny.CONFIG | shape), "llama")
    said = {k.removeprefix("llama.rope."): v for k, v in keys.items() if "rope." in k}
    assert said.pop("dimension_count") == channels
    expected = {
        "freq_base": theta,
        "scaling.type": scaling["rope_type"],
        "scaling.factor": scaling.get("factor"),
        "scaling.original_context_length": scaling.get("original_max_position_embeddings"),
    }
    if scaling["rope_type"] == "default":
        expected["scaling.type"] = None
    assert said == {k: v for k, v in expected.items() if v is not None}
    assert factors is None


# Types


def test_rows_that_are_no_whole_groups_are_f16_and_it_is_said(made, tmp_path):
    folder, _ = made("llama2")
    done = export(folder, tmp_path / "model.gguf", type="q4_0")
    assert set(done.types) == {"f16", "f32"}  # its rows are 48 and 88 long
    assert "no multiple of 32 are written as f16: token_embd.weight" in done.notes[-1]
    assert done.bytes == (tmp_path / "model.gguf").stat().st_size


def blocks_model(kind: str, layout: str):
    """A llama whose matrices are random blocks, and a tokenizer's metadata for none."""
    spec = llama.spec(tiny.CONFIG | dict(hidden_size=64, intermediate_size=96, head_dim=16))
    draw = np.random.default_rng(1)
    weights = {}
    for name, shape in shapes(spec).items():
        if len(shape) == 1:
            weights[name] = draw.standard_normal(shape, np.float32)
            continue
        q = draw.integers(0, 16 if kind == "int4" else 256, shape, dtype=np.uint8)
        scales = draw.normal(0, 0.01, (shape[0], shape[1] // GROUP)).astype(np.float16)
        weights[name] = pack(kind, q, scales)
    return spec, weights


@pytest.mark.parametrize("type, kind", BLOCKS.items())
def test_blocks_are_written_as_they_are(type, kind, tmp_path):
    spec, weights = blocks_model(kind, "half")
    done = write(tmp_path / "a.gguf", spec, weights, {}, type=type, name="blocks")
    assert done.notes == ()
    tensors = gguf.read(done.path).tensors
    for name, part in (("blk.0.ffn_up.weight", "layers.0.up.weight"),
                       ("token_embd.weight", "embed.weight")):  # fmt: skip
        assert ggml.blocks(tensors[name], name).data.tobytes() == weights[part].data.tobytes()
    again = models_gguf.read(done.path).spec
    values = checkpoint_values(again, done.path)
    query = np.array(values["layers.1.query.weight"]).reshape(4, 8, 2, 64).swapaxes(1, 2)
    from seriatim.kernels.formats import expand

    assert (query.reshape(64, 64) == expand(weights["layers.1.query.weight"])).all()


def checkpoint_values(spec, path):
    from seriatim.kernels.formats import Blocks, expand

    read = models_gguf.read(path).weights
    return {n: expand(w) if isinstance(w, Blocks) else w for n, w in read.items()}


def test_blocks_of_another_kind_are_rounded_and_it_is_said(tmp_path):
    spec, weights = blocks_model("int4", "half")
    done = write(tmp_path / "a.gguf", spec, weights, {}, type="q8_0", name="blocks")
    assert "blocks were expanded, and rounded to q8_0" in done.notes[0]


@pytest.mark.parametrize("type, value", [("f16", 1e5), ("q8_0", 1e9), ("q4_0", np.nan)])
def test_a_weight_that_a_type_cannot_hold_is_refused_by_name(type, value, tmp_path):
    spec = llama.spec(tiny.CONFIG)
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes(spec).items()}
    weights["layers.1.down.weight"][3, 5] = value
    with pytest.raises(RequestError, match="down"):
        write(tmp_path / "a.gguf", spec, weights, {}, type=type, name="large")
    assert not list(tmp_path.iterdir())


# Tokenizer, template, ids


def test_the_tokenizer_special_ids_and_template_are_written(tmp_path):
    folder = tmp_path / "folder"
    codec = text.train(text.EXAMPLES, 300)
    tiny.write(folder, codec=False, vocab_size=320, ids=dict(bos_token_id=0, eos_token_id=[0, 7]))
    codec.save(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    export(folder, tmp_path / "model.gguf")
    keys = gguf.read(tmp_path / "model.gguf").metadata
    assert keys["tokenizer.chat_template"] == "{{ messages }}"
    assert [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot")] == [0, 0, 7]
    model = seriatim.load(tmp_path / "model.gguf", threads=1)
    assert (model.codec.size, model.ends, model.start) == (320, (0, 7), (0,))
    assert model.encode("naïve 日本") == codec.encode("naïve 日本")


# Refusals


@pytest.mark.parametrize(
    "name, said",
    [
        ("mistral", "window = 13"),
        ("qwen2-windows", "window = 40"),
        ("llama-biases", "activation = 'gelu'"),
        ("llama-yarn-mscale", "frequencies follow no rule"),
        ("gpt2-inverse-scale", "layer 1 has attention scale"),
        ("gpt2-plain", "attention scale = 1.0"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused_by_name(name, said, tmp_path):
    folder = checkpoints.make(name, tmp_path / "folder")
    with pytest.raises(ModelError, match=said):
        export(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_nothing_is_overwritten_and_nothing_half_written_is_left(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_text("mine")
    with pytest.raises(FileError, match="exists already"):
        export("tales", path)
    assert path.read_text() == "mine"
    path.unlink()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library.GGUFWriter, "write_tensor_data", fails)
    with pytest.raises(FileError, match="No space left"):
        export("tales", path)
    assert not list(tmp_path.iterdir())


def test_other_formats_and_types_are_refused(tmp_path):
    with pytest.raises(RequestError, match="to is 'onnx'"):
        export("tales", tmp_path / "a", to="onnx")
    with pytest.raises(RequestError, match=r"type is 'q4'; did you mean q4_0\?"):
        export("tales", tmp_path / "a", type="q4")


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SeriatimError, match=r"pip install 'seriatim\[gguf\]'"):
        export("tales", tmp_path / "a.gguf")


# The command


def test_the_command_writes_a_file_and_says_what_is_in_it(tmp_path, capsys):
    words = ["export", "tales", "--type", "q8_0", "--out", str(tmp_path / "a.gguf"), "--json"]
    with pytest.raises(SystemExit) as done:
        cli.main(words)
    said = json.loads(capsys.readouterr().out)
    assert done.value.code == 0
    spec = seriatim.load("tales", threads=1).checkpoint.spec
    sizes = {name: prod(shape) for name, shape in shapes(spec).items()}
    norms = sum(size for name, size in sizes.items() if name.endswith("norm.weight"))
    assert said["types"] == {"q8_0": sum(sizes.values()) - norms, "f32": norms}
    with pytest.raises(SystemExit) as done:
        cli.main(words)
    assert (done.value.code, "exists already" in capsys.readouterr().err) == (2, True)


# llama.cpp itself


@pytest.mark.parametrize("name", WRITTEN)
def test_llama_cpp_computes_the_same_logits(name, made):
    folder, path = made(name)
    theirs = np.array(llama_process.ask("logits", path, IDS), np.float32)
    share = 1e-3 if name == "gpt2" else 2e-5  # llama.cpp's GELU is a table of f16
    assert close(theirs, seriatim.load(folder, threads=1).logits(IDS), share)


@pytest.mark.parametrize("type", ["f32", "f16"])
@pytest.mark.parametrize("name", ["tales", "stories260K"])
def test_llama_cpp_gives_the_same_greedy_text(name, type, tmp_path):
    source = name if name == "tales" else small.folder(name)
    export(source, tmp_path / "model.gguf", type=type)
    model = seriatim.load(tmp_path / "model.gguf", threads=1, kv="f32")
    ours = model.generate("Once upon a time", max_tokens=64, temperature=0, ignore_end=True)
    ids, text = llama_process.ask("greedy", tmp_path / "model.gguf", ["Once upon a time", 64])
    assert (ids, text) == (ours.ids, ours.text)


@pytest.mark.parametrize("name", ["tales", "stories260K"])
def test_llama_cpp_cuts_text_into_the_same_ids(name, tmp_path):
    source = name if name == "tales" else small.folder(name)
    export(source, tmp_path / "model.gguf")
    codec = seriatim.load(source, threads=1).codec
    texts = [raw.replace("▁", "_") for raw in text.EXAMPLES]  # llama2.c's has spaces for it
    assert llama_process.ask("ids", tmp_path / "model.gguf", texts) == list(
        map(codec.encode, texts)
    )


@pytest.mark.parametrize("type", BLOCKS)
def test_llama_cpp_loads_blocks(type, tmp_path):
    export("tales", tmp_path / "model.gguf", type=type)
    ids, _ = llama_process.ask("greedy", tmp_path / "model.gguf", ["Once upon a time", 8])
    assert len(ids) == 8
