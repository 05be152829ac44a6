"""Evaluation: values equal independent ones, differences are paired, nothing is left out unsaid."""

import gzip
import json
import math
import re
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import checkpoints
import numpy as np
import pytest
import small
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import seriatim
from seriatim import cli, scoring
from seriatim.codecs import code
from seriatim.errors import FileError, RequestError
from seriatim.measure import fitting, score, statistics, tasks
from seriatim.measure.evaluate import evaluate
from seriatim.measure.tasks import Choice, Exact, Gap, Problem, Task

ROOT = Path(__file__).parents[1]
TEXT = "The quick brown fox, née Zoë, jumps over the lazy dog. And then? It rests.\n"


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def task(kind: str, *items) -> Task:
    return Task("here", kind, items)


@pytest.fixture
def model() -> seriatim.Model:
    return small.shared("text")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> seriatim.Model:
    """Another model of bytes than `small`'s."""
    return seriatim.load(tiny.write(tmp_path_factory.mktemp("models") / "tiny"), threads=1)


@pytest.fixture(scope="module")
def coder(tmp_path_factory) -> seriatim.Model:
    """Random weights, and the ids that mark a gap."""
    folder, own = tmp_path_factory.mktemp("models") / "code", code.specimens()[0]
    checkpoints._llama(
        vocab_size=own.size, num_hidden_layers=1, bos_token_id=None, eos_token_id=0
    )(folder)  # fmt: skip
    own.save(folder)
    return seriatim.load(folder, threads=1)


# ---- statistics


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_the_error_of_a_share_is_half_of_wilsons_interval(right):
    """Its ends are where the observed share is one standard deviation away."""
    value, error = statistics.share(right)
    n, p = len(right), sum(right) / len(right)
    ends = np.roots([1 + 1 / n, -(2 * p + 1 / n), p * p])  # (p - x)^2 = x (1 - x) / n
    assert value == p
    assert error == pytest.approx(abs(ends[0] - ends[1]) / 2, rel=1e-6)
    assert error > 0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_a_paired_difference_is_the_mean_of_the_differences(pairs):
    first, second = zip(*pairs, strict=True)
    found = statistics.paired(first, second)
    each = [a - b for a, b in pairs]
    assert found.value == pytest.approx(fmean(each))
    assert found.error == pytest.approx(stdev(each) / math.sqrt(len(each)), abs=1e-9)
    assert found.items == len(pairs)


@pytest.mark.parametrize(("more", "less"), [(0, 0), (1, 0), (5, 5), (8, 1), (2, 9), (12, 0)])
def test_mcnemars_p_counts_every_way_the_pairs_could_have_fallen(more, less):
    off = abs(more - less)
    ways = [abs(sum(signs)) for signs in product((1, -1), repeat=more + less)]
    share = sum(way >= off for way in ways) / len(ways)
    assert statistics.mcnemar(more, less) == pytest.approx(share)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 30, 31, 400])
@pytest.mark.parametrize("t", [0.0, 0.3, -1.7, 4.0])
def test_students_p_is_the_area_of_his_density(t, freedom):
    x = np.linspace(0, abs(t), 20_001)
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    density = (1 + x * x / freedom) ** (-(freedom + 1) / 2)
    area = np.trapezoid(density, x) * math.exp(log_scale) / math.sqrt(math.pi * freedom)
    assert statistics.student(t, freedom) == pytest.approx(1 - 2 * area, abs=1e-7)


def test_equal_counts_make_a_difference_of_ratios_one_of_means():
    draw = np.random.default_rng(0)
    a, b = draw.random(9), draw.random(9)
    found = statistics.ratios_error((a, np.full(9, 2.0)), (b, np.full(9, 2.0)))
    assert found == pytest.approx(stdev(a / 2 - b / 2) / 3)
    alone = statistics.ratios_error((a, b), (np.zeros(9), b))
    assert alone == pytest.approx(scoring.ratio_error(a, b))
    assert statistics.ratios_error((a[:1], b[:1]), (a[:1], b[:1])) is None


def test_above_noise_is_a_p_below_a_twentieth():
    assert statistics.paired([True] * 6, [False] * 6).above_noise
    assert not statistics.paired([True] * 5, [False] * 5).above_noise
    assert not statistics.Difference(1.0, None, None, 1).above_noise


