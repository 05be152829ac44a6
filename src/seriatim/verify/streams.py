"""Text beside ids: streams, stop strings, the codec; and where a request ends.

Every answer here is forced or made certain by a bias, so that plain string search and counting say
what must come.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from seriatim.codecs import Watch
from seriatim.errors import SeriatimError
from seriatim.files.jsonfile import read_object
from seriatim.verify import definition
from seriatim.verify.lab import SEED, Case, Lab, need
from seriatim.verify.report import Broken, Check, LeftOut, Seen
from seriatim.verify.speculation import Oracle

TEXT = "aab aaab né 🧑‍🚀, the cat sat; the cats\n\nsat on that mat."
BIAS = 1e4  # makes an id certain


class Goal(NamedTuple):
    """What forced ids must give: text, how many ids it took, the stop string that was met."""

    text: str
    ids: int
    stop: str | None


def streams(lab: Lab) -> Seen:
    """Pieces as they come, the whole answer, and the text up to the first stop string."""
    codec = lab.model.codec
    need(codec is not None, "the model has no codec: ids in, ids out")
    prompt, ids = _told(lab)
    told = _Told(codec, prompt, ids)
    pieces = 0
    for number, stops in enumerate(_stops(told.whole)):
        if lab.small or number % 3 == 0:
            pieces += _streamed(lab, told, stops)
            _guessed(lab, told, stops, number)
    return Seen(pieces, f"a character shown too early, too late or twice, in {pieces} pieces of "
                        f"{len(ids)} ids, {sum(n != 1 for n in told.widths)} of them inside a "
                        "character or of several")  # fmt: skip


def _told(lab: Lab) -> tuple[list[int], list[int]]:
    """A prompt and the ids of a text with characters of several bytes."""
    try:
        ids = lab.model.codec.encode(TEXT)
    except SeriatimError as error:
        raise LeftOut("the codec's objects are no text") from error
    most = lab.model.context - 4
    return list(lab.ids(3, stem=300)), ids[:most]


class _Told:
    """Ids and the text that each beginning of them surely is."""

    def __init__(self, codec: Any, prompt: list[int], ids: list[int]) -> None:
        self.codec, self.prompt, self.ids = codec, prompt, ids
        self.sure = [self._text(count) for count in range(len(ids) + 1)]
        self.whole = text_of(codec.decode(ids, after=prompt))
        self.widths = [len(b) - len(a) for a, b in zip(self.sure, self.sure[1:], strict=False)]

    def _text(self, count: int) -> str:
        """Without a character that is not finished."""
        text = text_of(self.codec.decode(self.ids[:count], after=self.prompt))
        return text.rstrip("\N{REPLACEMENT CHARACTER}")

    def goal(self, stops: Sequence[str]) -> Goal:
        """Of the stop strings that end first, the longest."""
        ends = {s: self.whole.find(s) + len(s) for s in stops if s in self.whole}
        if not ends:
            return Goal(self.whole, len(self.ids), None)
        first = min(ends.values())
        stop = max((s for s, end in ends.items() if end == first), key=len)
        count = next(n for n, text in enumerate(self.sure) if len(text) >= first)
        return Goal(self.whole[: first - len(stop)], count, stop)

    def shown(self, count: int, stops: Sequence[str]) -> str:
        """What may be seen after `count` ids: all but the longest tail that begins a stop."""
        text = self.sure[count]
        tails = (len(s[:n]) for s in stops for n in range(1, len(s)) if text.endswith(s[:n]))
        return text[: len(text) - max(tails, default=0)]


def _stops(whole: str) -> Iterator[list[str]]:
    """None; of every length and place; several that overlap, begin alike or are never met."""
    yield []
    for start, length in ((3, 1), (0, 3), (4, 4), (9, 2), (11, 3), (14, 9), (len(whole) - 5, 5)):
        yield [whole[start : start + length]]
    yield ["aab", "aaab"]
    yield [whole[6:12], whole[7:10], whole[8:10]]
    yield [whole[16:20] + "?", whole[17:25] + "!", whole[18:22]]
    yield ["at;", "t; the cats", "cat sat;"]
    yield ["\n\n", "\n\nsat", "cats\n"]
    yield [whole[: len(whole) // 2] + "never", "never"]


def _streamed(lab: Lab, told: _Told, stops: list[str]) -> int:
    """Piece by piece, and `generate` beside it."""
    goal = told.goal(stops)
    how = {"forced_ids": told.ids, "max_tokens": len(told.ids), "seed": 0, "ignore_end": True}
    stream, ids, text, count = lab.private().stream(told.prompt, stop=stops, **how), [], "", 0
    for piece in stream:
        ids, text, count = ids + piece.ids, text + piece.text, count + 1
        over = len(ids) >= goal.ids
        expected = goal.text if over else told.shown(len(ids), stops)
        if text != expected:
            raise Broken(f"the text shown after {len(ids)} ids", stop=stops, ids=ids,
                         expected=expected, seen=text)  # fmt: skip
    own = lab.private()
    for what, result in (
        ("stream", stream.result()),
        ("generate", own.generate(told.prompt, stop=stops, **how)),
    ):
        _ended(what, stops, goal, told, result)
    return count


def _ended(what: str, stops: list[str], goal: Goal, told: _Told, result: Any) -> None:
    reason = ("length", "max_tokens") if goal.stop is None else ("stop", goal.stop)
    for name, expected, seen in (
        ("text", goal.text, result.text),
        ("output", goal.text, text_of(result.output)),
        ("ids", told.ids[: goal.ids], result.ids),
        ("finish_reason and stop", reason, (result.finish_reason, result.stop)),
        ("usage.generated", goal.ids, result.usage.generated),
    ):
        if expected != seen:
            raise Broken(f"{name} of {what}", stop=stops, expected=expected, seen=seen)


def _guessed(lab: Lab, told: _Told, stops: list[str], number: int) -> None:
    """The same where several ids come in one step."""
    own, goal = lab.private(), told.goal(stops)
    watch = Watch(told.codec.stream(after=told.prompt), stops)
    options = {"forced_ids": told.ids, "max_tokens": len(told.ids), "ignore_end": True, "seed": 0}
    case = Case("forced", tuple(told.prompt), options)
    oracle = Oracle(case, told.ids, number, lab.model.vocab_size)
    request = own.engine.add(told.prompt, watch=watch, speculator=oracle, **options)
    while not request.done:
        own.engine.step()
    text = "".join(request.pieces) + watch.finish()
    ids = request.ids[len(told.prompt) :]
    if (text, ids) != (goal.text, told.ids[: goal.ids]):
        raise Broken("text and ids with guesses", stop=stops, expected=[goal.text, goal.ids],
                     seen=[text, len(ids)])  # fmt: skip


def text_of(raw: Any) -> str:
    """An object as text: bytes that are none as U+FFFD."""
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)


# ---- the codec ---------------------------------------------------------------------------------


def codec(lab: Lab) -> Seen:
    """Examples there and back; pieces of a stream, joined; special text that stays plain."""
    codec = lab.model.codec
    need(codec is not None, "the model has no codec: ids in, ids out")
    examples = codec.examples()
    for raw in examples:
        ids = codec.encode(raw)
        if any(not 0 <= id < lab.model.vocab_size for id in ids):
            raise Broken(f"encode({raw!r:.60})", expected="ids of the vocabulary", seen=ids)
        if codec.decode(ids) != codec.canonical(raw):
            raise Broken(f"decode(encode({raw!r:.60}))", ids=ids, expected=codec.canonical(raw),
                         seen=codec.decode(ids))  # fmt: skip
        _joined(codec, ids)
    for stem in range(8):
        _joined(codec, [id for id in lab.ids(40, stem=310 + stem) if id < codec.size])
    for name, id in codec.specials.items():
        if id in codec.encode(name):
            raise Broken(f"encode({name!r})", expected="plain text", seen=f"the special id {id}")
    count = len(examples) + 8 + len(codec.specials)
    return Seen(count, f"{len(examples)} examples, 8 lists of random ids, all special texts")


def _joined(codec: Any, ids: Sequence[int]) -> None:
    stream = codec.stream()
    text = "".join(stream.feed(id) for id in ids) + stream.finish()
    whole = text_of(codec.decode(ids))
    if text != whole:
        raise Broken("pieces of a stream, joined", ids=list(ids), expected=whole, seen=text)


# ---- ends --------------------------------------------------------------------------------------


def ends(lab: Lab) -> Seen:
    """End ids, least and most ids, a full context: where each request must end, by counting."""
    _declared(lab)
    looped = _circles(lab)
    size = lab.model.vocab_size
    end = lab.model.ends[-1] if lab.model.ends else lab.ids(1, stem=320)[0]
    tried = 0
    for least, most, temperature in ((0, 9, 1.0), (1, 9, 0), (5, 9, 1.0), (5, 6, 0), (5, 5, 1.0)):
        for guesses in (None, *range(3)) if lab.small else (None, 1):
            how = {
                "min_tokens": least, "max_tokens": most, "temperature": temperature, "seed": SEED,
                "logit_bias": {end: BIAS}, "logprobs": 0,
            }  # fmt: skip
            case = Case(f"end id {end} certain, min_tokens {least}", lab.ids(7, stem=321), how)
            _ends_at(lab, case, end, guesses)
            tried += 1
    how = {"max_tokens": 4, "logit_bias": {end: BIAS}, "ignore_end": True, "seed": 0}
    _expect("with ignore_end", lab.ids(7), [end] * 4, "max_tokens",
            _once(lab, Case("ignored", lab.ids(7), how), [end]))  # fmt: skip
    long = Case("endless", lab.ids(20), {"ignore_end": True, "seed": 0})
    seen = _once(lab, long, [], context=min(23, lab.model.context))
    if (len(seen[0]), seen[1]) != (3, "context"):
        raise Broken("20 ids in a context of 23", expected=(3, "context"), seen=seen)
    return Seen(
        tried + looped + 2,
        f"one id too many or too few; {size} ids, {len(lab.model.ends)} of them ends",
    )


def _circles(lab: Lab) -> int:
    """`loop_limit`: forced ids that go round, each length counted; the prompt's do not count."""
    need(lab.model.vocab_size > 3, "no 4 ids")
    a, b, c, d = range(4)
    answer = [b, a, c, a, c, a, c, a, b, d, b, d, d, b, d, d, b, d, d, d, d, d, d, c, c]
    ways = [(times, longest) for times in (2, 3, 4) for longest in (1, 2, 3)]
    ways = ways if lab.small else ways[1::3]
    for times, longest in ways:
        how = {
            "forced_ids": answer, "max_tokens": len(answer), "seed": 0, "ignore_end": True,
            "loop_limit": times, "loop_length": longest,
        }  # fmt: skip
        case = Case("in circles", (a, c, d, b), how)
        ends = [n for n in range(1, len(answer) + 1) if _circle(answer[:n], times, longest)]
        expected = (answer[: ends[0]], "loop") if ends else (answer, "max_tokens")
        for guesses in (None, times):
            oracle = None
            if guesses is not None:
                oracle = Oracle(case, answer, guesses, lab.model.vocab_size)
            seen = _once(lab, case, lab.model.ends, speculator=oracle)
            _expect(f"loop_limit {times}, loop_length {longest}", case.ids, *expected, seen)
    return 2 * len(ways)


