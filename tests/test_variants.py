"""Variants beside a wild type: ratios, mappings to columns, tables, pictures, the commands."""

import csv
import io
import json

import numpy as np
import pytest
import tiny
from test_protein import load

import seriatim
from seriatim import cli, codecs
from seriatim.codecs.protein import Record
from seriatim.errors import FileError, RequestError
from seriatim.measure import heatmap, variants
from seriatim.measure.variants import Variant, parse, ratios, read, singles, wild_type

WILD = "MKVLAAGICW"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> seriatim.Model:
    return load(tmp_path_factory.mktemp("free"), codecs.made("protein"))


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> seriatim.Model:
    """Eight columns, whose consensus is WILD[2:] but for one gap."""
    options = "gaps=true,families=F1+F2,columns=9+3,consensus=VLA-AGICW+ACD"
    return load(tmp_path_factory.mktemp("aligned"), codecs.made(f"protein:{options}"))


@pytest.fixture
def run(capsys, monkeypatch):
    def run(*words) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([*map(str, words)])
        done = capsys.readouterr()
        return end.value.code, done.out, done.err

    return run


# Lists of mutations


def test_substitutions_change_the_wild_type_where_they_say():
    assert parse("K2R", WILD).sequence == "MRVLAAGICW"
    assert parse("K2R:G7A", WILD).sequence == parse("K2R, G7A", WILD).sequence == "MRVLAAAICW"
    assert parse("K102R", WILD, offset=100).sequence == "MRVLAAGICW"
    assert parse("wt", WILD).sequence == WILD
    assert [c.index for c in parse("K2R:G7A", WILD).changes] == [1, 6]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("A2R", "the wild type has K at 2; expected A; check the numbering"),
        ("K11R", "expected a position from 1 to 10"),
        ("K0R", "expected a position from 1 to 10"),
        ("2KR", "is no substitution; expected such as A24G:K30R"),
        ("K2r", "is no substitution"),
        ("K２R", "is no substitution"),
        ("", "is no substitution"),
        ("K2R:K2A", "changes one position twice"),
    ],
)
def test_a_mutation_that_contradicts_the_wild_type_is_refused(text, names):
    with pytest.raises(RequestError, match=names):
        parse(text, WILD)


def test_lists_and_tables_name_the_row_that_is_wrong(tmp_path):
    (tmp_path / "list.txt").write_text("K2R\r\n\nM1V:K2R\n")
    (tmp_path / "table.csv").write_text('x,mutant\n1,K2R\n2,"M1V,K2R"\n')
    (tmp_path / "table.tsv").write_text("x\tmutation\n1\tK2R\n2\tM1V:K2R\n")
    sequences = [["MRVLAAGICW", "VRVLAAGICW"]]
    for name, how in (("list.txt", {}), ("table.csv", {}), ("table.tsv", {"column": "mutation"})):
        found = [variant.sequence for variant in read(tmp_path / name, WILD, **how)]
        assert [found] == sequences
    (tmp_path / "bad.csv").write_text("mutant\nK2R\nA3R\n")
    with pytest.raises(FileError, match=r"bad\.csv line 3: A3R: the wild type has V at 3"):
        read(tmp_path / "bad.csv", WILD)
    with pytest.raises(FileError, match="no column 'mutants'; did you mean mutant"):
        read(tmp_path / "bad.csv", WILD, column="mutants")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(FileError, match="holds no variant"):
        read(tmp_path / "empty.txt", WILD)


# Ratios


def test_a_ratio_is_the_difference_of_two_scores(model):
    asked = [parse("K2R", WILD), parse("K2R:G7A", WILD), parse("WT", WILD), parse("K2R", WILD)]
    rows = [*ratios(model, WILD, asked)]
    base = -model.score(WILD).nats
    for row, sequence in zip(rows, ("MRVLAAGICW", "MRVLAAAICW", WILD, "MRVLAAGICW"), strict=True):
        assert row.wild_log_likelihood == base
        assert row.log_likelihood == -model.score(sequence).nats
        assert row.log_ratio == row.log_likelihood - base
    assert rows[2].log_ratio == 0
    assert rows[0].log_ratio != rows[1].log_ratio


