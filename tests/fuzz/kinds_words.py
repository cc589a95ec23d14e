"""The words of the command line."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from .base import QUICK, Base, sets
from .case import Case, kind
from .mutate import wild_word

COMMANDS = [
    "slim",
    "train",
    "sample",
    "profile",
    "import",
    "evaluate",
    "analyze",
    "demo",
    "reproduce complexity",
]
OPTIONS = {
    "slim": [
        "--ratio",
        "--width",
        "--max-macs",
        "--max-params",
        "--init",
        "--steps",
        "--size",
        "--recipe",
        "--set",
        "--no-cache",
        "--json",
    ],
    "train": [
        "--model",
        "--like",
        "--ratio",
        "--width",
        "--max-macs",
        "--max-params",
        "--steps",
        "--size",
        "--recipe",
        "--set",
        "--json",
    ],
    "sample": [
        "-n",
        "--steps",
        "--scheduler",
        "--seed",
        "--class",
        "--prompt",
        "--negative-prompt",
        "--guidance",
        "--batch-size",
        "--device",
    ],
    "profile": ["--against", "--size", "--ratio", "--batch", "--json"],
    "import": ["--config", "--ema", "--no-ema"],
    "evaluate": [
        "--against",
        "-n",
        "--compare",
        "--extractor",
        "--inception-weights",
        "--reference-stats",
        "--steps",
        "--scheduler",
        "--seed",
        "--guidance",
        "--size",
        "--device",
    ],
    "analyze": ["--against", "--compare", "-n", "--samples", "--steps", "--scheduler", "--seed", "--device"],
    "demo": ["--seed", "--steps"],
    "reproduce complexity": ["--json"],
}


def _whole(command: str, folder: Path, base: Base) -> list[Any]:
    """The command with all that it needs, quick."""
    out = folder / "out"
    return {
        "slim": ["slim", base.teacher("pixel"), base.images, "-o", out, "--dry-run", *sets(*QUICK, "train.steps=1")],
        "train": [
            "train",
            base.images,
            "--model",
            base.folder / "net.json",
            "-o",
            out,
            "--dry-run",
            *sets(*QUICK[:-1], "train.steps=1"),
        ],
        "sample": ["sample", base.teacher("class"), "-n", 2, "--steps", 1, "-o", out],
        "profile": ["profile", base.folder / "net.json"],
        "import": [
            "import",
            base.originals / "ffhq" / "model.ckpt",
            "--config",
            base.originals / "ffhq" / "config.yaml",
            "-o",
            out,
        ],
        "evaluate": [
            "evaluate",
            base.teacher("pixel"),
            "--against",
            base.images,
            "-n",
            10,
            "--steps",
            1,
            "--extractor",
            base.extractor,
            "-o",
            out,
        ],
        "analyze": [
            "analyze",
            base.teacher("pixel"),
            "--against",
            base.images,
            "-n",
            4,
            "--samples",
            2,
            "--steps",
            1,
            "-o",
            out,
        ],
        "demo": ["demo", "too-much", "-o", out],
        "reproduce complexity": ["reproduce", "complexity"],
    }[command]


@kind(70)
def options(rng: Random, folder: Path, base: Base) -> Case:
    """A wild word for an option."""
    command = rng.choice(COMMANDS[:8])
    words = _whole(command, folder, base)
    option = rng.choice(OPTIONS[command])
    word = wild_word(rng)
    if option in ("--steps", "-n", "--samples", "--batch-size") and word.isdecimal() and 20 < int(word) < 10**10:
        word = rng.choice(["-5", "x", "0", "1.5"])  # to make so many images is no fault
    if option == "--size" and command in ("evaluate", "profile") and word.isdecimal() and 4096 < int(word) < 10**9:
        word = "0"
    return Case([*words, option, word], note=f"{option} {word!r}"[:200])


@kind(30)
def words(rng: Random, folder: Path, base: Base) -> Case:
    """A word too many, too few, or another one."""
    command = rng.choice(COMMANDS)
    there = _whole(command, folder, base)
    if command == "demo":
        there = [*there, "--nothing"]
    at, how = rng.randrange(len(there)), rng.randrange(4)
    if how == 0:
        del there[at]
    elif how == 1:
        there[at] = wild_word(rng)
    elif how == 2:
        there.insert(at, wild_word(rng))
    else:
        there = [
            rng.choice(["--", "-", "--help ", "slim", "", "\x1b[31m", "--versio", "reproduce", "x" * 2000]),
            *there[: rng.randrange(3)],
        ]
    if (
        "-o" in there
        and there.index("-o") + 1 < len(there)
        and str(there[there.index("-o") + 1]) != str(folder / "out")
    ):
        del there[there.index("-o") :]  # it would write where that word points
    if there and str(there[0]) in ("sample", "evaluate") and "-o" not in there:
        there += ["-o", folder / "out"]
    if base.quick and there == ["profile"]:  # which counts all networks of the paper
        there.append("pixel-32")
    return Case(there, note=f"{command} {how}")


@kind(15)
def conditions(rng: Random, folder: Path, base: Base) -> Case:
    """Classes, prompts and guidance that the pipeline does not know."""
    name = rng.choice(["pixel", "class", "embedded", "text", "xl"])
    there: list[Any] = ["sample", base.teacher(name), "-n", 2, "--steps", 1, "-o", folder / "out"]
    for _ in range(rng.choice([1, 2, 3])):
        option = rng.choice(["--class", "--class", "--prompt", "--negative-prompt", "--guidance"])
        there += [
            option,
            rng.choice(
                ["boots", "0", "3", "99", "-1", "1.5", "nan", "inf", "", "\x1b[2J", "x" * 5000, "1e300", wild_word(rng)]
            ),
        ]
    return Case(there, note=name)


@kind(10)
def models(rng: Random, folder: Path, base: Base) -> Case:
    """What stands where a model should."""
    import os

    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "zero.json").symlink_to("/dev/zero")
    (folder / "config.json").mkdir()
    (folder / "loop").symlink_to("loop")
    places = [
        "empty",
        "pipe",
        "zero.json",
        "config.json",
        "loop",
        "nobody/nothing",
        "",
        "/",
        "/dev/zero",
        "x" * 5000,
        "\udcff",
        "a/b/c",
        "..",
        "demo:x",
        "\x1b[31m",
        base.images,
        base.folder / "images.npy",
        base.folder / "net.json",
        base.teacher("pixel") / "unet",
        "hf:x",
        "ldm4",
        wild_word(rng),
    ]
    place = rng.choice(places)
    out = ["-o", folder / "out"]
    choices = [
        ["sample", place, "-n", 2, "--steps", 1, *out],
        ["slim", place, base.images, "--dry-run", *out],
        ["train", base.images, "--like", place, "--dry-run", *out],
        ["train", base.images, "--model", place, "--dry-run", *out],
        ["profile", place],
        ["evaluate", place, "--against", base.images, "-n", 10, "--steps", 1, "--extractor", base.extractor, *out],
        ["analyze", place, "--against", base.images, "-n", 4, "--samples", 2, "--steps", 1, *out],
        ["import", place, "--config", base.originals / "ffhq" / "config.yaml", *out],
        ["import", base.originals / "ffhq" / "model.ckpt", "--config", place, *out],
    ]
    return Case(rng.choice(choices), note=repr(str(place))[:80])
