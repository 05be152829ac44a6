"""The models that ship: their size, their cards, and that each writes what its codec can read.

What a model learned is checked against data that it never saw, where the data are there: a model
whose weights were mixed up, rounded wrongly or trained with another codec scores like chance.
"""

import io
import json
import re

import pytest

import seriatim
from seriatim import zoo
from seriatim.codecs.music import Chorale
from seriatim.codecs.protein import Record

MOST = {"tales": 8e6, "python": 6e6, "chorales": 4e6, "proteins": 4e6, "icons": 4e6}  # bytes


@pytest.fixture(scope="module")
def model():
    """Loads each shipped model once."""
    loaded: dict[str, seriatim.Model] = {}
    return lambda name: loaded.setdefault(name, seriatim.load(name))


def test_the_models_that_ship_are_these():
    assert zoo.names() == sorted(MOST)


@pytest.mark.parametrize("name", MOST)
def test_a_model_is_small_and_its_card_tells_how_it_was_made(name):
    folder = zoo.folder(name)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= MOST[name]
    card = (folder / "README.md").read_text(encoding="utf-8")
    for needed in (
        f"# {name}\n",
        "**Credit:**",
        "seriatim train ",
        "**Score:**",
        "## Data",
        "Held out",
    ):
        assert needed in card, f"{needed!r} is not in the card of {name}"


@pytest.mark.parametrize("name", MOST)
def test_what_it_writes_reads_back(name, model):
    one = model(name)
    result = one.generate(None, seed=1, max_tokens=one.context - 1, loop_limit=64)
    codec = one.codec
    assert result.finish_reason in ("stop", "length", "loop")
    assert codec.decode(result.ids) == result.output
    again = codec.decode(codec.encode(result.output))
    assert again == codec.canonical(result.output)


def test_chorales_have_four_voices_that_another_library_reads(model):
    symusic = pytest.importorskip("symusic")
    chorale = model("chorales").generate(None, seed=2).output
    assert isinstance(chorale, Chorale) and len(chorale.frames) > 8
    midi = model("chorales").codec.render(chorale)["audio/midi"]
    score = symusic.Score.from_midi(midi)
    assert 1 <= len(score.tracks) <= 4 and sum(len(track.notes) for track in score.tracks) > 16


def test_chorales_harmonise_a_melody_and_leave_it_as_it_is(model):
    melody = "C5 ? ? ? | D5 ? ? ? | E5 ? ? ? | C5 ? ? ?"
    frames = model("chorales").generate(given=melody, seed=1).output.frames
    assert [frame[0] for frame in frames] == [72, 74, 76, 72]
    assert any(frame[3] > 0 for frame in frames)


@pytest.mark.parametrize("family, columns", [("PF00014", 53), ("PF00595", 82), ("PF13354", 202)])
def test_proteins_are_rows_of_their_family(family, columns, model):
    row = model("proteins").generate(f"{family}:", seed=1).output
    assert isinstance(row, Record) and row.mark == family
    assert re.fullmatch(f"[A-Y-]{{{columns}}}", row.sequence)


def test_icons_are_pictures_that_another_library_reads(model):
    image = pytest.importorskip("PIL.Image")
    icon = model("icons").generate(None, seed=1).output
    png = model("icons").codec.render(icon)["image/png"]
    assert image.open(io.BytesIO(png)).size[0] % 16 == 0 and icon.size == (16, 16)


def test_python_fills_a_gap_and_stops(model):
    result = model("python").generate(
        prefix="def add(a, b):\n    return ",
        suffix="\n\n\ndef sub(a, b):\n    return a - b\n",
        seed=1,
    )
    assert result.finish_reason == "stop" and result.ids


def test_chorales_know_bach(model, data):
    pieces = json.loads((data / "music/jsb/jsb-chorales-8th.json").read_text())["test"]
    chorale = Chorale(tuple(tuple(frame) for frame in pieces[0]))
    score = model("chorales").score(chorale)
    assert score.nats / score.units < 7, "nats of a frame; four voices by chance have about 17"
