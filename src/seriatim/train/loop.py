"""`train`: data -> model -> batch, forward, loss, backward, clip, step -> a model folder.

One loop in one function; what it needs is in the files beside it. It runs the forward pass
of `models/` in torch, so what is trained is what is served.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from seriatim import registry
from seriatim.train import card, conversations, dial, run
from seriatim.train import data as sources
from seriatim.train.averaging import Average
from seriatim.train.checkpoint import published
from seriatim.train.claim import claimed
from seriatim.train.forecast import forecast, forget_peak
from seriatim.train.logs import Logs
from seriatim.train.memory import keep_freed_memory
from seriatim.train.model import Model, initial
from seriatim.train.optim import Optimizer, rate_share
from seriatim.train.options import Options, asked, documented
from seriatim.train.report import Measured, Note, Progress, Report, Sample, Started, to_stderr
from seriatim.train.stopping import Interrupt
from seriatim.train.summary import peak_bytes, write_report

GLIMPSE = 64  # windows of a validation on the way; the last one takes all
SAMPLES = 3  # on the card


@documented
def train(data: sources.Data, *, report: Report | None = None, **options: Any) -> Path:
    """Train a model on files and write it as a Hugging Face folder that `seriatim.load` takes.

    Args:
        data: files, folders or glob patterns, plain or .jsonl, gzipped or not; "PATH=WEIGHT" or a
            mapping to weights mixes them. What is larger than memory stays on disk.
        report: called with each record of `report.py`; default: lines on stderr.

    Returns:
        `out`, a folder for `seriatim.load` and `transformers`.

    Raises:
        RequestError: an option that cannot be honoured, or data shorter than one batch.
        FileError: a file that is not text, a run folder with something in it or of another run
            that is going on, or a checkpoint that is not this run's.
        NumericError: a loss or gradient that is not finite; the checkpoint before is kept.
        ResourceError: the disk refused something; earlier checkpoints are whole.
        KeyboardInterrupt: on Ctrl-C, after finishing the step and saving it; its note is the
            command that goes on.
        SystemExit: on SIGTERM, likewise, with code 143.

    Example:
        >>> train("book.txt", size="1M", steps=500, out="runs/book")  # doctest: +SKIP
        PosixPath('runs/book')
    """
    o = asked(options)
    run.check_device(o.device)
    again = f"to go on: {card.command(data, replace(o, resume=True), quiet=())}"
    with claimed(Path(o.out), resume=o.resume, again=again) as folder:
        return _train(data, o, folder, report or to_stderr)


def _train(data: sources.Data, o: Options, folder: Path, say: Report) -> Path:
    """The run, in a folder that is its own."""
    wanted = dial.parse(str(o.size))
    torch.set_num_threads(o.threads or torch.get_num_threads())

    # Data, codec, objective, model.
    aim = registry.get("seriatim.train.objectives", o.objective)
    reader = aim.reader(o) if hasattr(aim, "reader") else None
    parts = sources.prepare(
        data,
        codec=o.codec,
        vocab_size=o.vocab_size or dial.vocabulary(wanted),
        validation=o.validation,
        seed=o.seed,
        field=o.field,
        separator=o.separator,
        cache=o.cache,
        processes=torch.get_num_threads(),
        reader=reader,
        say=say,
    )
    tokens = parts.codec
    numbers = dial.of(o, tokens.size)
    if reader:
        parts = conversations.fitting(parts, numbers.context, say)
    task, held = aim.objective(o, tokens), parts.held
    batches = sources.Batches(
        parts.groups,
        context=numbers.context,
        windows=numbers.batch,
        seed=o.seed,
        folder=parts.cache,
        room=task.room,
    )
    sources.write_refused(folder, parts.refused)
    keep_freed_memory()
    weights = initial(numbers.spec, seed=o.seed, extra=task.extra(numbers.spec))
    model = Model(
        numbers.spec,
        weights,
        device=o.device,
        precision=o.precision,
        recompute=o.recompute,
        compile=o.compile,
    )
    make = partial(
        Optimizer,
        kind=numbers.optimizer,
        rate=numbers.learning_rate,
        rest=o.embedding_rate if numbers.optimizer == "muon" else numbers.learning_rate,
        decay=o.weight_decay,
    )
    update = make(model.weights)
    average = Average(model.weights, decay=o.ema)

    # Where the run stands.
    plan = run.plan(o)
    state = run.State(folder, run.fixed(o, numbers), plan, parts.digest, run.digest(tokens))
    kept, bad = update.state | average.state, run.BadSteps(o, folder, say)
    first = state.restore(model.weights, kept, batches, bad, say) if o.resume else 0
    every = o.save_every or max(1, o.steps // 20)
    say = Logs(folder, first=first, tensorboard=o.tensorboard, say=say)
    started = Started(
        numbers,
        parameters=numbers.parameters,
        steps=o.steps,
        first=first,
        documents=parts.documents,
        ids=parts.ids,
        held_out=parts.held_out,
        padding=batches.padding,
        unit=tokens.unit,
    )
    say(started)
    command, foreseen = card.command(data, o), None
    if left := o.steps - first:
        foreseen = forecast(model, task, make, batches.peek().parts(o.accumulate), steps=left)
        say(foreseen)
    tell = partial(
        write_report,
        folder,
        command=command,
        started=started,
        refused=len(parts.refused),
        device=o.device,
        say=say,
    )

    # The loop.
    per_step = numbers.batch * numbers.context
    forget_peak(o.device)
    begun = time.monotonic()

    def took(steps: int) -> Measured:
        spent = time.monotonic() - begun
        return Measured(spent, peak_bytes(o.device), steps * per_step, foreseen)

    with Interrupt() as interrupt:
        for step in range(first, o.steps):
            rows = [task.prepare(part) for part in batches.take().parts(o.accumulate)]
            learned, nats = max(1, sum(part.learned for part in rows)), 0.0
            for part in rows:
                loss = task.loss(model, part) / learned
                loss.backward()
                nats += loss.item()
            norm = torch.nn.utils.clip_grad_norm_(model.weights.values(), o.clip).item()
            share = rate_share(step, **plan)
            if bad.allow(step, nats, norm):
                update.step(step, share)
                average.update(step)
            model.clear()

            done, spent = step + 1, time.monotonic() - begun
            speed, left = (
                (done - first) * per_step / spent,
                spent / (done - first) * (o.steps - done),
            )
            say(Progress(done, o.steps, nats, norm, share, speed, left))
            if done % every == 0 or done == o.steps or interrupt.asked:
                state.save(done, model.weights, kept, batches, bad, say, keep=o.keep)
            if interrupt.asked:
                tell(measured=took(done - first), score=None)
                say(Note(f"stopped after step {done} of {o.steps}: run again with resume to go on"))
                interrupt.end()
            if done % every == 0 and done < o.steps:
                with average.applied():
                    say(model.score(held, tokens, step=done, most=GLIMPSE))
                    text = model.continued(o.prompt, tokens, seed=o.seed)
                say(Sample(done, (o.prompt or "") + text))

    # The model folder, scored as stored.
    average.exchange()
    model.round(o.store)
    score = model.score(held, tokens, step=o.steps)
    say(score)
    samples = [model.continued(o.prompt, tokens, seed=s, count=150) for s in range(SAMPLES)]
    with published(folder) as beside:
        card.write_model(beside, numbers, model.weights, tokens, store=o.store)
        card.write_card(
            beside,
            command=command,
            dial=numbers,
            steps=o.steps,
            parts=parts,
            score=score,
            samples=[(o.prompt or "", text) for text in samples],
        )
    say(measured := took(o.steps - first))
    tell(measured=measured, score=score)
    return folder
