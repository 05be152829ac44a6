"""Music: scores as events, chorales on a grid, the files they come from and go to."""

import json
import random
import re
import struct
import wave
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import seriatim
from seriatim import codecs
from seriatim.codecs import made, music
from seriatim.codecs._abc import chord, tunes
from seriatim.codecs.music import DRUMS, OPEN, REST, TICKS, Chorale, Note, Score
from seriatim.engine.constrain import allows
from seriatim.errors import FileError, RequestError, SeriatimError

EVENTS, QUARTER, SIXTEENTH = (
    made("music"), made("music:form=chorale"), made("music:form=chorale,grid=16th"),
)  # fmt: skip
NOTE = b"\x00\x90\x3c\x40\x60\x80\x3c\x40"
END = b"\x00\xff\x2f\x00"


def midi(*tracks, division=b"\x01\xe0", form=0, count=None):
    """A file of tracks whose end is put behind them."""
    count = len(tracks) if count is None else count
    head = b"MThd" + struct.pack(">IHH", 6, form, count) + division
    return head + b"".join(b"MTrk" + struct.pack(">I", len(t + END)) + t + END for t in tracks)


def read(tmp_path, data, name="tune.mid", codec=EVENTS):
    (path := tmp_path / name).write_bytes(data)
    return codec.read(path)


# ---- real tunes --------------------------------------------------------------------------------


def test_tunes_encode_decode_and_encode_to_the_same(data):
    paths = sorted((data / "music" / "nottingham" / "MIDI").glob("*.mid"))
    assert len(paths) >= 642
    for path in paths[::53]:
        raw = EVENTS.read(path)
        ids = EVENTS.encode(raw)
        assert EVENTS.decode(ids) == EVENTS.canonical(raw)
        assert EVENTS.encode(EVENTS.decode(ids)) == ids
        assert EVENTS.units(ids) == len(EVENTS.canonical(raw).notes) > 20


def test_written_tunes_are_what_symusic_and_miditok_read(data, tmp_path):
    symusic = pytest.importorskip("symusic")
    miditok = pytest.importorskip("miditok")
    tune = EVENTS.canonical(EVENTS.read(data / "music" / "nottingham" / "MIDI" / "hpps3.mid"))
    EVENTS.write(tune, tmp_path / "tune.mid")
    theirs = symusic.Score(tmp_path / "tune.mid")
    found = [
        Note(n.time, number, n.pitch, n.duration, n.velocity)
        for number, track in enumerate(theirs.tracks)
        for n in track.notes
    ]
    assert theirs.ticks_per_quarter == TICKS
    assert sorted(found) == list(tune.notes)
    remi = miditok.REMI(miditok.TokenizerConfig(use_programs=True, beat_res={(0, 64): 12}))
    melody = [n.pitch for n in tune.notes]
    again = remi.decode(remi.encode(theirs))
    assert sorted(n.pitch for t in again.tracks for n in t.notes) == sorted(melody)


def test_a_tune_in_abc_is_the_tune_in_midi(data):
    folder = data / "music" / "nottingham"
    for name, number in [("ashover", 1), ("ashover", 2), ("hpps", 3), ("xmas", 1)]:
        found = dict(tunes((folder / "ABC_cleaned" / f"{name}.abc").read_text()))
        ours, theirs = found[f"tune {number}"], EVENTS.read(folder / "MIDI" / f"{name}{number}.mid")
        melodies = [[n[:4] for n in s.notes if n.track == 0] for s in (ours, theirs)]
        assert melodies[0] == melodies[1]
        assert ours.signatures == theirs.signatures


def test_every_tune_of_a_collection_in_abc_is_a_record(data):
    path = data / "music" / "nottingham" / "ABC_cleaned" / "slip.abc"
    found = dict(EVENTS.records(path))
    assert list(found) == [f"tune {n}" for n in range(1, 12)]
    for score in found.values():
        ids = EVENTS.encode(score)
        assert EVENTS.encode(EVENTS.decode(ids)) == ids
    with pytest.raises(FileError, match=r"slip\.abc holds 11 pieces"):
        EVENTS.read(path)


@pytest.mark.parametrize(("grid", "codec"), [("quarter", QUARTER), ("16th", SIXTEENTH)])
def test_published_chorales_are_records_and_come_back(data, grid, codec):
    path = data / "music" / "jsb" / f"jsb-chorales-{grid}.json"
    splits = json.loads(path.read_text())
    found = dict(codec.records(path))
    assert len(found) == 382
    for number, piece in list(enumerate(splits["test"]))[::9]:
        raw = found[f"test {number}"]
        ids = codec.encode(raw)
        assert codec.encode(codec.decode(ids)) == ids
        assert codec.units(ids) == len(piece)
        for mine, frame in zip(codec.decode(ids).frames, piece, strict=True):
            assert {p for p in mine if p != REST} == {int(p) for p in frame}


