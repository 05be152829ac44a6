"""Saved prefixes: as good as computed where all that decides their bits agrees, refused else."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small
import tiny

import seriatim
from seriatim import prefixes
from seriatim.errors import FileError, RequestError, ResourceError
from seriatim.files import safetensors
from seriatim.kernels.native import isas
from seriatim.kernels.ops import BLOCK

PROMPT = [3 + i * i % 89 for i in range(150)]  # two blocks and 22 ids
HOW = dict(max_tokens=6, seed=2, logprobs=True, ignore_end=True)


def fresh(kind: str = "llama3", **options) -> seriatim.Model:
    return small.load(kind, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prefixes") / "prompt.safetensors"
    assert fresh().save_prefix(PROMPT, path) == len(PROMPT)
    return path


@pytest.fixture(scope="module")
def model() -> seriatim.Model:
    """What refuses; nothing is ever kept in its cache."""
    return fresh()


def sealed(header: dict[str, str], tensors: dict[str, np.ndarray], path: Path) -> Path:
    """A file as `save` writes it: whole, whatever it says."""
    header["sha256"] = prefixes._digest(header, tensors)
    safetensors.write(path, tensors, {prefixes.FORMAT: json.dumps(header)})
    return path


def parts(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    file = safetensors.read(path)
    return json.loads(file.metadata[prefixes.FORMAT]), dict(file.tensors)


def refused(model: seriatim.Model, path: Path, words: str | None = None) -> None:
    with pytest.raises(FileError, match=words) as raised:
        model.load_prefix(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert model.pool.total == 0, "something of it was used"


# ---- as if it had been computed ----------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 150])
@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
def test_what_follows_a_loaded_prefix_is_what_follows_a_computed_one(tmp_path, kv, length):
    path, prompt = tmp_path / "prefix", [*PROMPT[:length], 9, 8]
    assert fresh(kv=kv).save_prefix(PROMPT[:length], path) == length
    expected = fresh(kv=kv).generate(prompt, **HOW)
    loader = fresh(kv=kv, threads=2)
    assert loader.load_prefix(path) == length
    loader.engine.check()
    seen = loader.generate(prompt, **HOW)
    assert (seen.usage.cached, expected.usage.cached) == (length, 0)
    assert (seen.ids, seen.logprobs) == (expected.ids, expected.logprobs)


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
def test_the_torch_backend_saves_and_loads_as_well(tmp_path, kv):
    path, how = tmp_path / "prefix", dict(backend="torch", threads=None, kv=kv)
    saver, loader = fresh(**how), fresh(**how)
    saver.save_prefix(PROMPT, path)
    loader.load_prefix(path)
    for model in (saver, loader):
        model.engine.check()
    results = [m.generate([*PROMPT, 9], **HOW) for m in (saver, loader)]
    assert [r.usage.cached for r in results] == [150, 150]
    assert results[0].logprobs == results[1].logprobs


def test_equal_prompts_give_equal_bytes_whatever_was_in_the_cache(tmp_path, saved):
    """Positions behind the last are zeros: nobody else's keys go into a file."""
    model = fresh()
    model.generate([[i] * 100 for i in range(3, 9)], max_tokens=2)
    model.generate([*PROMPT, 7, 7, 7, 7], **HOW)
    model.save_prefix(PROMPT, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_a_prefix_in_the_cache_is_not_computed_again(tmp_path):
    model, tokens = fresh(), []
    model.generate(PROMPT, max_tokens=1)
    step = model.runtime.step
    model.runtime.step = lambda batch: tokens.append(len(batch.ids)) or step(batch)
    model.save_prefix(PROMPT, tmp_path / "prefix")
    assert tokens == [1]


def test_text_is_saved_by_its_ids(tmp_path):
    path = tmp_path / "prefix"
    saver, loader = fresh("bytes"), fresh("bytes")
    assert saver.save_prefix("Once upon", str(path)) == len(saver.prompt_ids("Once upon"))
    assert loader.load_prefix(str(path)) == len(saver.prompt_ids("Once upon"))
    seen = loader.generate("Once upon a time", max_tokens=2, seed=1)
    assert seen.usage.cached == len(saver.prompt_ids("Once upon"))


def test_a_loaded_prefix_belongs_to_its_tenant(saved):
    model = fresh()
    model.load_prefix(saved, tenant="mine")
    for tenant, cached, missed in (
        ("", 0, "never seen"),
        ("you", 0, "never seen"),
        ("mine", 149, ""),
    ):
        usage = model.generate(PROMPT, max_tokens=1, tenant=tenant).usage
        assert (usage.cached, usage.missed) == (cached, missed)


def test_loading_twice_keeps_it_once(saved):
    model = fresh()
    for _ in range(2):
        model.load_prefix(saved)
        model.engine.check()
        assert len(model.pool._kept) == 3
    model.generate(PROMPT, max_tokens=1)
    model.load_prefix(saved)
    assert len(model.pool._kept) == 3


def test_what_the_cache_holds_of_it_is_kept(saved):
    model = fresh()
    model.generate(PROMPT[:70], max_tokens=1)
    first = model.pool.match(PROMPT, "", 1)
    model.pool.release(first)
    model.load_prefix(saved)
    model.engine.check()
    chain = model.pool.match(PROMPT, "", 2)
    assert chain[0] is first[0]
    model.pool.release(chain)


def test_a_prefix_makes_room_as_any_block_does_but_never_among_those_in_use(saved):
    model = fresh(cache_bytes=4 * fresh().runtime.block_bytes)
    model.generate([5] * 100, max_tokens=1)
    model.load_prefix(saved)
    assert model.generate(PROMPT, max_tokens=1).usage.cached == 149
    model.pool.forget()
    stream = model.stream([5] * 70, max_tokens=50, ignore_end=True)
    next(stream)
    with pytest.raises(ResourceError, match=r"needs 3 more cache blocks .* 2 can be had"):
        model.load_prefix(saved)
    model.engine.check()
    stream.close()
    assert model.load_prefix(saved) == len(PROMPT)


def test_saving_beside_a_running_engine_disturbs_nobody(tmp_path):
    model = fresh()
    expected = fresh().generate([5] * 9, **HOW).ids
    request = model.engine.add([5] * 9, **HOW)
    model.engine.step()
    model.save_prefix(PROMPT, tmp_path / "prefix")
    assert request.generated == 1
    while not request.done:
        model.engine.step()
    assert request.answer == expected


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0, 7])
def test_a_single_bit_that_changed_is_refused_wherever_it_is(model, saved, tmp_path, bit):
    data = saved.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    places = [*range(0, start, 7), start, start + 599, start + 600, *range(start, len(data), 9973)]
    for place in (*places, len(data) - 1):
        bad = bytearray(data)
        bad[place] ^= 1 << bit
        path = tmp_path / f"bad-{place}"
        path.write_bytes(bad)
        refused(model, path)
        path.unlink()


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_a_file_that_is_cut_short_is_refused(model, saved, tmp_path, size):
    path = tmp_path / "short"
    path.write_bytes(saved.read_bytes()[:size])
    refused(model, path, "bytes|cut short")


