"""What a model learns from a batch: scheduled sampling, several ids ahead; exposure bias."""

import math
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import tiny
import torch
from torch import Tensor

import seriatim
import seriatim.measure.exposure as measured
from seriatim.errors import FileError, RequestError
from seriatim.files import safetensors
from seriatim.kernels.mathematics import philox
from seriatim.measure.exposure import Markov, exposure, markov
from seriatim.models import checkpoint
from seriatim.models.ahead import load_heads
from seriatim.train import loop
from seriatim.train.batches import Batch
from seriatim.train.dial import dial
from seriatim.train.forecast import forecast
from seriatim.train.model import Model, initial
from seriatim.train.objectives.ahead import Ahead, targets
from seriatim.train.objectives.next import Next
from seriatim.train.objectives.scheduled import Scheduled
from seriatim.train.optim import Optimizer
from seriatim.train.report import Progress, Started

TEXT = "The quick brown fox, née Zoë, jumps over the lazy dog.\r\n\r\nAnd then? It rests.\n"
TINY: dict[str, Any] = {
    "codec": "byte",
    "size": "0.02M",
    "context": 16,
    "batch": 2,
    "threads": 1,
    "width": 32,
}
VOCAB, CONTEXT = 11, 12
SCHEDULED = {"objective": "scheduled", "own_share": 0.5, "own_ramp": 4}
AHEAD = {"objective": "ahead", "ahead": 2}


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_bytes("".join(f"{n}. {TEXT}" for n in range(60)).encode())
    return path


def run(book: Path, out: Path, steps: int = 8, **options) -> list:
    """The records of a tiny run."""
    records: list = []
    loop.train(book, out=out, steps=steps, report=records.append, **(TINY | options))
    return records


def losses(records: list) -> list[float]:
    return [record.loss for record in records if isinstance(record, Progress)]


def final(out: Path, name: str = "model.safetensors") -> bytes:
    return (out / name).read_bytes()


def model(objective: Any = None, **options) -> Model:
    """A tiny model of random weights, and of what the objective brings."""
    spec = dial("0.02M", VOCAB, width=32, depth=2, context=CONTEXT).spec
    extra = {} if objective is None else objective.extra(spec)
    weights = initial(spec, seed=0, extra=extra)
    draw = torch.Generator().manual_seed(1)
    some = {n: w + 0.3 * torch.randn(w.shape, generator=draw) for n, w in weights.items()}
    return Model(spec, some, **options)


def batch(numbers: list[int] | None = None, seed: int = 0) -> Batch:
    """Rows of several documents, the last part of each filled by nothing."""
    numbers = numbers or [3, 4, 5]
    draw = np.random.default_rng(seed)
    inputs = draw.integers(0, VOCAB, (len(numbers), CONTEXT))
    found = draw.integers(0, VOCAB, inputs.shape)
    segments = np.sort(draw.integers(0, 4, inputs.shape), axis=1)
    found[segments == 3] = -1
    inputs[segments == 3] = 0
    return Batch(inputs, found, segments, np.array(numbers))


# Scheduled sampling


def scheduled(seed: int, share: float, ramp: int, rows: int, *, isolate=False) -> Scheduled:
    return Scheduled(seed=seed, share=share, ramp=ramp, rows=rows, isolate=isolate)


def test_without_a_share_it_is_the_next_id_bit_for_bit(book, tmp_path):
    plain, none = tmp_path / "plain", tmp_path / "none"
    expected = losses(run(book, plain))
    assert losses(run(book, none, objective="scheduled", own_share=0.0)) == expected
    assert final(none) == final(plain)


def test_a_share_changes_what_is_learned_from_its_first_step_on(book, tmp_path):
    plain, mixed = (
        losses(run(book, tmp_path / name, **options))
        for name, options in (("plain", {}), ("mixed", SCHEDULED))
    )
    assert mixed[0] == plain[0]  # the share rises from 0
    assert all(m > p for m, p in zip(mixed[3:], plain[3:], strict=True))


