"""What an aligned family is compared with: clusters by identity, n-grams by column, arDCA.

Rows are uint8 [row, column]: residues 0-19, X 20, gap 21, as the codec `protein` numbers them.
Every model here is normalised, so that nats of held-out rows can stand beside an autoregressive
model's. What is not fitted is chosen on an `inner` split of the rows to fit on, made likewise.
"""

from dataclasses import dataclass

import numpy as np
import torch

SYMBOLS, GAP = 22, 21


# ---- identity ----------------------------------------------------------------------------------


class Packed:
    """Rows as bits: five planes of a symbol's number, and where there is a residue."""

    def __init__(self, rows: np.ndarray) -> None:
        padded = np.full((len(rows), -(-rows.shape[1] // 64) * 64), GAP, np.uint8)
        padded[:, : rows.shape[1]] = rows
        self.planes = [_words(padded >> bit & 1) for bit in range(5)]  # each uint64 [row, word]
        self.residues = _words(padded != GAP)
        self.lengths = np.bitwise_count(self.residues).sum(1, dtype=np.int64)

    def shared(self, some: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Columns in which two rows have the same residue: [some, others]."""
        total = np.zeros((len(some), len(others)), np.int64)
        for word in range(self.residues.shape[1]):
            same = self.residues[some, word][:, None] & self.residues[others, word]
            for plane in self.planes:
                same &= ~(plane[some, word][:, None] ^ plane[others, word])
            total += np.bitwise_count(same)
        return total

    def alike(self, some: np.ndarray, others: np.ndarray, identity: float) -> np.ndarray:
        """Which share so much of the residues of the shorter one: bool [some, others]."""
        least = np.minimum(self.lengths[some][:, None], self.lengths[others])
        return self.shared(some, others) >= identity * least


def clusters(rows: np.ndarray, identity: float = 0.8, together: int = 64) -> np.ndarray:
    """A cluster's number for each row: greedy from the longest on, each joins the first alike.

    Source: CD-HIT (Li and Godzik 2006), here over the columns of the alignment.
    """
    packed = Packed(rows)
    order = np.argsort(-packed.lengths, kind="stable")
    found = np.full(len(rows), -1)
    heads = np.empty(0, np.int64)
    for at in range(0, len(order), together):
        block = order[at : at + together]
        if len(heads):
            alike = packed.alike(block, heads, identity)
            hit = alike.any(1)
            found[block[hit]] = found[heads[alike[hit].argmax(1)]]
        new: list[int] = []
        for row in block[found[block] < 0]:
            near = packed.alike(np.array([row]), np.array(new, np.int64), identity)[0]
            found[row] = found[new[int(near.argmax())]] if near.any() else len(heads) + len(new)
            new += [] if near.any() else [int(row)]
        heads = np.concatenate([heads, np.array(new, np.int64)])
    return found


@dataclass(frozen=True)
class Split:
    """Indices of rows: to fit on, to score, and those left out since they resemble the latter."""

    train: np.ndarray
    held: np.ndarray
    dropped: np.ndarray


def by_chance(count: int, seed: int, share: float = 0.1) -> Split:
    """A share of the rows, homologues on both sides."""
    order = np.random.default_rng(seed).permutation(count)
    cut = round(count * share)
    return Split(np.sort(order[cut:]), np.sort(order[:cut]), np.empty(0, np.int64))


def by_cluster(rows: np.ndarray, seed: int, share: float = 0.1, identity: float = 0.8) -> Split:
    """Whole clusters, until they are a share of the rows; no row to fit on is alike a held-out one.

    Greedy clusters leave rows of two clusters alike; such rows are left out on the side to fit on.
    """
    found = clusters(rows, identity)
    sizes, room, held = np.bincount(found), round(len(rows) * share), np.zeros(len(rows), bool)
    chosen = []
    for cluster in np.random.default_rng(seed).permutation(len(sizes)):
        if sizes[cluster] <= room:
            room -= sizes[cluster]
            chosen.append(cluster)
    held = np.isin(found, chosen)
    packed, away = Packed(rows), np.flatnonzero(held)
    near = np.zeros(len(rows), bool)
    for block in np.array_split(np.flatnonzero(~held), -(-len(rows) // 64)):
        near[block] = packed.alike(block, away, identity).any(1)
    return Split(np.flatnonzero(~held & ~near), away, np.flatnonzero(near))


def _words(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits.astype(bool), axis=1).view(np.uint64)


# ---- n-grams by column -------------------------------------------------------------------------


def ngrams(train: np.ndarray, held: np.ndarray, inner: Split) -> list[float]:
    """Nats per column of the orders 0 (site-independent), 1 (positional bigram) and 2.

    Each order is shrunk towards the one below by as many counts as suit the inner split best.
    """
    fit, test = train[inner.train], train[inner.held]
    strengths: list[float] = []
    for _ in range(3):
        grid = [0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
        losses = [_ngram(fit, test, [*strengths, s]).mean() for s in grid]
        strengths.append(grid[int(np.argmin(losses))])
    return [float(_ngram(train, held, strengths[: n + 1]).mean()) for n in range(3)]


def _ngram(train: np.ndarray, held: np.ndarray, strengths: list[float]) -> np.ndarray:
    """-log p [row, column] of held-out symbols."""
    nats = np.empty(held.shape)
    for column in range(held.shape[1]):
        p = np.full(len(held), 1 / SYMBOLS)
        for order, strength in enumerate(strengths[: column + 1]):
            before = slice(column - order, column)
            context = _numbers(train[:, before])
            both = context * SYMBOLS + train[:, column]
            wanted = _numbers(held[:, before])
            size = SYMBOLS**order
            seen = np.bincount(context, minlength=size)[wanted]
            hits = np.bincount(both, minlength=size * SYMBOLS)[wanted * SYMBOLS + held[:, column]]
            p = (hits + strength * p) / (seen + strength)
        nats[:, column] = -np.log(p)
    return nats


def _numbers(symbols: np.ndarray) -> np.ndarray:
    """Some columns as one number for each row."""
    value = np.zeros(len(symbols), np.int64)
    for column in symbols.T:
        value = value * SYMBOLS + column
    return value


# ---- Potts -------------------------------------------------------------------------------------


def arpotts(
    train: np.ndarray,
    held: np.ndarray,
    inner: Split,
    *,
    penalties: tuple[float, ...] = (3e-5, 1e-4, 3e-4),
    epochs: int = 30,
) -> tuple[float, float, int]:
    """Nats per column of arDCA (Trinquier et al. 2021), and the penalty and epochs that were best.

    p(a_i | a_1 .. a_i-1) is a softmax of a field and of couplings to every column before: the Potts
    model whose pseudolikelihood is a likelihood. L2 on the couplings; penalty and number of epochs
    are those that suit the inner split best.
    """
    fit, test = train[inner.train], train[inner.held]
    curves = {penalty: _fit(fit, test, penalty, epochs) for penalty in penalties}
    penalty = min(curves, key=lambda p: min(curves[p]))
    best = int(np.argmin(curves[penalty])) + 1
    return _fit(train, held, penalty, best)[-1], penalty, best


def _fit(train: np.ndarray, held: np.ndarray, penalty: float, epochs: int) -> list[float]:
    """Nats per column of `held` after each epoch."""
    torch.manual_seed(0)
    columns = train.shape[1]
    wide = columns * SYMBOLS
    before = torch.ones(columns, columns).triu(1).repeat_interleave(SYMBOLS, 0)
    mask = before.repeat_interleave(SYMBOLS, 1)  # [symbol of a column, symbol of a later one]
    couplings = torch.zeros(wide, wide, requires_grad=True)
    counts = torch.stack([torch.bincount(c, minlength=SYMBOLS) for c in _long(train).T])
    fields = (counts + 1).log().flatten().requires_grad_()
    optimizer = torch.optim.Adam([couplings, fields], lr=0.003)
    rows, others, losses = _long(train), _long(held), []
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = 0.003 * 0.92**epoch
        for batch in torch.randperm(len(rows)).split(256):
            loss = _nats(rows[batch], couplings * mask, fields).mean()
            whole = loss * columns + penalty * (couplings * mask).square().sum()
            optimizer.zero_grad()
            whole.backward()
            optimizer.step()
        with torch.no_grad():
            parts = [_nats(part, couplings * mask, fields) for part in others.split(1024)]
            losses.append(float(torch.cat(parts).mean()))
    return losses


def _nats(rows: torch.Tensor, couplings: torch.Tensor, fields: torch.Tensor) -> torch.Tensor:
    """-log p [row, column]."""
    ones = torch.nn.functional.one_hot(rows, SYMBOLS).flatten(1).float()
    logits = (ones @ couplings + fields).unflatten(1, (-1, SYMBOLS))
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.flatten(), reduction="none"
    ).view_as(rows)  # fmt: skip


def _long(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows.astype(np.int64))
