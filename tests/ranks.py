"""Two processes as torchrun starts them, which do a list of runs; as a program, one of the two.

The store is that of the caller, as torchrun's is: no port has to be free before it is taken.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

SIZE = 2


@contextmanager
def started(*command: object, size: int = SIZE):
    """`size` processes of a Python program; all are ended in the end."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60))
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common |= {"WORLD_SIZE": str(size), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    common |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    found = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        yield found
    finally:
        for process in found:
            process.kill()
            process.communicate()


def together(book: Path, runs: list[dict]) -> list[list[dict]]:
    """What two ranks saw of each run: its losses, its error, how often it encoded."""
    with started(__file__, book, json.dumps(runs, default=str)) as found:
        said = [process.communicate(timeout=120) for process in found]
    assert [process.returncode for process in found] == [0] * SIZE, said
    return [json.loads(out) for out, _ in said]


def main(book: str, runs: str) -> None:
    from seriatim.codecs import text
    from seriatim.train import encoding, loop
    from seriatim.train.report import Note, Progress

    counts: Counter[str] = Counter()

    def counted(place, name: str) -> None:
        work = getattr(place, name)

        def wrapped(*args, **options):
            counts[name] += 1
            return work(*args, **options)

        setattr(place, name, wrapped)

    counted(encoding.Encoder, "encode")
    counted(text, "train")
    found = []
    for options in json.loads(runs):
        counts.clear()
        records, error = [], ""
        if (before := options.pop("copied", None)) and os.environ["RANK"] == "0":
            shutil.copytree(*before)
        try:
            loop.train(book, report=records.append, **options)
        except (Exception, SystemExit) as caught:
            error = f"{type(caught).__name__}: {caught}"
        found.append(
            {
                "losses": [r.loss for r in records if isinstance(r, Progress)],
                "norms": [r.norm for r in records if isinstance(r, Progress)],
                "notes": [r.text for r in records if isinstance(r, Note)],
                "error": error,
                "counts": dict(counts),
            }
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
