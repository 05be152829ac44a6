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


def reader(options: Options) -> Callable[[Codec, str], Codec]:
    """What makes of a codec, and the folder that it came from, one that reads conversations.

    Raises:
        RequestError: no folder is named that could hold a chat template.
    """
    if not Path(options.codec).is_dir():
        raise RequestError(
            f"codec is {options.codec!r}, which has no chat template",
            expected="for objective chat, the folder of a model with tokenizer and chat template",
        )
    return lambda codec, name: conversations.of(codec, Path(name))


def objective(options: Options, codec: Codec) -> Next:
    """Of a run's options: the batches leave out what is not to be learned."""
    return Next(options.isolate)
