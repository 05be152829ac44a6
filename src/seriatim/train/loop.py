"""`train`: data -> model -> batch, forward, loss, backward, clip, step -> a model folder.

One loop in one function; what it needs is in the files beside it. It runs the forward pass
of `models/` in torch, so what is trained is what is served.
"""

import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from seriatim import registry
from seriatim.train import card, conversations, parallel, run, starting
from seriatim.train import data as sources
from seriatim.train.averaging import Average
from seriatim.train.checkpoint import published
from seriatim.train.claim import claimed
from seriatim.train.evaluate import opening
from seriatim.train.forecast import forecast
from seriatim.train.logs import Logs
from seriatim.train.memory import forget_peak, give_back, keep_freed_memory, peak_bytes
from seriatim.train.model import Model
from seriatim.train.optim import Optimizer, rate_share
from seriatim.train.options import Options, asked, documented
from seriatim.train.report import Measured, Note, Progress, Report, Sample, Started, to_stderr
from seriatim.train.stopping import Interrupt
from seriatim.train.summary import write_report

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
    with parallel.world() as world:
        o = asked(options)
        again = card.command(data, replace(o, resume=True), quiet=(), ranks=world.size)
        device, folder = world.join(o), Path(o.out)
        claim = claimed(folder, resume=o.resume, again=f"to go on: {again}")
        with claim if world.main else nullcontext():
            return _train(data, world.say(report or to_stderr), o, world, device, folder)


def _train(
    data: sources.Data, say: Report, o: Options, world: parallel.World, device: str, folder: Path
) -> Path:
    """The run, in a folder that is its own."""
    start = starting.of(o)
    world.first(lambda: None)  # the main rank has the folder
    for note in start.notes:
        say(Note(note))
    torch.set_num_threads(o.threads or torch.get_num_threads())

    # Data, codec, objective, model.
    aim = registry.get("seriatim.train.objectives", o.objective)
    reader = aim.reader(start) if hasattr(aim, "reader") else None
    prepare = partial(
        sources.prepare,
        data,
        vocab_size=start.vocab_size,
        validation=o.validation,
        seed=o.seed,
        field=o.field,
        separator=o.separator,
        cache=o.cache,
        processes=torch.get_num_threads(),
        reader=reader,
        say=say,
    )
    parts = world.prepared(prepare, codec=start.codec)
    tokens = parts.codec
    numbers, spec = start.numbers(tokens.size), start.spec(tokens.size)
    before = opening(o.prompt, tokens, context=spec.context)
    if reader:
        parts = conversations.fitting(parts, numbers.context, say)
    task = aim.objective(replace(o, context=numbers.context, batch=numbers.batch), tokens)
    held = parts.held
    batches = sources.Batches(
        parts.groups,
        context=numbers.context,
        windows=numbers.batch,
        seed=o.seed,
        folder=parts.cache,
        room=task.room,
    )
    world.first(lambda: sources.write_refused(folder, parts.refused))
    keep_freed_memory()
    weights, beside = start.weights(spec, task.extra(spec))
    model = Model(
        spec,
        weights,
        beside=beside,
        device=device,
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
    layout = world.hold(model, task, batch=numbers.batch)
    update = make(layout.own, shapes=layout.shapes, turned=layout.turned)
    average = Average(layout.own, decay=o.ema)

    # Where the run stands.
    plan = run.plan(o)
    fixed = {**run.fixed(o, numbers), **start.agreed}
    state = run.State(folder, fixed, plan, parts.digest, run.digest(tokens), world)
    kept, bad = update.state | average.state, run.BadSteps(o, folder, say)
    first = state.restore(layout.own, kept, batches, bad, say) if o.resume else 0
    every = o.save_every or max(1, o.steps // 20)
    logs = partial(Logs, folder, first=first, tensorboard=o.tensorboard, say=say)
    say = world.first(logs) or say
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
    if world.size > 1:
        say(Note("no forecast: it would measure one process, not what ranks wait for each other"))
    elif left := o.steps - first:
        foreseen = forecast(model, task, make, batches.peek().parts(o.accumulate), steps=left)
        say(foreseen)
    tell = partial(
        write_report,
        folder,
        command=command,
        started=started,
        refused=len(parts.refused),
        device=device,
        say=say,
    )

    # The loop.
    pieces = min(o.accumulate, numbers.batch // world.size)  # as many on every rank
    per_step = numbers.batch * numbers.context
    forget_peak(device)
    begun, busy = time.monotonic(), 0.0

    def taken(done: int) -> Measured:
        return Measured(busy, peak_bytes(device), (done - first) * per_step, foreseen)

    with Interrupt() as interrupt:
        for step in range(first, o.steps):
            at = time.monotonic()
            rows = [task.prepare(part) for part in world.rows(batches.take()).parts(pieces)]
            learned = max(1, round(world.sums(sum(part.learned for part in rows))[0]))
            losses = [layout.backward(part, learned, last=part is rows[-1]) for part in rows]
            nats, norm = world.total(losses), layout.clip(o.clip)
            share = rate_share(step, **plan)
            if bad.allow(step, nats, norm):
                update.step(step, share)
                average.update(step)
            model.clear()

            done, now = step + 1, time.monotonic()
            busy += now - at
            left = (now - begun) / (done - first) * (o.steps - done)
            say(Progress(done, o.steps, nats, norm, share, (done - first) * per_step / busy, left))
            ended = world.sums(interrupt.asked)[0] > 0  # on any rank
            if done % every == 0 or done == o.steps or ended:
                give_back()
                state.save(done, layout.own, kept, batches, bad, say, keep=o.keep)
            if ended:
                world.first(partial(tell, measured=taken(done), score=None))
                say(Note(f"stopped after step {done} of {o.steps}: run again with resume to go on"))
                interrupt.end()
            if done % every == 0 and done < o.steps:
                with average.applied(), world.turn(layout.whole()) as whole:
                    if whole:
                        say(whole.score(held, tokens, step=done, most=GLIMPSE))
                        text = whole.continued(before, tokens, seed=o.seed)
                        say(Sample(done, (o.prompt or "") + text))
                give_back()  # what a save or a score left between the arrays of a step

    took = taken(o.steps)

    # The model folder, scored as stored.
    average.exchange()
    if (model := layout.whole()) is None:
        return folder
    if o.merge:
        model.merge()
    model.round(o.store)
    score = model.score(held, tokens, step=o.steps)
    say(score)
    samples = [model.continued(before, tokens, seed=s, count=150) for s in range(SAMPLES)]
    with published(folder) as place:
        start.write(place, model, tokens)
        card.write_card(
            place,
            about=start.about,
            command=command,
            dial=numbers,
            steps=o.steps,
            parts=parts,
            score=score,
            samples=[(o.prompt or "", text) for text in samples],
        )
    say(took)
    tell(measured=took, score=score)
    return folder
