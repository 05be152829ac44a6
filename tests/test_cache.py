"""The block pool: nothing is lost, nothing is found that is not exactly what was asked for."""

import gc
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from seriatim.engine import cache
from seriatim.engine.cache import Block, BlockPool, common
from seriatim.errors import ResourceError
from seriatim.kernels.ops import BLOCK


def text(*letters: int) -> list[int]:
    """Ids of whole blocks: one letter fills one."""
    return [letter for letter in letters for _ in range(BLOCK)]


class Sequences:
    """A holder of blocks, as a scheduler is."""

    def __init__(self) -> None:
        self.chains: list[list[Block]] = []

    def held(self) -> list[list[Block]]:
        return self.chains


def pool_of(limit: int) -> tuple[BlockPool, Sequences]:
    pool, holder = BlockPool(limit, lambda blocks: None), Sequences()
    pool.holders.add(holder)
    return pool, holder


def compute(pool: BlockPool, holder: Sequences, ids: list[int], tenant: str = "") -> list[Block]:
    """A sequence of whole blocks, found or computed, and published."""
    chain = pool.match(ids, tenant, len(ids) // BLOCK)
    for start in range(len(chain) * BLOCK, len(ids), BLOCK):
        block = pool.take()
        assert block is not None
        parent = chain[-1] if chain else None
        chain.append(pool.publish(block, parent, tenant, ids[start : start + BLOCK]))
    holder.chains.append(chain)
    return chain


def end(pool: BlockPool, holder: Sequences, chain: list[Block]) -> None:
    holder.chains = [c for c in holder.chains if c is not chain]
    pool.release(chain)


# ---- any order of events -----------------------------------------------------------------------


@dataclass
class Sequence:
    tenant: str
    ids: list[int]
    chain: list[Block] = field(default_factory=list)
    computed: int = 0

    @property
    def last(self) -> int:
        """The block that is not full."""
        return self.computed // BLOCK


letters = st.lists(st.integers(0, 2), min_size=1, max_size=5)
tenants = st.sampled_from(["", "other"])


class Pool(RuleBasedStateMachine):
    """Requests come, compute, share and go; what each block holds is remembered here as well."""

    def __init__(self) -> None:
        super().__init__()
        self.grown = 0
        self.pool = BlockPool(9, self.grow)
        self.sequences: list[Sequence] = []
        self.pool.holders.add(self)
        self.content: dict[int, tuple] = {}  # by index

    def held(self) -> list[list[Block]]:
        return [s.chain for s in self.sequences]

    def grow(self, blocks: int) -> None:
        assert self.grown < blocks <= 9
        self.grown = blocks

    def spelt(self, s: Sequence, computed: int) -> tuple:
        return (s.tenant, *s.ids[:computed])

    def holds(self, block: Block, s: Sequence, computed: int) -> bool:
        """Whether it was written by a sequence that began with the same ids."""
        return self.content[block.index][: computed + 1] == self.spelt(s, computed)

    @rule(spelt=letters, cut=st.integers(0, BLOCK - 1), tenant=tenants)
    def begin(self, spelt, cut, tenant):
        s = Sequence(tenant, text(*spelt)[: len(spelt) * BLOCK - cut])
        s.chain = self.pool.match(s.ids, tenant, len(s.ids) // BLOCK)
        s.computed = BLOCK * len(s.chain)
        for i, block in enumerate(s.chain):
            assert self.holds(block, s, (i + 1) * BLOCK), "another's block was matched"
        self.copy_part(s)
        self.sequences.append(s)

    def copy_part(self, s: Sequence) -> None:
        parent = s.chain[-1] if s.chain else None
        source, shared = self.pool.nearest(parent, s.tenant, s.ids[s.computed :])
        if source is None:
            return
        assert self.holds(source, s, s.computed + shared), "positions that differ were offered"
        block = self.pool.take_beside(source)
        if block is not None:
            assert block.index != source.index
            self.content[block.index] = self.content[source.index]
            s.chain.append(block)
            s.computed += shared

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def reserve(self, data):
        s = data.draw(st.sampled_from(self.sequences))
        if len(s.chain) * BLOCK >= len(s.ids):
            return
        expected = self.pool.available > 0
        block = self.pool.take()
        assert (block is not None) == expected
        if block is not None:
            assert all(block.index != b.index for c in self.held() for b in c)
            self.content[block.index] = ("unwritten",)
            s.chain.append(block)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), count=st.integers(1, BLOCK), show=st.booleans())
    def compute(self, data, count, show):
        """A step, which ends where a block does at the latest; a part may be published."""
        s = data.draw(st.sampled_from(self.sequences))
        i = s.last
        end = min(s.computed + count, (i + 1) * BLOCK, len(s.ids))
        if i == len(s.chain) or end == s.computed:
            return
        s.computed = end
        self.content[s.chain[i].index] = self.spelt(s, end)
        if end % BLOCK == 0 or show:
            self.publish(s, i)

    def publish(self, s: Sequence, i: int) -> None:
        ids, parent = s.ids[i * BLOCK : s.computed][:BLOCK], s.chain[i - 1] if i else None
        s.chain[i] = self.pool.publish(s.chain[i], parent, s.tenant, ids)
        assert self.holds(s.chain[i], s, i * BLOCK + len(ids))
        chain = self.pool.match(s.ids, s.tenant, i)
        assert chain == s.chain[:i]
        found, shared = self.pool.nearest(parent, s.tenant, ids)
        assert shared == len(ids), "what was published is not found"
        assert self.holds(found, s, i * BLOCK + len(ids))
        self.pool.release(chain)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def finish(self, data):
        s = data.draw(st.sampled_from(self.sequences))
        if s.computed % BLOCK:
            self.publish(s, s.last)
        self.sequences = [other for other in self.sequences if other is not s]
        self.pool.release(s.chain)

    @rule(spelt=letters, tenant=tenants)
    def ask_why(self, spelt, tenant):
        ids = text(*spelt)
        chain = self.pool.match(ids, tenant, len(spelt))
        parent, start = chain[-1] if chain else None, BLOCK * len(chain)
        _, shared = self.pool.nearest(parent, tenant, ids[start:])
        if start + shared < len(ids):
            reason = self.pool.missed(parent, tenant, ids[start:], start + shared)
            assert reason == "never seen" or reason.split("token ")[1].split()[0].isdigit()
        self.pool.release(chain)

    @rule()
    def forget(self):
        self.pool.forget()

    @invariant()
    def the_books_are_right(self):
        self.pool.check()
        held = {b.index for chain in self.held() for b in chain}
        assert self.pool.available == 9 - len(held)
        assert self.pool.total == self.grown

    def teardown(self):
        for s in self.sequences:
            self.pool.release(s.chain)
        self.sequences = []
        self.pool.check()
        assert self.pool.available == 9


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestPool = Pool.TestCase


