"""Proteins: aligned families beside n-grams and a Potts model; the brightness of GFP's variants.

    python benchmarks/proteins.py split FAMILIES OUT      # FASTA to learn from and to score
    python benchmarks/proteins.py floors OUT              # what does without a network
    python benchmarks/proteins.py score OUT MODEL SPLIT   # nats per column of a model, same rows
    python benchmarks/proteins.py gfp TSV OUT             # a tenth of the variants, to learn from
    python benchmarks/proteins.py brightness OUT MODEL    # Spearman on the rest, beside ridge

FAMILIES is the folder with PF00014, PF00595 and PF13354, TSV Sarkisyan's table. Two splits:
`random`, a tenth of the rows (seed 0), which leaves homologues on both sides, and `clusters`, a
tenth in whole clusters at 80 % identity (residues in common over those of the shorter row), with no
row to learn from that resembles a held-out one as much. Nats per column count gaps as a symbol and
the end not at all. How a wild type gets to a family's columns is said in docs/protein.md.

GFP: each variant to learn from has its quantile of brightness as a mark in front. What a model says
of another is the mean brightness of the quantiles, weighted by p(quantile) p(sequence | quantile);
beside it p(sequence | brightest), for which it need not have learned to tell quantiles apart.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import protein_baselines as baselines

import seriatim
from seriatim import codecs
from seriatim.codecs.protein import ProteinCodec, Record

FAMILIES = ("PF00014", "PF00595", "PF13354")
SPLITS = ("random", "clusters")
SEED, BINS, SHARE = 0, 4, 0.1
MUTATION = re.compile(r"S([A-Z*])(\d+)([A-Z*])")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(required=True)
    for what, names in (
        (split, ["families", "out"]),
        (floors, ["out"]),
        (score, ["out", "model", "split"]),
        (gfp, ["table", "out"]),
        (brightness, ["out", "model"]),
    ):
        verb = verbs.add_parser(what.__name__, help=(what.__doc__ or "").split("\n")[0])
        for name in names:
            path = name in ("families", "out", "table")
            verb.add_argument(name, type=Path if path else str)
        verb.add_argument("--most", type=int, help="rows to score; default: all")
        verb.add_argument("--epochs", type=int, default=30, help="of arDCA, at most; 0: none")
        verb.add_argument("--family", action="append", help="only this one")
        verb.add_argument("--threads", type=int, default=2)
        verb.set_defaults(what=what)
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(asked.threads)
    for row in asked.what(asked):
        print(json.dumps(row), flush=True)


# ---- families ----------------------------------------------------------------------------------


def split(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Write FASTA of both splits, a file of each family on either side."""
    for family in asked.family or FAMILIES:
        (path,) = asked.families.glob(f"{family}*.fasta.gz")
        records = _records(path)
        rows = _numbers([record.sequence for record in records])
        chance = baselines.by_chance(len(rows), SEED)
        for name, part in zip(SPLITS, (chance, baselines.by_cluster(rows, SEED)), strict=True):
            for side, chosen in (("train", part.train), ("held", part.held)):
                folder = asked.out / name / side
                folder.mkdir(parents=True, exist_ok=True)
                lines = [f">{records[i].name}\n{records[i].sequence}\n" for i in chosen]
                (folder / f"{family}.fasta").write_text("".join(lines))
            sizes = {side: len(rows) for side, rows in vars(part).items()}
            yield {"family": family, "split": name, "columns": rows.shape[1], **sizes}


