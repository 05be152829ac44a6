"""OpenVINO GenAI: ids in, its own metrics out. A job is described in lines.py."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import openvino
import openvino_genai
from lines import PROMPT, STEPS, serve, until


def prepare(job: dict[str, Any]) -> tuple[int, Callable[[], dict[str, float]]]:
    if job["batch"] > 1 or job["context"] or job["kv"]:
        raise SystemExit("this worker measures one sequence after a short prompt")
    pipe = openvino_genai.LLMPipeline(job["path"], "CPU", INFERENCE_NUM_THREADS=job["threads"])
    size = sum(file.stat().st_size for file in Path(job["path"]).glob("*.bin"))
    measure = prefill if job["kind"] == "prefill" else generate
    return size, lambda: {"value": measure(pipe, job)}


def prefill(pipe: Any, job: dict[str, Any]) -> float:
    """Prompt ids over the time to the first token."""
    times = [_metrics(pipe, job["tokens"], 1).get_ttft().mean for _ in until(job["seconds"])]
    return 1000 * job["tokens"] / mean(times)


def generate(pipe: Any, job: dict[str, Any]) -> float:
    """By the time for each output token, of as many as take about the time that is asked for."""
    guess = _metrics(pipe, PROMPT, 4).get_tpot().mean
    count = int(min(STEPS, max(4, 1000 * job["seconds"] / guess)))
    return 1000 / _metrics(pipe, PROMPT, count).get_tpot().mean


def _metrics(pipe: Any, prompt: int, count: int) -> Any:
    how = openvino_genai.GenerationConfig()
    how.max_new_tokens, how.ignore_eos, how.do_sample = count, True, False
    how.eos_token_id, how.stop_token_ids = 2, {2}  # it refuses a config that has none
    ids = openvino.Tensor(np.random.default_rng().integers(3, 1000, (1, prompt), np.int64))
    return pipe.generate(ids, how).perf_metrics


if __name__ == "__main__":
    serve(prepare)
