"""Standard MIDI files: checked here byte by byte, then read, and written, by symusic.

What is read are notes, programs, tempi and time signatures; controllers, pitch bends, names and
lyrics are no part of a score. symusic passes over what it does not understand, so a file is handed
to it only once every event has been seen to be whole, and every note to end.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from seriatim.codecs._score import DRUMS, MOST_NOTES, MOST_QUARTERS, TICKS, Note, Score, pitch_name
from seriatim.errors import FileError

LARGEST = 1 << 24  # bytes
MOST_TRACKS = 256

_ARGUMENTS = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}
_OTHERS = {b"PK\3\4": "a zip", b"RIFF": "a RIFF file", b"\x1f\x8b": "gzip", b"X:": "ABC"}


def read(path: Path) -> Score:
    """The score in a file.

    Raises:
        FileError: it is none, or damaged: where and how; or symusic is not installed.
    """
    if path.is_file() and path.stat().st_size > LARGEST:
        seen = f"{path} has {path.stat().st_size:,} bytes"
        raise FileError(seen, expected=f"MIDI of at most {LARGEST:,}")
    from seriatim.codecs._files import named, read_bytes

    data = read_bytes(path)
    with named(path):
        return parse(data)


def parse(data: bytes) -> Score:
    """The score in the bytes of a file; times are rounded to `TICKS` to a quarter note.

    Raises:
        FileError: as `read`.
    """
    clean, division, notes = checked(data)
    try:
        found = _symusic().Score.from_midi(clean)
    except FileError:
        raise
    except Exception as error:  # whatever a C++ library throws at bytes that look whole
        raise FileError(f"symusic cannot read it: {error}") from error
    score = _score(found, division)
    if len(score.notes) != notes:
        raise FileError(f"symusic reads {len(score.notes)} of its {notes} notes")
    return score


def content(score: Score) -> bytes:
    """A MIDI file of a score.

    Raises:
        FileError: symusic is not installed.
    """
    symusic = _symusic()
    made = symusic.Score(TICKS)
    for tick, tempo in score.tempos:
        made.tempos.append(symusic.Tempo(tick, tempo))
    for tick, above, below in score.signatures:
        made.time_signatures.append(symusic.TimeSignature(tick, above, below))
    for number, program in enumerate(score.programs):
        track = symusic.Track(f"track {number}", program % DRUMS, program == DRUMS)
        for note in score.notes:
            if note.track == number:
                track.notes.append(
                    symusic.Note(note.start, note.duration, note.pitch, note.velocity)
                )
        made.tracks.append(track)
    return bytes(made.dumps_midi())


def _symusic() -> Any:
    try:
        import symusic
    except ImportError as error:
        fix = 'pip install "seriatim[music]"'
        raise FileError("MIDI needs symusic, which is not installed", fix=fix) from error
    return symusic


def _score(found: Any, division: int) -> Score:
    def ticks(time: int) -> int:
        return (2 * time * TICKS + division) // (2 * division)

    tracks = [track for track in found.tracks if len(track.notes)]
    notes = [
        Note(ticks(n.time), number, n.pitch, max(1, ticks(n.end) - ticks(n.time)), n.velocity)
        for number, track in enumerate(tracks)
        for n in track.notes
    ]
    tempos = {0: 120.0} | {ticks(t.time): _plain(6e7 / t.mspq) for t in found.tempos}
    meters = {0: (4, 4)}
    meters |= {ticks(t.time): (t.numerator, t.denominator) for t in found.time_signatures}
    return Score(
        tuple(sorted(notes)),
        tuple(DRUMS if track.is_drum else track.program for track in tracks),
        tuple(sorted((tick, _plain(tempo)) for tick, tempo in tempos.items())),
        tuple((tick, *meter) for tick, meter in sorted(meters.items())),
    )


def _plain(tempo: float) -> float:
    """A file holds microseconds to a quarter note: 461,538 are 130 a minute."""
    return round(tempo) if abs(6e7 / round(tempo or 1) - 6e7 / tempo) < 1 else tempo


# ---- the check -----------------------------------------------------------------------------------


def checked(data: bytes) -> tuple[bytes, int, int]:
    """The file without chunks that are no tracks, its ticks to a quarter note, and how many notes.

    Raises:
        FileError: the first thing that is not as the standard (RP-001, 1996) has it, with its byte.
    """
    division, tracks = _header(data)
    chunks, at, notes = [data[:14]], 14, 0
    while at < len(data):
        if len(data) - at < 8:
            raise FileError(f"{len(data) - at} bytes follow the last chunk, at byte {at}")
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8])
        if size > len(data) - at - 8:
            seen = f"the chunk at byte {at} says {size:,} bytes, {len(data) - at - 8:,} are left"
            raise FileError(seen, fix="the file is cut short, or damaged")
        if kind == b"MTrk":
            chunks.append(data[at : at + 8 + size])
            notes += _Track(data, at + 8, at + 8 + size, division, len(chunks) - 1).notes(notes)
        at += 8 + size
    if len(chunks) - 1 != tracks:
        raise FileError(f"the header says {tracks:,} tracks, the file has {len(chunks) - 1:,}")
    return b"".join(chunks), division, notes


def _header(data: bytes) -> tuple[int, int]:
    """Ticks to a quarter note, and tracks."""
    if data[:4] != b"MThd":
        other = [f", as {what} does" for magic, what in _OTHERS.items() if data.startswith(magic)]
        seen = f"it begins with {data[:4]!r}{''.join(other)}" if data else "it is empty"
        raise FileError(seen, expected="a MIDI file, which begins with b'MThd'")
    if len(data) < 14 or int.from_bytes(data[4:8]) != 6:
        raise FileError("the header is not 6 bytes long", fix="the file is cut short, or damaged")
    form, tracks, division = (int.from_bytes(data[i : i + 2]) for i in (8, 10, 12))
    if form not in (0, 1):
        raise FileError(f"it is MIDI of format {form}", expected="0 or 1")
    if division >> 15:
        raise FileError("its times are SMPTE frames", expected="ticks to a quarter note")
    if not division:
        raise FileError("it has 0 ticks to a quarter note", expected="1 to 32,767")
    if not 1 <= tracks <= MOST_TRACKS:
        raise FileError(f"the header says {tracks:,} tracks", expected=f"1 to {MOST_TRACKS}")
    return division, tracks


class _Track:
    """The events of a chunk, each seen to be whole."""

    def __init__(self, data: bytes, at: int, end: int, division: int, number: int) -> None:
        self.data, self.at, self.end = data, at, end
        self.most, self.number = MOST_QUARTERS * division, number
        self.tick = 0
        self.open: dict[tuple[int, int], list[int]] = {}

    def notes(self, before: int) -> int:
        """How many it holds; `before` are held by other tracks."""
        count = 0
        for begins, channel, pitch in self._events():
            key = channel, pitch
            if begins:
                count += 1
                if before + count > MOST_NOTES:
                    self._fail(f"there are more than {MOST_NOTES:,} notes", self.at)
                self.open.setdefault(key, []).append(self.tick)
            elif self.open.get(key):
                self.open[key].pop()
        for (channel, pitch), ticks in self.open.items():
            if ticks:
                seen = f"note {pitch_name(pitch)} of channel {channel + 1} that begins at tick"
                self._fail(f"{seen} {ticks[0]} never ends", self.end)
        return count

    def _events(self) -> Iterator[tuple[bool, int, int]]:
        """Each beginning or end of a note: which, its channel, its pitch."""
        status = 0
        while self.at < self.end:
            self.tick += self._length()
            if self.tick > self.most:
                self._fail(f"the time is tick {self.tick:,}, after {MOST_QUARTERS:,} quarters")
            begin = self.at
            byte = self._byte()
            if byte >= 0xF0:
                status = 0
                if self._special(byte, begin):
                    return
                continue
            if byte >= 0x80:
                status, byte = byte, self._byte()
            elif not status:
                self._fail(f"data 0x{byte:02x} without a status (running status) ", begin)
            kind = status & 0xF0
            second = self._byte() if _ARGUMENTS[kind] == 2 else 0
            if byte > 0x7F or second > 0x7F:
                self._fail(f"data 0x{max(byte, second):02x} of the event", begin)
            if kind in (0x80, 0x90):
                yield kind == 0x90 and second > 0, status & 15, byte
        self._fail("the track has no end", self.end)

    def _special(self, status: int, begin: int) -> bool:
        """Passes over a meta or system exclusive event; whether it ends the track."""
        if status not in (0xF0, 0xF7, 0xFF):
            self._fail(f"status 0x{status:02x}", begin)
        kind = self._byte() if status == 0xFF else -1
        size = self._length()
        if size > self.end - self.at:
            self._fail(f"the event says {size:,} bytes, {self.end - self.at:,} are left", begin)
        body = self.data[self.at : self.at + size]
        self.at += size
        if kind == 0x51 and (size != 3 or not any(body)):
            self._fail(f"the tempo is {body[:8].hex() or 'empty'}", begin)
        if kind == 0x58 and (size != 4 or not body[0] or body[1] > 15):
            self._fail(f"the time signature is {body[:8].hex() or 'empty'}", begin)
        if kind == 0x2F and (size or self.at < self.end):
            self._fail("the end of the track is not its last event", begin)
        return kind == 0x2F

    def _length(self) -> int:
        """A number of at most four bytes, seven bits each."""
        begin, value = self.at, 0
        for _ in range(4):
            byte = self._byte()
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                return value
        return self._fail("a number of more than four bytes", begin)

    def _byte(self) -> int:
        if self.at >= self.end:
            self._fail("the track ends within an event", self.end)
        self.at += 1
        return self.data[self.at - 1]

    def _fail(self, seen: str, at: int | None = None) -> NoReturn:
        place = self.at if at is None else at
        raise FileError(f"track {self.number}, byte {place}: {seen.strip()}", expected="whole MIDI")