def _circle(ids: list[int], times: int, longest: int) -> bool:
    return any(
        len(ids) >= times * n and ids[-times * n :] == ids[-n:] * times
        for n in range(1, longest + 1)
    )


def _ends_at(lab: Lab, case: Case, end: int, guesses: int | None) -> None:
    """The end comes as soon as it may; what is before it is the definition's."""
    least, most = case.options["min_tokens"], case.options["max_tokens"]
    before = _allowed(lab, case, end, least)
    answer = [*before, end, *lab.ids(9, stem=322)]
    oracle = None if guesses is None else Oracle(case, answer, guesses, lab.model.vocab_size)
    seen = _once(lab, case, [end], speculator=oracle)
    how = f"with guesses from {guesses} on" if oracle else "without guesses"
    stop = "max_tokens" if least == most else end
    _expect(f"{case.name}, max_tokens {most}, {how}", case.ids, before, stop, seen)


def _allowed(lab: Lab, case: Case, end: int, least: int) -> list[int]:
    """`least` ids by the definition, the end forbidden."""
    ids = list(case.ids)
    for _ in range(least):
        row = lab.logits(ids)[-1]
        facts = {"prompt": len(case.ids), "forbidden": [end]}
        ids.append(definition.choose(row, case.options, ids=ids, **facts).id)
    return ids[len(case.ids) :]


