"""Law 1: what a request yields does not depend on its company, its chunks, the cache or threads."""

from collections.abc import Iterator, Sequence
from typing import Any

from seriatim.errors import ResourceError
from seriatim.kernels.native import available_cpus, isas
from seriatim.kernels.ops import BLOCK
from seriatim.verify.lab import SAMPLINGS, Case, Lab, Spy, need
from seriatim.verify.report import Broken, Check, LeftOut, Seen


def batch(lab: Lab) -> Seen:
    """Groups of requests of mixed lengths, some scored, in one step or arriving late."""
    cases = mixed(lab)
    half = len(cases) // 2
    arrangements: list[tuple[str, Sequence[Case], dict[str, Any]]] = [
        ("2 together", cases[:2], {}),
        ("the same request twice", [cases[half], cases[half]], {}),
        (f"{len(cases)} together", cases, {}),
        (f"{len(cases)} together, the last first", cases[::-1], {}),
        (
            "3 at a time, 64 ids in a step",
            [*cases[half:], *cases[:half]],
            {"most": 3, "budget": 64},
        ),
    ]
    equal, widest = 0, 0
    for name, group, limits in arrangements if lab.small else arrangements[1:3]:
        spy = Spy(lab.model.runtime)
        late = int("most" in limits)
        equal += lab.company(group, name, every=late, runtime=spy, **limits)
        widest = max(widest, spy.most)
    if widest < 3:
        raise Broken("the engine", expected="requests side by side", seen=f"{widest} at a time")
    return Seen(
        equal, f"{lab.finest} of logits, ids and log-probabilities of up to {widest} at a time"
    )


def mixed(lab: Lab) -> list[Case]:
    """One of each sampling, lengths around the edges of a block, every third one scored."""
    lengths = (1, 5, 17, 63, 64, 65, 100, 129, 190) if lab.small else (1, 5, 17, 40, 65)
    names = list(SAMPLINGS)
    return [
        lab.case(
            names[i % len(names)],
            n,
            most=8 if lab.small else 3,
            stem=10 + i,
            sample=i % 4,
            scored=i % 3 == 2,
        )
        for i, n in enumerate(lengths)
    ]


def chunk(lab: Lab) -> Seen:
    """A scored prompt read whole, against the same in steps of few ids, alone and beside others."""
    long = lab.case("plain", lab.most, most=4, stem=3, scored=True)
    short = lab.case("nucleus", 70 if lab.small else 20, most=4, stem=4, scored=True)
    sizes = (1, 3, 17, 64, 100) if lab.small else (1, 17, 64)
    sizes += (2, 5, 33, 63, 65, 127) if lab.thorough else ()
    equal = 0
    for size in sizes:
        case = short if size < 16 else long
        equal += lab.company([case], f"in steps of {size} ids", budget=size)
    for size in (9, 40) if lab.small else (9,):
        equal += lab.company([long, short], f"{size} ids of each in a step", chunk=size)
    return Seen(equal, f"{lab.finest} of {equal:,} logits of up to {len(long.ids)} positions")


# ---- the cache ---------------------------------------------------------------------------------


def cache(lab: Lab) -> Seen:
    """Prompts that begin as earlier ones did, against each in a cold cache."""
    need(lab.most > BLOCK + 16, f"no context for more than one block of {BLOCK} positions")
    equal, reused, cases = 0, 0, list(prefixes(lab))
    cases = cases if lab.small else [*cases[:1], *cases[2:3], *cases[6:8], *cases[10:]]
    for case in cases:
        lab.alone(case)
    for poison in (False, True) if lab.exact and lab.small else (lab.exact,):
        spy, known = Spy(lab.model.runtime), dict[str, list[list[int]]]()
        own = lab.private(runtime=spy, poison=poison)
        for case in cases:
            before = spy.tokens
            [seen] = lab.run(own, [lab.asked(case)])
            equal += lab.compare(case, lab.alone(case), seen, "its beginning in the cache")
            _count(case, seen.usage, spy.tokens - before, known)
            reused += seen.usage.cached
    if not reused:
        raise Broken("the cache", expected="beginnings that are found again", seen="none")
    return Seen(equal, f"{lab.finest} after {reused:,} positions that were not computed again")


