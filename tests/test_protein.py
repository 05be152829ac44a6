"""The codec protein: sequences by hand, FASTA of every kind, constraints, and real files."""

import gzip
import resource
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import seriatim
from seriatim import codecs
from seriatim.codecs import _fasta, protein
from seriatim.codecs.protein import ProteinCodec, Record
from seriatim.engine.constrain import allows
from seriatim.errors import FileError, RequestError, SeriatimError

CODEC = codecs.made("protein")
ALIGNED = codecs.made("protein:gaps=true,columns=5")
BOTH = codecs.made("protein:direction=both")
FAMILIES = codecs.made("protein:gaps=true,families=PF1+PF10,columns=4+6,consensus=AC-D+ACDEFG")


def fasta(folder: Path, content: str | bytes, name: str = "some.fasta") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def found(codec, path: Path) -> list:
    """Sequences, or the message of what is none, by place."""
    return [
        (place, str(raw) if isinstance(raw, SeriatimError) else raw.sequence)
        for place, raw in codec.records(path)
    ]


def load(folder: Path, codec: ProteinCodec, **config) -> seriatim.Model:
    """A model of random weights with this codec."""
    ids = dict(bos_token_id=codec.start[0], eos_token_id=codec.ends[0])
    tiny.write(folder, codec=False, ids=ids, vocab_size=codec.size, **config)
    codec.save(folder)
    return seriatim.load(folder, threads=1)


# Symbols and options


def test_residues_are_ids_in_the_order_of_their_letters():
    assert CODEC.encode("ACDEFGHIKLMNPQRSTVWYX") == [*range(21)]
    assert (CODEC.size, CODEC.start, CODEC.ends, CODEC.unit) == (22, (21,), (21,), "residue")
    assert codecs.made("protein:alphabet=dna").encode("ACGTN") == [*range(5)]
    assert codecs.made("protein:alphabet=rna").encode("ACGUN") == [*range(5)]
    assert ALIGNED.encode("A-C") == [0, 21, 1]


def test_lower_case_is_upper_and_dots_are_gaps_only_in_alignments():
    assert CODEC.canonical("mkv\n").sequence == "MKV"
    assert ALIGNED.canonical("m.-k").sequence == "M--K"
    with pytest.raises(RequestError, match=r"position 2 of the sequence is '\.'"):
        CODEC.encode("M.K")
    a3m = codecs.made("protein:gaps=true,inserts=drop")
    assert a3m.canonical("MKv..W-").sequence == "MKW-"


@pytest.mark.parametrize("symbol", "BZJUO* -?1\0\té")
def test_what_is_no_residue_is_named_with_its_position(symbol):
    with pytest.raises(RequestError, match="position 3 of the sequence is") as error:
        CODEC.encode(f"MK{symbol}V")
    assert "expected one of ACDEFGHIKLMNPQRSTVWYX" in str(error.value)
    assert "errors=skip" in str(error.value)