# ---- scores ------------------------------------------------------------------------------------

notes = st.builds(
    Note,
    st.integers(0, 9000),
    st.integers(0, 3),
    st.integers(0, 127),
    st.integers(1, 5000),
    st.integers(1, 127),
)
changes = st.integers(0, 9000)
scores = st.builds(
    Score,
    st.lists(notes, max_size=12).map(tuple),
    st.just((0, 24, DRUMS, 0)),
    st.lists(st.tuples(changes, st.integers(20, 320)), max_size=4).map(tuple),
    st.lists(
        st.tuples(changes, st.integers(1, 8), st.sampled_from([4, 8, 16])), max_size=4
    ).map(tuple),
)  # fmt: skip


@settings(max_examples=60)
@given(score=scores, codec=st.sampled_from([EVENTS, made("music:resolution=4")]))
def test_any_score_has_a_canonical_form_and_keeps_it(score, codec):
    ids, form = codec.encode(score), codec.canonical(score)
    assert codec.decode(ids) == form == codec.canonical(form)
    assert codec.encode(form) == ids
    assert codec.units(ids) == len(form.notes)
    for place, id in enumerate(ids):
        assert allows(codec.legal(ids[:place], after=codec.start), id)
    assert codec.encode(codec.render(form)["text/plain"]) == ids, "its lines are its literal form"


@settings(max_examples=30)
@given(score=scores)
def test_midi_gives_back_what_was_written(score):
    form = EVENTS.canonical(score)
    data = EVENTS.render(form)["audio/midi"]
    from seriatim.codecs import _midi

    assert _midi.parse(data) == form


@settings(max_examples=20)
@given(score=scores, share=st.floats(0, 1))
def test_what_follows_a_prompt_begins_in_its_own_first_bar(score, share):
    ids = EVENTS.encode(score)
    cut = int(len(ids) * share)
    whole, head = EVENTS.decode(ids), EVENTS.decode(ids[:cut])
    tail = EVENTS.decode(ids[cut:], after=ids[:cut])
    assert len(head.notes) + len(tail.notes) == len(whole.notes)
    if head.notes and tail.notes:
        assert tail.notes[0].start < 8 * TICKS
        moved = whole.notes[len(head.notes)].start - tail.notes[0].start
        assert [n.start + moved for n in tail.notes] == [
            n.start for n in whole.notes[len(head.notes) :]
        ]


def test_the_canonical_form_is_what_the_codec_says():
    score = Score(
        (
            Note(19, 4, 60, 10, 1),  # to the grid of 40 ticks, a step long
            Note(20, 4, 62, 100, 100),
            Note(960, 4, 64, 2000, 50),  # ends where it comes again
            Note(1440, 4, 64, 90, 50),
            Note(1441, 4, 64, 200, 60),  # the same step: the longest, the loudest
            Note(0, 1, 36, 10, 127),  # the first track that has notes
        ),
        (0, DRUMS, 5, 6, 33),
        ((0, 101), (950, 61.2), (9000, 90)),
        ((0, 3, 4), (1000, 2, 4)),
    )
    assert EVENTS.canonical(score) == Score(
        (
            Note(0, 0, 36, 40, 127),
            Note(0, 1, 60, 40, 3),
            Note(40, 1, 62, 80, 103),
            Note(960, 1, 64, 480, 51),
            Note(1440, 1, 64, 200, 63),
        ),
        (DRUMS, 33),
        ((0, 100), (960, 62)),
        ((0, 3, 4), (1440, 2, 4)),
    )


@pytest.mark.parametrize(
    ("score", "names"),
    [
        (Score((Note(-5, 0, 60, 10),), (0,)), r"note 0 \(C4 at tick -5\) has the start -5"),
        (Score((Note(10**12, 0, 60, 10),), (0,)), "start 1000000000000"),
        (Score((Note(0, 0, 128, 10),), (0,)), "pitch 128"),
        (Score((Note(0, 0, 60, 0),), (0,)), "duration 0"),
        (Score((Note(0, 0, 60, 9, 0),), (0,)), "velocity 0"),
        (Score((Note(0, 1, 60, 9),), (0,)), "track 1"),
        (Score((Note(0.5, 0, 60, 9),), (0,)), "start 0.5"),  # type: ignore[arg-type]
        (Score((Note(0, 0, 60, 9),), (200,)), "program 200"),
        (Score((Note(0, 0, 60, 9),), (0,), ((0, 5000),)), "tempo is 5000 a minute at tick 0"),
        (Score((Note(0, 0, 60, 9),), (0,), ((0, float("nan")),)), "tempo is nan"),
        (Score((Note(0, 0, 60, 9),), (0,), ((-1, 90),)), "tempo stands at tick -1"),
        (Score((Note(0, 0, 60, 9),), (0,), signatures=((0, 17, 4),)), "17/4 at tick 0"),
        (Score((Note(0, 0, 60, 9),), (0,), signatures=((0, 4, 3),)), "4/3 at tick 0"),
        (Score(tuple(Note(0, t, 60, 9) for t in range(33)), (0,) * 33), "33 tracks"),
        (7, "int given to codec music"),
        ("Once upon a time", "line 1 is 'Once upon a time'"),
        ("0 C4 480\n0 H4 480", "line 2"),
        ("0 C4 480 v83 t99999999", "track 99999999"),
        ("K:C\nC?D", "line 2: column 2"),
    ],
)
def test_what_cannot_be_expressed_is_named(score, names):
    with pytest.raises(RequestError, match=names) as error:
        EVENTS.encode(score)
    assert "\n" not in str(error.value)


