"""Quantisation: the integers chosen, what they cost, and the folders they are kept in."""

import json
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import small
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import seriatim
from seriatim import cli
from seriatim.errors import FileError, ModelError, RequestError
from seriatim.files import safetensors
from seriatim.kernels.formats import Blocks, expand, unpack
from seriatim.kernels.ops import Batch
from seriatim.kernels.reference import ReferenceOps
from seriatim.measure.compare import compare, windows
from seriatim.models import checkpoint
from seriatim.models.forward import forward
from seriatim.models.weights import convert
from seriatim.quant import inputs, report
from seriatim.quant.feedback import Moments, feedback
from seriatim.quant.model import draw, quantise
from seriatim.quant.rounding import quantise as rounded
from seriatim.quant.search import search
from seriatim.quantising import quantize

KINDS = ("int8", "int4")
LEAST = {"int8": -127, "int4": -8}
MOST = {"int8": 127, "int4": 7}
IDS = [1, 200, 3, 44, 5, 6, 7, 100]


def matrix(rows: int = 37, columns: int = 70, seed: int = 0) -> np.ndarray:
    """Odd sizes, with a group of zeros, one of equal values and one far outlier."""
    x = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    x[0, :32], x[1, :32], x[2, 5] = 0, 0.25, 40
    return x


def loss(x: np.ndarray, blocks: Blocks, weight: np.ndarray | float = 1.0) -> np.ndarray:
    return (np.square(x - expand(blocks)) * weight).sum(-1)


def nearest(x: np.ndarray, blocks: Blocks) -> np.ndarray:
    """The nearest value there is to each of x, of all that its group's scale offers."""
    _, scales = unpack(blocks)
    wide = np.repeat(scales.astype(np.float32), 32, axis=1)[:, : x.shape[1]]
    offered = wide[..., None] * np.arange(LEAST[blocks.kind], MOST[blocks.kind] + 1)
    best = np.abs(offered - x[..., None]).argmin(-1)[..., None]
    return np.take_along_axis(offered, best, -1)[..., 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [rounded, search])
def test_every_value_becomes_the_nearest_that_its_scale_offers(kind, how):
    x = matrix()
    blocks = how(x, kind)
    assert blocks.shape == x.shape
    np.testing.assert_allclose(
        np.abs(x - expand(blocks)), np.abs(x - nearest(x, blocks)), atol=1e-6
    )
    assert not expand(blocks)[0, :32].any()


@given(seed=st.integers(0, 1000), kind=st.sampled_from(KINDS), weighed=st.booleans())
def test_search_is_never_worse_than_the_scale_of_the_largest(seed, kind, weighed):
    """In any group, by the error that it was asked to lessen."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((8, 32)) ** rng.choice([1, 3])).astype(np.float32)
    weight = rng.random(32).astype(np.float32) if weighed else np.ones(32, np.float32)
    span = 127 if kind == "int8" else -8
    largest = np.take_along_axis(x, np.abs(x).argmax(-1)[:, None], -1)
    scale = (largest / span).astype(np.float16).astype(np.float32)
    plain = scale * np.clip(np.rint(x / scale), LEAST[kind], MOST[kind])
    plain_loss = (np.square(x - plain) * weight).sum(-1)
    found = loss(x, search(x, kind, importance=weight), weight)
    assert (found <= plain_loss * (1 + 1e-4)).all()


@pytest.mark.parametrize("fine, margin", [(False, 1.06), (True, 1.02)])
def test_search_comes_near_the_best_of_all_scales(fine, margin):
    x = np.random.default_rng(3).standard_normal((64, 32)).astype(np.float32)
    best = np.full(len(x), np.inf)
    for scale in np.linspace(-0.6, 0.6, 2401):
        if scale:
            q = np.clip(np.rint(x / scale), -8, 7)
            best = np.minimum(best, np.square(x - q * scale).sum(-1))
    assert loss(x, search(x, "int4", fine=fine)).sum() < margin * best.sum()


def test_rounding_int4_is_no_worse_than_the_scale_of_the_largest_alone():
    x = np.random.default_rng(4).standard_normal((256, 32)).astype(np.float32)
    largest = np.take_along_axis(x, np.abs(x).argmax(-1)[:, None], -1)
    scale = (largest / -8).astype(np.float16).astype(np.float32)
    plain = np.square(x - scale * np.clip(np.rint(x / scale), -8, 7)).sum()
    assert loss(x, rounded(x, "int4")).sum() < plain


@pytest.mark.parametrize("kind", KINDS)
def test_feedback_keeps_outputs_better_than_search(kind):
    """On inputs that resemble each other, as a model's do."""
    rng = np.random.default_rng(5)
    mix = rng.standard_normal((70, 70)) * np.geomspace(1, 0.05, 70)
    seen, unseen = (rng.standard_normal((2000, 70)) @ mix.T for _ in range(2))
    x = matrix()
    moments = Moments(seen.T @ seen / len(seen))
    lost = [
        np.square(unseen @ (x - expand(blocks)).T).sum()
        for blocks in (search(x, kind), feedback(x, kind, moments))
    ]
    assert lost[1] < 0.7 * lost[0]


