"""The command line: `slimdpm`, or `python -m slimdpm.cli`."""