def test_an_option_of_the_other_form_is_refused():
    for name, of in [("grid=8th", "chorale"), ("form=chorale,resolution=24", "events")]:
        with pytest.raises(RequestError, match=f"form={of}"):
            made(f"music:{name}")
    with pytest.raises(RequestError, match="did you mean grid"):
        made("music:gird=8th")


def walk(codec, steps, seed, rules=()):
    """Ids drawn evenly from those that all rules allow; without an end until there is no other."""
    draw, ids = random.Random(seed), []
    for _ in range(steps):
        words = codec.legal(ids, after=codec.start)
        for rule in rules:
            words = words & rule(ids)
        found = [id for id in range(codec.size) if allows(words, id)]
        assert found, "there is always something that may come"
        if found == [0]:
            break
        kinds = [codec.events.events[id][0] if codec is EVENTS else "" for id in found]
        kind = draw.choice(sorted({*kinds} - {"end"}))
        ids.append(draw.choice([i for i, k in zip(found, kinds, strict=True) if i and k == kind]))
    return ids


@pytest.mark.parametrize("codec", [EVENTS, QUARTER, SIXTEENTH], ids=["events", "quarter", "16th"])
def test_whatever_the_mask_allows_is_what_the_codec_encodes(codec):
    for seed in range(3):
        ids = walk(codec, 160, seed)
        while not allows(codec.legal(ids), 0):
            ids.pop()
        assert codec.units(ids) > 10
        assert codec.encode(codec.decode(ids)) == ids


def test_a_mask_of_a_long_sequence_costs_no_more_than_of_a_short_one():
    """Each step of a request asks for it: the state that is known is taken up again."""
    ids = EVENTS.encode(Score(tuple(Note(40 * n, 0, 60, 40) for n in range(3000)), (0,)))
    assert len(ids) > 9000
    steps = []
    follow = type(EVENTS.events).follow

    def counted(self, state, id):
        steps.append(id)
        return follow(self, state, id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(EVENTS.events), "follow", counted)
        for end in range(8990, 9000):
            EVENTS.legal(ids[:end], after=EVENTS.start)
    assert len(steps) <= 9000 + 10


# ---- files that are not as they should be ------------------------------------------------------

BAD = {
    "empty": (b"", "it is empty"),
    "a zip": (b"PK\x03\x04" + bytes(60), "a zip"),
    "text": (b"X:1\nK:C\n", "as ABC"),
    "cut header": (midi(NOTE)[:10], "header is not 6 bytes"),
    "cut track": (midi(NOTE)[:-3], "the chunk at byte 14 says 12 bytes, 9 are left"),
    "half a chunk": (midi(NOTE) + b"MTr", "3 bytes follow"),
    "missing tracks": (midi(NOTE, count=65535), "says 65,535 tracks"),
    "one track too few": (midi(NOTE, count=2, form=1), "says 2 tracks, the file has 1"),
    "format 2": (midi(NOTE, form=2), "format 2"),
    "SMPTE": (midi(NOTE, division=b"\xe7\x28"), "SMPTE"),
    "no division": (midi(NOTE, division=b"\0\0"), "0 ticks"),
    "running status first": (midi(b"\x00\x3c\x40"), "byte 23: data 0x3c without a status"),
    "running status after meta": (midi(NOTE + b"\x00\xff\x01\x00\x00\x3c\x40"), "without a status"),
    "a length of five bytes": (midi(b"\x81\x81\x81\x81\x01\x90\x3c\x40"), "more than four bytes"),
    "a text beyond its track": (midi(b"\x00\xff\x01\xff\xff\xff\x7f"), "says 268,435,455 bytes"),
    "sysex beyond its track": (midi(b"\x00\xf0\xff\xff\xff\x7f"), "says 268,435,455 bytes"),
    "tempo 0": (midi(b"\x00\xff\x51\x03\x00\x00\x00" + NOTE), "tempo is 000000"),
    "a tempo of two bytes": (midi(b"\x00\xff\x51\x02\x07\xa1" + NOTE), "tempo is 07a1"),
    "a meter of nothing": (midi(b"\x00\xff\x58\x04\x00\x02\x18\x08"), "signature is 00021808"),
    "a status that is none": (midi(b"\x00\xf4"), "status 0xf4"),
    "data with the high bit": (midi(b"\x00\x90\xbc\x40"), "data 0xbc"),
    "a note that never ends": (midi(b"\x00\x90\x3c\x40"), "C4 of channel 1 .* tick 0 never ends"),
    "an end within": (midi(END + NOTE), "not its last event"),
    "a time after the last": (midi(b"\xff\xff\xff\x7f\x90\x3c\x40"), "after 100,000 quarters"),
    "no end": (midi(NOTE)[:14] + b"MTrk\0\0\0\x08" + NOTE, "the track has no end"),
}


