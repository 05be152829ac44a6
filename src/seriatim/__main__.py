"""`python -m seriatim` and the `seriatim` script.

All is imported within, so that an interrupt is quiet as early as can be.
"""

import os

INTERRUPTED = 130


def main() -> None:
    """Run the command of `sys.argv` and exit with its code."""
    try:
        from seriatim.cli import main as run

        run()
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    except SystemExit as done:
        if done.code == INTERRUPTED:
            # An interrupt that passed through `exec` or `eval` makes Python kill itself at its end
            # though it was caught, and a second one would find the end half-way.
            os._exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    main()
