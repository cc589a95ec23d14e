"""The command ``slimdpm``, which loads no library before it knows what is asked for."""

import sys


def main() -> None:
    """Load the command line, and hand over to it. Ctrl-C is one line even then."""
    try:
        from slimdpm.cli.main import main as run
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    sys.modules["slimdpm_command"] = sys.modules["__main__"]
    main()