@pytest.mark.parametrize(("content", "names"), BAD.values(), ids=BAD)
def test_midi_that_is_damaged_is_refused_with_its_place(tmp_path, content, names):
    with pytest.raises(FileError, match=names) as error:
        read(tmp_path, content)
    assert "tune.mid" in str(error.value)
    assert "\n" not in str(error.value)


def test_many_notes_many_tracks_and_large_files_are_refused_at_once(tmp_path):
    many = midi(b"\x00\x90\x3c\x40" * 10**6)
    with pytest.raises(FileError, match="more than 262,144 notes"):
        read(tmp_path, many)
    with pytest.raises(FileError, match="65,535 tracks"):
        read(tmp_path, midi(*[b""] * 65535, form=1))
    (tmp_path / "large.mid").write_bytes(midi(NOTE) + bytes(1 << 24))
    with pytest.raises(FileError, match="16,777,2"):
        EVENTS.read(tmp_path / "large.mid")


def test_what_midi_may_do_is_read(tmp_path):
    alien = midi(b"", NOTE, form=1) + b"XFIH\0\0\0\x02hi"
    assert read(tmp_path, alien).notes == (Note(0, 0, 60, 96, 64),), "tracks without notes are none"
    running = midi(b"\x00\x90\x3c\x40\x00\x3e\x40\x60\x3c\x00\x00\x3e\x00")
    assert [n.pitch for n in read(tmp_path, running).notes] == [60, 62]
    assert read(tmp_path, midi(b"\x00\x80\x3c\x40" + NOTE)).notes == (Note(0, 0, 60, 96, 64),)
    assert read(tmp_path, midi(b"\x00\x99\x24\x40\x60\x89\x24\x40")).programs == (DRUMS,)
    assert read(tmp_path, midi(b"\x00\x90\x3c\x40\x00\x80\x3c\x40")).notes[0].duration == 1
    assert read(tmp_path, midi(b"")) == Score()
    fast = midi(b"\x00\xff\x51\x03\x00\x00\x01" + NOTE)
    with pytest.raises(RequestError, match="60000000"):
        EVENTS.encode(read(tmp_path, fast))


def test_midi_changed_anywhere_is_read_or_refused(tmp_path):
    whole = bytearray(EVENTS.render('K:C\nM:3/4\nCDE"G"[FG]A|(3BcdZ')["audio/midi"])
    for cut in range(len(whole)):
        with pytest.raises(FileError):
            read(tmp_path, bytes(whole[:cut]))
    draw, read_well = random.Random(0), 0
    for _ in range(300):
        other = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            other[draw.randrange(len(other))] = draw.randrange(256)
        try:
            EVENTS.encode(read(tmp_path, bytes(other)))
            read_well += 1
        except SeriatimError:
            pass
    assert 0 < read_well < 300


def test_a_file_of_another_kind_is_refused(tmp_path):
    for name in ("tune.mp3", "tune", "tune.png"):
        with pytest.raises(FileError, match="has the suffix"):
            read(tmp_path, b"", name)
    with pytest.raises(RequestError, match=r"suffix '\.mp3'"):
        EVENTS.write(Score(), tmp_path / "tune.mp3")
    with pytest.raises(FileError, match=r"pip install|no file|does not exist"):
        EVENTS.read(tmp_path / "none.mid")


# ---- ABC ---------------------------------------------------------------------------------------


def melody(body, head="L:1/4\nK:C\n"):
    score = EVENTS._literal(f"X:1\n{head}{body}")
    return [n.pitch for n in score.notes if n.track == 0]