def test_sequences_of_another_length_are_scored_where_columns_are_free(model, family, tmp_path):
    (tmp_path / "some.fasta").write_text(f">short\n{WILD[:5]}\n>wild\n{WILD.lower()}\n")
    rows = [*ratios(model, WILD, read(tmp_path / "some.fasta", WILD))]
    assert [row.variant.name for row in rows] == ["short", "wild"]
    assert rows[0].log_likelihood == -model.score(WILD[:5]).nats
    assert rows[1].log_ratio == 0
    with pytest.raises(RequestError, match="short: the sequence has 5 residues; expected 10"):
        [*ratios(family, WILD, read(tmp_path / "some.fasta", WILD), family="F1")]


def test_both_directions_are_averaged(tmp_path):
    both = load(tmp_path, codecs.made("protein:direction=both"))
    (row,) = ratios(both, WILD, [parse("K2R", WILD)])
    sides = [both.score(Record("MRVLAAGICW", mark=mark)).nats for mark in "12"]
    assert row.log_likelihood == pytest.approx(-sum(sides) / 2)
    assert sides[0] != sides[1]


def test_a_wild_type_is_mapped_to_columns_and_the_rest_is_not_scored(family):
    asked = [parse(text, WILD) for text in ("K2R", "V3A", "K2R:V3A", "A6-")]
    outside, inside, partly, gone = ratios(family, WILD, asked, family="F1")
    row = Record("VLA-AGICW", mark="F1")
    assert inside.wild_log_likelihood == -family.score(row).nats
    assert inside.log_likelihood == -family.score("F1:ALA-AGICW").nats
    assert (outside.log_ratio, outside.unscored) == (None, ("K2R",))
    assert (partly.log_ratio, partly.unscored) == (inside.log_ratio, ("K2R",))
    assert gone.log_likelihood == -family.score("F1:VLA--GICW").nats
    with pytest.raises(RequestError, match="the mark is ''"):
        [*ratios(family, WILD, asked)]


def test_a_wild_type_with_gaps_or_as_long_as_the_columns_is_a_row_already(family):
    wild = wild_type(family.codec, "VL--AGICW").sequence
    (row,) = ratios(family, wild, [parse("A3C", "VLAGICW")], family="F1")
    assert row.log_likelihood == -family.score("F1:VL--CGICW").nats
    with pytest.raises(RequestError, match="gaps and 5 symbols; expected a row of 9 columns"):
        [*ratios(family, "VL-AG", [], family="F1")]
    (row,) = ratios(family, "VLACAGICW", [parse("C4D", "VLACAGICW")], family="F1")
    assert row.log_likelihood == -family.score("F1:VLADAGICW").nats


def test_a_mapping_leaves_out_insertions_and_keeps_order():
    consensus = "CLDELHPGRCSNYVERWYYDRGTKKCRSFQYGGCGGNRNHFYSKENCIFHC"
    wild = f"GGG{consensus[:20]}PPPP{consensus[20:30]}{consensus[33:]}TTT"
    columns = variants.aligned(wild, consensus)
    assert columns[:20] == [*range(3, 23)]
    assert columns[20:28] == [*range(27, 35)]
    assert columns[-10:] == [*range(len(wild) - 13, len(wild) - 3)]
    assert columns.count(None) == 3
    kept = [index for index in columns if index is not None]
    assert kept == sorted(set(kept))
    with pytest.raises(RequestError, match="aligns with none"):
        variants.aligned("WWWW", "GGGG")
    dna = variants.aligned("TTTTACGTACGTAC", "ACGTACGTAC", protein=False)
    assert dna == [*range(4, 14)]


def test_a_family_without_a_consensus_takes_rows_only(tmp_path):
    model = load(tmp_path, codecs.made("protein:gaps=true,columns=9"))
    with pytest.raises(RequestError, match="knows no consensus; expected a row of its 9 columns"):
        [*ratios(model, WILD, [parse("K2R", WILD)])]