# ---- sharing -----------------------------------------------------------------------------------


def test_a_chain_is_found_as_far_as_it_agrees():
    pool, holder = pool_of(10)
    chain = compute(pool, holder, text(1, 2, 3))
    end(pool, holder, chain)
    for spelt, found in [((1, 2, 3), 3), ((1, 2, 4), 2), ((2, 3), 0), ((1,), 1), ((1, 3), 1)]:
        some = pool.match(text(*spelt), "", len(spelt))
        assert [b.index for b in some] == [b.index for b in chain[:found]]
        pool.release(some)
    assert pool.match(text(1, 2, 3)[:-1], "", 2) == chain[:2]


def test_one_id_of_64_is_enough_to_be_another_block():
    pool, holder = pool_of(10)
    end(pool, holder, compute(pool, holder, text(1)))
    for place in (0, 31, 63):
        other = text(1)
        other[place] = 2
        assert pool.match(other, "", 1) == []


def test_equal_blocks_after_other_beginnings_are_other_blocks():
    """Keys depend on everything before: the parent is part of what is compared."""
    pool, holder = pool_of(10)
    a = compute(pool, holder, text(1, 5))
    b = compute(pool, holder, text(2, 5))
    assert a[1] is not b[1]
    assert pool.match(text(5), "", 1) == []


