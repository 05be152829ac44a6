"""Single ids as text, where a protocol names them. Of a sequence, `decode` gives the text."""

from seriatim.codecs import Codec, Spelt


class Spelling:
    """What each id of a model is called.

    Args:
        codec: the model's, if it has one.
    """

    def __init__(self, codec: Codec | None) -> None:
        self._pieces = codec.pieces() if isinstance(codec, Spelt) else []
        self._specials = {} if codec is None else {id: text for text, id in codec.added.items()}
        self.longest = max(map(len, self._pieces), default=0)  # bytes; 0 if nobody knows

    def data(self, id: int) -> bytes | None:
        """The bytes it stands for; None for what stands for none."""
        piece = self._pieces[id] if id < len(self._pieces) else b""
        return piece or None

    def text(self, id: int) -> str:
        """Its text: U+FFFD for bytes that are none, a special id's own name, or `<id>`."""
        piece = self.data(id)
        if piece is not None:
            return piece.decode(errors="replace")
        return self._specials.get(id, f"<{id}>")