def prefixes(lab: Lab) -> Iterator[Case]:
    """One prompt; then what shares a block of it, a part of one, all of it, or no right to."""
    base, other = lab.ids(max(BLOCK + 6, lab.most - 40), stem=5), lab.ids(40, stem=6)
    options = lab.case("plain", 1).options

    def case(name: str, ids: tuple[int, ...], *, most: int = 4, **how: Any) -> Case:
        own = {**options, "max_tokens": most, "tenant": how.pop("tenant", "")}
        return Case(name, ids[: lab.most - most], own, **how)

    first = case("new", base, most=8)
    yield first
    answer = tuple(lab.alone(first).ids)
    yield case("the same", base)
    yield case("the same, scored after a block", base, scored=True, rows_from=BLOCK)
    yield case("the same but its last id", (*base[:-1], other[0]))
    for shared in (BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 20):
        yield case(f"{shared} ids of it, then others", base[:shared] + other, scored=True,
                   rows_from=min(shared, BLOCK))  # fmt: skip
    yield case("its first block alone", base[:BLOCK])
    yield case("one id more than a block", base[: BLOCK + 1])
    yield case("its answer and more", base + answer + other[:9], scored=True, rows_from=BLOCK)
    yield case("its second block behind another first", lab.ids(BLOCK, stem=7) + base[BLOCK:])
    yield case("the same for another tenant", base, tenant="other")


def _count(case: Case, usage: Any, computed: int, known: dict[str, list[list[int]]]) -> None:
    """What the result says of the cache, against what was computed and what was ever known."""
    tenant = case.options["tenant"]
    shared = max((_common(case.ids, ids) for ids in known.get(tenant, [])), default=0)
    if usage.cached > shared:
        raise Broken("usage.cached", request=str(case), expected=f"at most {shared}, for no more "
                     "was known", seen=usage.cached)  # fmt: skip
    due = len(case.ids) - usage.cached + usage.generated - 1
    if computed != due:
        raise Broken("ids that were computed", request=str(case), expected=f"{due}: all but "
                     f"{usage.cached} cached and the last one", seen=computed)  # fmt: skip
    known.setdefault(tenant, []).append([*case.ids])


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two lists begin with alike."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def recycled(lab: Lab) -> Seen:
    """A cache with hardly room for one request: blocks are evicted and used again all the time."""
    length = min(130 if lab.small else 70, lab.most - 9)
    cases = [lab.case("plain", length - 3 * i, stem=30 + i, scored=i == 1) for i in range(3)]
    blocks = _blocks(length + 8)
    need(lab.model.pool.limit >= blocks, "the cache holds no request of that length")
    for case in cases:
        lab.alone(case)
    equal, rounds = 0, [0, 1, 0, 2, 1, 2, 0] if lab.small else [0, 1, 0]
    for spare, poison in ((0, False), (1, lab.exact)) if lab.small else ((0, lab.exact),):
        own = lab.private(blocks=blocks + spare, poison=poison)
        for i in rounds:
            equal += lab.company([cases[i]], f"in a cache of {blocks + spare} used blocks", own=own)
            _aborted(own, cases[(i + 1) % 3])
        pool = own.pool
        if pool.available != pool.limit:
            raise Broken("blocks given back", expected=pool.limit, seen=pool.available)
    equal += _held(lab, cases)
    return Seen(equal, f"{lab.finest} of {equal:,} values, stale keys as NaN too")


def _aborted(own: Any, case: Case) -> None:
    """A request that goes after its first step."""
    request = own.engine.add(case.ids, **case.options)
    own.engine.step()
    own.engine.abort(request)
    own.engine.check()


def _held(lab: Lab, cases: Sequence[Case]) -> int:
    """One that goes on generating while others come, go and are evicted beside it."""
    most = 70 if lab.small else 12
    length = BLOCK - most // 2
    need(lab.most > length + most, "the context holds no request of that length")
    longest = lab.case("penalties", length, most=most, stem=40)
    blocks = _blocks(length + most) + _blocks(len(cases[0].ids) + 8)
    group = [longest, *cases, *cases[:2]] if lab.small else [longest, *cases[:2], cases[0]]
    return lab.company(group, "beside what is evicted", blocks=blocks, most=2)


