"""What is measured: the CPU rows of the published table, one frozen record each."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Task:
    """What a worker does: "decode", "prefill", or one of the kinds that only ours has.

    `tokens` are computed at once ("prefill", "draft") or the vocabulary ("sampling"); `context` is
    how many ids precede the first generated one (0: a short prompt); `kv` the type of keys and
    values (None: each side's default of 16 bits).
    """

    kind: str
    tokens: int = 0
    batch: int = 1
    context: int = 0
    kv: str | None = None

    def job(self, **more: Any) -> dict[str, Any]:
        return asdict(self) | more


@dataclass(frozen=True)
class Peer:
    """Who runs the same task, on which form of the weights (`shapes.Files`), and our goal: at least
    so many times its speed."""

    name: str
    weights: str
    goal: float | None = None


@dataclass(frozen=True)
class Row:
    """One line. Without peers, `most` bounds the ratio to "base", or the value in `unit`s."""

    name: str
    shape: str
    ours: str  # form of our weights
    task: Task
    peers: tuple[Peer, ...] = ()
    unit: str = "tokens/s"
    base: str = ""  # what an own row is a ratio to
    most: float | None = None


LLAMA, OPENVINO, TRANSFORMERS = "llama.cpp", "OpenVINO", "transformers"
Q4, Q8, BF16 = "q4_0.gguf", "q8_0.gguf", "bf16"


def _decode() -> Iterator[Row]:
    decode, others = Task("decode"), (Peer(OPENVINO, "openvino-int4"), Peer(TRANSFORMERS, BF16))
    yield Row("1B decode int4", "1B", "int4", decode, (Peer(LLAMA, Q4, 1.08), *others))
    yield Row("1B decode, the same Q4_0 file", "1B", Q4, decode, (Peer(LLAMA, Q4, 0.98),))
    int8 = (Peer(LLAMA, Q8, 0.97), Peer(OPENVINO, "openvino-int8"))
    yield Row("1B decode int8", "1B", "int8", decode, int8)
    yield Row("135M decode int4", "135M", "int4", decode, (Peer(LLAMA, Q4, 2.2), *others))
    yield Row("15M decode int4", "15M", "int4", decode, (Peer(LLAMA, Q4, 6.0),))
    bf16 = (Peer(LLAMA, "bf16.gguf", 1.8), Peer(TRANSFORMERS, BF16))
    yield Row("15M decode bf16", "15M", BF16, decode, bf16)


def _prefill() -> Iterator[Row]:
    task, slow = Task("prefill", tokens=256), Peer(TRANSFORMERS, BF16)
    peers = (Peer(LLAMA, Q4, 2.2), Peer(OPENVINO, "openvino-int4"), slow)
    yield Row("1B prefill 256 int4", "1B", "int4", task, peers)
    peers = (Peer(LLAMA, Q8, 3.5), Peer(OPENVINO, "openvino-int8", 1.2))
    yield Row("1B prefill 256 int8", "1B", "int8", task, peers)
    peers = (Peer(LLAMA, Q4, 2.3), Peer(OPENVINO, "openvino-int4", 1.0), slow)
    yield Row("135M prefill 256 int4", "135M", "int4", task, peers)


def _batches() -> Iterator[Row]:
    for shape, goal in (("1B", 2.3), ("135M", 2.5)):
        for batch in (16, 32):
            task, name = Task("decode", batch=batch), f"{shape} decode int4, batch {batch}"
            yield Row(name, shape, "int4", task, (Peer(LLAMA, Q4, goal),))


def _own() -> Iterator[Row]:
    draft, base = Task("draft", tokens=5), "a step of one"
    for shape, most in (("1B", 1.2), ("135M", 1.5)):
        name = f"{shape} int4, a step of 4 drafted rows and 1"
        yield Row(name, shape, "int4", draft, unit="ms", base=base, most=most)
    sampling = Task("sampling", tokens=128256)
    yield Row("sampling, vocabulary 128256", "1B", "", sampling, unit="us", most=100)
    for shape in ("1B", "135M"):
        name, prompt = f"{shape} int4, first id of a known prompt of 1,000", Task("prefix", 1000)
        yield Row(name, shape, "int4", prompt, unit="ms", base="a new prompt", most=1 / 20)
    name, base = "15M int4, Engine.step() around the runtime", "the runtime's step"
    yield Row(name, "15M", "int4", Task("overhead"), unit="us", base=base, most=40)


def _contexts() -> Iterator[Row]:
    for shape in ("1B", "135M"):
        for context in (2048, 8192):
            for kv in ("bf16", "int8"):
                task = Task("decode", context=context, kv=kv)
                name = f"{shape} decode int4 at {context}, kv {kv}"
                yield Row(name, shape, "int4", task, (Peer(LLAMA, Q4, 1.2),))


ROWS = (*_decode(), *_prefill(), *_batches(), *_own(), *_contexts())


def of_shape(name: str) -> tuple[Row, ...]:
    """The rows of the 1B shape for another one, where their goals are a yardstick, no promise."""
    rows = (row for row in ROWS if row.shape == "1B" and row.task.kind != "sampling")
    return tuple(replace(row, name=row.name.replace("1B", name, 1), shape=name) for row in rows)
