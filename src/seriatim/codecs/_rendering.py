"""A MIME bundle whose contents are made when they are asked for: pictures and sound take time."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class Rendering(Mapping[str, Any]):
    """Content by type; each is made once, when it is first looked at."""

    def __init__(self, makers: Mapping[str, Callable[[], Any]]) -> None:
        self._makers = dict(makers)
        self._made: dict[str, Any] = {}

    def __getitem__(self, kind: str, /) -> Any:
        if kind not in self._made:
            self._made[kind] = self._makers[kind]()
        return self._made[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
