"""transformers' Trainer on the same ids and shape, with torch's fused AdamW. A job and its answers
are described in train_seriatim.py.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from lines import serve
from train_seriatim import rates
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from seriatim import codecs


class Stamps(TrainerCallback):
    def __init__(self) -> None:
        self.taken: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.taken.append((perf_counter(), process_time()))


def prepare(job: dict[str, Any]) -> tuple[int, Callable[[], dict[str, float]]]:
    torch.set_num_threads(job["threads"])
    codec = codecs.load(Path(job["codec"]))
    assert codec is not None
    ids = torch.tensor(codec.encode(Path(job["data"]).read_text()))
    rows = ids[: len(ids) // job["shape"]["context"] * job["shape"]["context"]]
    rows = rows.view(-1, job["shape"]["context"])
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(job["shape"], codec.size))
    return model.num_parameters(), lambda: measure(job, model, rows)


def config(shape: dict[str, Any], size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=size,
        hidden_size=shape["width"],
        intermediate_size=shape["ffn"],
        num_hidden_layers=shape["depth"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        max_position_embeddings=shape["context"],
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )


def measure(job: dict[str, Any], model: LlamaForCausalLM, rows: torch.Tensor) -> dict[str, float]:
    stamps = Stamps()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=job["steps"] + 1,
            per_device_train_batch_size=job["shape"]["batch"],
            learning_rate=job["shape"]["learning_rate"],
            optim="adamw_torch_fused",
            adam_beta2=0.95,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            bf16=job["precision"] == "bf16",
            use_cpu=True,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        data = [{"input_ids": row, "labels": row} for row in rows]
        Trainer(model, arguments, train_dataset=data, callbacks=[stamps]).train()
    return rates(stamps.taken, rows.shape[1] * job["shape"]["batch"])


if __name__ == "__main__":
    serve(prepare)