def test_other_symbols_are_left_out_or_unknown_only_where_asked_and_counted():
    skip, unknown = (codecs.made(f"protein:errors={how}") for how in ("skip", "unknown"))
    assert (skip.canonical("MBK*é").sequence, skip.canonical("MBK*é").changed) == ("MK", 3)
    assert (unknown.canonical("MBK*").sequence, unknown.canonical("MBK*").changed) == ("MXKX", 2)
    assert unknown.decode(unknown.encode("mbk")) == Record("MXK")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("alphabet=fish", "protein or dna or rna"),
        ("gap=true", "did you mean gaps"),
        ("columns=0", "columns"),
        ("columns=99999", "columns"),
        ("columns=5+6", "one number"),
        ("columns=²", "columns"),
        ("families=a+a", "each once"),
        ("families=a b", "labels"),
        ("families=a+", "labels"),
        ("families=a+b,columns=5", "2 from 1"),
        ("families=a+b,direction=both", "one of them"),
        ("gaps=true,columns=3,consensus=AC", "consensus"),
        ("gaps=true,columns=3,consensus=AC*", "consensus"),
        ("gaps=true,consensus=ACD", "consensus"),
        ("families=" + "+".join(f"f{n}" for n in range(65)), "65 labels"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(options, names):
    with pytest.raises(RequestError, match=names):
        codecs.made(f"protein:{options}")


def test_a_damaged_codec_json_is_named(tmp_path):
    content = '{"codec": "protein", "version": 1, "options": {"columns": "x"}}'
    (tmp_path / "codec.json").write_text(content)
    with pytest.raises(FileError, match=r"codec\.json: protein:columns is 'x'"):
        codecs.load(tmp_path)


# Marks: directions and families


def test_both_directions_say_theirs_in_front_and_records_stay_the_right_way_round():
    forward, backward = BOTH.encode("MKV"), BOTH.encode("2:MKV")
    assert [BOTH.pieces()[id] for id in forward] == [b"", b"M", b"K", b"V"]
    assert [BOTH.pieces()[id] for id in backward] == [b"", b"V", b"K", b"M"]
    assert BOTH.decode(backward) == Record("MKV", "", "2")
    assert BOTH.decode(backward[2:], after=backward[:2]) == Record("MK", "", "2")
    assert BOTH.render(Record("MKV", "", "2"))["text/plain"] == "VKM"
    alone = codecs.made("protein:direction=backward")
    assert alone.encode("MKV") == CODEC.encode("VKM")
    assert alone.decode(alone.encode("MKV")) == Record("MKV")


def test_records_of_both_directions_are_divided_by_their_sequence_alone(tmp_path):
    rows = [f">{n}\n{'ACDEFGHIKL'[n % 10] * (n + 1)}\n" for n in range(64)]
    one = {raw.sequence: raw.mark for _, raw in BOTH.records(fasta(tmp_path, "".join(rows)))}
    two = {raw.sequence: raw.mark for _, raw in BOTH.records(fasta(tmp_path, "".join(rows[::-1])))}
    assert one == two
    assert 16 < sum(mark == "2" for mark in one.values()) < 48
    assert BOTH.read(fasta(tmp_path, ">a\nMKV\n")).mark == "1"


def test_families_are_told_apart_by_file_header_or_literal(tmp_path):
    assert FAMILIES.canonical("PF1:AC-D") == Record("AC-D", "", "PF1")
    with pytest.raises(RequestError, match="the mark is ''; expected MARK:SEQUENCE"):
        FAMILIES.encode("ACDE")
    with pytest.raises(RequestError, match="did you mean PF10"):
        FAMILIES.encode("PF100:ACDE")
    content = ">x\nAC-D\n>y mark=PF10\nACDEFG\n"
    records = [raw for _, raw in FAMILIES.records(fasta(tmp_path, content, "pf1_seed.fasta"))]
    assert records == [Record("AC-D", "x", "PF1"), Record("ACDEFG", "y", "PF10")]
    assert FAMILIES.read(fasta(tmp_path, ">x\nACDEFG", "PF10.fa")).mark == "PF10", "the longest"
    content = ">benchmark=PF1 mark=PF1\nAC-D\n>mark=PF1\nAC-D\n"
    names = [raw.name for _, raw in FAMILIES.records(fasta(tmp_path, content))]
    assert names == ["benchmark=PF1", ""]
    ((place, message),) = found(FAMILIES, fasta(tmp_path, "\n>x\nAC-D\n"))
    assert place == "line 2"
    assert "line 2: the mark is ''" in message
    assert "mark=FAMILY" in message


def test_columns_are_learned_from_the_files_and_rows_must_have_them(tmp_path):
    path = fasta(tmp_path, ">a\nAC-D\n>b\nAC-E\n>c\nXC-E\n>d\nACD\n")
    fitted = codecs.made("protein:gaps=true").fitted([path])
    assert (fitted.columns, fitted.consensus) == ({"": 4}, {"": "AC-E"})
    assert found(fitted, path)[3] == (
        "line 7",
        "line 7: the record has 3 symbols; expected 4; inserts=drop leaves lower case and . out",
    )
    with pytest.raises(RequestError, match="the row has 5 symbols; expected at most 4"):
        fitted.encode("ACDEF")
    both = codecs.made("protein:gaps=true,direction=both").fitted([path])
    assert both.columns == {"1": 4, "2": 4}
    assert both.consensus == {"1": "AC-E", "2": "AC-E"}
    assert fitted.fitted([tmp_path / "none"]) is fitted
    assert CODEC.fitted([tmp_path / "none"]) is CODEC
    with pytest.raises(RequestError, match="no row of PF2"):
        codecs.made("protein:gaps=true,families=PF1+PF2").fitted(
            [fasta(tmp_path, ">a\nAC", "PF1.fa")]
        )


# FASTA


def test_what_programs_write_is_read(tmp_path):
    content = b">a one \r\n\r\nMKV\r\n\r\nLLA \t\r\n>\nacd\n>b\nW"
    path = fasta(tmp_path, content)
    records = [(place, raw) for place, raw in CODEC.records(path)]
    assert records == [
        ("line 1", Record("MKVLLA", "a one")),
        ("line 6", Record("ACD", "")),
        ("line 8", Record("W", "b")),
    ]
    packed = fasta(tmp_path, gzip.compress(content), "no-ending")
    assert [*CODEC.records(packed)] == records


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", "there is no record; expected FASTA"),
        (b"\n\n", "there is no record"),
        (b"\nMKV\n>a\n", "line 2, column 1 is 'M'; expected FASTA"),
        (b"\xef\xbb\xbf>a\nMKV", "line 1, column 1 is byte 0xef"),
        (b"\x1f\x8bMKV", "cannot be read"),
        (gzip.compress(b">a\n" + b"MKV\n" * 1000, mtime=0)[:-12], "cannot be read"),
    ],
)
def test_a_file_that_is_no_fasta_is_refused_as_a_whole(tmp_path, content, names):
    path = fasta(tmp_path, content)
    for read in (CODEC.read, lambda path: [*CODEC.records(path)]):
        with pytest.raises(FileError, match=names) as error:
            read(path)
        assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("record", "names"),
    [
        (b">a\nMKV\n\nKBV\n", "line 6, column 2 is 'B'"),
        (b">a\nMK*\n", "line 4, column 3 is '\\*'"),
        (b">a\nMK\0V\n", r"line 4, column 3 is '\\x00'"),
        (b">a\nM\xc3\xa9\n", "line 4, column 2 is byte 0xc3"),
        (b">a\nMK V\n", "line 4, column 3 is ' '"),
        (b">a\n;comment\n", "line 4, column 1 is ';'"),
        (b">a\nM-K\n", "line 4, column 2 is '-'"),
        (b">a\n\n", "line 3: the record has 0 symbols"),
        (b">a\0b\nMKV\n", r"line 3, column 3 is '\\x00'"),
        (b">a\xffb\nMKV\n", "line 3, column 3 is byte 0xff: not UTF-8"),
        (b">a\rMKV\r>b\rMKV\n", r"line 3, column 3 is '\\r'"),
        (b">" + b"a" * (1 << 17) + b"\nMKV\n", "line 3: a name longer than 65,536 bytes"),
    ],
)
def test_a_record_that_is_none_is_named_with_line_and_column_and_others_go_on(
    tmp_path, record, names
):
    path = fasta(tmp_path, b">x\nMMM\n" + record + b">z\nKKK\n")
    first, bad, last = CODEC.records(path)
    assert (first[1], last[1]) == (Record("MMM", "x"), Record("KKK", "z"))
    assert bad[0] == "line 3"
    with pytest.raises(FileError, match=names):
        raise bad[1]