def preemption(lab: Lab) -> Seen:
    """More requests than the cache can hold to their end: some are stopped and computed again."""
    need(lab.most > BLOCK + 12, f"no context for more than one block of {BLOCK} positions")
    count = 5 if lab.small else 3
    names = list(SAMPLINGS)
    cases = [
        lab.case(names[i % len(names)], BLOCK - 4 + i, most=12, stem=50 + i, sample=i)
        for i in range(count)
    ]
    blocks = count + count // 2
    need(lab.model.pool.limit >= blocks, f"the cache holds fewer than {blocks} blocks")
    equal, computed = 0, 0
    spares = (0, 1) if lab.small else (0,)
    for spare in spares:
        spy = Spy(lab.model.runtime)
        how = f"{count} in a cache of {blocks + spare} blocks"
        equal += lab.company(cases, how, blocks=blocks + spare, runtime=spy)
        computed += spy.tokens
    again = computed - len(spares) * sum(len(c.ids) + 11 for c in cases)
    if again <= 0:
        raise Broken("the cache", expected="too small for all", seen="nobody was preempted")
    return Seen(equal, f"{lab.finest}, after {again:,} positions were computed again")


def _blocks(positions: int) -> int:
    return -(-positions // BLOCK)


# ---- the machine -------------------------------------------------------------------------------


def threads(lab: Lab) -> Seen:
    """The same logits from other numbers of workers: long and short steps, one id and many."""
    need(lab.exact, "only the native backend promises bits")
    counts = {1, 2, available_cpus(), *((3, 4) if lab.thorough else ())}
    others = sorted(counts - {lab.model.runtime.threads})
    equal = sum(_other(lab, f"{n} thread{'s' * (n > 1)}", threads=n) for n in others)
    shown = ", ".join(map(str, sorted(counts)))
    return Seen(equal, f"{lab.finest} of {equal:,} values on {shown} threads")


def instruction_sets(lab: Lab) -> Seen:
    """The same logits from every instruction set that this processor runs."""
    need(lab.exact, "only the native backend promises bits")
    others = [isa for isa in isas() if isa != lab.model.runtime.isa]
    need(bool(others), "this processor runs one instruction set only")
    equal = sum(_other(lab, f"instruction set {isa}", isa=isa) for isa in others)
    return Seen(
        equal, f"{lab.finest} of {equal:,} values; {lab.model.runtime.isa} = {' = '.join(others)}"
    )


def _other(lab: Lab, how: str, **options: Any) -> int:
    """The model loaded again: scored prompts read whole, beside each other, and id by id."""
    try:
        other = lab.model.load(**options)
    except ResourceError as error:
        raise LeftOut(f"it cannot be loaded a second time: {error}") from error
    slow = "isa" in options and not lab.small
    most = BLOCK + 6 if "isa" in options else lab.most  # the plain one is many times slower
    long = lab.case("plain", 3 if slow else most, most=2, stem=3, scored=True)
    short = lab.case("nucleus", 2 if slow else 9, most=2, stem=4, scored=True)
    equal = lab.company([long], how, model=other)
    equal += lab.company([short, lab.case("plain", 2, most=2, stem=8)], how, model=other)
    if not slow:
        equal += lab.company([short], f"{how}, id by id", model=other, budget=1)
    return equal


HELP = "report this with the table; until it is mended, {}"
CHECKS = [
    Check("batch", "each request alone and in company", HELP.format("run one request at a time "
          "(Engine(model, most=1))"), batch),
    Check("chunk", "prompts read whole and in steps of 1 to 100 ids", HELP.format("do not rely on "
          "equal bits from other budgets"), chunk),
    Check("cache", "prompts whose beginning is cached, and the same computed cold",
          HELP.format("give each request a tenant of its own: nothing is shared then"), cache),
    Check("eviction", "requests in blocks that others left, and in new ones",
          HELP.format("load with a larger cache_bytes"), recycled),
    Check("preemption", "requests that were stopped for lack of blocks, and alone",
          HELP.format("load with a larger cache_bytes"), preemption),
    Check("threads", "the same model on 1, 2 and all processors",
          HELP.format("load with threads=1"), threads),
    Check("instruction sets", "each that runs here", HELP.format('load with isa="plain"'),
          instruction_sets),
]  # fmt: skip