def test_the_hash_only_finds_the_candidate():
    """Ids that all hash alike are still told apart."""

    class Alike(int):
        def __hash__(self) -> int:
            return 7

        def __eq__(self, other: object) -> bool:
            return int(self) == other

    pool, holder = pool_of(10)
    ids = [[Alike(i)] * BLOCK for i in range(3)]
    blocks = [compute(pool, holder, some)[0] for some in ids]
    assert len({b.index for b in blocks}) == 3
    assert [pool.match(some, "", 1)[0] for some in ids] == blocks


def test_a_recycled_block_is_nobodys_parent():
    """The child of an evicted block must not be found after the block that took its place."""
    pool, holder = pool_of(2)
    first = compute(pool, holder, text(1, 2))
    end(pool, holder, first)
    again = compute(pool, holder, text(3, 4))
    assert {b.index for b in again} == {b.index for b in first}
    end(pool, holder, again)
    assert pool.match(text(3, 2), "", 2) == again[:1]


def test_a_tenant_finds_only_its_own_blocks():
    pool, holder = pool_of(10)
    mine = compute(pool, holder, text(1, 2), tenant="me")
    assert pool.match(text(1, 2), "", 2) == []
    assert pool.match(text(1, 2), "you", 2) == []
    assert pool.match(text(1, 2), "me", 2) == mine


def test_of_two_equal_blocks_the_first_stays_and_the_other_is_free_again():
    pool, holder = pool_of(4)
    a, b = pool.take(), pool.take()
    assert pool.publish(a, None, "", text(1)) is a
    assert pool.publish(b, None, "", text(1)) is a
    assert a.users == 2
    holder.chains = [[a], [a]]
    pool.check()
    assert pool.available == 3


# ---- parts of blocks ---------------------------------------------------------------------------


def keep(pool: BlockPool, ids: list[int], tenant: str = "") -> list[Block]:
    """A sequence that was computed and has ended, its last block not full."""
    full = len(ids) // BLOCK
    chain = pool.match(ids, tenant, full)
    for start in range(BLOCK * len(chain), len(ids), BLOCK):
        block = pool.take()
        assert block is not None
        parent = chain[-1] if chain else None
        chain.append(pool.publish(block, parent, tenant, ids[start : start + BLOCK]))
    pool.release(chain)
    return chain


