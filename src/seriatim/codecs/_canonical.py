"""What a score is reduced to before it becomes events; and what cannot be, named."""

from collections.abc import Iterator, Sequence
from typing import Any

from seriatim.codecs._events import LARGEST_BAR, METERS, TEMPOS, TRACKS
from seriatim.codecs._score import DRUMS, MOST_NOTES, MOST_QUARTERS, TICKS, Note, Score, pitch_name
from seriatim.errors import RequestError, shown


def canonical(score: Score, step: int) -> Score:
    """The score on a grid of `step` ticks, as the codec documents it.

    Raises:
        RequestError: something that no event stands for, by name.
    """
    check(score)
    moved = [_moved(note, step) for note in score.notes]
    notes = list(_distinct(moved))
    if not notes:
        return Score()
    used = list(dict.fromkeys(note.track for note in notes))
    number = {track: index for index, track in enumerate(used)}
    if len(used) > TRACKS:
        raise RequestError(f"the score has {len(used)} tracks", expected=f"at most {TRACKS}")
    last = max(note.start for note in notes)
    return Score(
        tuple(sorted(note._replace(track=number[note.track]) for note in notes)),
        tuple(score.programs[track] for track in used),
        _tempos(score, step, last),
        _meters(score, step, last),
    )


def _grid(tick: int, step: int) -> int:
    return (2 * tick + step) // (2 * step) * step


def _moved(note: Note, step: int) -> Note:
    start, end = _grid(note.start, step), _grid(note.start + note.duration, step)
    return note._replace(start=start, duration=max(step, end - start), velocity=note.velocity | 3)


def _tempos(score: Score, step: int, last: int) -> tuple[tuple[int, float], ...]:
    found: dict[int, int] = {0: 120}
    for tick, tempo in sorted(score.tempos, key=lambda change: change[0]):
        if not TEMPOS[0] / 2 <= tempo <= TEMPOS[-1] * 2:
            seen = f"the tempo is {shown(tempo)} a minute at tick {tick}"
            raise RequestError(seen, expected=f"{TEMPOS[0] // 2} to {TEMPOS[-1] * 2}")
        found[_grid(tick, step)] = min(TEMPOS, key=lambda each: abs(each - tempo))
    return _changes(found, last)


def _meters(score: Score, step: int, last: int) -> tuple[tuple[int, int, int], ...]:
    """Each from the bar line on which it stands, or the next."""
    found: dict[int, tuple[int, int]] = {}
    bar, meter = 0, (4, 4)
    for tick, above, below in sorted(score.signatures):
        if (above, below) not in METERS:
            seen = f"the time signature is {above}/{below} at tick {tick}"
            expected = f"1 to 16 over 2, 4, 8 or 16, at most {LARGEST_BAR} quarter notes a bar"
            raise RequestError(seen, expected=expected)
        length = meter[0] * 4 * TICKS // meter[1]
        bar += -(-max(_grid(tick, step) - bar, 0) // length) * length
        found[bar] = meter = above, below
    found.setdefault(0, (4, 4))
    changes = _changes(dict(sorted(found.items())), last)
    return tuple((tick, *meter) for tick, meter in changes)


def _changes(found: dict[int, Any], last: int) -> tuple[tuple[int, Any], ...]:
    """Those that change something, up to a tick."""
    kept: list[tuple[int, Any]] = []
    for tick, value in found.items():
        if tick <= last and (not kept or kept[-1][1] != value):
            kept.append((tick, value))
    return tuple(kept)


def _distinct(notes: Sequence[Note]) -> Iterator[Note]:
    """In order; of equal start, track and pitch the longest, loudest; cut where it comes again."""
    best: dict[tuple[int, int, int], Note] = {}
    for note in sorted(notes):
        other = best.setdefault(note[:3], note)
        longest, loudest = (max(a, b) for a, b in zip(note[3:], other[3:], strict=True))
        best[note[:3]] = note._replace(duration=longest, velocity=loudest)
    following: dict[tuple[int, int], int] = {}
    kept = []
    for note in reversed(best.values()):
        until = following.get((note.track, note.pitch), note.start + note.duration)
        following[note.track, note.pitch] = note.start
        kept.append(note._replace(duration=min(note.duration, until - note.start)))
    yield from reversed(kept)


def check(score: Score) -> None:
    """Refuses a score whose numbers mean nothing.

    Raises:
        RequestError: the first of them, by name.
    """
    if len(score.notes) > MOST_NOTES:
        seen = f"the score has {len(score.notes):,} notes"
        raise RequestError(seen, expected=f"at most {MOST_NOTES:,}")
    most = MOST_QUARTERS * TICKS
    limits = {
        "start": (0, most),
        "track": (0, len(score.programs) - 1),
        "pitch": (0, 127),
        "duration": (1, most),
        "velocity": (1, 127),
    }
    for index, note in enumerate(score.notes):
        for (name, (least, greatest)), value in zip(limits.items(), note, strict=True):
            if type(value) is not int or not least <= value <= greatest:
                seen = f"note {index} {_place(note)} has the {name} {shown(value)}"
                raise RequestError(seen, expected=f"a whole number from {least} to {greatest}")
    for name, changes in (("tempo", score.tempos), ("time signature", score.signatures)):
        for tick, *_ in changes:
            if type(tick) is not int or not 0 <= tick <= most:
                seen = f"a {name} stands at tick {shown(tick)}"
                raise RequestError(seen, expected=f"0 to {most}")
    for track, program in enumerate(score.programs):
        if type(program) is not int or not 0 <= program <= DRUMS:
            seen = f"track {track} has the program {shown(program)}"
            raise RequestError(seen, expected=f"0 to 127, or {DRUMS} for drums")


def _place(note: Note) -> str:
    pitched = type(note.pitch) is int and 0 <= note.pitch <= 127
    return f"({pitch_name(note.pitch) if pitched else '?'} at tick {shown(note.start)})"
