"""The small trained models that ship: one folder and one card each."""

from pathlib import Path

_HERE = Path(__file__).parent


def names() -> list[str]:
    """What `seriatim.load` takes by name alone."""
    return sorted(folder.parent.name for folder in _HERE.glob("*/config.json"))


def folder(name: str) -> Path:
    """Where a shipped model lies."""
    return _HERE / name
