"""Supervised chat: the next id of what the assistant says, after all that was said before.

Records are conversations; the model's own template makes ids of them (`conversations.py`), of which
only the assistant's, and the id that ends its turn, are targets.
"""

from collections.abc import Callable
from pathlib import Path

from seriatim.codecs import Codec
from seriatim.errors import RequestError
from seriatim.train import conversations
from seriatim.train.objectives.next import Next
from seriatim.train.options import Options
from seriatim.train.starting import New
from seriatim.train.tuning import Tuned


def reader(start: New | Tuned) -> Callable[[Codec], Codec]:
    """What makes of a model's codec one that reads conversations.

    Raises:
        RequestError: no model is named that could have a chat template.
    """
    if isinstance(start, Tuned):
        path, metadata = start.source.path, start.source.metadata
        return lambda codec: conversations.of(codec, path, metadata)
    folder = Path(start.codec)
    if not folder.is_dir():
        raise RequestError(
            f"codec is {start.codec!r}, which has no chat template",
            expected="for objective chat, a model: init, or codec and the folder of one",
        )
    return lambda codec: conversations.of(codec, folder)


def objective(options: Options, codec: Codec) -> Next:
    """Of a run's options: the batches leave out what is not to be learned."""
    return Next(options.isolate)