# ---- tasks

FORMS = {
    "exact": [{"prompt": "a", "answer": "b"}],
    "infill": [
        {"prefix": "a", "suffix": "c", "answer": "b"},
        {"prompt": "a", "suffix": "", "canonical_solution": "b\n"},
    ],
    "choice": [{"prompt": "a", "choices": ["b", "c"], "answer": 1}],
    "answer": [{"question": "a", "answer": "so 1,\n#### 1,000.0"}],
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", FORMS)
def test_the_keys_of_a_record_say_its_kind(kind, packed, tmp_path):
    path = jsonl(tmp_path / "t.jsonl", *({**record, "id": 7} for record in FORMS[kind]))
    if packed:
        packed_path = tmp_path / "t.jsonl.gz"
        packed_path.write_bytes(gzip.compress(path.read_bytes()))
        path = packed_path
    read = tasks.read(path)
    assert (read.kind, read.unused, len(read.items)) == (kind, ("id",), len(FORMS[kind]))
    assert read.items[0].place == "line 1"


def test_what_is_read_is_what_was_written(tmp_path):
    both = tasks.read(jsonl(tmp_path / "i.jsonl", *FORMS["infill"])).items
    assert both == (Gap("line 1", "a", "c", "b"), Gap("line 2", "a", "", "b\n"))
    (problem,) = tasks.read(jsonl(tmp_path / "a.jsonl", *FORMS["answer"])).items
    assert problem == Problem("line 1", "a", "so 1,\n#### 1,000.0", "1000")
    (choice,) = tasks.read(jsonl(tmp_path / "c.jsonl", *FORMS["choice"])).items
    assert choice == Choice("line 1", "a", ("b", "c"), 1)


GOOD = {"prompt": "a", "answer": "b"}
BAD = [
    ("[1]", "JSON list"),
    ("{", "not valid JSON"),
    ('{"prompt": "a", "prompt": "b", "answer": "c"}', "given twice"),
    ({"prompt": "a"}, "has the fields prompt"),
    ({"prompt": "a", "answer": "b", "suffix": "c"}, "has the fields answer, prompt, suffix"),
    ({"question": "?", "prompt": "a", "answer": "b"}, "has the fields answer, prompt, question"),
    ({"prompt": 3, "answer": "b"}, "has prompt 3, which is no text"),
    ({"prompt": "a", "answer": ["b"]}, "which is no text"),
    ({"prompt": "a", "answer": " \n"}, "which is blank"),
    ({"question": "?", "answer": "none"}, "without a number"),
    ({"question": "?", "answer": "#### 3"}, "is of kind answer, and line 1 of kind exact"),
    ({"prompt": "a", "choices": "bc", "answer": 0}, "no list of at least two"),
    ({"prompt": "a", "choices": ["b"], "answer": 0}, "no list of at least two"),
    ({"prompt": "a", "choices": ["b", ""], "answer": 0}, "no text to score"),
    ({"prompt": "a", "choices": ["b", 1], "answer": 0}, "no text to score"),
    ({"prompt": "a", "choices": ["b", "b"], "answer": 0}, "two are equal"),
    ({"prompt": "a", "choices": ["b", "c"], "answer": 2}, "no index from 0 to 1"),
    ({"prompt": "a", "choices": ["b", "c"], "answer": True}, "no index from 0 to 1"),
    ({"prompt": "a", "choices": ["b", "c"], "answer": "c"}, "no index from 0 to 1"),
    ('{"prompt": "a\\ud800", "answer": "b"}', "surrogate"),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_record_is_refused_with_its_file_and_line(record, message, tmp_path):
    line = record if isinstance(record, str) else json.dumps(record)
    (tmp_path / "bad.jsonl").write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(FileError, match=re.escape(message)) as error:
        tasks.read(tmp_path / "bad.jsonl")
    assert f"{tmp_path}/bad.jsonl line 3" in str(error.value)


def test_a_file_that_is_no_task_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a"}' * 50)[:-12])
    (tmp_path / "plain.gz").write_bytes(b"{}")
    for name, why in {
        "empty.jsonl": "no items", "torn.jsonl.gz": "cannot be read", "plain.gz": "cannot be read",
        "none.jsonl": "does not exist", ".": "a folder",
    }.items():  # fmt: skip
        with pytest.raises(FileError, match=why):
            tasks.read(tmp_path / name)


def test_items_are_drawn_by_the_seed_alone(tmp_path):
    path = jsonl(tmp_path / "t.jsonl", *({"prompt": f"{i}", "answer": "b"} for i in range(50)))
    some = [item.prompt for item in tasks.read(path, items=9, seed=3).items]
    assert some == [item.prompt for item in tasks.read(path, items=9, seed=3).items]
    assert some != [item.prompt for item in tasks.read(path, items=9, seed=4).items]
    assert sorted(some, key=int) == some
    assert set(some) < {item.prompt for item in tasks.read(path, items=10, seed=3).items}
    for many in (0, 51):
        with pytest.raises(RequestError, match=f"{many} items of .*; expected 1 to 50"):
            tasks.read(path, items=many)


LINE = st.text(alphabet=" \tab\r\x0b", max_size=5)


@given(st.lists(LINE, max_size=8))
def test_a_line_is_a_gap_in_its_file(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("source") / "a.py"
    whole = "\n".join(rows)
    path.write_bytes(whole.encode())
    wanted = [n for n, row in enumerate(rows, 1) if row.strip() and n > 1]
    if not wanted:
        with pytest.raises(RequestError, match="none to take out"):
            tasks.lines([path])
        return
    made = tasks.lines([path])
    assert [item.place for item in made.items] == [f"{path}:{n}" for n in wanted]
    for item, number in zip(made.items, wanted, strict=True):
        assert item.prefix + item.answer + item.suffix == whole
        assert item.answer == rows[number - 1].rstrip()
        assert item.prefix.endswith("\n")
        assert item.suffix.lstrip("\t\r\x0b ")[:1] in ("", "\n")


def test_lines_are_drawn_from_all_files(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("".join(f"{name}{i}\n" for i in range(90)))
    paths = [tmp_path / "a", tmp_path / "b"]
    assert len(tasks.lines(paths).items) == tasks.LINES
    assert {item.answer[0] for item in tasks.lines(paths, items=20, seed=1).items} == {"a", "b"}
    with pytest.raises(RequestError, match="179 items of lines of 2 files; expected 1 to 178"):
        tasks.lines(paths, items=179)


def test_the_single_lines_of_humaneval_are_a_task(data):
    read = tasks.read(data / "code" / "HumanEval-SingleLineInfilling.jsonl.gz")
    assert (read.kind, len(read.items)) == ("infill", 1033)
    assert read.unused == ("entry_point", "task_id", "test")
    assert all(item.answer.endswith("\n") for item in read.items)


def test_the_problems_of_gsm8k_are_a_task(data):
    read = tasks.read(data / "reasoning" / "gsm8k" / "train.jsonl")
    assert (read.kind, len(read.items), read.items[0].answer) == ("answer", 7473, "72")


# ---- texts


@pytest.fixture
def book(tmp_path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"{n}. {TEXT}" for n in range(9)), encoding="utf-8")
    return path


@pytest.fixture
def short(tmp_path) -> Path:
    path = tmp_path / "short.txt"
    path.write_text("It rests, then.", encoding="utf-8")
    return path


def test_bits_are_those_of_score(model, book, short):
    report = evaluate(model, tasks.text([book, short]))
    scores = [model.score(path) for path in (book, short)]
    values = [(e.name, e.value) for e in report.evaluations]
    assert values[:2] == [
        (str(p), s.bits_per_unit) for p, s in zip((book, short), scores, strict=True)
    ]
    assert values[2] == ("all", score.Tally.of(scores).rate)
    assert [record.nats for record in report.evaluations[2].records] == [s.nats for s in scores]
    assert report.evaluations[0].error == scores[0].error
    assert {e.unit for e in report.evaluations} == {"bits per byte"}
    assert (report.evaluations[0].items, report.evaluations[2].items) == (1, 2)


def test_files_too_short_for_an_error_are_draws_themselves(model, book, short):
    alone, _, both = evaluate(model, tasks.text([short, book])).evaluations
    assert alone.error is None
    bits = np.array([model.score(path).nats / math.log(2) for path in (short, book)])
    units = np.array([len(path.read_bytes()) for path in (short, book)], float)
    assert both.error == pytest.approx(scoring.ratio_error(bits, units))


def test_texts_of_models_with_the_same_ids_are_paired_by_runs(other, book):
    one = small.shared("bytes")
    (pair,) = evaluate(one, tasks.text([book]), against=other).pairs
    a, b = (np.array(m.score(book).logprobs) for m in (one, other))
    runs = len(a) // scoring.RUN
    off = (b - a)[: runs * scoring.RUN].reshape(runs, -1).sum(1) / math.log(2) / scoring.RUN
    assert pair.difference.items == runs
    assert pair.difference.value == pytest.approx((b - a).mean() / math.log(2))
    assert pair.difference.error == pytest.approx(stdev(off) / math.sqrt(runs))
    t = pair.difference.value / pair.difference.error
    assert pair.difference.p == pytest.approx(statistics.student(t, runs - 1))


def test_texts_of_models_with_other_ids_are_paired_by_files(model, book, short):
    paths, other = [book, short, ROOT / "LICENSE"], small.shared("bytes")
    *alone, pair = evaluate(model, tasks.text(paths), against=other).pairs
    assert [p.difference.error for p in alone] == [None, None, None]
    assert not any(p.difference.above_noise for p in alone)
    bits = [np.array([m.score(p).nats / math.log(2) for p in paths]) for m in (model, other)]
    units = np.array([len(path.read_bytes()) for path in paths], float)
    assert pair.difference.value == pytest.approx((bits[0] - bits[1]).sum() / units.sum())
    assert pair.difference.error == pytest.approx(scoring.ratio_error(bits[0] - bits[1], units))
    assert pair.difference.items == 3


def test_a_model_does_not_differ_from_itself(model, book):
    (pair,) = evaluate(model, tasks.text([book]), against=model).pairs
    assert (pair.difference.value, pair.difference.error, pair.difference.p) == (0, 0, 1)
    assert not pair.difference.above_noise


# ---- exact match


def greedy(model: seriatim.Model, prompt: str, count: int) -> str:
    """What `transformers` writes after a prompt."""
    ids = checkpoints.expected_ids(model.checkpoint.path, model.prompt_ids(prompt), count)
    assert not set(ids) & set(model.ends)
    return model.codec.decode(ids)


PROMPTS = ["The quick", "brown fox", "And then?", "It rests"]


def test_exact_match_is_the_share_of_greedy_texts_that_are_the_answer(model):
    texts = [greedy(model, prompt, 5) for prompt in PROMPTS]
    answers = [texts[0] + " \n", texts[1] + "!", " " + texts[2], texts[3]]
    items = [Exact(f"line {i}", *pair) for i, pair in enumerate(zip(PROMPTS, answers, strict=True))]
    (found,) = evaluate(model, task("exact", *items), stop=[], max_tokens=5).evaluations
    assert [record.right for record in found.records] == [True, False, False, True]
    assert [record.given for record in found.records] == texts
    assert (found.value, found.error) == statistics.share([True, False, False, True])
    assert found.unfinished == 4
    one = model.generate(PROMPTS[0], temperature=0, max_tokens=5, logprobs=True)
    assert found.records[0].nats == pytest.approx(-sum(one.logprobs))


def test_items_do_not_depend_on_their_company(model):
    items = [Exact(f"line {i}", prompt, "x") for i, prompt in enumerate(PROMPTS)]
    together = evaluate(model, task("exact", *items), max_tokens=9).evaluations[0].records
    alone = [
        evaluate(model, task("exact", item), max_tokens=9).evaluations[0].records[0]
        for item in items
    ]
    assert together == alone


def test_without_a_stop_answers_end_at_a_newline_unless_a_right_one_holds_one(model):
    plain = evaluate(model, task("exact", Exact("line 1", "a", "né\n"))).evaluations[0]
    assert "until an end id, '\\n', 4 ids" in plain.how
    several = task("exact", Exact("line 1", "a", "b"), Exact("line 2", "a", "b\nc"))
    assert "until an end id, 4 ids" in evaluate(model, several).evaluations[0].how
    given = evaluate(model, several, stop=["x"], max_tokens=2).evaluations[0]
    assert "until an end id, 'x', 2 ids" in given.how


def test_a_prompt_too_long_is_refused_with_both_numbers_or_cut(model):
    long = TEXT * 20
    items = [Exact("line 1", "a", "b"), Exact("line 2", long, "b")]
    size = len(model.prompt_ids(long))
    with pytest.raises(
        RequestError, match=f"here line 2: the prompt has {size} ids and its answer needs 1"
    ) as e:
        evaluate(model, task("exact", *items))
    assert f"at most {model.context} together" in str(e.value)
    (found,) = evaluate(model, task("exact", *items), cut=True, max_tokens=1).evaluations
    assert found.cut == 1
    shown = found.records[1].prompt
    assert long.endswith(shown)
    assert len(model.prompt_ids(shown)) + 1 <= model.context
    assert len(model.prompt_ids(long[-len(shown) - 1 :])) + 1 > model.context
    with pytest.raises(RequestError, match=r"line 1: .*leave it out"):
        evaluate(model, task("exact", Exact("line 1", "a", long)), cut=True)


# ---- infilling


def gaps(model: seriatim.Model, how: list[str], **options) -> list[Gap]:
    """Gaps of which the model, filling or continuing, is right about some."""
    made = []
    for number, way in enumerate(how):
        sides = {"prefix": f"{number}. {TEXT}", "suffix": f"\n{TEXT}"}
        filled = model.generate(**sides, temperature=0, **options).text
        straight = model.generate(sides["prefix"], temperature=0, **options).text
        assert filled.rstrip() != straight.rstrip()
        answer = {"filled": filled, "straight": straight, "neither": "no"}[way]
        made.append(Gap(f"line {number}", *sides.values(), answer))
    return made


def test_infilling_stands_beside_the_prefix_continued(coder):
    options = {"max_tokens": 4, "stop": ["\n"]}
    ways = ["filled", "filled", "straight", "neither", "filled"]
    report = evaluate(coder, task("infill", *gaps(coder, ways, **options)), **options)
    filled, straight = report.evaluations
    assert [r.right for r in filled.records] == [way == "filled" for way in ways]
    assert [r.right for r in straight.records] == [way == "straight" for way in ways]
    assert (filled.measure, straight.measure) == ("infilling", "left to right")
    (pair,) = report.pairs
    assert (pair.first, pair.second, pair.models) == (filled, straight, (0, 0))
    assert pair.difference.value == pytest.approx(0.4)
    assert pair.difference.p == statistics.mcnemar(3, 1)


def test_two_models_fill_the_same_gaps(coder):
    options = {"max_tokens": 4, "stop": ["\n"]}
    made = task("infill", *gaps(coder, ["filled", "straight"], **options))
    report = evaluate(coder, made, against=coder, **options)
    assert [pair.models for pair in report.pairs] == [(0, 1), (0, 1), (0, 0), (1, 1)]
    assert [pair.difference.value for pair in report.pairs] == [0, 0, 0, 0]
    assert report.others == report.evaluations


def test_the_order_of_a_gap_is_an_option(coder):
    options = {"max_tokens": 4, "stop": ["\n"], "fim_order": "spm"}
    item = Gap("line 1", "a", "b", "c")
    given = evaluate(coder, task("infill", item), **options).evaluations[0].records[0].given
    assert given == coder.generate(prefix="a", suffix="b", temperature=0, **options).text


def test_only_a_gap_ends_at_the_ids_of_its_format(coder, monkeypatch):
    forced = [*coder.encode("ab"), coder.codec.added["<file_sep>"], *coder.encode("cd")]
    monkeypatch.setattr(coder.engine, "add", partial(coder.engine.add, forced_ids=forced))
    made = task("infill", Gap("line 1", "a", "b", "ab"))
    filled, straight = evaluate(coder, made, max_tokens=len(forced)).evaluations
    assert [e.records[0].given for e in (filled, straight)] == ["ab", "abcd"]
    assert (filled.unfinished, straight.unfinished) == (0, 1)


def test_lines_are_shown_with_as_much_on_both_sides_as_fits(coder, tmp_path):
    path = tmp_path / "long.py"
    path.write_text("".join(f"{n:03} = {n * n}\n" for n in range(400)))
    made = tasks.lines([path], items=3, seed=0)
    filled, straight = evaluate(coder, made).evaluations
    assert (filled.cut, straight.cut) == (
        3,
        sum(
            "".join(r.prompt) != i.prefix for r, i in zip(straight.records, made.items, strict=True)
        ),
    )
    room = max(len(coder.encode(item.answer)) for item in made.items)
    for item, record, beside in zip(made.items, filled.records, straight.records, strict=True):
        before, after = record.prompt
        assert item.prefix.endswith(before)
        assert item.suffix.startswith(after)
        whole = len(before) == len(item.prefix) or len(after) == len(item.suffix)
        assert len(before) == len(after) or whole
        used = fitting.gap(coder, Gap("", before, after, ""), room, order=None, cut=False)[0]
        assert len(used.ids) + room <= coder.context
        n = max(len(before), len(after)) + 1
        wider = Gap("", item.prefix[-n:], item.suffix[:n], "")
        with pytest.raises(RequestError, match="cut prompts that are too long"):
            fitting.gap(coder, wider, room, order=None, cut=False)
        assert item.prefix.endswith(beside.prompt)
        assert len(beside.prompt) >= len(before)


def test_a_line_longer_than_the_context_is_no_reason_to_stop(coder, tmp_path):
    path = tmp_path / "long.py"
    path.write_text("a = 1\n" + "b" * 4000 + "\nc = 2\n")
    filled, _ = evaluate(coder, tasks.lines([path]), max_tokens=2).evaluations
    assert (filled.items, filled.value) == (2, 0)


def test_a_model_that_cannot_fill_a_gap_says_so_before_the_other_works(coder, model, monkeypatch):
    monkeypatch.setattr(coder.engine, "add", None)
    with pytest.raises(RequestError, match="here line 1: the model cannot fill a gap"):
        evaluate(coder, task("infill", Gap("line 1", "a", "b", "c")), against=model)


# ---- choices


def expected_nats(model: seriatim.Model, prompt: str, text: str) -> float:
    """By `transformers`' logits."""
    before, after = model.prompt_ids(prompt), model.encode(text)
    logits = torch.tensor(checkpoints.expected_logits(model.checkpoint.path, before + after))
    logprobs = torch.log_softmax(logits.double(), -1)[len(before) - 1 : -1]
    return -float(logprobs[range(len(after)), after].sum())


CHOICES = [
    Choice("line 1", "The quick brown", (" fox", " lazy dog jumps", "!"), 0),
    Choice("line 2", "And", (" then?", " it", " née Zoë rests over the lazy dog", " a"), 2),
    Choice("line 3", "It", (" rests", " jumps over the"), 1),
]


def test_the_choice_is_the_one_of_the_least_nats(model):
    raw, mean = evaluate(model, task("choice", *CHOICES)).evaluations
    assert (raw.measure, mean.measure) == ("choice", "choice per byte")
    differ = 0
    for item, by_nats, by_byte in zip(CHOICES, raw.records, mean.records, strict=True):
        nats = [expected_nats(model, item.prompt, text) for text in item.choices]
        per_byte = [n / len(text.encode()) for n, text in zip(nats, item.choices, strict=True)]
        assert by_nats.nats == pytest.approx(nats, abs=1e-3)
        assert by_nats.given == np.argmin(nats)
        assert by_byte.given == np.argmin(per_byte)
        assert by_nats.right == (np.argmin(nats) == item.answer)
        differ += by_nats.given != by_byte.given
    assert differ, "the normalised choice is never another: a poor test"


def test_the_prompt_of_choices_is_computed_once(model):
    item = Choice("line 1", TEXT * 2, (" a", " b", " c"), 0)
    computed = []
    add = model.engine.add

    def watch(*args, **how):
        computed.append(add(*args, **how))
        return computed[-1]

    model.engine.add = watch
    try:
        evaluate(model, task("choice", item))
    finally:
        del model.engine.add
    assert len(computed) == 3
    assert all(request.usage.cached >= 64 for request in computed[1:])


# ---- answers


def says(model: seriatim.Model, text: str, monkeypatch) -> seriatim.Model:
    """A model of bytes made to write this, and nothing after it."""
    forced = partial(model.engine.add, forced_ids=[*text.encode()])
    monkeypatch.setattr(model.engine, "add", forced)
    return model


def problems(*answers: str) -> Task:
    return task(
        "answer",
        *(Problem(f"line {i}", "How many?", f"#### {a}", a) for i, a in enumerate(answers)),
    )


def test_an_answer_is_read_and_compared_as_a_number(monkeypatch):
    model = says(small.shared("bytes"), "3 x 4 = $12.00.", monkeypatch)
    (found,) = evaluate(model, problems("12", "4", "12", "7"), max_tokens=15).evaluations
    assert [(r.given, r.right) for r in found.records] == [
        ("12", True), ("12", False), ("12", True), ("12", False),
    ]  # fmt: skip
    assert found.records[0].text == "3 x 4 = $12.00."
    (other,) = evaluate(model, problems("4"), max_tokens=15, extract=r"x (\d+)").evaluations
    assert (other.value, other.measure) == (1, "answer")


def test_a_vote_is_the_models_own(model):
    asked = problems("1", "2")
    (found,) = evaluate(model, asked, votes=5, seed=3, max_tokens=20, extract=r"\w").evaluations
    prompt = "Question: How many?\nAnswer:"
    vote = model.vote(prompt, n=5, seed=3, max_tokens=20, extract=r"\w", stop=["\nQuestion:"])
    assert [record.given for record in found.records] == [vote.answer] * 2
    assert found.measure == "vote of 5"
    assert "temperature 1" in found.how


def test_shots_stand_solved_before_what_is_asked(model):
    (found,) = evaluate(model, problems("1", "2", "3"), shots=2, max_tokens=1).evaluations
    assert [record.place for record in found.records] == ["line 2"]
    assert found.records[0].prompt == (
        "Question: How many?\nAnswer: #### 1\n\nQuestion: How many?\nAnswer: #### 2\n\n"
        "Question: How many?\nAnswer:"
    )
    for shots in (3, -1, True):
        with pytest.raises(RequestError, match=f"shots is {shots}"):
            evaluate(model, problems("1", "2", "3"), shots=shots)


def test_options_that_mean_nothing_are_refused(model, book):
    with pytest.raises(RequestError, match="votes means nothing for exact tasks"):
        evaluate(model, task("exact", Exact("line 1", "a", "b")), votes=3)
    with pytest.raises(RequestError, match="stop means nothing for text tasks; leave it out"):
        evaluate(model, tasks.text([book]), stop=["a"])


# ---- the command


@pytest.fixture
def run(capsys):
    def run(*words: object):
        with pytest.raises(SystemExit) as done:
            cli.main(["eval", *map(str, words)])
        return done.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    exact = [{"prompt": prompt, "answer": " x", "id": 1} for prompt in PROMPTS]
    return {
        "exact": jsonl(tmp_path / "exact.jsonl", *exact),
        "choice": jsonl(tmp_path / "choice.jsonl", *FORMS["choice"]),
        "answer": jsonl(tmp_path / "answer.jsonl", *FORMS["answer"]),
    }  # fmt: skip


def test_the_command_prints_a_line_for_each_value(run, model, files, book, short):
    path = model.checkpoint.path
    code, out, err = run(
        path, files["exact"], files["choice"], "--threads", 1, "--text", book, short, "--cut"
    )
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0, err
    assert [row[:3] for row in rows] == [
        [str(book), "bits per byte", str(path)],
        [str(short), "bits per byte", str(path)],
        ["all", "bits per byte", str(path)],
        [str(files["exact"]), "exact match", str(path)],
        [str(files["choice"]), "choice", str(path)],
        [str(files["choice"]), "choice per byte", str(path)],
    ]
    bits = evaluate(model, tasks.text([book, short])).evaluations
    assert [row[3:6] for row in rows[:3]] == [
        [f"{e.value:.4f}", "-" if e.error is None else f"{e.error:.4f}", f"{e.items}"] for e in bits
    ]
    assert "exact match: greedy, until an end id, '\\n', 3 ids" in err
    assert "fields that mean nothing here: id" in err


def test_the_command_sets_models_beside_each_other(run, model, files, tmp_path):
    path, other, out = model.checkpoint.path, small.folder("bytes"), tmp_path / "items.jsonl"
    code, text, err = run(path, files["exact"], "--against", other, "--json", "--out", out)
    assert code == 0, err
    (found,) = map(json.loads, text.splitlines())
    assert (found["kind"], found["items"], found["unused"]) == ("exact", 4, ["id"])
    assert [(r["model"], r["value"], r["items"]) for r in found["results"]] == [
        (str(path), 0, 4), (str(other), 0, 4),
    ]  # fmt: skip
    (difference,) = found["differences"]
    assert difference["models"] == [str(path), str(other)]
    assert (difference["value"], difference["p"], difference["above_noise"]) == (0, 1, False)
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(k["model"], k["place"]) for k in kept] == [
        (str(m), f"line {i}") for m in (path, other) for i in range(1, 5)
    ]
    assert {"prompt", "given", "expected", "right", "nats"} <= kept[0].keys()


def test_a_difference_says_whether_it_is_above_noise(run, model, files, book):
    path = model.checkpoint.path
    _, out, _ = run(path, files["exact"], "--text", book, "--against", small.folder("bytes"))
    rows = [line.split("\t") for line in out.splitlines() if " - " in line.split("\t")[2]]
    assert [row[1] for row in rows] == ["bits per byte", "exact match"]
    assert [row[6] for row in rows] == ["too little to tell", "not above noise, p = 1"]


def test_a_model_held_against_itself_is_two_models(run, coder, tmp_path):
    path, gap = coder.checkpoint.path, jsonl(tmp_path / "gap.jsonl", *FORMS["infill"])
    code, out, err = run(path, gap, "--against", path, "--max-tokens", 2)
    assert code == 0, err
    both = "infilling - left to right"
    assert [line.split("\t")[1:3] for line in out.splitlines()[4:]] == [
        ["infilling", f"{path} - {path}"], ["left to right", f"{path} - {path}"],
        [both, str(path)], [both, str(path)],
    ]  # fmt: skip


def test_a_terminal_gets_a_table(run, model, files, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    _, out, _ = run(model.checkpoint.path, files["exact"])
    assert "exact match" in out
    assert "┃" in out


def test_the_command_takes_lines_out_of_files(run, coder, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.py").write_text("".join(f"{name}{n} = {n}\n" for n in range(9)))
    words = ["--infill-lines", tmp_path / "a.py", tmp_path / "b.py", "--items", 6, "--seed", 2]
    code, out, err = run(coder.checkpoint.path, *words, "--json", "--max-tokens", 3)
    assert code == 0, err
    (found,) = map(json.loads, out.splitlines())
    assert [r["measure"] for r in found["results"]] == ["infilling", "left to right"]
    assert found["differences"][0]["measures"] == ["infilling", "left to right"]
    assert found["items"] == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no task is given; expected a TASK, --text or --infill-lines"),
        (["exact", "--votes", 3], "--votes means nothing for exact tasks"),
        (["--text", "book", "--max-tokens", 3], "--max-tokens means nothing for text tasks"),
        (["--text", "book", "--items", 3], "--items draws no texts"),
        (["--text", "/nowhere"], "--text /nowhere does not exist"),
        (["--text", "/"], "--text / is no file"),
        (["--text"], "--text"),
        (["/nowhere.jsonl"], "/nowhere.jsonl does not exist"),
        (["exact", "--items", 5], "expected 1 to 4"),
        (["exact", "--out", "/nowhere/items"], "/nowhere"),
        (["exact", "--max-tokens", 0], "max_tokens is 0"),
        (["answer", "--extract", "("], "extract is '('"),
        (["answer", "--votes", 0], "n is 0"),
        (["answer", "--temperature", -1], "temperature is -1"),
        (["--infill-lines", "book"], "the model cannot fill a gap"),
        (["book"], "book.txt line 1 is not valid JSON"),
    ],
)
def test_the_command_refuses_what_cannot_be(run, model, files, book, words, message):
    named = files | {"book": book}
    code, out, err = run(model.checkpoint.path, *(named.get(str(word), word) for word in words))
    assert (code, out) == (2, "")
    assert message in err


def test_a_bad_record_is_refused_before_a_model_is_loaded(run, tmp_path):
    bad = jsonl(tmp_path / "bad.jsonl", GOOD, {"prompt": 1, "answer": "b"})
    code, out, err = run("/no/model", bad)
    assert (code, out) == (2, "")
    assert f"{bad} line 2 has prompt 1, which is no text" in err


def test_the_documents_examples_run(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "eval.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.S)), {"print": lambda *_: None})