@pytest.mark.parametrize(
    ("body", "played"),
    [
        ("C D, c c'", [60, 50, 72, 84]),
        ("^C C | C _E =E", [61, 61, 60, 63, 64]),
        ("|:CD:|E", [60, 62, 60, 62, 64]),
        ("CD:|E", [60, 62, 60, 62, 64]),
        ("|:C|1D:|2E||F", [60, 62, 60, 64, 65]),
        ("|:C[1,3D:|[2E:|F", [60, 62, 60, 64, 60, 62, 65]),
        ("|:C::D:|", [60, 60, 62, 62]),
        ("C||D:|", [60, 62, 62]),
        ("|:C||D:|", [60, 62, 60, 62]),
        ("C-C D-|D", [60, 62]),
        ("[CEG]2 z [K:F] B", [60, 64, 67, 70]),
        ("{d}C !trill! ~D (EF) .G", [60, 62, 64, 65, 67]),
        ('"^slowly"C % D', [60]),
    ],
)
def test_abc_is_played_as_it_is_written(body, played):
    assert melody(body) == played


def test_keys_lengths_and_parts_of_abc():
    assert melody("F C B", "K:D\n") == [66, 61, 71]
    assert melody("F B", "K:Gm\n") == [65, 70]
    assert melody("F", "K:Ador\n") == [66]
    assert melody("P:A\nC\nP:B\nD", "P:AAB\nK:C\n") == [60, 60, 62]
    score = EVENTS._literal("X:1\nM:6/8\nL:1/8\nQ:3/8=80\nK:C\nC3/2D/ E>F (3CDE G//|")
    starts = [n.start for n in score.notes]
    pickup = 6 * 240 - (2 + 2 + 2 + 0.25) * 240
    assert np.diff(starts).tolist() == [360, 120, 360, 120, 160, 160, 160]
    assert starts[0] == max(pickup, 0)
    assert score.tempos == ((0, 120.0),)


def test_chord_symbols_sound_on_a_track_of_their_own():
    score = EVENTS._literal('X:1\nM:4/4\nL:1/4\nK:C\n"C"CDEF|GABc|"G7/b"G4|')
    chords = [n for n in score.notes if n.track == 1]
    assert {n.start for n in chords} == {0, 1920, 3840}
    assert [n.pitch for n in chords if n.start == 3840] == [47, 50, 53, 55, 59]
    assert chord("From A.Train's song") == ()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("X:1\nT:none", "no key"),
        ("X:1\nK:Q", "the key is 'Q'"),
        ("X:1\nM:4/0\nK:C", "the meter is '4/0'"),
        ("X:1\nL:1/0\nK:C", "'1/0' is no fraction of a note"),
        ("X:1\nQ:0\nK:C", "the tempo is '0'"),
        ("X:1\nK:C\nC9999999999", "line 3: the length"),
        ("X:1\nK:C\nc''''''''", "the note c"),
        ("X:1\nK:C\nV:2\nC", "voice '2'"),
        ("X:1\nK:C\nC & D", "column 3"),
        ("X:1\nP:AB\nK:C\nP:A\nC", "part B"),
        (f"X:1\nP:{'(' * 50}A{')99' * 50}\nK:C\nP:A\nC", "the parts are"),
        ("X:1\nP:A99A99\nK:C\nP:A\n" + "C" * 1000, "more than 131,072"),
        ("X:1\nK:C\n[CE", "column 1"),
        ("X:1\nK:C\nC" + "> " * 20, "> stands behind no note"),
        ("X:1\nK:C\nC>>>>D", "the broken rhythm '>>>>'; expected at most >>>"),
        ("X:1\nK:C\n(3C(3DEF", r"the tuplet \(3 within another"),
        ("X:1\nK:C\nC/9999991", "the length"),
        ("C D\nK:C\n", "stands before the key"),
    ],
)
def test_abc_that_cannot_be_honoured_is_refused_with_its_line(text, names):
    with pytest.raises(RequestError, match=names):
        EVENTS.encode(text)


def test_a_line_of_notes_is_written_as_abc_and_read_back(tmp_path):
    tune = EVENTS.canonical(
        "X:1\nM:6/8\nQ:3/8=80\nK:Am\na2b c'de|^g3/2=g/2z (3ABc|e8-|e4 z2|[M:3/4]f6C,|"
    )
    EVENTS.write(tune, tmp_path / "tune.abc")
    again = EVENTS.canonical(EVENTS.read(tmp_path / "tune.abc"))
    assert [n[:4] for n in again.notes] == [n[:4] for n in tune.notes]
    assert (again.tempos, again.signatures) == (tune.tempos, tune.signatures)
    with pytest.raises(RequestError, match="several notes sound at tick 0"):
        EVENTS.write("K:C\n[CE]", tmp_path / "chord.abc")


# ---- chorales ----------------------------------------------------------------------------------

BACH = Chorale(((72, 67, 64, 48), (72, 65, 62, 47), (71, 67, 62, 43), (72, 67, 64, 36)))


