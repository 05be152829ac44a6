"""llama.cpp through its C interface: ids in, its own timings out. A job is described in lines.py.

Everything not named by the job is llama.cpp's default: flash attention too.
"""

import random
from typing import Any

import llama_cpp as ll
from lines import PROMPT, STEPS, serve, until

KV = {None: ll.GGML_TYPE_F16, "bf16": ll.GGML_TYPE_F16, "int8": ll.GGML_TYPE_Q8_0}


class Context:
    """A model and its cache; `decode` computes ids at positions, logits for each sequence's last.

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

    def decode(self, first: int, count: int, sequences: int) -> None:
        """`count` random ids for each sequence, from position `first` on."""
        batch = self.batch
        batch.n_tokens = count * sequences
        for i in range(batch.n_tokens):
            sequence, offset = divmod(i, count)
            batch.token[i] = self.draw.randrange(self.size)
            batch.pos[i] = first + offset
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = offset == count - 1
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
            run.decode(0, job["tokens"], 1)
            times.append(run.ms())
        return {"value": 1000 * job["tokens"] * len(times) / sum(times)}

    return ll.llama_model_size(run.model), measure


def generate(job: dict[str, Any]):
    start, batch = job["context"] or PROMPT, job["batch"]
    run = Context(job, start + STEPS + 64)
    for first in range(0, start, 256):
        run.decode(first, min(256, start - first), batch)

    def again() -> None:
        for sequence in range(batch):
            ll.llama_memory_seq_rm(run.memory, sequence, start, -1)
        run.decode(start, 1, batch)
        run.ms()

    def measure() -> dict[str, float]:
        times = []
        for step in until(job["seconds"], least=3):
            if step % STEPS == 0:
                again()
            run.decode(start + 1 + step % STEPS, 1, batch)
            times.append(run.ms())
        return {"value": 1000 * batch * len(times) / sum(times)}

    return ll.llama_model_size(run.model), measure


if __name__ == "__main__":
    serve(prepare)
