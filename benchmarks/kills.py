"""Kills and signals at random moments: whatever was hit goes on by the same command, to the same bytes.

Each command of slimdpm is run once without a stop. Then it is started again and again in a fresh folder: five times it
gets a signal at a random moment, then it may finish; what it leaves is compared with the whole run. After each signal
every file must be whole, and nothing may print a traceback. A process that has imported everything forks for each run.

    python benchmarks/kills.py --work DIR [--kills 100] [--signals 100]

What is done is kept in DIR and in the results: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import diffusers.guiders  # noqa: F401 - what a command imports late is imported once, here
import numpy as np
import onnxscript  # noqa: F401
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import TINY, TRIAL, latent_pipeline
from PIL import Image
from safetensors.torch import load_file
from test_originals import original, reduced

import slimdpm.analysis.analyze
import slimdpm.export.folder
import slimdpm.metrics.evaluate
import slimdpm.originals
import slimdpm.report.page  # noqa: F401
from slimdpm.cli import main as cli

SHARE = {"pixels": 24, "latents": 20, "data-free": 18, "two processes": 14, "evaluate": 10, "sample": 8, "import": 6,
         "export": 50}  # fmt: skip
SETTINGS = [*TRIAL, "train.steps=8", "train.batch_size=2", "train.checkpoint_every=2", "train.log_every=1",
            "train.sample_every=4", "samples.count=2", "samples.steps=2", "student.width=8"]  # fmt: skip
MOST = 5  # signals in the life of one folder
GROUPS = {"kills": [signal.SIGKILL], "signals": [signal.SIGINT, signal.SIGTERM]}
VOLATILE = {"seconds", "images_per_second"}


def prepare(work: Path) -> None:
    """Teachers, images, an extractor and an original checkpoint, all small and seeded."""
    torch.manual_seed(0)
    DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler()).save_pretrained(work / "pixels")
    latent_pipeline(AutoencoderKL).save_pretrained(work / "latents")
    rng = np.random.default_rng(0)
    (work / "images").mkdir()
    for i in range(40):
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize((20, 18), Image.Resampling.BICUBIC).save(work / "images" / f"{i:02d}.png")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, stride=2), torch.nn.ReLU()).eval()
    dynamic = {"input": {0: "n", 2: "h", 3: "w"}}
    torch.onnx.export(
        network, (torch.zeros(1, 3, 16, 16),), str(work / "features.onnx"), input_names=["input"],
        dynamic_axes=dynamic, dynamo=False,
    )  # fmt: skip
    values = reduced("ffhq")
    values["model"]["params"]["unet_config"]["params"].update(channel_mult=[1, 2], num_res_blocks=1)
    (work / "original").mkdir()
    original(values, work / "original")


def command(kind: str, work: Path, folder: Path) -> list[str]:
    """The command's arguments."""
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    slim = ["-o", str(folder), *sets]
    images, checkpoint = str(work / "images"), work / "original"
    features = ["--extractor", str(work / "features.onnx"), "-o", str(folder)]
    return {
        "pixels": ["slim", str(work / "pixels"), images, *slim, "--set", "data.workers=1", "--set", "data.crop=random"],
        "latents": ["slim", str(work / "latents"), images, *slim],
        "data-free": ["slim", str(work / "pixels"), "teacher", *slim, "--set", "data.samples.count=192",
                      "--set", "data.samples.steps=4"],
        "two processes": ["slim", str(work / "pixels"), images, *slim],
        "evaluate": ["evaluate", str(work / "pixels"), "--against", images, "-n", "192", "--steps", "2", *features],
        "sample": ["sample", str(work / "pixels"), "-n", "40", "--steps", "4", "-o", str(folder), "--batch-size", "4"],
        "export": ["export", str(work / "pixels"), "-o", str(folder), "--steps", "4"],
        "import": ["import", str(checkpoint / "model.ckpt"), "--config", str(checkpoint / "config.yaml"),
                   "-o", str(folder)],
    }[kind]  # fmt: skip


