"""The JSB chorales: files to train on, and the nats per frame of models on the test split.

    python benchmarks/chorales.py prepare FOLDER --grid quarter
    python benchmarks/chorales.py measure runs/quarter --grid quarter

The splits are those of Boulanger-Lewandowski et al. (2012), 229, 76 and 77 pieces, as they lie in
`../shared/data/music/jsb`. `prepare` writes train.json, valid.json and test.json as they are,
transposed.json (the training pieces moved by -5 to +6 semitones, where all notes stay within the
range of the training split), and each test piece as a file of its own for `seriatim score`. Nothing
but the training pieces is ever transposed.

`measure` prints one table. A row is the negative log-likelihood in nats of a frame of the test
split, given all earlier frames of its piece: -log p(set of notes | past), every frame of every
piece, the first too, the end of a piece not. The notes of a frame are predicted one by one, from
the highest down, then rests for the voices that are silent: sets and ids are one to one, so the sum
is that of the set of 88 notes (the joint definition, as of RNN-NADE, 5.56). The TCN's 8.10 is the
same quantity of a model in which the notes of a frame are independent; its first frames are not
predicted, which the column "without first" shows. Coconet's figures are nats a note on the 16th
grid, another quantity. "by piece" is the mean over pieces of each one's mean.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

import seriatim
from seriatim.codecs import made
from seriatim.codecs.music import REST, Chorale

DATA = Path(__file__).parents[2] / "shared" / "data" / "music" / "jsb"
SHIFTS = [shift for shift in range(-5, 7) if shift]
LOWEST, KEYS = 21, 88
PUBLISHED = {"TCN (Bai et al. 2018)": 8.10, "RNN-NADE (2012)": 5.56}

Piece = list[list[int]]
Nats = list[np.ndarray]  # of each piece: [frame]


def read(grid: str, data: Path) -> dict[str, list[Piece]]:
    """The splits, with the floats among the pitches made whole."""
    splits = json.loads((data / f"jsb-chorales-{grid}.json").read_text())
    return {
        name: [[[int(pitch) for pitch in frame] for frame in piece] for piece in pieces]
        for name, pieces in splits.items()
    }


def transposed(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Each piece in other keys, within the range of all."""
    pitches = {pitch for piece in pieces for frame in piece for pitch in frame}
    low, high = min(pitches), max(pitches)
    for piece in pieces:
        own = {pitch for frame in piece for pitch in frame}
        for shift in SHIFTS:
            if low <= min(own) + shift and max(own) + shift <= high:
                yield [[pitch + shift for pitch in frame] for frame in piece]


def prepare(out: Path, grid: str, data: Path) -> None:
    """Write the files that `seriatim train` and `seriatim score` take."""
    splits = read(grid, data)
    splits["transposed"] = list(transposed(splits["train"]))
    (out / "test").mkdir(parents=True, exist_ok=True)
    for name, pieces in splits.items():
        (out / f"{name}.json").write_text(json.dumps({name: pieces}) + "\n")
        print(f"{name}\t{len(pieces)} pieces\t{sum(map(len, pieces)):,} frames")
    for number, piece in enumerate(splits["test"]):
        (out / "test" / f"{number:03}.json").write_text(json.dumps({"frames": piece}) + "\n")


# ---- floors --------------------------------------------------------------------------------------


def roll(piece: Piece) -> np.ndarray:
    """bool [frame, key]."""
    sounding = np.zeros((len(piece), KEYS), bool)
    for number, frame in enumerate(piece):
        sounding[number, [pitch - LOWEST for pitch in frame]] = True
    return sounding


def bernoulli(train: Sequence[Piece], test: Sequence[Piece]) -> Nats:
    """Each note on its own, as often as in training (half a count added to both)."""
    whole = np.concatenate([*map(roll, train)])
    on = (whole.sum(0) + 0.5) / (len(whole) + 1)
    return [_nats(roll(piece), on) for piece in test]