def test_a_frame_of_the_quarter_grid_is_a_set_and_of_a_finer_one_four_voices():
    crossed = Chorale(((60, 67, 67, REST),))
    assert QUARTER.canonical(crossed) == Chorale(((67, 60, REST, REST),))
    assert SIXTEENTH.canonical(crossed) == crossed
    sets = {tuple(QUARTER.encode(Chorale((f,)))) for f in [(67, 60, -1, -1), (60, -1, 67, 60)]}
    assert len(sets) == 1, "a set has one spelling"
    for pitches in [(72, 72), (60, 61), (REST, 60)]:
        ids = [1 + v * 89 + (p - 20 if p != REST else 0) for v, p in enumerate(pitches)]
        assert not allows(QUARTER.legal(ids[:1]), ids[1])
        assert allows(SIXTEENTH.legal(ids[:1]), ids[1])


def test_nats_of_a_frame_are_the_sum_over_its_voices(tmp_path):
    model = loaded(QUARTER, tmp_path)
    score = model.score(BACH)
    assert (score.unit, score.units) == ("frame", 4)
    assert score.bits_per_unit == pytest.approx(score.nats / np.log(2) / 4)
    assert len(score.logprobs) == 16


@pytest.mark.parametrize(
    ("frames", "names"),
    [
        (((60, 50, 40),), "frame 0 is"),
        (((60, 50, 40, 20),), "the bass of frame 0 is 20"),
        (((109, 50, 40, 30),), "the soprano of frame 0 is 109"),
        (((60.5, 50, 40, 30),), "60.5"),
        (((60, None, 40, 30),), "the alto of frame 0 is open"),
        (((60, 50, 40, 30),) * 70_000, "70,000 frames"),
    ],
)
def test_a_frame_that_is_none_is_named(frames, names):
    with pytest.raises(RequestError, match=names):
        QUARTER.encode(Chorale(frames))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"frames": [[60, 61, 62, 63, 64]]}, "frame 0 is"),
        ({"frames": [[60.5]]}, "60.5"),
        ({"frames": [["C4"]]}, "C4"),
        ({"frames": [[float("inf")]]}, "Infinity"),
        ({"train": [[[60]], [[61]]]}, "holds 2 pieces"),
        ({"train": 5}, "JSON int"),
        ({"train": [5]}, "the piece is 5"),
    ],
)
def test_json_that_is_no_chorale_is_refused(tmp_path, content, names):
    with pytest.raises(FileError, match=names):
        read(tmp_path, json.dumps(content).encode(), "piece.json", QUARTER)


def test_whole_floats_and_frames_of_fewer_voices_are_read(tmp_path):
    content = {"test": [[[67.0, 60.0], []]]}
    raw = read(tmp_path, json.dumps(content).encode(), "piece.json", SIXTEENTH)
    assert raw == Chorale(((67, 60, REST, REST), (REST,) * 4))


@pytest.mark.parametrize("codec", [QUARTER, SIXTEENTH], ids=["quarter", "16th"])
def test_a_chorale_as_midi_sounds_what_it_is(tmp_path, codec):
    codec.write(BACH, tmp_path / "bach.mid")
    assert codec.read(tmp_path / "bach.mid") == BACH
    played = codec.played(BACH)
    assert len(played.programs) == 4
    assert [n.duration for n in played.notes if n.track == 0] == [
        2 * codec.grid.ticks,
        codec.grid.ticks,
        codec.grid.ticks,
    ]  # fmt: skip, held


def test_more_than_four_notes_at_once_are_no_frame():
    score = Score(tuple(Note(0, 0, 60 + n, 480) for n in range(5)), (0,))
    with pytest.raises(RequestError, match="5 notes sound at tick 0"):
        QUARTER.encode(score)


# ---- given in part -----------------------------------------------------------------------------


def loaded(codec, tmp_path):
    folder = tiny.write(
        tmp_path / "model", codec=False, vocab_size=codec.size,
        ids=dict(bos_token_id=0, eos_token_id=0),
    )  # fmt: skip
    codec.save(folder)
    return seriatim.load(folder, threads=1)


@pytest.mark.parametrize("codec", [QUARTER, SIXTEENTH], ids=["quarter", "16th"])
@pytest.mark.parametrize("voice", ["soprano", "bass"])
def test_a_voice_that_is_given_is_kept_and_the_others_are_generated(tmp_path, codec, voice):
    model = loaded(codec, tmp_path)
    kept = music.VOICES.index(voice)
    outputs = set()
    for seed in range(4):
        result = model.generate(given=music.harmonise(BACH, voice), seed=seed)
        assert [f[kept] for f in result.output.frames] == [f[kept] for f in BACH.frames]
        assert codec.canonical(result.output) == result.output
        assert (len(result.output.frames), result.finish_reason) == (4, "stop")
        assert result.reencodes
        outputs.add(result.output)
    assert len(outputs) > 1


