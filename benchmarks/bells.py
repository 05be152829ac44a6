"""What it costs an engine's thread to tell 32 answers of a step: a wake for each, or one for all.

python benchmarks/bells.py
"""

import asyncio
from statistics import median
from time import sleep, thread_time

from seriatim.serve.bells import Bell, Tower

STREAMS, STEPS, PAUSE, ROUNDS = 32, 500, 0.002, 5


async def cost(towers: int) -> float:
    """Microseconds of the ringing thread's processor time for a step."""
    tower = Tower()
    bells = [Bell(tower if towers == 1 else Tower()) for _ in range(STREAMS)]

    async def follow(bell: Bell) -> None:
        while True:
            await bell.heard()

    def steps() -> float:
        spent = 0.0
        for _ in range(STEPS):
            began = thread_time()
            for bell in bells:
                bell.ring()
            spent += thread_time() - began
            sleep(PAUSE)
        return 1e6 * spent / STEPS

    tasks = [asyncio.create_task(follow(bell)) for bell in bells]
    found = await asyncio.to_thread(steps)
    for task in tasks:
        task.cancel()
    return found


def main() -> None:
    """In turn, so that a busy machine is busy for both."""
    rounds = [(asyncio.run(cost(STREAMS)), asyncio.run(cost(1))) for _ in range(ROUNDS)]
    each, one = (median(column) for column in zip(*rounds, strict=True))
    print(f"{STREAMS} answers: a wake each {each:.0f} us, one for all {one:.0f} us a step")


if __name__ == "__main__":
    main()
