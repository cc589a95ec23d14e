"""The first module of the package: a Ctrl-C while a command's libraries load, which takes seconds, is one line too."""

import os
import signal
import sys
from pathlib import Path
from typing import Any


def _stopped(number: int, frame: Any) -> None:
    os.write(2, b"stopped\n")
    os._exit(128 + number)  # an exception would come out of whatever is being imported


if any(Path(word).stem == "slimdpm" or word == "slimdpm.cli" for word in sys.orig_argv[1:3]):
    signal.signal(signal.SIGINT, _stopped)  # until `slimdpm.cli.main` takes over