@pytest.mark.parametrize("isolate", [False, True])
def test_the_inputs_replaced_are_those_that_the_model_samples(isolate):
    rows, objective = batch([40, 41, 2**32 + 7]), scheduled(7, 0.6, 30, 2, isolate=isolate)
    net = model()
    mixed = objective.mixed(net, rows)
    with torch.no_grad():
        logits = net.predicted(net.hidden_of(rows, isolate=isolate)).view(*rows.inputs.shape, VOCAB)
    replaced = 0
    for row, position in np.ndindex(rows.inputs.shape):
        number = int(rows.numbers[row])
        counter = np.array([[position, number % 2**32, number // 2**32, 1]], np.uint32)
        chance, place = ((int(word) + 0.5) / 2**32 for word in philox(counter, 7)[0, :2])
        share = 0.6 * min(1.0, (number // 2) / 30)
        segments = rows.segments[row]
        inside = position > 0 and segments[position] == segments[position - 1] != 3
        expected = rows.inputs[row, position]
        if inside and chance < share:
            p = torch.softmax(logits[row, position - 1].double(), 0).tolist()
            expected = next(id for id in range(VOCAB) if sum(p[: id + 1]) > place)
            replaced += 1
        assert mixed.inputs[row, position] == expected
    assert 8 < replaced < 24
    for name in ("targets", "segments", "numbers"):
        assert getattr(mixed, name) is getattr(rows, name)


def test_no_first_id_of_a_document_is_replaced():
    rows = batch([900, 901, 902, 903])
    mixed = scheduled(0, 1.0, 1, 1).mixed(model(), rows)
    begins = np.diff(rows.segments, axis=1, prepend=-1) > 0
    kept = begins | (rows.segments == 3)
    assert (mixed.inputs == rows.inputs)[kept].all()
    assert (mixed.inputs != rows.inputs)[~kept].mean() > 0.5


def test_a_row_is_mixed_in_the_same_way_in_any_part_of_a_batch():
    objective, rows, net = scheduled(1, 0.5, 1, 1), batch([8, 9, 10]), model()
    whole = objective.mixed(net, rows).inputs
    assert (whole != rows.inputs).any()
    parts = [objective.mixed(net, part).inputs for part in rows.parts(3)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_the_share_rises_in_a_line_and_stays():
    numbers = list(range(0, 4000, 2))  # of two rows a step
    rows = Batch(*(np.ones((2000, 64), np.int64),) * 2, np.zeros((2000, 64)), np.array(numbers))

    class Sure:
        device = "cpu"

        def hidden_of(self, batch: Batch, *, isolate: bool) -> Tensor:
            return torch.zeros(batch.inputs.size, 1)

        def predicted(self, hidden: Tensor) -> Tensor:
            return torch.tensor([[0.0, -100.0]]).repeat(len(hidden), 1)

    mixed: Any = scheduled(3, 0.8, 1000, 2).mixed(Sure(), rows)  # type: ignore[arg-type]
    shares = (mixed.inputs[:, 1:] == 0).mean(1)
    assert shares[0] == 0
    for step in (250, 500, 750):
        near = shares[step - 50 : step + 50].mean()
        assert near == pytest.approx(0.8 * step / 1000, abs=0.03)
    assert shares[1000:].mean() == pytest.approx(0.8, abs=0.01)


def test_gradients_reach_only_the_second_pass():
    objective, rows = scheduled(0, 1.0, 1, 1), batch([9, 10, 11])
    net, again = model(), model()
    objective.loss(net, rows).backward()
    Next().loss(again, objective.mixed(again, rows)).backward()
    for name, weight in net.weights.items():
        assert weight.grad is not None
        assert torch.equal(weight.grad, again.weights[name].grad), name


def test_a_forecast_measures_rows_that_are_mixed():
    seen: list[int] = []

    class Watched(Next):
        def loss(self, model: Model, batch: Batch) -> Tensor:
            seen.extend(batch.numbers.tolist())
            return super().loss(model, batch)

    make = partial(Optimizer, kind="adamw", rate=0.1, rest=0.1, decay=0.0)
    forecast(model(), Watched(), make, batch([3, 4, 5]).parts(2), steps=8)
    assert set(seen) <= {3 + 21, 4 + 21, 5 + 21}  # of the last of eight steps
    assert seen


def test_the_ramp_is_all_steps_unless_it_is_given(book, tmp_path):
    options = {"objective": "scheduled", "save_every": 2}
    run(book, tmp_path / "a", steps=4, decay=0.0, **options)
    with pytest.raises(FileError, match="own_ramp 4, not 8"):  # the length alone may change
        run(book, tmp_path / "a", steps=8, decay=0.0, resume=True, **options)
    run(book, tmp_path / "a", steps=8, warmup=0, decay=0.0, resume=True, own_ramp=4, **options)
    run(book, tmp_path / "b", steps=8, warmup=0, decay=0.0, own_ramp=4, **options)
    assert final(tmp_path / "a") == final(tmp_path / "b")


# Several ids ahead


@pytest.mark.parametrize("isolate", [False, True])
def test_the_loss_is_that_of_heads_on_shifted_targets(isolate):
    objective, rows = Ahead(count=3, weight=0.7, isolate=isolate), batch()
    net = model(objective)
    with torch.no_grad():
        mine = objective.loss(net, rows).item()
        hidden = net.hidden_of(rows, isolate=isolate)
        expected = 0.0
        for k in range(1, 5):
            h = hidden
            if k > 1:
                w, b = (net.weights[f"ahead.{k}.output.{part}"] for part in ("weight", "bias"))
                x = h @ w.T + b
                h = h + x * torch.sigmoid(x)
            p = torch.log_softmax(net.predicted(h), -1).view(*rows.inputs.shape, VOCAB)
            for row, position in np.ndindex(rows.inputs.shape):
                there = position + k - 1
                segments = rows.segments[row]
                if there >= CONTEXT or segments[there] != segments[position]:
                    continue
                if (id := rows.targets[row, there]) >= 0:
                    expected -= 0.7 ** (k - 1) * p[row, position, id].item()
    assert mine == pytest.approx(expected, rel=1e-5)


def test_gradients_are_those_of_the_plain_sum():
    """Heads that are computed again, with the loss's gradient in place, against torch's own."""
    objective, rows = Ahead(count=2, weight=0.5), batch()
    net, plain = model(objective), model(objective)
    objective.loss(net, rows).backward()
    hidden, loss = plain.hidden_of(rows), torch.zeros(())
    for k in (1, 2, 3):
        h = hidden
        if k > 1:
            w, b = (plain.weights[f"ahead.{k}.output.{part}"] for part in ("weight", "bias"))
            h = h + torch.nn.functional.silu(h @ w.T + b)
        wanted = torch.from_numpy(targets(rows, k)).reshape(-1)
        nats = torch.nn.functional.cross_entropy(
            plain.predicted(h), wanted, ignore_index=-1, reduction="sum"
        )
        loss = loss + 0.5 ** (k - 1) * nats
    loss.backward()
    for name, weight in net.weights.items():
        assert weight.grad is not None
        assert torch.allclose(weight.grad, plain.weights[name].grad, rtol=1e-3, atol=1e-4), name


def test_targets_end_with_their_document_and_their_row():
    row = np.arange(8)[None]
    rows = Batch(row, row + 1, np.array([[0, 0, 0, 1, 1, 1, 1, 2]]), np.array([0]))
    rows.targets[0, 7] = -1
    assert targets(rows, 1).tolist() == rows.targets.tolist()
    assert targets(rows, 2).tolist() == [[2, 3, -1, 5, 6, 7, -1, -1]]
    assert targets(rows, 4).tolist() == [[-1, -1, -1, 7, -1, -1, -1, -1]]
    assert (targets(rows, 9) == -1).all()


def test_heads_of_no_weight_leave_the_next_id(book, tmp_path):
    plain, none = tmp_path / "plain", tmp_path / "none"
    expected = losses(run(book, plain))
    found = losses(run(book, none, ahead_weight=0.0, **AHEAD))
    assert found[0] == expected[0]
    assert found == pytest.approx(expected, rel=1e-4)


def test_documents_shorter_than_a_head_looks_can_be_learned():
    objective, rows = Ahead(count=4, weight=1.0), batch([0])
    lone = Batch(rows.inputs, rows.targets, np.arange(CONTEXT)[None], rows.numbers)
    net = model(objective)
    loss = objective.loss(net, lone)
    loss.backward()
    assert loss.item() == Next().loss(net, lone).item()
    for k in range(2, 6):
        assert not net.weights[f"ahead.{k}.output.weight"].grad.any()


def test_the_folder_is_a_plain_model_with_heads_beside_it(book, tmp_path):
    out = tmp_path / "out"
    run(book, out, **AHEAD)
    assert "--objective ahead --ahead 2" in (out / "README.md").read_text()
    assert not [name for name in safetensors.read_folder(out).tensors if "ahead" in name]
    heads = load_heads(out)
    assert [*heads] == [2, 3]
    assert {(head.weight.shape, head.bias.shape) for head in heads.values()} == {((32, 32), (32,))}
    assert all(head.weight.any() and head.bias.any() for head in heads.values())
    assert len(seriatim.load(out, threads=1).generate(max_tokens=3, ignore_end=True).ids) == 3
    run(book, tmp_path / "plain")
    assert not (tmp_path / "plain/ahead.safetensors").exists()
    assert load_heads(tmp_path / "plain") == {}


def test_heads_of_another_model_are_refused(book, tmp_path):
    out = tmp_path / "out"
    run(book, out, steps=2, **AHEAD)
    safetensors.write(out / "ahead.safetensors", {"ahead.2.output.bias": np.zeros(32)}, {})
    with pytest.raises(FileError, match=r"ahead.safetensors holds .*heads of width 32"):
        load_heads(out)


def test_heads_learn_what_is_further_on(tmp_path):
    """On an order-2 source heads beat the frequencies of ids, and the next id beats heads."""
    source = markov(4, 2, seed=4, spread=0.2)
    data, held = tmp_path / "data.txt", source.draw(2000, seed=2)
    data.write_bytes(bytes(source.draw(20_000, seed=1)))
    out = tmp_path / "out"
    run(data, out, steps=150, objective="ahead", ahead=2, batch=8, ahead_weight=1.0)
    read, heads = checkpoint.read(out), load_heads(out)
    arrays = {name: torch.tensor(np.array(array)) for name, array in read.weights.items()}
    net = Model(read.spec, arrays)
    rows = torch.tensor(held).reshape(-1, 20)[:, :16]
    with torch.no_grad():
        hidden = net.hidden(rows)
        nats = {1: _nats(net.predicted(hidden), rows, 1)}
        for k, head in heads.items():
            x = hidden @ torch.tensor(head.weight).T + torch.tensor(head.bias)
            nats[k] = _nats(net.predicted(hidden + torch.nn.functional.silu(x)), rows, k)
    share = np.bincount(held)[97:] / len(held)
    unigram = -(share * np.log(share)).sum()
    assert nats[1] < nats[2] < nats[3] < 0.9 * unigram


def _nats(logits: Tensor, rows: Tensor, k: int) -> float:
    """Mean nats of the id `k` further on."""
    p = torch.log_softmax(logits, -1).view(*rows.shape, -1)[:, 2:-k]
    return -p.gather(2, rows[:, 2 + k :, None]).mean().item()


# Both


@pytest.mark.parametrize("chosen", [SCHEDULED, AHEAD], ids=lambda chosen: chosen["objective"])
def test_a_resumed_run_ends_with_the_same_bits(book, tmp_path, chosen):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(book, whole, steps=9, save_every=3, **chosen)

    class Killed(Exception):
        pass

    def kill(record) -> None:
        if isinstance(record, Progress) and record.step == 7:
            raise Killed

    options = TINY | {"save_every": 3} | chosen
    with pytest.raises(Killed):
        loop.train(book, out=cut, steps=9, report=kill, **options)
    records = run(book, cut, steps=9, resume=True, save_every=3, **chosen)
    assert next(r for r in records if isinstance(r, Started)).first == 6
    files = {path.name for path in whole.glob("*.safetensors")}
    assert files == {"model.safetensors"} | ({"ahead.safetensors"} if chosen is AHEAD else set())
    assert all(final(whole, name) == final(cut, name) for name in files)


@pytest.mark.parametrize("chosen", [SCHEDULED, AHEAD], ids=lambda chosen: chosen["objective"])
@pytest.mark.parametrize(
    "how", [{"accumulate": 3}, {"recompute": True}, {"isolate": True}], ids=str
)
def test_how_a_batch_is_computed_changes_only_rounding(book, tmp_path, chosen, how):
    base = {"batch": 3} | ({"isolate": True, "accumulate": 2} if "isolate" in how else {})
    found = [
        losses(run(book, tmp_path / name, steps=5, **base, **(chosen | extra)))
        for name, extra in (("plain", {}), ("other", {} if "isolate" in how else how))
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-3)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_two_ranks_learn_what_one_does(book, tmp_path):
    ways = (("ddp", SCHEDULED), ("fsdp", AHEAD))
    asked = [TINY | {"steps": 3, "out": tmp_path / w, "parallel": w} | how for w, how in ways]
    found, _ = ranks.together(book, asked)
    for (_, how), one in zip(ways, found, strict=True):
        alone = losses(run(book, tmp_path / how["objective"], steps=3, **how))
        assert one["losses"] == pytest.approx(alone, rel=1e-5), one["error"]
    assert [*load_heads(tmp_path / "fsdp")] == [2, 3]


@pytest.mark.parametrize("chosen", [SCHEDULED, AHEAD], ids=lambda chosen: chosen["objective"])
def test_bf16_products_learn_too(book, tmp_path, chosen):
    found = losses(run(book, tmp_path / "out", steps=12, precision="bf16", store="bf16", **chosen))
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"own_share": 0.5}, r"own_share is 0.5 with the objective 'next'.*'scheduled'"),
        ({"ahead": 2, "objective": "scheduled"}, r"ahead is 2 with the objective 'scheduled'"),
        ({"own_ramp": 5, "objective": "ahead"}, "own_ramp is 5 with the objective 'ahead'"),
        ({"own_share": 1.5, "objective": "scheduled"}, "own_share is 1.5"),
        ({"own_ramp": 0, "objective": "scheduled"}, "own_ramp is 0"),
        ({"ahead": 0, "objective": "ahead"}, "ahead is 0"),
        ({"ahead": 16, "objective": "ahead"}, "ahead is 16; expected at most 15"),
        ({"ahead_weight": -1.0, "objective": "ahead"}, "ahead_weight is -1.0"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(book, tmp_path, options, named):
    with pytest.raises(RequestError, match=named):
        run(book, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# The oracle


def test_a_source_follows_its_law():
    source = markov(3, 2, seed=5, spread=1.0)
    assert source.law.shape == (9, 3)
    assert source.law.sum(1) == pytest.approx(np.ones(9))
    drawn = source.draw(60_000, seed=0)
    counts = np.zeros((3, 3, 3))
    for a, b, c in zip(drawn, drawn[1:], drawn[2:], strict=False):
        counts[a - 97, b - 97, c - 97] += 1
    for a, b in product(range(3), repeat=2):
        p = source.following([99, 97 + a, 97 + b])
        seen = counts[a, b].sum()
        assert seen > 500
        assert counts[a, b] / seen == pytest.approx(p, abs=5 * 0.5 / math.sqrt(seen))
    assert source.draw(50, seed=0) == drawn[:50] != source.draw(50, seed=1)


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> seriatim.Model:
    return seriatim.load(tiny.write(tmp_path_factory.mktemp("tiny") / "model"), threads=1)


def test_the_error_after_own_ids_is_that_of_an_enumeration(net):
    """Depth 2 after one id: the 3 * 9 prefixes that there are, by their probabilities."""
    source = markov(3, 1, seed=1, spread=1.0)
    (row,) = exposure(net, source, depths=[2], count=1500, seed=4)
    data = source.draw(3 * 1500, seed=4)
    starts = np.bincount(data[::3])[97:] / 1500  # what the prefixes begin with
    own, given = 0.0, 0.0
    for first, *rest in product(range(3), repeat=3):
        prefix = [97 + symbol for symbol in (first, *rest)]
        q = net.logits(prefix).astype(np.float64)
        among = np.exp(q[:, 97:100]) / np.exp(q[:, 97:100]).sum(1, keepdims=True)
        truth = source.law[rest[1]]
        kl = (truth * (np.log(truth) - (q[2, 97:100] - np.log(np.exp(q[2]).sum())))).sum()
        own += starts[first] * among[0, rest[0]] * among[1, rest[1]] * kl
        given += starts[first] * source.law[first, rest[0]] * source.law[rest[0], rest[1]] * kl
    assert 0 < row.own_error.error < 0.1
    assert row.own_error.mean == pytest.approx(own, abs=4 * row.own_error.error)
    assert row.error.mean == pytest.approx(given, abs=4 * row.error.error)
    assert row.excess.mean == pytest.approx(row.own_error.mean - row.error.mean)


def test_equal_prefixes_have_no_excess(net):
    source = markov(4, 3, seed=0)
    found = exposure(net, source, depths=[8, 0], count=16)
    assert [row.depth for row in found] == [8, 0]
    assert found[1].excess == (0.0, 0.0)
    assert found[0].excess.mean != 0
    for row in found:
        assert row.loss.mean > row.error.mean > 0  # by the source's own entropy
        assert row.own_loss.mean > row.own_error.mean > 0
    assert found == exposure(net, source, depths=[8, 0], count=16)


def test_the_error_of_the_law_itself_is_nothing():
    """A model that is the source: its logits are the law's logarithms."""
    source = markov(3, 2, seed=2, spread=1.0)

    class Truth:
        def logits(self, ids: list[int]) -> np.ndarray:
            found = np.full((len(ids), 257), -1e9, np.float32)
            for end in range(source.order, len(ids) + 1):
                found[end - 1, source.symbols] = np.log(source.following(ids[:end]))
            return found

    ids = source.draw(40, seed=0)
    truth: Any = Truth()
    loss, error = measured._errors(truth, source, ids, [2, 10, 40])
    laws = [source.following(ids[:end]) for end in (2, 10, 40)]
    assert loss == pytest.approx([-(p * np.log(p)).sum() for p in laws], abs=1e-5)
    assert error == pytest.approx(np.zeros(3), abs=1e-5)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"depths": [300]}, r"context of 256; expected at least .* and 303"),
        ({"depths": [-1]}, "depth is -1"),
        ({"count": 1}, "count is 1"),
    ],
    ids=str,
)
def test_prefixes_that_do_not_fit_are_refused(net, asked, named):
    with pytest.raises(RequestError, match=named):
        exposure(net, markov(4, 3, seed=0), **asked)
    with pytest.raises(RequestError, match="257 ids"):
        exposure(net, Markov(np.full((2, 2), 0.5), 1, first=256), count=2)


@pytest.mark.parametrize("law", [(1, 2, 0.3), (27, 1, 0.3), (8, 0, 0.3), (8, 8, 0.3), (8, 2, 0)])
def test_a_law_that_is_none_is_refused(law):
    symbols, order, spread = law
    with pytest.raises(RequestError):
        markov(symbols, order, seed=0, spread=spread)