def test_any_places_may_be_open_and_the_rest_is_kept(tmp_path):
    model = loaded(SIXTEENTH, tmp_path)
    given = music.vary(BACH, 0.5, block=1, seed=3)
    assert 0 < given.open < 16
    result = model.generate(given=given, seed=0)
    for mine, wanted in zip(result.output.frames, given.frames, strict=True):
        assert all(w in (OPEN, m) for m, w in zip(mine, wanted, strict=True))


@settings(max_examples=40)
@given(frames=st.lists(st.lists(st.integers(30, 80), min_size=4, max_size=4, unique=True),
                       min_size=1, max_size=3),
       seed=st.integers(0, 99))  # fmt: skip
def test_places_of_a_set_can_be_filled_whichever_are_open(frames, seed):
    whole = QUARTER.canonical(Chorale(tuple(map(tuple, frames))))
    part = music.vary(whole, 0.5, block=1, seed=seed)
    ids = walk(QUARTER, 100, seed, [QUARTER.agreeing(part, after=QUARTER.start)])
    for mine, wanted in zip(QUARTER.decode(ids).frames, part.frames, strict=True):
        assert all(w in (OPEN, m) for m, w in zip(mine, wanted, strict=True))


def test_a_lone_melody_is_a_chorale_whose_other_voices_are_open(tmp_path):
    model = loaded(QUARTER, tmp_path)
    (tmp_path / "tune.abc").write_text("X:1\nL:1/4\nM:4/4\nK:C\ncdef|")
    for part in (
        tmp_path / "tune.abc",
        "X:1\nL:1/4\nK:C\ncdef|",
        "C5 ... | D5 ... | E5 ... | F5 ...",
    ):
        result = model.generate(given=part, seed=1)
        assert [f[0] for f in result.output.frames] == [72, 74, 76, 77]
    with pytest.raises(RequestError, match="alto of frame 0 is open"):
        model.generate(tmp_path / "tune.abc")


def test_what_is_given_and_what_was_sung_must_agree(tmp_path):
    model = loaded(QUARTER, tmp_path)
    prompt = Chorale(BACH.frames[:2])
    result = model.generate(prompt, given=music.harmonise(BACH), seed=0)
    assert [f[0] for f in result.output.frames] == [71, 72]
    with pytest.raises(RequestError, match="soprano of frame 0 is not what is given"):
        model.generate("D5 C5 C4 C3", given=music.harmonise(BACH))
    with pytest.raises(RequestError, match="tenor of frame 0 is C5, which leaves no room"):
        model.generate(given=Chorale(((72, OPEN, 72, 48),)))
    with pytest.raises(RequestError, match="given in part"):
        seriatim.load(tiny.write(tmp_path / "bytes"), threads=1).generate(given=BACH)


def test_a_model_of_events_keeps_to_the_grammar_and_streams_what_it_decodes(tmp_path):
    model = loaded(EVENTS, tmp_path)
    result = model.generate("X:1\nL:1/4\nK:C\nCDEF|", max_tokens=60, seed=2)
    ids = [*result.prompt_ids[1:], *result.ids]
    while not allows(EVENTS.legal(ids), 0):
        ids.pop()
    assert EVENTS.encode(EVENTS.decode(ids)) == ids
    pieces = list(model.stream("X:1\nL:1/4\nK:C\nCDEF|", max_tokens=60, seed=2))
    assert (
        "".join(p.text for p in pieces) == result.text == EVENTS.render(result.output)["text/plain"]
    )


def test_the_command_line_writes_what_the_suffix_says_and_refuses_others_at_once(tmp_path, capsys):
    from seriatim.cli import main

    loaded(QUARTER, tmp_path)
    command = ["generate", "--model", str(tmp_path / "model"), "--seed", "1"]
    given = ["--given", "C5 ... | D5 ? ? G3 | C5 G4 E4 C3"]
    with pytest.raises(SystemExit) as done:
        main([*command, *given, "--out", str(tmp_path / "new.mid")])
    assert done.value.code == 0
    frames = QUARTER.read(tmp_path / "new.mid").frames
    assert (frames[0][0], frames[1][0], frames[2]) == (72, 74, (72, 67, 64, 48))
    with pytest.raises(SystemExit) as done:
        main([*command, "--out", str(tmp_path / "new.mp3")])
    assert done.value.code == 2
    assert "'.mp3'; expected .json .mid" in capsys.readouterr().err


def test_the_examples_of_the_document_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "music.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 5
    exec("\n".join(blocks), {"print": lambda *_: None})


def test_parts_of_a_piece():
    assert music.opening(EVENTS.canonical("X:1\nL:1/4\nK:C\nCDEF"), 2).notes[-1].pitch == 62
    assert music.vary(BACH, 0) == BACH
    assert music.vary(BACH, 1, voices=["tenor"]).open == 4
    for wrong in [dict(share=2), dict(block=0), dict(voices=["baritone"])]:
        with pytest.raises(RequestError):
            music.vary(BACH, **wrong)