def test_feedback_makes_up_for_inputs_that_are_off():
    """With inputs that came out half as large, the weight grows towards twice itself."""
    x = matrix()
    whole = np.eye(70)
    grown = expand(feedback(x, "int8", Moments(whole / 4, shift=whole / 4)))
    assert 1.3 < np.linalg.norm(grown) / np.linalg.norm(x) < 1.7


def test_columns_that_no_input_reaches_stay_put():
    x, h = matrix(), np.zeros((70, 70))
    assert loss(x, feedback(x, "int4", Moments(h))).sum() < loss(x, rounded(x, "int4")).sum()


@pytest.mark.parametrize("method", ["round", "search", "feedback"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e7])
def test_what_f16_scales_cannot_hold_is_refused_by_name(tmp_path, method, bad):
    source = checkpoint.read(tiny.write(tmp_path / "m"))
    weights = dict(source.weights) | {"layers.0.up.weight": np.full((64, 32), bad, np.float32)}
    with pytest.raises(ModelError, match=r"layers\.0\.up\.weight: .*finite"):
        quantise(
            weights,
            source.spec,
            "int4",
            method=method,
            importance=None if method != "feedback" else [IDS],
        )


def test_matrices_go_into_blocks_and_nothing_else_does():
    source = checkpoint.read(small.folder("gpt2"))
    for name, weight in quantise(source.weights, source.spec, "int4").items():
        is_product = weight.shape != (weight.shape[0],) and name != "position.weight"
        assert isinstance(weight, Blocks) == is_product, name


@pytest.mark.parametrize("variant", ["llama3", "llama-biases", "mistral", "qwen3", "gpt2"])
def test_the_numpy_forward_pass_gives_products_what_the_reference_gives_them(variant, tmp_path):
    source = checkpoint.read(checkpoints.make(variant, tmp_path))
    weights = convert(source.weights, "f32")
    given = [checkpoints.prompt(40), checkpoints.prompt(23, seed=1)]
    found, wanted = {}, {}

    def note(name, moments):
        found[name] = moments
        return weights[name]

    class Noting(ReferenceOps):
        def linear(self, x, weight, bias=None):
            y = inputs.round_groups(x.numpy())
            wanted[weight.seriatim_name] = y.T @ y / len(y)
            return super().linear(x, weight, bias)

    inputs.run(source.spec, weights, given, note, embed=weights["embed.weight"])
    tensors = {name: torch.tensor(array) for name, array in weights.items()}
    for name, tensor in tensors.items():
        tensor.seriatim_name = name
    count = sum(map(len, given))
    position = np.concatenate([np.arange(len(ids)) for ids in given])
    sequence = np.repeat(np.arange(2), [len(ids) for ids in given])
    empty, every = np.full((2, 1), -1), np.arange(count)
    with torch.no_grad():
        batch = Batch(np.concatenate(given), position, sequence, empty, every)
        forward(Noting(batch), source.spec, tensors)
    assert found.keys() == wanted.keys()
    for name, moments in found.items():
        scale = np.abs(wanted[name]).max()
        # a value between two steps may be rounded either way
        np.testing.assert_allclose(moments.own, wanted[name], atol=2e-3 * scale, err_msg=name)
        assert np.abs(moments.shift).max() < 0.02 * scale


def test_a_model_draws_ids_from_its_own_distribution(tmp_path):
    source = checkpoint.read(tiny.write(tmp_path / "m"))
    drawn = draw(source.spec, source.weights, 7)
    assert (drawn == draw(source.spec, source.weights, 7)).all()
    assert drawn.shape == (32, 256) and (drawn[:, 0] == 7).all()
    assert len({tuple(row) for row in drawn}) == 32
    assert drawn.min() >= 0 and drawn.max() < source.spec.vocab_size


