"""`verify`: the laws, run on a user's model, machine and settings (architecture.md).

Each check holds what the engine gives against another way to it: the request alone, a reference in
numpy, the sampler's definition written a second time, plain string search, counting. It times
nothing, and the same seed tries the same cases.
"""

from collections.abc import Callable
from typing import Any

from seriatim.engine.options import whole
from seriatim.errors import RequestError
from seriatim.verify import company, numbers, promises, sampling, speculation, streams
from seriatim.verify.lab import Lab, alone_with
from seriatim.verify.report import Report, rows

__all__ = ["CHECKS", "Report", "verify"]

CHECKS = [
    *company.CHECKS,
    *speculation.CHECKS,
    *sampling.CHECKS,
    *numbers.CHECKS,
    *streams.CHECKS,
    *promises.CHECKS,
]
LEFT = (
    "longer prompts, more threads, all arrangements of batches for large models and ten times the "
    "draws: verify with thorough=True (--thorough)"
)


def verify(
    model: Any,
    *,
    original: Any = None,
    seed: int = 0,
    thorough: bool = False,
    say: Callable[[str], object] = lambda law: None,
) -> Report:
    """Run every law: the arguments of `Model.verify`, and `say`, which is told each law's name."""
    whole("seed", seed, 0, 2**63 - 1)
    if not isinstance(thorough, bool):
        raise RequestError(f"thorough is {thorough!r:.80}", expected="True or False")
    if original is not None and not hasattr(original, "checkpoint"):
        original = model.load(original, precision="stored", kv=None)
    report = Report(model.facts, seed, left="" if thorough else LEFT)
    with alone_with(model):
        report.rows.extend(rows(CHECKS, Lab(model, seed, thorough, original), say))
    return report
