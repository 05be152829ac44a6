"""`train`: data -> model -> batch, forward, loss, backward, clip, step -> a model folder.

One loop in one function; what it needs is in the files beside it. It runs the forward pass
of `models/` in torch, so what is trained is what is served.
"""

import math
import time
from pathlib import Path

import torch

from seriatim.errors import NumericError
from seriatim.train import card, run
from seriatim.train import data as sources
from seriatim.train.dial import dial, parse, vocabulary
from seriatim.train.memory import keep_freed_memory
from seriatim.train.model import Model
from seriatim.train.optim import Optimizer, rate_share
from seriatim.train.report import Note, Progress, Report, Sample, Started, to_stderr

GLIMPSE = 64  # windows of a validation on the way; the last one takes all
CLIP = 1.0  # largest norm of the whole gradient
SAMPLES = 3  # on the card


def train(
    data: sources.Data,
    *,
    codec: str = "text",
    size: str,
    steps: int,
    out: str | Path,
    objective: str = "next",
    init: str | Path | None = None,
    adapter: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    validation: sources.Paths | float | None = None,
    field: str = "text",
    separator: str | None = None,
    cache: str | Path | None = None,
    isolate: bool = False,
    vocab_size: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    ffn: int | None = None,
    context: int | None = None,
    batch: int | None = None,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    embedding_rate: float = 0.004,
    weight_decay: float = 0.0,
    schedule: str = "wsd",
    warmup: int | None = None,
    decay: float = 0.5,
    save_every: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "f32",
    store: str = "f32",
    prompt: str = "Once upon a time",
    report: Report | None = None,
) -> Path:
    """Train a model on files and write it as a Hugging Face folder that `seriatim.load` takes.

    Args:
        data: files, folders or glob patterns, plain or .jsonl, gzipped or not; "PATH=WEIGHT" or a
            mapping to weights mixes them. What is larger than memory stays on disk.
        codec: "text" (a byte-level BPE learned from `data`), "byte", or a folder that holds one.
        size: "0.01M" to "1B" parameters; every number not given follows from it (`dial.py`).
        steps: optimizer steps.
        out: the run folder: the model, and `checkpoints/` while it trains.
        objective: "next", the next id.
        init, adapter: room for fine-tuning; nothing but None for now.
        seed: fixes weights, batches and split: equal runs on one machine give equal bits.
        resume: go on from the newest whole checkpoint in `out`, or start if there is none. `steps`
            may differ from before as long as neither schedule has begun to fall.
        validation: held-out files, names of files of `data`, or a share of the documents, chosen
            by a hash of their content; default: a tenth (of more than 40 MB, about 4 MB), or the
            last tenth of a lone plain file.
        field: the text of a .jsonl line.
        separator: between documents of a plain file; default: a file is one document.
        cache: folder of the encoded data; default: ~/.cache/seriatim/shards.
        isolate: keep attention within each document of a row; default: only the start id tells a
            document from the one before it, and training is faster.
        vocab_size, width, depth, heads, kv_heads, ffn, context: instead of the size's own.
        batch: windows of `context` ids in a step.
        optimizer: "muon" (hidden matrices; AdamW for the rest) or "adamw".
        learning_rate: of hidden matrices; of everything under "adamw".
        embedding_rate: of embedding, norms and biases under "muon".
        weight_decay: of hidden matrices, times the learning rate.
        schedule: "wsd" (level, then a line down to 0) or "cosine".
        warmup: steps until the full rate; default: 50, or a tenth of a shorter run.
        decay: share of the steps over which "wsd" falls.
        save_every: steps between checkpoints; default: a twentieth of the run.
        threads: of torch, from here on in this process; default: its own. A resumed run ends with
            the same bits only if they are as many as before.
        device: where to compute, as torch names it.
        precision: of the products: "f32", or "bf16" by autocast over f32 weights.
        store: type of the weights in the model folder, "f32" or "bf16".
        prompt: what samples begin with.
        report: called with each record of `report.py`; default: lines on stderr.

    Returns:
        `out`, a folder for `seriatim.load` and `transformers`.

    Raises:
        RequestError: an option that cannot be honoured, or data shorter than one batch.
        FileError: a file that is not text, or a run folder that another run owns.
        NumericError: a loss or gradient that is not finite; the checkpoint before is kept.
        ResourceError: the disk refused a checkpoint; earlier ones are whole.
        KeyboardInterrupt: on Ctrl-C, after finishing the step and saving it.

    Example:
        >>> train("book.txt", size="1M", steps=500, out="runs/book")  # doctest: +SKIP
        PosixPath('runs/book')
    """
    asked = dict(locals())
    run.check(asked)
    say, folder = report or to_stderr, run.claim(Path(out), resume=resume)
    torch.set_num_threads(threads or torch.get_num_threads())
    keep_freed_memory()

    # Data, codec, model.
    parts = sources.prepare(
        data,
        codec=codec,
        vocab_size=vocab_size or vocabulary(parse(size)),
        validation=validation,
        seed=seed,
        field=field,
        separator=separator,
        cache=cache,
        processes=threads or torch.get_num_threads(),
        say=say,
    )
    tokens, held = parts.codec, parts.held
    numbers = dial(
        size,
        tokens.size,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=kv_heads,
        ffn=ffn,
        context=context,
        batch=batch,
        learning_rate=learning_rate,
        optimizer=optimizer,
    )
    windows, length = numbers.batch, numbers.context
    batches = sources.Batches(
        parts.groups, context=length, windows=windows, seed=seed, folder=parts.cache
    )
    sources.write_refused(folder, parts.refused)
    model = Model(numbers.spec, seed=seed, device=device, precision=precision)
    update = Optimizer(
        model.weights,
        kind=numbers.optimizer,
        rate=numbers.learning_rate,
        rest=embedding_rate if numbers.optimizer == "muon" else numbers.learning_rate,
        decay=weight_decay,
    )

    # Where the run stands.
    warmup = min(50, steps // 10) if warmup is None else warmup
    plan = {"kind": schedule, "steps": steps, "warmup": warmup, "decay": decay}
    chosen = {"seed": seed, "precision": precision, "device": device, "clip": CLIP}
    chosen |= {"isolate": isolate}
    rates = {"rest": update.rest, "weight_decay": weight_decay}
    state = run.State(
        folder, vars(numbers) | chosen | rates, plan, parts.digest, run.digest(tokens)
    )
    first = state.restore(model.weights, update.state, batches, say) if resume else 0
    every = save_every or max(1, steps // 20)
    say(
        Started(
            numbers,
            parameters=numbers.parameters,
            steps=steps,
            first=first,
            documents=parts.documents,
            ids=parts.ids,
            held_out=parts.held_out,
            padding=batches.padding,
            unit=tokens.unit,
        )
    )

    # The loop.
    begun = time.monotonic()
    with run.Interrupt() as interrupt:
        for step in range(first, steps):
            loss = model.loss(batches.take(), isolate=isolate)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.weights.values(), CLIP).item()
            nats = loss.item()
            if not math.isfinite(nats) or not math.isfinite(norm):
                raise NumericError(
                    f"step {step}: loss {nats}, gradient norm {norm}",
                    expected="finite numbers",
                    fix=f"the checkpoint before is kept in {folder}; lower the learning rate",
                )
            share = rate_share(step, **plan)
            update.step(step, share)
            model.clear()

            done = step + 1
            spent = (time.monotonic() - begun) / (done - first)
            speed, left = windows * length / spent, spent * (steps - done)
            say(Progress(done, steps, nats, norm, share, speed, left))
            if done % every == 0 or done == steps or interrupt.asked:
                state.save(done, model.weights, update.state, batches.position, say)
            if interrupt.asked:
                say(Note(f"stopped after step {done} of {steps}: run again with resume to go on"))
                raise KeyboardInterrupt
            if done % every == 0 and done < steps:
                say(model.score(held, tokens, step=done, most=GLIMPSE))
                say(Sample(done, prompt + model.continued(prompt, tokens, seed=seed)))

    # The model folder, scored as stored.
    model.round(store)
    score = model.score(held, tokens, step=steps)
    say(score)
    card.write_model(folder, numbers, model.weights, tokens, store=store)
    samples = [(prompt, model.continued(prompt, tokens, seed=s, count=150)) for s in range(SAMPLES)]
    card.write_card(
        folder,
        command=card.command(asked, train),
        dial=numbers,
        steps=steps,
        parts=parts,
        score=score,
        samples=samples,
    )
    return folder
