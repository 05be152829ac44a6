"""`load` and `Model`: where a codec meets an engine.

Everything here is a fold over `Engine.step()`: one request is a batch of one, a score is a request
that generates nothing, the whole answer is the end of the stream.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from seriatim import chatting, infilling, prefixes, requesting
from seriatim import verify as laws
from seriatim.codecs import Codec
from seriatim.codecs.chat import Templates
from seriatim.constraints.constraining import Constraints
from seriatim.engine.cache import BlockPool
from seriatim.engine.engine import Engine
from seriatim.engine.options import token_ids, whole
from seriatim.errors import RequestError
from seriatim.kernels.ops import BLOCK, Runtime
from seriatim.models.checkpoint import Checkpoint
from seriatim.requesting import Prompt, codec_of, content, finish, open_stream, prompt_ids, several
from seriatim.results import Score, Stream
from seriatim.scoring import Logprobs, Window, standard_error, windows
from seriatim.search import beaming, selecting
from seriatim.speculating import Drafting

MOST_SAMPLES = requesting.MOST_SAMPLES


class Model:
    """A loaded model: ids in and out, and its codec's objects in and out.

    Made by `seriatim.load`. `print(model)` says what it is.
    """

    def __init__(
        self,
        source: Checkpoint,
        codec: Codec | None,
        run: Runtime,
        *,
        blocks: int,
        weight_bytes: int,
        precision: str,
        facts: str,
        load: Callable[..., "Model"],
    ) -> None:
        self.checkpoint, self.codec, self.runtime = source, codec, run
        self.load = load  # this model or another, as this one was loaded but for what is given
        self.precision = precision  # the types of its weights, as loaded
        self.weight_bytes = weight_bytes  # as loaded: precision may differ from what is stored
        self.pool = BlockPool(blocks, run.resize)
        self.vocab_size = source.spec.vocab_size
        self.context = min(source.spec.context, blocks * BLOCK)
        self.ends = tuple(sorted({*source.ends, *(codec.ends if codec else ())}))
        own = () if source.start is None else (source.start,)
        self.start = (codec.start if codec else ()) or own  # what an empty prompt becomes
        self.constraints = Constraints(codec, self.vocab_size, self.ends)
        self.facts = facts
        self._templates: Templates | None = None
        self.drafting = Drafting(load)
        self.engine = Engine(self)  # every call of this model shares it

    def __repr__(self) -> str:
        return f"<seriatim.Model {self.facts}>"

    def generate(
        self,
        prompt: Prompt = None,
        *,
        n: int = 1,
        stop: str | Sequence[str] = (),
        prefix: Any = None,
        suffix: Any = None,
        fim_order: str | None = None,
        files: Mapping[str, str | Path] | None = None,
        file: str | None = None,
        repository: str | None = None,
        context_budget: int | None = None,
        **options: Any,
    ) -> Any:
        """Continue a prompt, one id at a time, until a stop or a full context.

        Args:
            prompt: the codec's object (a `str` is always its literal form), a `Path` to a file of
                it, a list of ids, or nothing for the model's start id. A list of prompts gives a
                list of results, computed together and equal to one by one.
            n: how many samples, in `.samples`; the sample index is part of the noise.
            stop: strings that end the text; `output` ends before the one that is met.
            prefix, suffix: instead of a prompt: what comes before and after a gap that the model
                fills, if it was trained to; each text or a `Path`. `fim_order` is "psm" or "spm":
                which of the two it reads first (default: as its codec says, else "psm").
            files: other files, by path, that the model reads before the gap, the last one nearest
                to it; each a text or a `Path`. `file` is the path of the file with the gap,
                `repository` its name. `context_budget` is how many ids `files` may take: what does
                not fit is left out, and `.files` says what; without it none is (docs/code.md).
            options: until ("line", "block" or "braces": where a piece of code ends), max_tokens
                (default: until the context is full), min_tokens, temperature
                (default 1.0; 0 is greedy), dynatemp_range, dynatemp_exponent, top_k, typical_p,
                top_p, min_p, xtc_probability, xtc_threshold, filters (their order),
                repetition_penalty, presence_penalty, frequency_penalty, dry_multiplier, dry_base,
                dry_allowed_length, dry_range, dry_breakers (ids or text), logit_bias, allowed_ids,
                banned_ids, processors, seed (default: drawn, and returned), ignore_end, loop_limit
                (ends once the last ids repeat so often), loop_length, logprobs (True, or how many
                alternatives, at most 20), prompt_logprobs (likewise), forced_ids, priority,
                tenant (docs/sampling.md); one of regex, choices, json_schema and grammar, which
                the text must match whole, or given, an object in part of which the rest is
                generated (docs/constraints.md); speculate ("ngram" or "suffix":
                guesses from the request's own ids), draft_text (with "suffix": a text to guess
                from too), draft (a model of the same vocabulary that guesses: a name, path or
                model), draft_tokens (guesses in a step; default: as many as pay). Guesses change
                the speed, never an id.

        Raises:
            RequestError: anything that cannot be honoured whole, before any work.
            NumericError: the model's logits are not finite.

        Example:
            >>> import seriatim
            >>> model = seriatim.load("tales", threads=1)
            >>> model.generate("Once upon a time", max_tokens=8, seed=1).finish_reason
            'length'
        """
        count = whole("n", n, 1, MOST_SAMPLES)
        around = dict(files=files, file=file, repository=repository, context_budget=context_budget)
        if gap := infilling.infill(self, prompt, prefix, suffix, fim_order, **around):
            return requesting.run(self, [gap[0]], count, stop, options, gap[1])[0]
        prompts = requesting.numbered(self, prompt if several(prompt) else [prompt])
        results = requesting.run(self, prompts, count, stop, options)
        return results if several(prompt) else results[0]

    def stream(
        self,
        prompt: Prompt = None,
        *,
        stop: str | Sequence[str] = (),
        prefix: Any = None,
        suffix: Any = None,
        fim_order: str | None = None,
        files: Mapping[str, str | Path] | None = None,
        file: str | None = None,
        repository: str | None = None,
        context_budget: int | None = None,
        **options: Any,
    ) -> Stream:
        """The pieces of `generate`'s answer as they come, then its `.result()`.

        Closing the iterator, or dropping it, ends the request and frees its cache.

        Raises:
            RequestError, NumericError: as `generate`; options are checked before the first piece.
        """
        if several(prompt) or "n" in options:
            raise RequestError(
                f"stream was given {'n' if 'n' in options else 'a list of prompts'}",
                expected="one prompt, and one sample of it",
                fix="use generate",
            )
        around = dict(files=files, file=file, repository=repository, context_budget=context_budget)
        if gap := infilling.infill(self, prompt, prefix, suffix, fim_order, **around):
            return open_stream(self, gap[0], stop, options, extras=gap[1])
        return open_stream(self, self.prompt_ids(prompt), stop, options)

    chat = chatting.chat
    beam = beaming.beam
    best_of, vote, mbr = selecting.best_of, selecting.vote, selecting.mbr

    @property
    def templates(self) -> Templates:
        """The chat templates of its files, read when first asked for."""
        if self._templates is None:
            codec, source = codec_of(self, "a chat"), self.checkpoint
            self._templates = Templates.of(source.path, source.metadata, codec)
        return self._templates

    @templates.setter
    def templates(self, templates: Templates) -> None:
        self._templates = templates

    def score(self, raw: Prompt, *, given: Prompt = None) -> Score:
        """Log-likelihood of an object or of ids, the same numbers as the training loss.

        Args:
            raw: the codec's object, a `Path` to a file of it, or a list of ids, used as given.
            given: what comes before it: conditioned on, not scored.

        Raises:
            RequestError: nothing to score, or ids outside the vocabulary.

        Example:
            >>> import seriatim
            >>> score = seriatim.load("tales", threads=1).score("Once upon a time")
            >>> len(score.logprobs) == len(score.ids)
            True
        """
        ids, first = self._to_score(raw, given)
        if len(ids) <= first:
            raise RequestError("there is nothing to score", expected="at least one id to predict")
        cuts = list(windows(len(ids), context=self.context, lead=self._lead(ids), first=first))
        logprobs = np.concatenate(self._window_logprobs(ids, cuts))
        nats, codec = -float(logprobs.sum()), self.codec
        units = None if codec is None else codec.units(ids[first:], after=ids[:first])
        return Score(
            ids=ids[first:],
            logprobs=logprobs.tolist(),
            nats=nats,
            units=units,
            unit=None if codec is None else codec.unit,
            bits_per_unit=nats / log(2) / units if units else None,
            error=None if codec is None else standard_error(ids, logprobs, codec),
            unscored=int(given is None and not self._lead(ids)),
            windows=len(cuts),
        )

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits after each of `ids`: float32 [len(ids), vocab_size].

        Raises:
            RequestError: ids outside the vocabulary, none of them, or more than the context.
        """
        ids = token_ids("ids", ids, self.vocab_size)
        most = min(len(ids), self.context)  # `add` refuses more
        logits = np.empty((most, self.vocab_size), np.float32)

        def keep(position: int, rows: np.ndarray) -> None:
            logits[position : position + len(rows)] = rows

        finish(self.engine, [self.engine.add(ids, rows=keep, generate=False)])
        return logits

    def verify(
        self, *, original: Any = None, seed: int = 0, thorough: bool = False
    ) -> "laws.Report":
        """Run the laws on this model, machine and settings (`seriatim verify`).

        Args:
            original: what a quantised model was made from: a name, a path or a loaded model.
            seed: what the cases are drawn from.
            thorough: longer prompts, more of everything.

        Returns:
            a row for each law; `.ok` says whether all hold. What was cached is forgotten.

        Raises:
            RequestError: an option that cannot be honoured, or requests are under way.

        Example:
            >>> import seriatim
            >>> model = seriatim.load("tales", threads=1)
            >>> model.verify().ok  # doctest: +SKIP
            True
        """
        return laws.verify(self, original=original, seed=seed, thorough=thorough)

    def encode(self, raw: Any) -> list[int]:
        """The ids of the codec's object; nothing is added."""
        return codec_of(self, "encode").encode(raw)

    def decode(self, ids: Sequence[int]) -> Any:
        """The codec's object of ids."""
        codec = codec_of(self, "decode")
        return codec.decode(token_ids("ids", ids, self.vocab_size))

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """What `generate` conditions on: the prompt's ids and what the model puts in front."""
        return prompt_ids(self, prompt)

    def save_prefix(self, prompt: Prompt, path: str | Path) -> int:
        """Write a prompt's keys and values to a file, whole or not at all.

        Args:
            prompt: as for `generate`.
            path: the file, replaced if it is there.

        Returns:
            how many ids it holds.

        Raises:
            RequestError, ResourceError: the prompt cannot be computed.
            FileError: the file cannot be written.

        Example:
            >>> import seriatim
            >>> model = seriatim.load("tales", threads=1)
            >>> saved = model.save_prefix("Once upon a time there was", "once.safetensors")
            >>> model.load_prefix("once.safetensors") == saved
            True
        """
        return prefixes.save(self, self.cache_key, self.prompt_ids(prompt), path)

    def load_prefix(self, path: str | Path, *, tenant: str = "") -> int:
        """Keep a saved prompt in the cache, as if it had just been computed.

        Args:
            path: what `save_prefix` wrote, with this model as it is loaded here.
            tenant: whose requests may find it.

        Returns:
            how many ids it holds.

        Raises:
            FileError: damaged, or made with another model, codec, precision, backend or kv type.
            ResourceError: the cache has too few blocks that are not in use.
        """
        return prefixes.load(self, self.cache_key, path, tenant)

    @cached_property
    def cache_key(self) -> dict[str, str]:
        """What its keys and values depend on beside the ids; the first use reads every weight."""
        return prefixes.key(self)

    # ---------------------------------------------------------------- scoring

    def _to_score(self, raw: Prompt, given: Prompt) -> tuple[list[int], int]:
        """All ids, and how many of them are only context."""
        if given is None:
            ids = self.prompt_ids(raw)
            return ids, self._lead(ids) or 1
        before = self.prompt_ids(given)
        return before + content(self, raw), len(before)

    def _window_logprobs(self, ids: list[int], cuts: list[Window]) -> list[np.ndarray]:
        """log p of the ids that each window scores."""
        sinks = [Logprobs([*ids[: w.lead], *ids[w.start : w.end]], w.first) for w in cuts]
        requests = [
            self.engine.add(s.ids, rows=s, rows_from=s.first - 1, generate=False, seed=0)
            for s in sinks
        ]
        finish(self.engine, requests)
        return [sink.values[sink.first :] for sink in sinks]

    def _lead(self, ids: Sequence[int]) -> int:
        """How many start ids stand in front of `ids`."""
        start = list(self.codec.start if self.codec else self.start)
        return len(start) if list(ids[: len(start)]) == start else 0