def test_a_damaged_block_is_called_damaged(model, saved, tmp_path):
    path, data = tmp_path / "bad", bytearray(saved.read_bytes())
    data[-5000] ^= 16
    path.write_bytes(data)
    refused(model, path, "is damaged: its content has the SHA-256")


def test_a_huge_header_is_refused_unread(model, tmp_path):
    path = tmp_path / "huge"
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}" * 100)
    refused(model, path, "says its header has 1099511627776 bytes")


@pytest.mark.parametrize(
    "words, options",
    [
        ("another type of keys and values: 'f32'; expected 'bf16'", dict(kv="bf16")),
        ("another precision: 'f32'; expected 'bf16'", dict(precision="bf16", kv="f32")),
        ("another backend or instruction set: 'native .*; expected 'torch", dict(backend="torch")),
    ],
)
def test_another_way_of_loading_is_refused(saved, words, options):
    threads = None if "backend" in options else 1
    refused(fresh(**options, threads=threads), saved, f"was made with {words}")


@pytest.mark.skipif(len(isas()) < 2, reason="one instruction set here")
def test_another_instruction_set_is_refused(saved):
    words = f"instruction set: 'native {isas()[0]}'; expected 'native {isas()[-1]}'"
    refused(fresh(isa=isas()[-1]), saved, words)


