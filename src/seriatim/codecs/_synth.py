"""A score as sound: decaying partials, as of a plucked string; or FluidSynth, if asked for.

Notes of General MIDI's programs all sound alike here, drums are short noise.
"""

import shutil
import subprocess
import wave
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from seriatim.codecs._score import DRUMS, TICKS, Note, Score
from seriatim.errors import FileError, RequestError

RATE = 32_000  # samples a second
LOUDEST = 0.8  # of full scale
LONGEST, MOST = 1200, 20_000  # seconds: of a score, of its notes together
ATTACK, RELEASE = 0.008, 0.12  # seconds
PARTIALS = (1.0, 0.45, 0.3, 0.12, 0.08, 0.04)


def seconds(score: Score, ticks: Sequence[int]) -> np.ndarray:
    """When ticks come, in seconds: float64 [tick]."""
    changes = sorted(score.tempos) or [(0, 120)]
    at, elapsed = [0], [0.0]
    for (tick, tempo), (after, _) in pairwise(changes):
        at.append(after)
        elapsed.append(elapsed[-1] + (after - tick) * 60 / tempo / TICKS)
    rates = np.array([60 / tempo / TICKS for _, tempo in changes])
    times = np.asarray(ticks, np.int64)
    which = np.searchsorted(np.array(at), times, side="right") - 1
    return np.array(elapsed)[which] + (times - np.array(at)[which]) * rates[which]


def samples(score: Score) -> np.ndarray:
    """float32 [sample] within ±0.8; nothing clips, and equal scores sound alike to the bit.

    Raises:
        RequestError: it lasts longer than 20 minutes, or its notes together than 20,000 seconds.
    """
    starts = seconds(score, [note.start for note in score.notes])
    ends = seconds(score, [note.start + note.duration for note in score.notes])
    whole = float(ends.max(initial=0)) + RELEASE
    if whole > LONGEST:
        raise RequestError(f"the score lasts {whole:,.0f} seconds", expected=f"up to {LONGEST}")
    if (together := float((ends - starts).sum())) > MOST:
        seen = f"the notes last {together:,.0f} seconds together"
        raise RequestError(seen, expected=f"up to {MOST:,}", fix="write .mid")
    sound = np.zeros(int(whole * RATE) + 2, np.float32)
    for note, start, end in zip(score.notes, starts, ends, strict=True):
        tone = _tone(note, end - start, drum=score.programs[note.track] == DRUMS)
        at = int(start * RATE)
        sound[at : at + len(tone)] += tone[: len(sound) - at]
    peak = float(np.abs(sound).max(initial=0))
    return sound * np.float32(LOUDEST / peak) if peak else sound


def _tone(note: Note, length: float, *, drum: bool) -> np.ndarray:
    time = np.arange(int((length + RELEASE) * RATE), dtype=np.float32) / RATE
    if drum:
        noise = np.random.default_rng(note.pitch).standard_normal(len(time), np.float32)
        tone = noise * np.exp(-time * 25) * 0.3
    else:
        tone = _string(440 * 2 ** ((note.pitch - 69) / 12), time)
    shape = np.minimum(time / ATTACK, 1) * np.clip((length + RELEASE - time) / RELEASE, 0, 1)
    return (tone * shape * (note.velocity / 127) ** 1.5).astype(np.float32)


def _string(pitch: float, time: np.ndarray) -> np.ndarray:
    """Partials that die the sooner the higher they are, below half the sampling rate."""
    tone = np.zeros_like(time)
    slowest = 0.5 * (pitch / 262) ** 0.5
    for number, loud in enumerate(PARTIALS, 1):
        if pitch * number < RATE / 2.2:
            faded = loud * np.exp(-time * slowest * number**0.7)
            tone += faded * np.sin(2 * np.pi * pitch * number * time)
    return tone


def content(score: Score) -> bytes:
    """A WAV file: one channel of 16 bits."""
    numbers = np.round(samples(score) * 32767).astype("<i2")
    file = BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(numbers.tobytes())
    return file.getvalue()


def played(midi: bytes, soundfont: Path) -> bytes:
    """A WAV file of MIDI, played by FluidSynth with a soundfont (.sf2).

    Raises:
        FileError: FluidSynth or the soundfont is not there, or it failed.
    """
    if not (program := shutil.which("fluidsynth")):
        fix = "install it, or give no soundfont for the built-in sound"
        raise FileError("fluidsynth is not installed", fix=fix)
    if not soundfont.is_file():
        raise FileError(f"{soundfont} is no file", expected="a soundfont (.sf2)")
    with TemporaryDirectory() as folder:
        source, sound = Path(folder) / "score.mid", Path(folder) / "score.wav"
        source.write_bytes(midi)
        command = [program, "-ni", "-F", str(sound), str(soundfont.resolve()), str(source)]
        done = subprocess.run(command, capture_output=True, timeout=600, check=False)
        if done.returncode or not sound.exists():
            raise FileError(f"fluidsynth failed: {done.stderr.decode(errors='replace')[-200:]}")
        return sound.read_bytes()