def reference(spec, weights, ids) -> np.ndarray:
    """Logits by the reference ops: blocks as the values they stand for, inputs as they are."""
    index = np.arange(len(ids))
    batch = Batch(np.array(ids), index, 0 * index, np.full((1, 1), -1), index)
    tensors = {name: torch.tensor(inputs.values(weight)) for name, weight in weights.items()}
    with torch.no_grad():
        return forward(ReferenceOps(batch), spec, tensors).numpy()


# -------------------------------------------------------------------------------- folders


def make(kind: str, folder: Path) -> Path:
    """A model whose fused parts are whole panels; rows of 88 and 48 are not whole groups."""
    if kind == "gpt2":
        values = dict(n_embd=64, n_layer=1, n_inner=72)
        checkpoints._gpt2(**values)(folder)
        return folder
    return tiny.write(folder, dtype="bf16") if kind == "tiny" else checkpoints.make(kind, folder)


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("kind", ["tiny", "qwen3", "smollm", "gpt2"])
def test_a_folder_gives_back_every_bit(kind, to, tmp_path):
    source = make(kind, tmp_path / "source")
    done = quantize(source, to=to, out=tmp_path / "out", method="round")
    before, after = checkpoint.read(source), checkpoint.read(tmp_path / "out")
    wanted = quantise(before.weights, before.spec, to)
    assert after.spec == before.spec and after.names == before.names
    for name, weight in wanted.items():
        found = after.weights[name]
        if isinstance(weight, Blocks):
            assert isinstance(found, Blocks) and found.shape == weight.shape
            assert (found.data == weight.data).all()
            assert not found.data.flags.owndata and not found.data.flags.writeable, "not mapped"
        else:
            assert np.array_equal(found, weight)
    assert done.bytes_after == sum(w.nbytes for w in wanted.values())
    ids = [i % before.spec.vocab_size for i in IDS]
    here = seriatim.load(source, precision=to, threads=1).logits(ids)
    assert np.array_equal(here, seriatim.load(tmp_path / "out", threads=1).logits(ids))


def test_what_lies_beside_the_weights_comes_along(tmp_path):
    source = tiny.write(tmp_path / "source")
    (source / "README.md").write_text("# a card\n")
    (source / "notes.bin").write_bytes(b"not this")
    quantize(source, to="int8", out=tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "README.md", "codec.json", "config.json", "generation_config.json", "model.safetensors",
    } | {p.name for p in source.glob("tokenizer*")}  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "seriatim", "version": 1}
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_of_llama2c_becomes_a_folder(tmp_path):
    source = small.folder("stories260K")
    quantize(source, to="int4", out=tmp_path / "out", method="round")
    here = seriatim.load(source, precision="int4", threads=1)
    there = seriatim.load(tmp_path / "out", threads=1)
    before, after = here.checkpoint, there.checkpoint
    rounded_here = quantise(before.weights, before.spec, "int4")
    a = reference(before.spec, rounded_here, list(range(3, 60)))
    b = reference(after.spec, after.weights, list(range(3, 60)))
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert there.encode("Once upon a time") == here.encode("Once upon a time")
    assert there.ends == here.ends and there.start == here.start


def test_parts_that_are_not_whole_panels_are_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match=r"c_attn.*48 rows.*multiples of 32"):
        quantize(small.folder("gpt2"), to="int4", out=tmp_path / "out", method="round")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path) -> Path:
    quantize(tiny.write(tmp_path / "source"), to="int4", out=tmp_path / "q", method="round")
    return tmp_path / "q"


def retable(folder: Path, change) -> None:
    """Rewrite the file with another table: `change` gets it as a dict and returns it or text."""
    path = folder / safetensors.SINGLE
    file = safetensors.read(path)
    table = change(json.loads(file.metadata["seriatim_blocks"]))
    text = (
        {}
        if table is None
        else {"seriatim_blocks": table if isinstance(table, str) else json.dumps(table)}
    )
    tensors = {name: array.copy() for name, array in file.tensors.items()}
    safetensors.write(path, tensors, {"format": "pt"} | text)