def test_other_weights_and_another_codec_are_refused(tmp_path):
    path, folder = tmp_path / "prefix", tiny.write(tmp_path / "model")
    seriatim.load(folder, threads=1).save_prefix(PROMPT, path)
    tiny.change(folder, lambda t: {n: a + (n == "model.norm.weight") for n, a in t.items()})
    refused(seriatim.load(folder, threads=1), path, "was made with other weights")
    other = seriatim.load(tiny.write(tmp_path / "other", codec=False), threads=1)
    refused(other, path, "was made with another codec: .* expected 'none'")


def test_another_shape_of_the_same_weights_is_refused(tmp_path):
    path = tmp_path / "prefix"
    seriatim.load(tiny.write(tmp_path / "a"), threads=1).save_prefix(PROMPT, path)
    turned = tiny.write(tmp_path / "b", ids=tiny.IDS | {"rope_theta": 5e5}, rope_theta=5e5)
    refused(seriatim.load(turned, threads=1), path, "was made with another model description")


def test_a_longer_context_changes_nothing_that_was_computed(tmp_path):
    folder, path = tiny.write(tmp_path / "a"), tmp_path / "prefix"
    seriatim.load(folder, threads=1).save_prefix(PROMPT[:100], path)
    assert seriatim.load(folder, threads=1, context=128).load_prefix(path) == 100


def change_header(name: str, value: object) -> Callable:
    return lambda header, tensors: header.update({name: value})


FORGED = {
    "version": (change_header("version", "2"), "version '2'"),
    "seriatim": (change_header("seriatim", "9.9"), "made with another version of seriatim"),
    "block": (change_header("block", "32"), "made with another size of block"),
    "unknown": (change_header("extra", ""), "has a bad header"),
    "number": (change_header("kv", 7), "has a bad header"),
    "negative": (lambda h, t: t.update(ids=-t["ids"]), "ids that the model has not"),
    "vocabulary": (lambda h, t: t.update(ids=t["ids"] + 10**6), "ids that the model has not"),
    "none": (lambda h, t: t.update(ids=t["ids"][:0]), "holds ids of type int32 and shape"),
    "many": (lambda h, t: t.update(ids=np.zeros(10**6, np.int32)), "shape .1000000,."),
    "matrix": (lambda h, t: t.update(ids=t["ids"][None]), "shape .1, 150."),
    "type": (lambda h, t: t.update(ids=t["ids"].astype(np.int64)), "ids of type int64"),
    "fewer": (lambda h, t: t.update(ids=t["ids"][:128]), r"expected uint8 \(2, .* for 128 ids"),
    "blocks": (lambda h, t: t.update(blocks=t["blocks"][:, :-1]), "holds blocks of type uint8"),
    "floats": (
        lambda h, t: t.update(blocks=t["blocks"].view(np.float32)),
        "blocks of type float32",
    ),
    "third": (lambda h, t: t.update(more=t["ids"]), "is not a saved prefix"),
    "lacking": (lambda h, t: t.pop("blocks"), "is not a saved prefix"),
}


@pytest.mark.parametrize("how, words", [pytest.param(*v, id=k) for k, v in FORGED.items()])
def test_a_file_that_says_something_else_is_refused_however_well_sealed(
    model, saved, tmp_path, how, words
):
    header, tensors = parts(saved)
    how(header, tensors)
    if "blocks" in tensors:
        path = sealed(header, tensors, tmp_path / "forged")
    else:
        path = tmp_path / "forged"
        safetensors.write(path, tensors, {prefixes.FORMAT: json.dumps(header)})
    refused(model, path, words)