def found(pool: BlockPool, ids: list[int], tenant: str = "") -> int:
    """How many leading ids could be had."""
    chain = pool.match(ids, tenant, len(ids) // BLOCK)
    start = BLOCK * len(chain)
    _, shared = pool.nearest(chain[-1] if chain else None, tenant, ids[start:])
    pool.release(chain)
    return start + shared


def agree(a: list[int], b: list[int]) -> int:
    """`common`, one id at a time."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("kept", [1, 5, 63, 64, 65, 100, 128])
@pytest.mark.parametrize("same", [0, 1, 4, 62, 64, 99])
def test_as_many_positions_are_found_as_agree(kept, same):
    pool, _ = pool_of(10)
    sequence = list(range(kept))
    keep(pool, sequence)
    assert found(pool, [*sequence[:same], *[-1] * (128 - same)]) == min(kept, same)
    assert found(pool, [*sequence, 7]) == kept


def test_of_many_sequences_the_one_that_agrees_longest_is_found():
    pool, _ = pool_of(200)
    many = [[i % 7, i % 5, i % 3, i, i] for i in range(100)]
    for ids in many:
        keep(pool, ids)
    for ids in ([3, 3, 0, 1], [3, 3, 0, 3], [6, 4, 2, 104], [9], [0, 0, 0, 0, 0, 0]):
        assert found(pool, ids) == max(agree(ids, some) for some in many)


def test_a_longer_sequence_takes_the_place_of_the_shorter_it_extends():
    pool, _ = pool_of(10)
    keep(pool, [1, 2, 3])
    keep(pool, [1, 2])
    assert len(pool._kept) == 1, "what is held already is not held twice"
    keep(pool, [1, 2, 3, 4, 5])
    assert len(pool._kept) == 1
    keep(pool, [1, 2, 9])
    assert len(pool._kept) == 2
    keep(pool, [1, 2, 3, 4, 5, *range(59)])
    assert len(pool._kept) == 2, "a full block extends what is not full"
    pool.check()


def test_a_block_that_is_still_filled_may_be_found_by_what_it_holds():
    pool, holder = pool_of(10)
    block = pool.take()
    holder.chains = [[block]]
    pool.publish(block, None, "", [1, 2, 3])
    pool.check()
    assert pool.nearest(None, "", [1, 2, 9]) == (block, 2)
    keep(pool, [1, 2, 3, 4])
    pool.check()
    assert pool.nearest(None, "", [1, 2, 3, 4, 5])[1] == 4
    assert pool.publish(block, None, "", [1, 2, 3]) is block, "it is held, found or not"
    pool.publish(block, None, "", [1, 2, 3, 9, 9])
    assert pool.nearest(None, "", [1, 2, 3, 9, 9]) == (block, 5)
    pool.release([block])
    holder.chains = []
    pool.check()
    assert pool.available == 10


def test_a_block_is_not_taken_to_be_copied_onto_itself():
    pool, _ = pool_of(1)
    keep(pool, [1, 2, 3])
    source, _ = pool.nearest(None, "", [1, 2])
    assert pool.take_beside(source) is None
    pool.check()
    assert pool.take() is not None


def test_parts_are_evicted_with_the_rest_oldest_first():
    pool, _ = pool_of(2)
    keep(pool, [1, 2])
    keep(pool, [3, 4])
    keep(pool, [5, 6])
    assert [found(pool, ids) for ids in ([1, 2], [3, 4], [5, 6])] == [0, 2, 2]


# ---- why not more ------------------------------------------------------------------------------


def why(pool: BlockPool, ids: list[int], tenant: str = "") -> str:
    chain = pool.match(ids, tenant, len(ids) // BLOCK)
    start, parent = BLOCK * len(chain), chain[-1] if chain else None
    _, shared = pool.nearest(parent, tenant, ids[start:])
    pool.release(chain)
    return pool.missed(parent, tenant, ids[start:], start + shared)


def test_the_first_id_that_differs_is_named():
    pool, _ = pool_of(10)
    keep(pool, text(1, 2, 3))
    for at in (1, 63, 64, 65, 127, 128, 191):
        ids = text(1, 2, 3)
        ids[at] = 9
        assert why(pool, ids) == f"different at token {at}"
    assert why(pool, [9, *text(1)]) == "never seen"


def test_what_goes_on_where_all_that_is_kept_ends_was_never_seen():
    pool, _ = pool_of(10)
    keep(pool, text(1)[:40])
    keep(pool, text(2, 3))
    assert why(pool, text(1)) == "never seen from token 40 on"
    assert why(pool, text(2, 3, 4)) == "never seen from token 128 on"
    assert why(pool, text(4)) == "never seen"


@pytest.mark.parametrize("others, at", [(1, 128), (2, 64), (3, 0)])
def test_what_was_evicted_is_remembered(others, at):
    pool, _ = pool_of(3)
    keep(pool, [*text(1, 2), 7, 7])
    for other in range(others):
        keep(pool, [5 + other])
    assert why(pool, [*text(1, 2), 7, 8]) == f"evicted from token {at} on"
    assert why(pool, text(3)) == "never seen"


def test_what_is_computed_again_was_not_evicted_but_what_followed_it_was():
    pool, _ = pool_of(2)
    keep(pool, text(1, 2))
    keep(pool, text(5, 6))
    keep(pool, text(1))
    assert why(pool, text(1, 2)) == "evicted from token 64 on"
    assert why(pool, text(1, 3)) == "never seen from token 64 on"
    pool.check()


def test_what_was_evicted_is_remembered_for_a_while_only(monkeypatch):
    monkeypatch.setattr(cache, "REMEMBERED", 5)
    pool, _ = pool_of(1)
    for letter in range(1, 9):
        keep(pool, text(letter))
    reasons = [why(pool, text(letter)) for letter in range(1, 8)]
    assert reasons == ["never seen"] * 2 + ["evicted from token 0 on"] * 5
    assert len(pool._gone) == 5
    assert sum(len(runs) for runs in pool._gone_runs._runs.values()) == 5


def test_no_reason_tells_of_another_tenant():
    pool, _ = pool_of(2)
    keep(pool, text(1, 2), "other")
    assert why(pool, text(1, 3)) == "never seen"
    keep(pool, text(4), "other")
    assert why(pool, text(1, 2)) == "never seen"
    assert why(pool, text(1, 2), "other") == "evicted from token 64 on"


# ---- eviction and growth -----------------------------------------------------------------------


def test_leaves_go_first_and_the_oldest_chain_before_the_newer():
    pool, holder = pool_of(5)
    old, new = compute(pool, holder, text(1, 2)), compute(pool, holder, text(3, 4, 5))
    end(pool, holder, old)
    end(pool, holder, new)
    order = [pool.take().index for _ in range(5)]
    assert order == [b.index for b in (old[1], old[0], new[2], new[1], new[0])]
    assert pool.take() is None


def test_a_chain_that_is_used_again_is_the_newest():
    pool, holder = pool_of(2)
    a, b = compute(pool, holder, text(1)), compute(pool, holder, text(2))
    end(pool, holder, a)
    end(pool, holder, b)
    pool.release(pool.match(text(1), "", 1))
    assert pool.take().index == b[0].index


def test_a_shared_beginning_outlives_its_continuations():
    pool, holder = pool_of(3)
    a, b = compute(pool, holder, text(1, 2)), compute(pool, holder, text(1, 3))
    end(pool, holder, b)
    end(pool, holder, a)
    assert [pool.take().index for _ in range(3)] == [b[1].index, a[1].index, a[0].index]


def test_blocks_in_use_are_never_evicted():
    pool, holder = pool_of(2)
    compute(pool, holder, text(1, 2))
    assert pool.take() is None
    assert pool.available == 0


def test_the_pool_grows_by_half_and_never_beyond_its_limit():
    sizes: list[int] = []
    pool = BlockPool(20, sizes.append)
    while pool.take() is not None:
        pass
    assert sizes == [4, 6, 9, 14, 20]


def test_a_pool_that_cannot_grow_goes_on_with_what_it_has():
    def grow(blocks: int) -> None:
        if blocks > 6:
            raise ResourceError("no memory")

    pool = BlockPool(100, grow)
    taken = [pool.take() for _ in range(7)]
    assert [b is None for b in taken] == [False] * 6 + [True]
    assert pool.available == 0


def test_a_pool_without_memory_for_its_first_block_says_so():
    def grow(blocks: int) -> None:
        raise ResourceError("no memory")

    pool = BlockPool(100, grow)
    with pytest.raises(ResourceError):
        pool.take()


# ---- check -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["lost", "doubled", "unheld", "orphan", "parentless"])
def test_check_finds_a_fault(fault):
    pool, holder = pool_of(6)
    chain = compute(pool, holder, text(1, 2))
    compute(pool, holder, text(3))
    pool.check()
    if fault == "lost":
        pool._free.pop()
    elif fault == "doubled":
        pool._free.append(chain[0].index)
    elif fault == "unheld":
        holder.chains.pop()
    elif fault == "parentless":
        pool._unname(chain[0])
    else:
        pool._known.clear()
    with pytest.raises(AssertionError):
        pool.check()


def test_a_holder_that_is_gone_is_not_asked():
    pool, holder = pool_of(6)
    chain = compute(pool, holder, text(1))
    pool.release(chain)
    del holder, chain
    gc.collect()
    pool.check()


@pytest.mark.parametrize("same", [0, 1, 2, 63, 64, 150, 200])
def test_common_is_how_many_agree(same):
    ids = list(range(200))
    other = [*ids[:same], *[-1] * (200 - same)]
    assert common(ids, other) == agree(ids, other) == same
    assert common(ids, other[:100], min(same, 3)) == min(same, 100)
