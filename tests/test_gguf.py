"""GGUF: what llama.cpp's package writes is read to the bit; what lies is refused in one line."""

import struct
import tracemalloc
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from gguf_files import key, key_of, raw, strings, tensor, text, tiny
from hypothesis import given
from hypothesis import strategies as st

from seriatim.errors import FileError, ModelError
from seriatim.files import gguf
from seriatim.models import checkpoint

HUGE = 2**64 - 1
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


def oracle():
    return pytest.importorskip("gguf", reason="needs the package gguf")


def refused(path: Path, reader=gguf.read, error=FileError) -> str:
    """The refusal's one line; it must name the file and take little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            reader(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert path.name in message and "\n" not in message and len(message) < 1000
    assert peak < 20e6 + 2 * path.stat().st_size
    return message


# Good files


def test_every_kind_of_value_is_read_back(tmp_path):
    writer = oracle().GGUFWriter(tmp_path / "x.gguf", "llama")
    scalars = {"u8": 255, "i8": -128, "u16": 65535, "i16": -3, "u32": 2**32 - 1, "i32": -(2**31)}
    names = {"u": "uint", "i": "int"}
    for name, value in scalars.items():
        getattr(writer, f"add_{names[name[0]]}{name[1:]}")(name, value)
    writer.add_uint64("u64", HUGE)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("word", "né\0😀")
    writer.add_array("words", ["", "a", "ü" * 300])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("floats", [1.5, -2.5])
    write(writer)
    metadata = gguf.read(tmp_path / "x.gguf").metadata
    expected = scalars | {
        "u64": HUGE,
        "i64": -(2**63),
        "f32": 0.5,
        "f64": 0.1,
        "yes": True,
        "word": "né\0😀",
        "words": ["", "a", "ü" * 300],
        "general.architecture": "llama",
    }
    assert {k: metadata[k] for k in expected} == expected
    assert [type(metadata[k]) for k in ("yes", "u8", "f32")] == [bool, int, float]
    assert metadata["numbers"].tolist() == [1, -2, 3]
    assert metadata["floats"].tolist() == [1.5, -2.5]
    assert not metadata["numbers"].flags.writeable and "absent" not in metadata


def write(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_tensors_are_read_only_views_of_what_the_package_wrote(alignment, tmp_path):
    path = tmp_path / "x.gguf"
    writer = oracle().GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    arrays = {
        "wide": np.arange(12, dtype=np.float32).reshape(3, 4),
        "half": np.arange(7, dtype=np.float16),
        "long": np.arange(24, dtype=np.int64).reshape(2, 3, 4),
    }
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    write(writer)
    tensors = gguf.read(path).tensors
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        stored = tensors[name]
        assert stored.shape == array.shape and stored.data.tobytes() == array.tobytes()
        assert not stored.data.flags.writeable and not stored.data.flags.owndata
    assert [t.kind for t in tensors.values()] == ["F32", "F16", "I64"]


def test_our_table_of_types_is_the_packages():
    package = oracle()
    known = {kind.value: (kind.name, *size) for kind, size in package.GGML_QUANT_SIZES.items()}
    known[9] = ("Q8_1", 32, 36)  # two f16 and 32 bytes in ggml-common.h; the package says 40
    assert known == gguf.KINDS


def test_a_real_vocabulary_is_read_as_the_package_reads_it(data):
    path = data / "tokenizers" / "ggml-vocab" / "ggml-vocab-bert-bge.gguf"
    fields, metadata = oracle().GGUFReader(path).fields, gguf.read(path).metadata
    assert list(metadata) == [name for name in fields if not name.startswith("GGUF.")]
    for name in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "general.name"):
        assert list(metadata[name]) == list(fields[name].contents())


def test_real_merges_and_scores_are_read(data):
    folder = data / "tokenizers" / "ggml-vocab"
    metadata = gguf.read(folder / "ggml-vocab-gpt-2.gguf").metadata
    assert [len(metadata[f"tokenizer.ggml.{k}"]) for k in ("tokens", "merges")] == [50257, 50000]
    assert metadata["tokenizer.ggml.merges"][0] == "Ġ t"
    scores = gguf.read(folder / "ggml-vocab-phi-3.gguf").metadata["tokenizer.ggml.scores"]
    assert scores.dtype == np.float32 and len(scores) == 32064


def test_a_vocabulary_larger_than_the_first_window_is_read(tmp_path):
    words = [f"{i:030}" for i in range(40_000)]
    path = raw(tmp_path / "x.gguf", [key_of("words", words), key_of("last", 7)])
    metadata = gguf.read(path).metadata
    assert metadata["words"] == words and metadata["last"] == 7


def test_version_2_is_read_as_version_3(tmp_path):
    assert gguf.read(raw(tmp_path / "x.gguf", [key_of("a", 1)], version=2)).metadata["a"] == 1


# Files that lie

ONE = [tensor("a", [8])]  # 32 bytes
CASES: dict[str, tuple[dict, str]] = {
    "another magic": (dict(magic=b"GGML"), "begins with"),
    "version 0": (dict(version=0), "version 0"),
    "version 1": (dict(version=1), "version 1"),
    "version 4": (dict(version=4), "version 4"),
    "big-endian": (dict(version=0x03000000), "big-endian"),
    "tensors without end": (dict(counts=(HUGE, 0)), "tensors"),
    "keys without end": (dict(counts=(0, HUGE)), "keys"),
    "both": (dict(counts=(HUGE, HUGE)), "tensors"),
    "more keys than there are": (dict(keys=[key_of("a", 1)], counts=(0, 2)), "0 bytes"),
    "more tensors than there are": (dict(tensors=ONE, counts=(2, 0)), "cut short"),
    "a key without a name": (dict(keys=[key_of("", 1)]), "0 bytes"),
    "a key of 2^64 - 1 bytes": (dict(keys=[U64.pack(HUGE) + bytes(99)]), str(HUGE)),
    "a key that is not UTF-8": (dict(keys=[key(b"\xff", 4, U32.pack(1))]), "UTF-8"),
    "a key twice": (dict(keys=[key_of("a", 1), key_of("a", 2)]), "twice"),
    "a value of unknown type": (dict(keys=[key("a", 13, bytes(8))]), "unknown type 13"),
    "an array of unknown type": (dict(keys=[key("a", 9, struct.pack("<IQ", 99, 1))]), "type 99"),
    "an array of arrays": (dict(keys=[key("a", 9, struct.pack("<IQ", 9, 1))]), "array of arrays"),
    "an array without end": (dict(keys=[key("a", 9, struct.pack("<IQ", 4, HUGE))]), "cut short"),
    "strings without end": (dict(keys=[key("a", 9, struct.pack("<IQ", 8, HUGE))]), "cut short"),
    "a string without end": (dict(keys=[key("a", 8, U64.pack(HUGE) + b"a")]), "cut short"),
    "a string past the end": (dict(keys=[key("a", 8, U64.pack(99) + b"a")]), "cut short"),
    "a string in an array without end": (
        dict(keys=[key("a", 9, struct.pack("<IQ", 8, 2) + U64.pack(HUGE - 8) + bytes(8))]),
        "cut short",
    ),
    "alignment 0": (dict(keys=[key_of("general.alignment", 0)]), "alignment = 0"),
    "alignment 13": (dict(keys=[key_of("general.alignment", 13)]), "alignment = 13"),
    "alignment of text": (dict(keys=[key_of("general.alignment", "32")]), "another type"),
    "alignment of 64 bits": (dict(keys=[key("general.alignment", 10, U64.pack(32))]), "type"),
    "alignments": (
        dict(keys=[key("general.alignment", 9, struct.pack("<IQI", 4, 1, 32))]),
        "another type",
    ),
    "alignment past the end": (
        dict(keys=[key_of("general.alignment", 2**31)], tensors=ONE, data=bytes(32)),
        "cut short",
    ),
    "no axes": (dict(tensors=[tensor("a", [])], data=bytes(32)), "0 axes"),
    "5 axes": (dict(tensors=[tensor("a", [1] * 5)], data=bytes(32)), "5 axes"),
    "4294967295 axes": (
        dict(tensors=[text("a") + U32.pack(2**32 - 1) + bytes(99)], data=bytes(32)),
        "4294967295 axes",
    ),
    "an empty axis": (dict(tensors=[tensor("a", [8, 0])], data=bytes(32)), "shape (0, 8)"),
    "an axis without end": (dict(tensors=[tensor("a", [HUGE])], data=bytes(32)), "cut short"),
    "axes that overflow to 8 values": (
        dict(tensors=[tensor("a", [2**61 + 1, 8])], data=bytes(32)),
        "cut short",
    ),
    "axes that overflow to nothing": (
        dict(tensors=[tensor("a", [2**32, 2**32])], data=bytes(32)),
        "cut short",
    ),
    "a part of a block": (dict(tensors=[tensor("a", [40], 2)], data=bytes(36)), "multiple of 32"),
    "a tensor of unknown type": (dict(tensors=[tensor("a", [8], 99)]), "unknown type 99"),
    "a type that was withdrawn": (dict(tensors=[tensor("a", [32], 4)]), "unknown type 4"),
    "an offset without end": (dict(tensors=[tensor("a", [8], 0, HUGE)]), "multiple of 32"),
    "an offset past the end": (
        dict(tensors=[tensor("a", [8], 0, 2**63)], data=bytes(32)),
        "gap",
    ),
    "a misaligned offset": (dict(tensors=[tensor("a", [8], 0, 8)], data=bytes(64)), "offset 8"),
    "a gap": (dict(tensors=[tensor("a", [8], 0, 64)], data=bytes(96)), "gap after"),
    "an overlap": (
        dict(tensors=[tensor("a", [16]), tensor("b", [8], 0, 32)], data=bytes(64)),
        "b overlaps a",
    ),
    "the same place": (dict(tensors=[tensor("a", [8]), tensor("b", [8])], data=bytes(32)), "over"),
    "a tensor twice": (dict(tensors=[*ONE, tensor("a", [8], 0, 32)], data=bytes(64)), "twice"),
    "a tensor without a name": (dict(tensors=[tensor("", [8])], data=bytes(32)), "0 bytes"),
    "a tensor's name not UTF-8": (dict(tensors=[tensor(b"\xfe", [8])], data=bytes(32)), "UTF-8"),
    "data cut": (dict(tensors=ONE, data=bytes(31)), "cut short"),
    "no data": (dict(tensors=ONE), "cut short"),
    "bytes left over": (dict(tensors=ONE, data=bytes(64)), "belong to no tensor"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_lies_is_refused(case, tmp_path):
    how, words = CASES[case]
    assert words in refused(raw(tmp_path / "x.gguf", **how))


def test_text_that_is_not_utf8_is_refused_when_it_is_asked_for(tmp_path):
    keys = [key("bad", 9, strings([b"a", b"\xff"])), key_of("good", 1)]
    metadata = gguf.read(raw(tmp_path / "x.gguf", keys)).metadata
    assert metadata["good"] == 1
    with pytest.raises(FileError, match=r"x\.gguf .*bad"):
        metadata["bad"]


def test_a_header_of_more_than_64_mb_is_refused(tmp_path):
    path = raw(tmp_path / "x.gguf", [key("a", 8, U64.pack(2**27))])
    with path.open("ab") as file:
        file.truncate(2**28)
    with pytest.raises(FileError, match="header of more than 67108864 bytes"):
        gguf.read(path)


@pytest.mark.parametrize("reader", [gguf.read, checkpoint.read])
def test_a_file_cut_anywhere_is_refused(reader, tmp_path):
    whole = tiny(tmp_path / "whole.gguf", kind="Q4_0").read_bytes()
    path = tmp_path / "x.gguf"
    for length in sorted({*range(0, 1500, 37), *range(1500, len(whole), 1999)}):
        path.write_bytes(whole[:length])
        refused(path, reader)


@given(flips=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), max_size=4))
def test_changed_bytes_give_a_model_or_a_refusal(flips, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "flipped.gguf"
    data = bytearray(tiny(path, kind="Q4_0").read_bytes())
    for at, value in flips:
        data[at % 1600] = value  # the header
    path.write_bytes(data)
    read_or_refuse(path)


@given(data=st.binary(max_size=300))
def test_any_bytes_behind_the_magic_are_read_or_refused(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(b"GGUF" + U32.pack(3) + data)
    read_or_refuse(path)


def read_or_refuse(path: Path) -> None:
    tracemalloc.start()
    try:
        for value in gguf.read(path).metadata.values():
            assert value is not None
        checkpoint.read(path)
    except (FileError, ModelError) as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20e6


def test_the_package_accepts_what_tests_build(tmp_path):
    reader = oracle().GGUFReader(tiny(tmp_path / "x.gguf", kind="Q4_0"))
    assert [t.name for t in reader.tensors] == list(gguf_files.SHAPES)
