"""Hostile and damaged files: one line that names the file and the reason, fast and small."""

import json
import os
import struct
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from seriatim.errors import FileError
from seriatim.files import jsonfile, llama2c, safetensors
from seriatim.models import checkpoint

TENSORS = {
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "wide": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "brain": np.arange(10, dtype=ml_dtypes.bfloat16),
    "bytes": np.arange(5, dtype=np.uint8),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(2.5, np.float32),
}


def safetensors_file(path: Path, header: object, data: bytes = b"", length: int | None = None):
    """A file with any header, which may lie about its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def record(dtype="F32", shape=(1,), offsets=(0, 4)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refused(path: Path, reader=safetensors.read) -> str:
    """The refusal's one line; it must name the file and take less than 100 MB."""
    tracemalloc.start()
    with pytest.raises(FileError) as error:
        reader(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(error.value)
    assert path.name in message and "\n" not in message and len(message) < 1000
    assert peak < 100e6
    return message


# safetensors: good files


def test_tensors_come_back_as_read_only_views(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.write(path, TENSORS, {"format": "pt"})
    tensors, metadata = safetensors.read(path)
    assert metadata == {"format": "pt"} and tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert tensors[name].dtype == array.dtype and tensors[name].shape == array.shape
        assert tensors[name].tobytes() == array.tobytes()
        assert not tensors[name].flags.writeable and not tensors[name].flags.owndata


def test_the_library_reads_what_we_write_even_from_strided_arrays(tmp_path):
    path = tmp_path / "model.safetensors"
    strided = {"turned": np.arange(6, dtype=np.float32).reshape(2, 3).T, "every": np.arange(9)[::2]}
    safetensors.write(path, strided, {})
    for name, array in load_file(path).items():
        assert np.array_equal(array, strided[name])


def test_a_tensor_may_be_replaced_while_its_file_is_mapped(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.write(path, TENSORS, {})
    tensors = safetensors.read(path).tensors
    path.unlink()
    assert np.array_equal(tensors["wide"], TENSORS["wide"])


def test_90_000_tensors_are_read(tmp_path):
    header = {f"t{i}": record("U8", (1,), (i, i + 1)) for i in range(90_000)}
    path = safetensors_file(tmp_path / "many.safetensors", header, bytes(90_000))
    assert len(safetensors.read(path).tensors) == 90_000


# safetensors: bad files


@pytest.mark.parametrize("part", range(16))
def test_a_file_cut_at_any_sixteenth_is_refused(part, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.write(path, TENSORS, {"format": "pt"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * part // 16])
    refused(path)


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, 100_000_001, 500])
def test_a_header_length_that_lies_is_refused(length, tmp_path):
    path = safetensors_file(tmp_path / "x.safetensors", {"a": record()}, bytes(4), length)
    assert "header" in refused(path)


def test_200_000_tensors_in_one_file_are_refused_at_once(tmp_path):
    names = (f'"model.layers.{i}.w":{{"dtype":"F32","shape":[1],' for i in range(200_000))
    places = (f'"data_offsets":[{4 * i},{4 * i + 4}]}}' for i in range(200_000))
    text = "{" + ",".join(a + b for a, b in zip(names, places, strict=True)) + "}"
    path = safetensors_file(tmp_path / "x.safetensors", text.encode(), bytes(800_000))
    assert "header" in refused(path)


BAD_HEADERS = {
    "overlap": ({"a": record(), "b": record(offsets=(2, 6))}, 6),
    "same place": ({"a": record(), "b": record()}, 4),
    "gap": ({"a": record(), "b": record(offsets=(8, 12))}, 12),
    "gap at the start": ({"a": record(offsets=(4, 8))}, 8),
    "bytes left over": ({"a": record()}, 5),
    "data cut": ({"a": record()}, 3),
    "size against shape": ({"a": record(shape=(2,))}, 4),
    "overflowing shape": ({"a": record(shape=(2**32, 2**32))}, 4),
    "overflow to the right size": ({"a": record(shape=(2**62 + 1, 4), offsets=(0, 16))}, 16),
    "huge size": ({"a": record(shape=(10**30,))}, 4),
    "negative size": ({"a": record(shape=(-1, -1))}, 4),
    "boolean size": ({"a": record(shape=(True,))}, 4),
    "float size": ({"a": record(shape=(1.0,))}, 4),
    "backward offsets": ({"a": record(shape=(0,), offsets=(4, 0))}, 4),
    "negative offsets": ({"a": record(offsets=(-4, 0))}, 4),
    "three offsets": ({"a": record(offsets=(0, 2, 4))}, 4),
    "unknown dtype": ({"a": record(dtype="F7")}, 4),
    "dtype not a word": ({"a": record() | {"dtype": ["F32"]}}, 4),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, 4),
    "key too many": ({"a": record() | {"x": 1}}, 4),
    "not a record": ({"a": 5}, 4),
    "metadata not words": ({"a": record(), "__metadata__": {"x": 1}}, 4),
    "metadata a record": ({"a": record(), "__metadata__": record()}, 4),
    "list": ([1, 2, 3], 0),
    "record alone": (record(), 4),
    "null": (None, 0),
    "300 axes": ({"a": record(shape=(1,) * 300)}, 4),
    "twice": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', 4),
    "not UTF-8": (b'{"\xff\xfe":1}', 0),
    "UTF-16": ("{}".encode("utf-16"), 0),
    "not JSON": (b"{{{{{{{{", 0),
    "nested": (b"[" * 1_000_000, 0),
    "nested objects": (b'{"a":' * 300_000, 0),
    "huge number": (b'{"a":' + b"9" * 10_000 + b"}", 0),
    "long names": (b'{"' + b"a" * 1_000_000 + b'":1}', 0),
    "control characters": (b'{"\\u001b[2J\\n":1}', 0),
    "half a character": (b'{"\\ud800":1}', 0),
    "byte order mark": (b"\xef\xbb\xbf{}", 0),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_bad_header_is_refused(case, tmp_path):
    header, size = BAD_HEADERS[case]
    refused(safetensors_file(tmp_path / "x.safetensors", header, bytes(size)))


@given(data=st.binary(max_size=200))
def test_any_bytes_as_a_header_are_refused(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    refused(safetensors_file(path, data, b"tail"))


# What is not a regular file


def not_files(folder: Path) -> list[Path]:
    pipe, loop, inner = folder / "pipe", folder / "loop", folder / "folder"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    inner.mkdir()
    return [pipe, loop, inner, folder / "absent", pipe / "below", folder / ("x" * 300)]


@pytest.mark.parametrize("reader", [safetensors.read, jsonfile.read_object, llama2c.read])
def test_pipes_loops_and_folders_are_refused_without_waiting(reader, tmp_path):
    for path in not_files(tmp_path):
        refused(path, reader)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
def test_a_model_folder_with_a_trap_in_it_is_refused(name, kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    target = tmp_path / name
    target.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "loop":
        target.symlink_to(target)
    else:
        target.mkdir()
    with pytest.raises(FileError, match=name):
        checkpoint.read(tmp_path)


CONFIG = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}


# JSON

BAD_JSON = {
    "byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "key twice": b'{"a": 1, "a": 2}',
    "key twice below": b'{"a": {"b": 1, "b": 2}}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "out of range": b'{"a": 1e999}',
    "list": b"[]",
    "empty": b"",
    "half": b'{"a": ',
    "deep": b'{"a": ' + b"[" * 200_000,
    "surrogate": b'{"a": ["\\ud800"]}',
    "Latin-1": b'{"a": "\xe9"}',
    "NUL": b"\0" * 64,
    "comment": b'{"a": 1} // note',
    "long integer": b'{"a": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_json_that_is_not_strict_is_refused(case, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(BAD_JSON[case])
    refused(path, jsonfile.read_object)


def test_json_over_the_limit_is_refused_and_good_json_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(r'{"a": [1, 2.5, null, "é\ud83d\ude00"]}')
    assert jsonfile.read_object(path) == {"a": [1, 2.5, None, "é😀"]}
    refused(path, lambda p: jsonfile.read_object(p, limit=10))


# llama2.c

DIMS = (8, 12, 2, 4, 2, 10, 16)


def llama2c_file(path: Path, dims=DIMS, *, extra: int = 0) -> Path:
    dim, hidden, layers, heads, kv, vocab, length = dims
    shared, per = dim // heads * kv, dim // heads
    layer = 2 * dim + 2 * dim * dim + 2 * shared * dim + 3 * dim * hidden
    size = abs(vocab) * dim * (1 if vocab > 0 else 2) + layers * layer + dim + length * per
    values = np.arange(size + extra, dtype="<f4")
    path.write_bytes(struct.pack("<7i", *dims) + values.tobytes())
    return path


@pytest.mark.parametrize("vocab", [10, -10])
def test_llama2c_blocks_are_laid_end_to_end(vocab, tmp_path):
    path = llama2c_file(tmp_path / "x.bin", (*DIMS[:5], vocab, 16))
    header, tensors = llama2c.read(path)
    assert header["tied"] == (vocab > 0) and ("output.weight" in tensors) == (vocab < 0)
    first = [tensors[f"layers.{i}.attention.wq.weight"][0, 0] for i in range(2)]
    assert first == [10 * 8 + 2 * 8, 10 * 8 + 2 * 8 + 64]
    assert checkpoint.read(path).spec.tied == (vocab > 0)


@pytest.mark.parametrize("part", range(16))
def test_a_llama2c_file_cut_at_any_sixteenth_is_refused(part, tmp_path):
    path = llama2c_file(tmp_path / "x.bin")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * part // 16])
    refused(path, llama2c.read)


@pytest.mark.parametrize("index", range(7))
@pytest.mark.parametrize("value", [0, -1, 2**31 - 1, -(2**31), 3])
def test_a_llama2c_header_with_a_bad_count_is_refused(index, value, tmp_path):
    path = llama2c_file(tmp_path / "x.bin")
    dims = [*DIMS[:index], value, *DIMS[index + 1 :]]
    path.write_bytes(struct.pack("<7i", *dims) + path.read_bytes()[28:])
    refused(path, llama2c.read)


def test_other_formats_are_refused_by_name(tmp_path):
    path = tmp_path / "model.bin"
    for magic, name in ((b"PK\x03\x04", "pickle"), (b"\x80\x02", "pickle"), (b"GGUF", "GGUF")):
        path.write_bytes(magic + bytes(100))
        assert name in refused(path, checkpoint.read)
    assert "bytes" in refused(llama2c_file(path, extra=1), llama2c.read)
