"""Asks a server for its health, from a process of its own, until its standard input ends.

    python health.py PORT

The answer is JSON: how often, the worst answer and the 99th percentile in milliseconds, and every
status but 200.
"""

import http.client
import json
import select
import sys
from time import perf_counter

PAUSE = 0.02  # seconds


def asked(port: int) -> tuple[float, int]:
    """Milliseconds of an answer, on a new connection, and its status."""
    began = perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    status = connection.getresponse().status
    connection.close()
    return 1000 * (perf_counter() - began), status


def main() -> None:
    times, others = list[float](), list[int]()
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        took, status = asked(int(sys.argv[1]))
        times.append(took)
        others += [status] if status != 200 else []
    times.sort()
    found = {"count": len(times), "worst_ms": times[-1], "p99_ms": times[99 * len(times) // 100]}
    print(json.dumps(found | {"others": others}))


if __name__ == "__main__":
    main()
