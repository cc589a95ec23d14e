"""The command ``slimdpm``: Ctrl-C is one line even while the libraries are loaded, which takes seconds."""

import sys


def main() -> None:
    """Load `slimdpm.cli`, and hand over to it."""
    try:
        from slimdpm.cli.main import main as run
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    run()