class Child:
    """A command in processes of their own, forked from this one."""

    def __init__(self, arguments: list[str], log: Path, processes: int):
        self.log, self.began = log, time.monotonic()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        self.pids = [
            self._fork(arguments, {**launch, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
            for rank in range(processes)
        ]
        self.codes: dict[int, int] = {}

    def _fork(self, arguments: list[str], launch: dict[str, str]) -> int:
        held = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, held)
        pid = os.fork()
        if pid == 0:
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1), os.dup2(out, 2)
            os.environ.update(launch)
            sys.argv = ["slimdpm", *arguments]
            silence = cli._silence_libraries

            def ready() -> None:  # a stop before the command stands would hit this script
                signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
                silence()

            cli._silence_libraries = ready
            cli.main()  # ends this process as it ends a command's
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
        return pid

    def wait(self, seconds: float) -> bool:
        """Whether all have ended within this time."""
        end = time.monotonic() + seconds
        while len(self.codes) < len(self.pids):
            for pid in self.pids:
                if pid not in self.codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                    self.codes[pid] = os.waitstatus_to_exitcode(found[1])
            if len(self.codes) < len(self.pids):
                if time.monotonic() > end:
                    return False
                time.sleep(0.005)
        return True

    def send(self, number: int, pids: list[int]) -> None:
        for pid in pids:
            if pid not in self.codes:
                os.kill(pid, number)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def torn(folder: Path) -> list[str]:
    """Files that are not whole; what is being written has another name, and a log may end in half a line."""
    found = []
    for file in (f for f in folder.rglob("*") if f.is_file() and ".tmp-" not in str(f.relative_to(folder))):
        try:
            if file.suffix == ".safetensors":
                load_file(file)
            elif file.suffix == ".json":
                json.loads(file.read_text())
            elif file.suffix == ".png":
                Image.open(file).load()
            elif file.suffix in (".npy", ".npz"):
                kept = np.load(file)
                [kept[name] for name in kept] if file.suffix == ".npz" else kept.sum()
        except Exception as error:
            found.append(f"{file.name}: {error}")
    return found


def content(kind: str, folder: Path) -> dict[str, object]:
    """What must be equal, by file: all but times and what is named after them."""
    found: dict[str, object] = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        name = str(file.relative_to(folder))
        if file.name in (".lock", "report.html") or name.startswith("logs/") or "locks" in name or "content-" in name:
            continue
        if file.name == "metrics.jsonl":
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            found[name] = [{k: v for k, v in line.items() if k not in VOLATILE} for line in lines]
        elif file.name == "state.json":
            values = json.loads(file.read_text())
            found[name] = {k: v for k, v in values.items() if k not in ("seconds", "digest")}
        elif file.suffix == ".html" or (kind == "evaluate" and file.name == "results.json"):
            found[name] = "seconds" if "seconds" in file.read_text() else "there"
            if file.name == "results.json":
                found[name] = without_times(json.loads(file.read_text()))
        elif "checkpoints/" in name and "step-00000008" not in name:
            continue  # of which steps there are others depends on where it stopped
        else:
            found[name] = file.read_bytes()
    return found


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "second" not in k and "time" not in k}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def life(kind: str, number: int, work: Path, whole: dict, seconds: float, rng: random.Random, most: int) -> dict:
    """One folder: up to `most` signals, then to the end."""
    folder, log = work / "life" / "out", work / "life" / "log.txt"
    shutil.rmtree(work / "life", ignore_errors=True)
    folder.parent.mkdir()
    processes, hits, faults, delays = 2 if kind == "two processes" else 1, 0, [], []
    while hits < most:
        log.unlink(missing_ok=True)
        child, delay = Child(command(kind, work, folder), log, processes), rng.uniform(0, 0.9 * seconds)
        if child.wait(delay):
            if any(child.codes.values()):
                faults.append(f"a resumed run failed: {child.output[-500:]}")
                break
            shutil.rmtree(folder, ignore_errors=True)  # it was quicker: once more from the start
            continue
        one = number == signal.SIGKILL and rng.random() < 0.5  # of two processes one or both; Ctrl-C reaches both
        child.send(number, child.pids[rng.randrange(processes) :][:1] if one else child.pids)
        if not child.wait(600):
            child.send(signal.SIGKILL, child.pids)
            child.wait(60)
            if number != signal.SIGKILL or processes == 1:
                faults.append(f"hung after signal {number} at {delay:.2f} s")
        hits += 1
        delays.append(round(delay, 3))
        # In the last milliseconds the interpreter has given its handlers back: the signal ends it without a word.
        allowed = {0, -9, 1, 2} if number == signal.SIGKILL else {0, 128 + number, -number}
        if number == signal.SIGKILL and processes == 1:
            allowed = {0, -9}
        if not set(child.codes.values()) <= allowed:
            faults.append(f"exit codes {sorted(child.codes.values())} after signal {number}: {child.output[-500:]}")
        faults += [f"torn: {name}" for name in torn(folder)] if folder.exists() else []
        if "Traceback" in child.output or "Exception ignored" in child.output:
            faults.append(f"traceback after signal {number} at {delay:.2f} s: {child.output[-1500:]}")
        if kind in ("import", "export") and folder.exists():  # what is whole is not written again
            faults += differences(kind, folder, whole)
            shutil.rmtree(folder)
    log.unlink(missing_ok=True)
    child = Child(command(kind, work, folder), log, processes)
    ended = child.wait(600)
    if not ended or any(child.codes.values()):
        child.send(signal.SIGKILL, child.pids)
        child.wait(60)
        faults.append(f"the last run failed: {child.output[-800:]}")
    else:
        faults += differences(kind, folder, whole)
    return {"kind": kind, "signal": signal.Signals(number).name, "hits": hits, "at": delays, "faults": faults}


