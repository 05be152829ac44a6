"""Supervised chat: the next id of what the assistant says, after all that was said before.

Records are conversations; the model's own template makes ids of them (`conversations.py`), of which
only the assistant's, and the id that ends its turn, are targets.
"""

from collections.abc import Callable

from seriatim.codecs import Codec
from seriatim.errors import RequestError
from seriatim.train import conversations
from seriatim.train.objectives.next import Next
from seriatim.train.options import Options
from seriatim.train.starting import Start


def reader(start: Start) -> Callable[[Codec], Codec]:
    """What makes of a model's codec one that reads conversations.

    Raises:
        RequestError: no model is named that could have a chat template.
    """
    if start.place is None:
        raise RequestError(
            f"codec is {start.codec!r}, which has no chat template",
            expected="for objective chat, a model: init, or codec and the folder of one",
        )
    path, metadata = start.place
    return lambda codec: conversations.of(codec, path, metadata)


def objective(options: Options, codec: Codec) -> Next:
    """Of a run's options: the batches leave out what is not to be learned."""
    return Next(options.isolate)