def floors(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Nats per column of n-grams and of arDCA, fitted on the same rows."""
    for family in asked.family or FAMILIES:
        for name in SPLITS:
            sides = [asked.out / name / side / f"{family}.fasta" for side in ("train", "held")]
            train, held = (_numbers([r.sequence for r in _records(path)]) for path in sides)
            again = baselines.by_chance(len(train), SEED + 1)
            inner = again if name == "random" else baselines.by_cluster(train, SEED + 1)
            orders = baselines.ngrams(train, held, inner)
            row: dict[str, Any] = {"family": family, "split": name, "train": len(train)}
            row |= dict(zip(("site", "bigram", "order 2"), orders, strict=True))
            if asked.epochs:
                nats, penalty, epochs = baselines.arpotts(train, held, inner, epochs=asked.epochs)
                row |= {"arDCA": nats, "penalty": penalty, "epochs": epochs}
            yield row


def score(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Nats per column of held-out rows under a model of the codec protein, given the family."""
    model = seriatim.load(asked.model, threads=asked.threads)
    assert isinstance(model.codec, ProteinCodec)
    for family in asked.family or FAMILIES:
        path = asked.out / asked.split / "held" / f"{family}.fasta"
        records = _records(path, model.codec)[: asked.most]
        each = np.array([_nats(model, record) / len(record) for record in records])
        row = {"family": family, "split": asked.split, "model": asked.model, "rows": len(each)}
        error = each.std(ddof=1) / len(each) ** 0.5
        yield row | {"nats per column": each.mean(), "error": error}


def _nats(model: seriatim.Model, record: Record) -> float:
    """Of the row, given its mark."""
    codec = model.codec
    assert isinstance(codec, ProteinCodec)
    ids = codec.prompt(record)
    lead = len(ids) - len(record)
    return model.score(ids[lead:], given=ids[:lead]).nats


def _records(path: Path, codec: ProteinCodec | None = None) -> list[Record]:
    """All records of a file; one that is refused ends it all."""
    codec = codec or _plain()
    found = []
    for place, record in codec.records(path):
        if not isinstance(record, Record):
            raise SystemExit(f"{path} {place}: {record}")
        found.append(record)
    return found


def _plain() -> ProteinCodec:
    codec = codecs.made("protein:gaps=true")
    assert isinstance(codec, ProteinCodec)
    return codec


def _numbers(sequences: list[str]) -> np.ndarray:
    codec = _plain()
    return np.array([codec.encode(sequence) for sequence in sequences], np.uint8)


# ---- GFP ---------------------------------------------------------------------------------------


def gfp(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Write a tenth of the variants as FASTA with marks, and the rest as a list."""
    wild, changes, bright, stops = _variants(asked.table)
    order = np.random.default_rng(SEED).permutation(len(changes))
    cut = round(len(order) * SHARE)
    train, rest = np.sort(order[:cut]), np.sort(order[cut:])
    edges = np.quantile(bright[train], np.linspace(0, 1, BINS + 1)[1:-1])
    marks = np.searchsorted(edges, bright)
    asked.out.mkdir(parents=True, exist_ok=True)
    lines = [f">{i} mark=q{marks[i]}\n{_applied(wild, changes[i])}\n" for i in train]
    (asked.out / "train.fasta").write_text("".join(lines))
    facts = {
        "wild": wild,
        "means": [float(bright[train][marks[train] == q].mean()) for q in range(BINS)],
        "shares": [float((marks[train] == q).mean()) for q in range(BINS)],
        "train": [[changes[i], float(bright[i])] for i in train],
        "rest": [[changes[i], float(bright[i])] for i in rest],
    }
    (asked.out / "gfp.json").write_text(json.dumps(facts))
    yield {"train": len(train), "rest": len(rest), "residues": len(wild), "with stops": stops}


def brightness(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Spearman of the model's mean brightness on the rest, beside ridge on the same rows."""
    facts = json.loads((asked.out / "gfp.json").read_text())
    rest = facts["rest"]
    chosen = np.random.default_rng(SEED).permutation(len(rest))[: asked.most]
    truth = np.array([rest[i][1] for i in chosen])
    guess = _ridge(facts["train"], [rest[i][0] for i in chosen])
    yield {"what": "one-hot ridge", "rows": len(truth), "spearman": spearman(guess, truth)}
    model = seriatim.load(asked.model, threads=asked.threads)
    sequences = [_applied(facts["wild"], rest[i][0]) for i in chosen]
    nats = np.array(
        [[_nats(model, Record(s, "", f"q{q}")) for q in range(BINS)] for s in sequences]
    )
    score = spearman(-nats[:, -1], truth)
    yield {"what": f"{asked.model}, p(sequence | brightest)", "rows": len(truth), "spearman": score}
    weight = np.array(facts["shares"]) * np.exp(nats.min(1, keepdims=True) - nats)
    guess = weight @ np.array(facts["means"]) / weight.sum(1)
    yield {"what": asked.model, "rows": len(truth), "spearman": spearman(guess, truth)}


def _variants(table: Path) -> tuple[str, list[list[tuple[int, str]]], np.ndarray, int]:
    """The wild type, what each variant changes, how bright it is; those with stops are left out.

    The table does not hold the wild type: its residues are those that mutations say they replace,
    X where none does.
    """
    wild: dict[int, str] = {}
    changes, bright, stops = [], [], 0
    for line in table.read_text().splitlines()[1:]:
        names, _, value, *_ = line.split("\t")
        found = [MUTATION.fullmatch(name) for name in names.split(":")] if names else []
        mine = [(int(m[2]), m[1], m[3]) for m in found if m is not None]
        if len(mine) < len(found) or any("*" in (old, new) for _, old, new in mine):
            stops += 1
            continue
        for at, old, _ in mine:
            if wild.setdefault(at, old) != old:
                raise SystemExit(f"{table}: position {at} is {wild[at]} and {old}")
        changes.append([(at, new) for at, _, new in mine])
        bright.append(float(value))
    whole = "".join(wild.get(at, "X") for at in range(max(wild) + 1))
    return whole, changes, np.array(bright), stops


def _applied(wild: str, changes: list[Any]) -> str:
    letters = list(wild)
    for at, new in changes:
        letters[at] = new
    return "".join(letters)


def _ridge(train: list[Any], rest: list[Any]) -> np.ndarray:
    """Brightness by a linear fit on which mutations there are; the penalty suits a fifth best."""
    names = sorted({(at, new) for changes, _ in train for at, new in changes})
    place = {name: n for n, name in enumerate(names)}

    def table(many: list[Any]) -> np.ndarray:
        x = np.zeros((len(many), len(names) + 1))
        x[:, -1] = 1
        for row, changes in enumerate(many):
            x[row, [place[at, new] for at, new in map(tuple, changes) if (at, new) in place]] = 1
        return x

    x, y = table([changes for changes, _ in train]), np.array([value for _, value in train])
    order, cut = np.random.default_rng(SEED).permutation(len(x)), len(x) // 5

    def fit(rows: np.ndarray, penalty: float) -> np.ndarray:
        square = x[rows].T @ x[rows] + penalty * np.eye(x.shape[1])
        return np.linalg.solve(square, x[rows].T @ y[rows])

    tried = {p: spearman(x[order[:cut]] @ fit(order[cut:], p), y[order[:cut]])
             for p in (0.1, 0.3, 1.0, 3.0, 10.0)}  # fmt: skip
    return table(rest) @ fit(order, max(tried, key=lambda p: tried[p]))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks, equal values sharing theirs."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place]


if __name__ == "__main__":
    main()