def _once(
    lab: Lab, case: Case, ends: Sequence[int], *, speculator: Any = None, **private: Any
) -> tuple[list[int], Any]:
    own = lab.private(ends=ends, **private)
    [seen] = lab.run(own, [case], speculator=lambda _: speculator)
    return seen.ids, seen.stop


def _expect(
    what: str, prompt: Sequence[int], ids: list[int], stop: Any, seen: tuple[list[int], Any]
) -> None:
    if seen != (ids, stop):
        raise Broken(what, prompt=list(prompt), expected=[ids, f"stop {stop!r}"],
                     seen=[seen[0], f"stop {seen[1]!r}"])  # fmt: skip


def _declared(lab: Lab) -> None:
    """What the model's files call an end ends a request."""
    folder = lab.model.checkpoint.path
    for name in ("config.json", "generation_config.json"):
        if not (folder / name).is_file():
            continue
        given = read_object(folder / name).get("eos_token_id")
        for id in given if isinstance(given, list) else [given]:
            inside = isinstance(id, int) and 0 <= id < lab.model.vocab_size
            if inside and id not in lab.model.ends:
                raise Broken(f"eos_token_id of {name}", expected=f"{id} among the ends",
                             seen=list(lab.model.ends))  # fmt: skip


HELP = "report this with the table; the ids of a result are right where its text is not"
CHECKS = [
    Check("streams", "pieces, whole answers, and text up to the first stop string by plain search",
          HELP, streams),
    Check("codec", "objects, their ids and their text", HELP, codec),
    Check("ends", "where requests end and where they must, by counting",
          "report this with the table; cut answers yourself meanwhile", ends),
]  # fmt: skip