def test_a_line_of_any_length_takes_the_memory_of_a_short_one(tmp_path, monkeypatch):
    """300 MB without a newline, packed into 300 kB."""
    path = tmp_path / "long.fasta.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b">a\n")
        for _ in range(75):
            file.write(b"M" * (1 << 22))
        file.write(b"\n>b\nMKV\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert found(CODEC, path) == [
        ("line 1", "line 1: a record longer than 16,777,216 bytes"),
        ("line 3", "MKV"),
    ]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10
    monkeypatch.setattr(_fasta, "LIMIT", 10)
    path = fasta(tmp_path, ">a\nMMMMM\nMMMM\n>b\nMMMMMMMMM\n>c\nMMMMMMMMMMMM\n>d\nM\n")
    assert [text[:30] for _, text in found(CODEC, path)] == [
        "line 1: a record longer than 1", "M" * 9, "line 6: a record longer than 1", "M",
    ]  # fmt: skip


def test_blanks_neither_fill_the_memory_nor_hide_what_follows_them(tmp_path, monkeypatch):
    monkeypatch.setattr(_fasta, "LIMIT", 1 << 20)
    path = tmp_path / "blank.fasta.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b">a\nMKV\n")
        file.write(b"\n" * (_fasta.LIMIT + 1))
        file.write(b">b\nMKV\n>c\n")
        file.write(b" " * (_fasta.LIMIT + 1) + b"MKV\n")
    too_long = "a record longer than 1,048,576 bytes"
    first, second, third = found(CODEC, path)
    assert first[1] == f"line 1: {too_long}"
    assert second[1] == "MKV"
    assert third[1].endswith(too_long)