def test_other_codecs_and_symbols_are_refused(model, tmp_path):
    with pytest.raises(RequestError, match="K2B: position 2 of the sequence is 'B'"):
        [*ratios(model, WILD, [parse("K2B", WILD)])]
    with pytest.raises(RequestError, match="position 1 of the sequence is '1'"):
        wild_type(model.codec, "1MK")
    for options in ({"template": "1{}2"}, {"width": 60}):
        with pytest.raises(RequestError, match="template and width"):
            [*ratios(model, WILD, [], **options)]
    bare = seriatim.load(tiny.write(tmp_path, codec=False), threads=1)
    with pytest.raises(RequestError, match="needs a codec"):
        [*ratios(bare, WILD, [])]


# Tables, pictures, commands


def test_a_scan_is_every_other_residue_at_every_position():
    scan = singles("AXW", offset=10)
    assert len(scan) == 19 + 20 + 19
    assert [variant.name for variant in scan[:2]] == ["A11C", "A11D"]
    assert len({variant.sequence for variant in scan}) == 58


def test_the_command_writes_a_table_and_a_picture(run, model, tmp_path):
    folder, out, picture = model.checkpoint.path, tmp_path / "out.csv", tmp_path / "map.png"
    words = ["variants", "--wild", WILD, "-m", folder, "--threads", 1, "--offset", 5]
    code, text, err = run(*words, "--out", out, "--picture", picture)
    assert (code, text) == (0, ""), err
    rows = [*csv.DictReader(io.StringIO(out.read_text()))]
    assert len(rows) == 190
    assert rows[0]["variant"] == "M6A"
    for row in rows:
        difference = float(row["log_likelihood"]) - float(row["wild_log_likelihood"])
        assert float(row["log_ratio"]) == pytest.approx(difference, abs=2e-6)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "list.txt").write_text("K7R\n")
    assert run(*words, tmp_path / "list.txt")[1].splitlines()[1].startswith("K7R,")
    (tmp_path / "wild.fasta").write_text(f">w\n{WILD}\n")
    words[2] = tmp_path / "wild.fasta"
    assert len(run(*words, tmp_path / "list.txt")[1].splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--wild", "MK1"], "position 3 of the sequence is '1'"),
        (["--wild", "M" * 5000 + "B"], "position 5001 of the sequence is 'B'"),
        (["--wild", "no.fasta"], "no.fasta does not exist"),
        (["--wild", WILD, "list.txt"], "list.txt line 1: K77R is outside the wild type"),
        (["--wild", WILD, "--out", "none/out.csv"], "--out none/out.csv cannot be written: no"),
        (["--wild", WILD, "--picture", "none/a.png"], "--picture none/a.png cannot be written: no"),
        (["--wild", WILD, "--picture", "a.jpg"], "a.jpg; expected a name that ends in .png"),
        (["list.txt"], "Missing option '--wild'"),
    ],
)
def test_the_command_refuses_in_one_line(run, model, tmp_path, monkeypatch, words, names):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("K77R\n")
    code, out, err = run("variants", *words, "-m", model.checkpoint.path, "--threads", 1)
    assert (code, out) == (2, "")
    assert names in err
    assert err.count("\n") == 1


def test_variants_outside_the_columns_are_counted_aloud(run, family, tmp_path):
    (tmp_path / "list.txt").write_text("K2R\nV3A\n")
    words = ["variants", tmp_path / "list.txt", "--wild", WILD, "-m", family.checkpoint.path]
    code, out, err = run(*words, "--family", "F1", "--threads", 1)
    assert code == 0
    assert out.splitlines()[1].startswith("K2R,,,")
    assert out.splitlines()[1].endswith(",K2R")
    assert "1 of 2 variants change no column of the family and are not scored" in err