# ---- seen and heard ----------------------------------------------------------------------------


def test_a_piano_roll_shows_every_note():
    image = pytest.importorskip("PIL.Image")
    score = Score((Note(0, 0, 60, 480), Note(480, 1, 72, 960)), (0, 0))
    data = EVENTS.render(score)["image/png"]
    picture = np.array(image.open(BytesIO(data)))
    assert picture.shape == ((72 - 60 + 5) * 8, 28 + 72 + 1, 3)
    row = picture[(72 + 2 - 60) * 8 + 4, 28:]
    dark = (row.astype(int).sum(axis=1) < 500).tolist()
    assert dark[1:22] == [True] * 21
    assert not any(dark[25:])


def test_a_picture_without_notes_and_one_of_a_long_score_are_small():
    far = Score((Note(0, 0, 60, 10), Note(15_000 * TICKS, 0, 61, 10)), (0,))
    for score in (Score(), far):
        data = EVENTS.render(score)["image/png"]
        width, height = struct.unpack(">II", data[16:24])
        assert 1 <= width <= 1 << 15
        assert len(zlib.decompress(data[data.index(b"IDAT") + 4 : -16])) == height * (3 * width + 1)


def test_sound_is_as_long_as_the_score_and_never_clips():
    loud = Score(
        tuple(Note(0, 0, 40 + n, 960, 127) for n in range(60)), (0,), ((0, 60), (480, 120))
    )
    with wave.open(BytesIO(music.wav(loud))) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(int)
        seconds = file.getnframes() / file.getframerate()
    assert seconds == pytest.approx(1 + 0.5 + 0.12, abs=0.01)
    assert 0.79 * 32767 < np.abs(sound).max() < 0.81 * 32767
    assert music.wav(loud) == music.wav(loud)
    assert np.abs(sound).mean() > 300


def test_sound_that_would_not_end_is_refused():
    with pytest.raises(RequestError, match="seconds"):
        music.wav(Score((Note(0, 0, 60, 40_000 * TICKS),), (0,)))
    with pytest.raises(RequestError, match="notes last 24,"):
        music.wav(Score(tuple(Note(0, 0, 60, 1200 * TICKS) for _ in range(40)), (0,)))
    with pytest.raises(RequestError, match="pitch 200"):
        music.wav(Score((Note(0, 0, 200, 480),), (0,)))


def test_fluidsynth_is_used_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileError, match="fluidsynth is not installed"):
        music.wav(Score(), soundfont="font.sf2")
    (tmp_path / "fluidsynth").write_text('#!/bin/sh\nprintf "RIFF $4" > "$3"\n')
    (tmp_path / "fluidsynth").chmod(0o755)
    with pytest.raises(FileError, match=r"font\.sf2 is no file"):
        music.wav(Score(), soundfont=tmp_path / "font.sf2")
    (tmp_path / "font.sf2").write_bytes(b"sfbk")
    assert music.wav(Score(), soundfont=tmp_path / "font.sf2").startswith(b"RIFF")


def test_without_symusic_all_but_midi_works(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "symusic", None)
    assert EVENTS.encode("K:C\nC")
    assert EVENTS.render("K:C\nC")["image/png"]
    with pytest.raises(FileError, match=r"seriatim\[music\]"):
        read(tmp_path, midi(NOTE))


# ---- trained -----------------------------------------------------------------------------------


def test_files_of_chorales_are_trained_on_and_generated(tmp_path):
    pytest.importorskip("torch")
    pieces = [[[72 + s, 67 + s, 64 + s, 48 + s]] * 12 for s in range(-6, 6)]
    (tmp_path / "train.json").write_text(json.dumps({"train": [*pieces, [[1]]]}))
    (tmp_path / "valid.json").write_text(json.dumps({"valid": pieces[:2]}))
    seriatim.train(
        data=str(tmp_path / "train.json"), validation=str(tmp_path / "valid.json"),
        codec="music:form=chorale", size="0.01M", steps=2, out=str(tmp_path / "run"), threads=1,
        context=64, batch=2,
    )  # fmt: skip
    refused = (tmp_path / "run" / "checkpoints" / "refused.jsonl").read_text()
    assert json.loads(refused)["place"] == "train 12"
    model = seriatim.load(tmp_path / "run", threads=1)
    assert model.codec.options == {"form": "chorale", "grid": "quarter"}
    assert isinstance(codecs.load(tmp_path / "run"), codecs.Fillable)
    out = Path(tmp_path / "new.mid")
    model.codec.write(model.generate(max_tokens=16, seed=0).output, out)
    assert out.read_bytes().startswith(b"MThd")
