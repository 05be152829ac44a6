"""llama.cpp through its C interface: ids in, its own timings out. A job is described in lines.py.

Everything not named by the job is llama.cpp's default: flash attention too.
"""

import random
from typing import Any

import llama_cpp as ll
from lines import STEPS, serve, starts, until

KV = {None: ll.GGML_TYPE_F16, "bf16": ll.GGML_TYPE_F16, "int8": ll.GGML_TYPE_Q8_0}


class Context:
    """A model and its cache; `decode` computes ids at positions, logits for each span's last.

    Like ours, f16 is its 16 bit type of keys and values and q8_0 its 8 bit type.
    """

    def __init__(self, job: dict[str, Any], positions: int) -> None:
        self.model = ll.llama_model_load_from_file(
            job["path"].encode(), ll.llama_model_default_params()
        )
        how = ll.llama_context_default_params()
        how.n_seq_max = job["batch"]
        how.n_ctx = job["batch"] * positions
        how.n_threads = how.n_threads_batch = job["threads"]
        how.type_k = how.type_v = KV[job["kv"]]
        how.no_perf = False
        self.context = self.model and ll.llama_init_from_model(self.model, how)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot load {job['path']}")
        self.memory = ll.llama_get_memory(self.context)
        self.size = ll.llama_n_vocab(ll.llama_model_get_vocab(self.model))
        self.batch = ll.llama_batch_init(ll.llama_n_batch(self.context), 0, 1)
        self.draw = random.Random(0)

    def decode(self, *spans: tuple[int, int, int]) -> None:
        """Random ids: of each (sequence, first position, count)."""
        batch = self.batch
        batch.n_tokens = 0
        for sequence, first, count in spans:
            for position in range(first, first + count):
                i = batch.n_tokens
                batch.token[i] = self.draw.randrange(self.size)
                batch.pos[i] = position
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = sequence
                batch.logits[i] = position == first + count - 1
                batch.n_tokens += 1
        if code := ll.llama_decode(self.context, batch):
            raise SystemExit(f"llama_decode: code {code}")
        ll.llama_synchronize(self.context)

    def ms(self) -> float:
        """Milliseconds of the latest `decode`, by llama.cpp's own clocks, which this resets."""
        seen = ll.llama_perf_context(self.context)
        ll.llama_perf_context_reset(self.context)
        return seen.t_p_eval_ms + seen.t_eval_ms  # several ids at once, or one


def prepare(job: dict[str, Any]):
    ll.llama_backend_init()
    measure = prefill if job["kind"] == "prefill" else generate
    return measure(job)


def prefill(job: dict[str, Any]):
    run = Context(job, job["tokens"] + 64)

    def measure() -> dict[str, float]:
        run.ms()
        times = []
        for _ in until(job["seconds"]):
            ll.llama_memory_clear(run.memory, True)
            run.decode((0, 0, job["tokens"]))
            times.append(run.ms())
        return {"value": 1000 * job["tokens"] * len(times) / sum(times)}

    return ll.llama_model_size(run.model), measure


def generate(job: dict[str, Any]):
    lengths = starts(job)
    run = Context(job, max(lengths) + STEPS + 64)
    for sequence, length in enumerate(lengths):
        for first in range(0, length, 256):
            run.decode((sequence, first, min(256, length - first)))

    def once(step: int) -> None:
        run.decode(*((sequence, length + step, 1) for sequence, length in enumerate(lengths)))

    def again() -> None:
        for sequence, length in enumerate(lengths):
            ll.llama_memory_seq_rm(run.memory, sequence, length, -1)
        once(0)
        run.ms()

    def measure() -> dict[str, float]:
        times = []
        for step in until(job["seconds"], least=3):
            if step % STEPS == 0:
                again()
            once(1 + step % STEPS)
            times.append(run.ms())
        return {"value": 1000 * len(lengths) * len(times) / sum(times)}

    return ll.llama_model_size(run.model), measure


if __name__ == "__main__":
    serve(prepare)