NAME = "model.layers.0.mlp.up_proj.weight"
DAMAGES = {
    "no table": (lambda t: None, "no seriatim_blocks"),
    "not JSON": (lambda t: "{", "seriatim_blocks|JSON|safetensors"),
    "a list": (lambda t: [1], "not an object"),
    "unknown type": (lambda t: t | {NAME: {"type": "int5", "shape": [64, 32]}}, "int5"),
    "type a list": (lambda t: t | {NAME: {"type": ["int4"], "shape": [64, 32]}}, "int4"),
    "wrong shape": (lambda t: t | {NAME: {"type": "int4", "shape": [64, 64]}}, NAME),
    "other kind": (lambda t: t | {NAME: {"type": "int8", "shape": [64, 32]}}, NAME),
    "shape of 3": (lambda t: t | {NAME: {"type": "int4", "shape": [64, 32, 1]}}, "shape"),
    "negative": (lambda t: t | {NAME: {"type": "int4", "shape": [-64, -32]}}, "shape"),
    "huge": (lambda t: t | {NAME: {"type": "int4", "shape": [1 << 62, 1 << 62]}}, "shape"),
    "true": (lambda t: t | {NAME: {"type": "int4", "shape": [True, 32]}}, "shape|uint8"),
    "more keys": (lambda t: t | {NAME: t[NAME] | {"x": 1}}, "x"),
    "a number": (lambda t: t | {NAME: 3}, "3"),
    "absent tensor": (lambda t: t | {"ghost": t[NAME]}, "ghost"),
    "of floats": (lambda t: t | {"model.norm.weight": {"type": "int4", "shape": [1, 32]}}, "norm"),
    "left out": (lambda t: {n: e for n, e in t.items() if n != NAME}, NAME),
    "fewer rows": (lambda t: t | {NAME: {"type": "int4", "shape": [63, 32]}}, r"\(63, 32\)"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_table_that_does_not_fit_is_refused_by_name(folder, damage):
    change, message = DAMAGES[damage]
    retable(folder, change)
    with pytest.raises((FileError, ModelError), match=message):
        seriatim.load(folder)


@pytest.mark.parametrize(
    "mark, message",
    [
        ({"quant_method": "seriatim", "version": 2}, "version 2.*update"),
        ({"quant_method": "seriatim", "version": "1"}, "version '1'"),
        ({"quant_method": "seriatim"}, "version None"),
        ({"quant_method": "seriatim", "version": 1, "bits": 3}, "bits"),
        ({"quant_method": "gptq", "version": 1}, "quantization_config"),
        (None, "shape .*expected"),
    ],
)
def test_a_mark_that_is_not_known_is_refused(folder, mark, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": mark}))
    with pytest.raises((FileError, ModelError), match=message):
        seriatim.load(folder)


def test_infinite_scales_are_found(folder):
    def poison(tensors):
        tensors[NAME].reshape(-1)[-64:] = np.frombuffer(np.float16(np.inf).tobytes() * 32, np.uint8)

    path = folder / safetensors.SINGLE
    file = safetensors.read(path)
    tensors = {name: array.copy() for name, array in file.tensors.items()}
    poison(tensors)
    safetensors.write(path, tensors, file.metadata)
    with pytest.raises(seriatim.NumericError):
        seriatim.load(folder, threads=1).logits(IDS)


def test_quantising_twice_is_refused(folder, tmp_path):
    with pytest.raises(RequestError, match="int4 already"):
        seriatim.load(folder, precision="int8")
    with pytest.raises(RequestError, match="int4 already"):
        quantize(folder, to="int8", out=tmp_path / "again")
    same = seriatim.load(folder, precision="int4", threads=1).logits(IDS)
    assert np.array_equal(same, seriatim.load(folder, threads=1).logits(IDS))
    exact = seriatim.load(folder, precision="f32", threads=1)
    assert exact.checkpoint.dtypes.keys() == {"int4", "f32"}


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"to": "int5"}, RequestError, "int5"),
        ({"method": "sorch"}, RequestError, "did you mean search"),
        ({"method": "round", "importance": "card.txt"}, RequestError, "importance"),
        ({"out": "source"}, FileError, "is there already"),
        ({"out": "nowhere/out"}, FileError, "no folder"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, options, error, message
):
    monkeypatch.chdir(tmp_path)
    tiny.write(tmp_path / "source")
    (tmp_path / "card.txt").write_text("some words")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(error, match=message):
        quantize("source", **{"to": "int4", "out": "out"} | options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_facts_say_what_was_done_to_the_weights(folder, tmp_path):
    assert "rounded" not in seriatim.load(folder, threads=1).facts
    assert "rounded to nearest" in seriatim.load(tmp_path / "source", precision="int4").facts


# -------------------------------------------------------------------------------- reports


def test_tensor_errors_are_relative_to_the_tensor():
    x = {"a.weight": matrix(70, 40), "b": np.zeros(3, np.float32)}
    blocks = {"a.weight": search(x["a.weight"], "int4"), "b": x["b"]}
    (found,) = report.errors(x, blocks)
    off = np.linalg.norm(x["a.weight"] - expand(blocks["a.weight"]))
    assert found[:3] == ("a.weight", "int4", (70, 40))
    assert found.error == pytest.approx(off / np.linalg.norm(x["a.weight"]), rel=1e-5)
    assert report.size(blocks) == blocks["a.weight"].nbytes + 12


def test_comparison_equals_an_independent_computation(tmp_path):
    a = seriatim.load(tiny.write(tmp_path / "a"), precision="f32", threads=1)
    b = seriatim.load(tmp_path / "a", precision="int4", threads=1)
    ids = windows(a, "The quick brown fox jumps over the lazy dog. " * 30, length=100)
    found = compare(a, b, ids)
    p, q = (torch.tensor(np.concatenate([m.logits(w) for w in ids])).double() for m in (a, b))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    assert found.positions == sum(map(len, ids)) == len(kl)
    assert found.kl == pytest.approx(kl.mean().item(), rel=1e-9)
    assert found.kl_worst == pytest.approx(kl.max().item(), rel=1e-9)
    assert found.kl_99 == pytest.approx(kl.quantile(0.99).item(), rel=1e-9)
    assert found.same_top == (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    places = np.cumsum([0, *map(len, ids)])
    for logs, perplexity in zip((p, q), found.perplexity, strict=True):
        losses = [
            -logs[start + i, id].item()
            for start, window in zip(places, ids, strict=False)
            for i, id in enumerate(window[1:])
        ]
        assert perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-9)
    assert found.kl_error and found.perplexity_error[0]


def test_a_model_beside_itself_differs_in_nothing(tmp_path):
    model = seriatim.load(tiny.write(tmp_path / "a"), threads=1)
    found = compare(model, model, windows(model, length=20))
    assert (found.kl, found.kl_worst, found.same_top) == (0, 0, 1)


def test_models_of_other_ids_cannot_be_compared(tmp_path):
    a = seriatim.load(tiny.write(tmp_path / "a"), threads=1)
    b = seriatim.load(tiny.write(tmp_path / "b", codec=False, vocab_size=300), threads=1)
    with pytest.raises(RequestError, match="257 and 300"):
        compare(a, b, [IDS])
    with pytest.raises(RequestError, match="no ids"):
        compare(a, a, [])


def test_importance_lowers_kl_below_search_and_search_below_rounding():
    """On the model that ships: what the methods are for."""
    source = checkpoint.read(small.folder("stories260K"))
    exact = seriatim.load(small.folder("stories260K"), precision="f32", kv="f32", threads=1)
    ids, text = windows(exact)[:2], windows(exact)[2:]
    kl = []
    for options in ({"method": "round"}, {"method": "search"}, {"importance": text}):
        weights = quantise(source.weights, source.spec, "int4", **{"method": "search"} | options)
        kl.append(_kl(source.spec, source.weights, weights, ids))
    assert kl[2] < 0.75 * kl[1] and kl[1] < kl[0]


def _kl(spec, a, b, ids) -> float:
    total = []
    for window in ids:
        logs = [torch.tensor(reference(spec, w, window)).double().log_softmax(-1) for w in (a, b)]
        total.append((logs[0].exp() * (logs[0] - logs[1])).sum(-1).numpy())
    return float(np.concatenate(total).mean())


# -------------------------------------------------------------------------------- commands


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words])
    return ended.value.code or 0


def test_the_commands_print_what_the_functions_return(tmp_path, capfdbinary):
    source, out = tiny.write(tmp_path / "source"), str(tmp_path / "out")
    words = ["quantize", str(source), "--to", "int4", "--method", "search"]
    assert command(*words, "--out", out, "--json") == 0
    facts = json.loads(capfdbinary.readouterr().out)
    assert {"folder", "bytes", "model", "kv int8", "tensors"} == facts.keys()
    assert len(facts["tensors"]) == 16 and facts["bytes"][1] < facts["bytes"][0]
    assert command(*words, "--out", out) == 2
    assert b"is there already" in capfdbinary.readouterr().err
    assert command("compare", str(source), out, "--json") == 0
    again = json.loads(capfdbinary.readouterr().out)
    assert again["model"] == facts["model"] and again["bytes"] == facts["bytes"]
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. " * 30)
    assert (
        command("compare", str(source), str(source), "--precision", "int8", "--text", str(text))
        == 0
    )
    assert b"same top id" in capfdbinary.readouterr().out