def test_a_file_of_several_records_is_no_prompt_and_folders_are_none(tmp_path):
    path = fasta(tmp_path, ">a\nMKV\n>b\nMKV\n")
    with pytest.raises(FileError, match="line 3 begins a second record") as error:
        CODEC.read(path)
    assert str(path) in str(error.value)
    with pytest.raises(FileError, match="is a folder"):
        CODEC.read(tmp_path)


def test_a_literal_may_be_fasta_itself():
    assert CODEC.canonical(">a\nMKV\nLLA\n").sequence == "MKVLLA"
    for text in (">a\nMKV\n>b\nM\n", ">\ud83d\nMKV", ">a\n"):
        with pytest.raises(SeriatimError):
            CODEC.encode(text)
    with pytest.raises(RequestError, match="position 2"):
        CODEC.encode("M\ud83d")
    with pytest.raises(RequestError, match="int given to codec protein"):
        CODEC.encode(7)


@given(st.text("ACDEFGHIKLMNPQRSTVWYX", min_size=1, max_size=200), st.text(max_size=20))
def test_written_records_are_read_back(tmp_path_factory, sequence, name):
    path = tmp_path_factory.getbasetemp() / "written.fasta"
    try:
        CODEC.write(Record(sequence, name), path)
    except FileError:
        assert not name.isprintable()
        return
    assert CODEC.read(path) == Record(sequence, name.strip())
    assert max(map(len, path.read_text().split("\n")[1:])) <= 60


def test_packed_files_are_equal_for_equal_records(tmp_path):
    for name in ("a.fasta.gz", "b.fasta.gz"):
        CODEC.write("MKV", tmp_path / name)
    assert (tmp_path / "a.fasta.gz").read_bytes() == (tmp_path / "b.fasta.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.fasta.gz").read_bytes()) == b">\nMKV\n"


# Masks and requests


def test_rows_have_exactly_their_columns_and_marks_stand_in_front():
    end = ALIGNED.ends[0]
    for count in range(6):
        words = ALIGNED.legal([0] * count, after=ALIGNED.start)
        assert allows(words, end) == (count == 5)
        assert allows(words, 0) == (count < 5)
    begun = FAMILIES.legal([], after=FAMILIES.start)
    marks = [FAMILIES.mark_id(mark) for mark in FAMILIES.marks]
    assert [id for id in range(FAMILIES.size) if allows(begun, id)] == marks
    row = FAMILIES.encode("PF10:ACDEFG")
    assert not allows(FAMILIES.legal(row[:5], after=FAMILIES.start), FAMILIES.ends[0])
    assert allows(FAMILIES.legal(row, after=FAMILIES.start), FAMILIES.ends[0])
    after = [*FAMILIES.start, *FAMILIES.encode("PF1:AC-D"), *FAMILIES.ends]
    assert allows(FAMILIES.legal([], after=after), marks[0]), "after an end another row begins"