def test_a_picture_that_cannot_be_drawn_costs_no_table(run, model, tmp_path):
    (tmp_path / "list.txt").write_text("K2R:M1V\n")
    words = ["variants", tmp_path / "list.txt", "--wild", WILD, "-m", model.checkpoint.path]
    code, out, err = run(*words, "--threads", 1, "--picture", tmp_path / "map.png")
    assert (code, "no single substitution" in err) == (2, True)
    assert out.splitlines()[1].startswith("K2R:M1V,")


def test_a_picture_needs_something_to_draw(model, tmp_path):
    rows = [*ratios(model, WILD, [Variant("whole", WILD)])]
    with pytest.raises(RequestError, match="no single substitution"):
        heatmap.draw(rows, WILD, tmp_path / "map.png")


def test_equal_scans_give_equal_pictures(model, tmp_path):
    rows = [*ratios(model, WILD, singles(WILD[:3]) and [parse("K2R", WILD), parse("M1V", WILD)])]
    for name in ("a.png", "b.png"):
        heatmap.draw(rows, WILD, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# score, of files of several records


def test_score_gives_a_row_for_each_record_and_the_whole(run, model, tmp_path):
    path = tmp_path / "some.fasta"
    path.write_text(f">one\n{WILD}\n>\nMKV\n>three\n{WILD * 3}\n")
    alone = tmp_path / "alone.fasta"
    alone.write_text(f">x\n{WILD}\n")
    words = ["score", path, alone, "-m", model.checkpoint.path, "--threads", 1]
    code, out, _ = run(*words, "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row.get("record") for row in rows] == ["one", "line 3", "three", None, None, None]
    assert [row["file"] for row in rows] == [*[str(path)] * 4, str(alone), "all"]
    scores = [model.score(text) for text in (WILD, "MKV", WILD * 3)]
    assert [row["nats"] for row in rows[:3]] == [score.nats for score in scores]
    assert rows[3]["nats"] == pytest.approx(sum(score.nats for score in scores))
    assert (rows[3]["units"], rows[5]["units"]) == (43, 53)
    bits, units = np.array([[s.nats / np.log(2), s.units] for s in scores]).T
    off = bits - bits.sum() / units.sum() * units
    assert rows[3]["error"] == pytest.approx(np.sqrt((off**2).sum() * 3 / 2) / units.sum())
    text = run(*words)[1].splitlines()
    assert text[0].startswith(f"{path} one\t")
    assert text[0].endswith(" bits per residue\t10 ids")


def test_score_refuses_a_file_with_a_bad_record_before_any_work(run, model, tmp_path):
    path = tmp_path / "some.fasta"
    path.write_text(">one\nMKV\n>two\nMKB\n")
    code, out, err = run("score", path, "-m", model.checkpoint.path)
    assert (code, out) == (2, "")
    assert f"{path}: line 4, column 3 is 'B'" in err


def test_a_real_family_maps_a_real_protein(data):
    """TEM-1 beta-lactamase to PF13354: 202 columns, residues 49 to 258."""
    path = data / "protein" / "ardca" / "PF13354_wo_ref_seqs.fasta.gz"
    codec = codecs.made("protein:gaps=true").fitted([path])
    columns = variants.aligned(TEM1, codec.consensus[""])
    kept = [index for index in columns if index is not None]
    assert len(columns) == 202
    assert len(kept) > 190
    assert 40 <= kept[0] <= 60
    assert 250 <= kept[-1] <= 262


TEM1 = (  # UniProt P62593, as expressed with its signal
    "MSIQHFRVALIPFFAAFCLPVFAHPETLVKVKDAEDQLGARVGYIELDLNSGKILESFRPEERFPMMSTFKVLLCGAVLSRIDAGQEQLGRRIHYS"
    "QNDLVEYSPVTEKHLTDGMTVRELCSAAITMSDNTAANLLLTTIGGPKELTAFLHNMGDHVTRLDRWEPELNEAIPNDERDTTMPVAMATTLRKLL"
    "TGELLTLASRQQLIDWMEADKVAGPLLRSALPAGWFIADKSGAGERGSRGIIAALGPDGKPSRIVVIYTTGSQATMDERNRQIAEIGASLIKHW"
)
