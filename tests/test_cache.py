"""The block pool: nothing is lost, nothing is found that is not exactly what was asked for."""

import gc
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from seriatim.engine.cache import Block, BlockPool
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
    full: int = 0  # blocks that were published


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

    def spelt(self, s: Sequence, blocks: int) -> tuple:
        return (s.tenant, *s.ids[: blocks * BLOCK])

    @rule(spelt=letters, tenant=tenants)
    def begin(self, spelt, tenant):
        s = Sequence(tenant, text(*spelt))
        s.chain = self.pool.match(s.ids, tenant, len(spelt))
        s.full = len(s.chain)
        for i, block in enumerate(s.chain):
            assert self.content[block.index] == self.spelt(s, i + 1), "another's block was matched"
        self.sequences.append(s)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def reserve(self, data):
        s = data.draw(st.sampled_from(self.sequences))
        if len(s.chain) * BLOCK == len(s.ids):
            return
        expected = self.pool.available > 0
        block = self.pool.take()
        assert (block is not None) == expected
        if block is not None:
            assert all(block.index != b.index for c in self.held() for b in c)
            self.content[block.index] = ("unwritten",)
            s.chain.append(block)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def compute(self, data):
        s = data.draw(st.sampled_from(self.sequences))
        if s.full == len(s.chain):
            return
        i, s.full = s.full, s.full + 1
        self.content[s.chain[i].index] = self.spelt(s, i + 1)
        ids, parent = s.ids[i * BLOCK : (i + 1) * BLOCK], s.chain[i - 1] if i else None
        s.chain[i] = self.pool.publish(s.chain[i], parent, s.tenant, ids)
        assert self.content[s.chain[i].index] == self.spelt(s, i + 1)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def finish(self, data):
        s = data.draw(st.sampled_from(self.sequences))
        self.sequences = [other for other in self.sequences if other is not s]
        self.pool.release(s.chain)

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


@pytest.mark.parametrize("fault", ["lost", "doubled", "unheld", "orphan"])
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