def markov(train: Sequence[Piece], test: Sequence[Piece]) -> Nats:
    """Each note given whether it sounded in the frame before."""
    rolls = [roll(piece) for piece in train]
    now, before = np.concatenate(rolls), np.concatenate([*map(_before, rolls)])
    on = [((now & (before == s)).sum(0) + 0.5) / ((before == s).sum(0) + 1) for s in (0, 1)]
    rolls = [roll(piece) for piece in test]
    return [_nats(each, np.where(_before(each), on[1], on[0])) for each in rolls]


def _before(sounding: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, KEYS), bool), sounding[:-1]])


def _nats(sounding: np.ndarray, on: np.ndarray) -> np.ndarray:
    return -np.where(sounding, np.log(on), np.log1p(-on)).sum(axis=1)


# ---- models --------------------------------------------------------------------------------------


def scored(name: str) -> Callable[[Sequence[Piece], Sequence[Piece]], Nats]:
    """What a model gives for each frame: the sum over the ids of its voices."""
    model = seriatim.load(name)

    def nats(_: Sequence[Piece], test: Sequence[Piece]) -> Nats:
        found = []
        for piece in test:
            frames = tuple((*frame, *[REST] * (4 - len(frame))) for frame in piece)
            score = model.score(Chorale(frames))
            found.append(-np.array(score.logprobs).reshape(len(frames), 4).sum(axis=1))
        return found

    return nats


def check_grid(name: str, grid: str) -> None:
    """A model of another grid has other frames."""
    codec = seriatim.load(name).codec
    wanted = made(f"music:form=chorale,grid={grid}")
    own = None if codec is None else getattr(codec, "options", None)
    if wanted is None or own != getattr(wanted, "options", None):
        raise SystemExit(f"{name} has the codec options {own}, not those of the {grid} grid")


def row(name: str, nats: Nats) -> str:
    """A line of the table; the error is of the mean, over pieces as draws."""
    sums, counts = np.array([n.sum() for n in nats]), np.array([len(n) for n in nats])
    mean = sums.sum() / counts.sum()
    off = sums - mean * counts
    error = np.sqrt((off**2).sum() * len(nats) / (len(nats) - 1)) / counts.sum()
    rest = np.concatenate([n[1:] for n in nats]).mean()
    by_piece = np.mean(sums / counts)
    return f"{name:<28} {mean:8.3f} ± {error:.3f} {rest:14.3f} {by_piece:10.3f}"


def measure(models: Sequence[str], grid: str, split: str, data: Path) -> None:
    """Print the table."""
    for name in models:
        check_grid(name, grid)
    splits = read(grid, data)
    ways = {"floor: Bernoulli": bernoulli, "floor: Markov": markov}
    ways |= {name: scored(name) for name in models}
    frames = sum(map(len, splits[split]))
    print(f"JSB {grid}, {split}: {len(splits[split])} pieces, {frames:,} frames, nats per frame")
    print(f"{'':<28} {'all frames':>16} {'without first':>14} {'by piece':>10}")
    for name, way in ways.items():
        print(row(name, way(splits["train"], splits[split])))
    for name, value in PUBLISHED.items() if grid == "quarter" else ():
        print(f"{'published: ' + name:<34} {value:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The JSB chorales.")
    commands = parser.add_subparsers(dest="command", required=True)
    one, two = commands.add_parser("prepare"), commands.add_parser("measure")
    one.add_argument("out", type=Path)
    two.add_argument("models", nargs="*")
    two.add_argument("--split", default="test", choices=["train", "valid", "test"])
    for each in (one, two):
        each.add_argument("--grid", default="quarter", choices=["quarter", "8th", "16th"])
        each.add_argument("--data", type=Path, default=DATA)
    asked = parser.parse_args()
    if asked.command == "prepare":
        prepare(asked.out, asked.grid, asked.data)
    else:
        measure(asked.models, asked.grid, asked.split, asked.data)


if __name__ == "__main__":
    main()