def test_generated_rows_have_their_columns_and_follow_motifs(tmp_path):
    model = load(tmp_path, FAMILIES)
    for seed in range(5):
        result = model.generate("PF10:", seed=seed)
        assert isinstance(result.output, Record)
        assert (len(result.output), result.output.mark) == (6, "PF10")
        assert result.stop == FAMILIES.ends[0]
        assert result.reencodes
    whole = model.generate(seed=3).output
    assert len(whole) == FAMILIES.columns[whole.mark]
    design = model.generate("PF10:", regex="A..C[DE]-", seed=0)
    assert design.text[0] + design.text[3] + design.text[5] == "AC-"
    assert design.text[4] in "DE"
    with pytest.raises(RequestError):
        model.generate("PF10:", regex="[AC]{9}", seed=0)


def test_designs_by_motif_stop_strings_and_streams_give_records(tmp_path):
    model = load(tmp_path, CODEC)
    result = model.generate(regex="M..C[KR]", seed=1)
    assert len(result.output) == 5
    assert result.output.sequence == result.text
    assert result.output.sequence[::3] == "MC"
    free = model.generate(max_tokens=40, seed=2)
    stop = free.text[4]
    ended = model.generate(max_tokens=40, seed=2, stop=stop)
    assert ended.output == Record(free.text[: free.text.index(stop)])
    pieces = [piece.text for piece in model.stream(max_tokens=40, seed=2)]
    assert "".join(pieces) == free.text
    path = tmp_path / "prompt.fasta"
    CODEC.write(Record("MKV", "x"), path)
    assert model.generate(path, max_tokens=4, seed=0).ids == (
        model.generate("mkv", max_tokens=4, seed=0).ids
    )


def test_backward_continues_towards_the_n_terminus(tmp_path):
    model = load(tmp_path, BOTH)
    result = model.generate("2:KVM", max_tokens=4, seed=1, ignore_end=True)
    assert result.output.sequence == result.text[::-1]
    whole = model.decode([*result.prompt_ids, *result.ids])
    assert whole.sequence == result.output.sequence + "KVM"


def test_a_training_run_on_fasta_counts_bad_records_and_keeps_its_columns(tmp_path):
    draw = np.random.default_rng(0)
    rows = ["".join(draw.choice([*"ACDE-"], 6)) for _ in range(40)]
    content = "".join(f">r{n}\n{row}\n" for n, row in enumerate([*rows, "AC", "ABCDEF"]))
    path = fasta(tmp_path, content, "family.fasta")
    out = seriatim.train(
        path, codec="protein:gaps=true", size="0.02M", steps=2, batch=2, context=32,
        out=tmp_path / "run", cache=tmp_path / "cache", threads=1, report=lambda event: None,
    )  # fmt: skip
    refused = (out / "checkpoints" / "refused.jsonl").read_text()
    assert len(refused.splitlines()) == 2
    assert "line 81" in refused
    assert "column 2 is 'B'" in refused
    model = seriatim.load(out, threads=1)
    assert model.codec.columns == {"": 6}
    assert len(model.generate(seed=0).output) == 6


# Real files


def test_pfam_families_and_proteins_round_trip(data):
    counts = {"PF00014_mgap6": (13_600, 53), "PF13354_wo_ref_seqs": (7_515, 202)}
    for name, (count, columns) in counts.items():
        path = data / "protein" / "ardca" / f"{name}.fasta.gz"
        codec = codecs.made("protein:gaps=true").fitted([path])
        assert codec.columns == {"": columns}
        rows = [raw for _, raw in codec.records(path)]
        assert len(rows) == count
        assert all(isinstance(raw, Record) for raw in rows)
        for raw in rows[::500]:
            assert codec.decode(codec.encode(raw)) == codec.canonical(raw)
    several = [*CODEC.records(data / "protein" / "some_proteins.fasta")]
    assert several
    assert all(isinstance(raw, Record) for _, raw in several)


def test_an_a3m_file_loses_its_insertions_where_asked(data):
    (path,) = (data / "protein" / "msa").glob("*.a3m")
    codec = codecs.made("protein:gaps=true,inserts=drop").fitted([path])
    rows = [raw for _, raw in codec.records(path)]
    assert {len(raw) for raw in rows if isinstance(raw, Record)} == {codec.columns[""]}
    assert sum(isinstance(raw, Record) for raw in rows) > 0.9 * len(rows)


def test_the_module_says_what_it_is_in_its_first_line():
    assert (protein.__doc__ or "").startswith("Proteins, DNA and RNA")