def differences(kind: str, folder: Path, whole: dict) -> list[str]:
    """A fault, if a folder is not what the whole run left."""
    made = content(kind, folder)
    different = sorted(n for n in {*made, *whole} if made.get(n) != whole.get(n))
    return [f"differs from the whole run: {different[:5]}"] if different else []


def left_of(lives: list[dict], kind: str, group: str, options: argparse.Namespace) -> int:
    """How many signals of a group are still to be sent to a kind of command."""
    names = {number.name for number in GROUPS[group]}
    done = sum(one["hits"] for one in lives if one["kind"] == kind and one["signal"] in names)
    return round(SHARE[kind] * getattr(options, group) / 100) - done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "kills.json")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--kinds", nargs="*", default=list(SHARE))
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = options.work.resolve()
    if not (work / "ready").exists():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        pid = os.fork()  # this process forks: it starts no threads of its own
        if pid == 0:
            prepare(work)
            (work / "ready").touch()
            os._exit(0)
        os.waitpid(pid, 0)
    progress = work / "progress.json"
    lives = json.loads(progress.read_text()) if progress.exists() else []
    for kind in options.kinds:
        if all(left_of(lives, kind, group, options) <= 0 for group in GROUPS):
            continue
        folder, log = work / f"whole-{kind.replace(' ', '-')}", work / "whole.log"
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink(missing_ok=True)
        child = Child(command(kind, work, folder), log, 2 if kind == "two processes" else 1)
        child.wait(600)
        if any(child.codes.values()):
            sys.exit(f"{kind}: {child.output}")
        seconds, whole = time.monotonic() - child.began, content(kind, folder)
        print(f"{kind}: {seconds:.1f} s, {len(whole)} files, torn: {torn(folder)}", flush=True)
        for group, numbers in GROUPS.items():
            while (left := left_of(lives, kind, group, options)) > 0:
                count = sum(one["kind"] == kind and one["signal"] in {n.name for n in numbers} for one in lives)
                rng = random.Random(f"{kind} {group} {count}")
                number = numbers[count % len(numbers)]
                lives.append(life(kind, number, work, whole, seconds, rng, min(MOST, left)))
                progress.write_text(json.dumps(lives))
                print(kind, lives[-1]["signal"], lives[-1]["at"], *lives[-1]["faults"], flush=True)
    table = [
        {
            "kind": kind,
            **{n: sum(o["hits"] for o in lives if o["kind"] == kind and o["signal"] == n) for n in names_of(lives)},
            "lives": sum(o["kind"] == kind for o in lives),
            "faults": [fault for o in lives if o["kind"] == kind for fault in o["faults"]],
        }
        for kind in SHARE
    ]
    options.output.write_text(json.dumps({"table": table, "lives": lives}, indent=1) + "\n")
    for row in table:
        print({k: len(v) if k == "faults" else v for k, v in row.items()})


def names_of(lives: list[dict]) -> list[str]:
    return sorted({one["signal"] for one in lives})


if __name__ == "__main__":
    main()