@pytest.mark.parametrize("metadata", ["", "[]", "{", '{"version": "1", "version": "1"}', "NaN"])
def test_metadata_that_is_no_object_of_strings_is_refused(model, saved, tmp_path, metadata):
    safetensors.write(tmp_path / "bad", parts(saved)[1], {prefixes.FORMAT: metadata})
    refused(model, tmp_path / "bad")


def test_a_model_is_no_prefix_and_what_is_not_there_is_said(model, tmp_path):
    refused(model, small.folder("llama3") / safetensors.SINGLE, "is not a saved prefix")
    refused(model, tmp_path / "nothing", "does not exist")
    refused(model, tmp_path, "is a folder")
    for path in (7, "", "a\0b"):
        with pytest.raises(RequestError, match="the path is"):
            model.load_prefix(path)
    with pytest.raises(RequestError, match="tenant is 5"):
        model.load_prefix(tmp_path, tenant=5)


@pytest.mark.parametrize("make", [lambda place: place.mkdir(), lambda place: os.mkfifo(place)])
def test_what_is_no_file_is_not_replaced(model, tmp_path, make):
    place = tmp_path / "there"
    make(place)
    (tmp_path / "link").symlink_to(place)
    kind = place.lstat().st_mode
    for path in (place, tmp_path / "link", "/", "."):
        with pytest.raises(FileError, match="is there and not a file"):
            model.save_prefix([1, 2, 3], path)
    assert (tmp_path / "link").is_symlink()
    assert place.lstat().st_mode == kind


def test_a_file_appears_whole_or_not_at_all(model, saved, tmp_path, monkeypatch):
    path = tmp_path / "prefix"
    path.write_bytes(b"before")

    def full(partial: Path, *rest: object) -> None:
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors, "write", full)
    with pytest.raises(FileError, match="cannot be written: No space left"):
        fresh().save_prefix(PROMPT, path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    with pytest.raises(FileError, match="cannot be written: No such file"):
        fresh().save_prefix(PROMPT, tmp_path / "nowhere" / "prefix")


def test_a_prompt_that_cannot_be_computed_is_refused_as_ever(model, tmp_path):
    for prompt in ([10**6], [5] * (model.context + 1)):
        with pytest.raises(RequestError):
            model.save_prefix(prompt, tmp_path / "prefix")
    assert not list(tmp_path.iterdir())


def test_whole_blocks_have_no_part(tmp_path):
    assert fresh().save_prefix(PROMPT[: 2 * BLOCK], tmp_path / "prefix") == 128
    assert parts(tmp_path / "prefix")[1]["blocks"].shape[0] == 2


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
def test_a_block_is_read_as_far_as_is_asked_and_written_whole(kv):
    """What was kept of every position, and zeros behind; another block gets the same contents."""
    runtime = fresh(kv=kv).runtime
    runtime.resize(3)
    kept = np.random.default_rng(0).integers(1, 255, runtime.block_bytes).astype(np.uint8)
    runtime.write(1, kept)
    assert np.array_equal(runtime.read(1, BLOCK), kept)
    assert not runtime.read(0, BLOCK).any()
    assert not runtime.read(2, BLOCK).any()
    for positions in range(BLOCK + 1):
        part = runtime.read(1, positions)
        assert np.count_nonzero(part) * BLOCK == positions * runtime.block_bytes
        assert np.array_equal(part[part > 0], kept[part > 0])


def test_only_whole_blocks_that_exist_are_read_and_written():
    runtime = fresh().runtime
    runtime.resize(2)
    data = np.zeros(runtime.block_bytes, np.uint8)
    for block, positions in ((2, 1), (-1, 1), (0, -1), (0, 65)):
        with pytest.raises(ValueError, match="block"):
            runtime.read(block, positions)
    for block, wrong in ((2, data), (0, data[1:]), (0, data.astype(np.int32)), (0, data[:, None])):
        with pytest.raises(ValueError, match=r"block|bytes"):
            runtime.write(block, wrong)
