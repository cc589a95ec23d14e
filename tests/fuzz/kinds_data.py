"""Data sets: shards, arrays, metadata, captions, labels, and folders with odd things in them."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from .base import QUICK, Base, sets
from .case import Case, kind
from .mutate import copied, mutated, scarred, wild


def use(rng: Random, data: Path, folder: Path, base: Base, teacher: str = "") -> list[Any]:
    """A command that reads a data set, by the side of a teacher that wants classes, captions or neither."""
    teacher = teacher or rng.choice(["pixel", "class", "text"])
    picked = 1.0 if base.quick else rng.random()
    if picked < 0.12:
        measured = ["evaluate", base.teacher(teacher), "--against", data, "-n", 10, "--steps", 1]
        return [*measured, "--extractor", base.extractor, "-o", folder / "out"]
    if picked < 0.25:
        return [
            "analyze",
            base.teacher("pixel"),
            "--against",
            data,
            "-n",
            4,
            "--samples",
            2,
            "--steps",
            1,
            "-o",
            folder / "out",
        ]
    words = ["slim", base.teacher(teacher), data, "-o", folder / "out", "--steps", 1, *sets(*QUICK)]
    return words if picked < 0.25 else [*words, "--dry-run"]


def _tar(rng: Random, members: list[tuple[bytes, bytes]], form: int, change: Any = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            member.size = len(data)
            if change is not None:
                change(member)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def _resealed(data: bytearray, at: int) -> None:
    """Mend the checksum of the header at this place, so that what was changed in it counts."""
    data[at + 148 : at + 156] = b" " * 8
    total = sum(data[at : at + 512])
    data[at + 148 : at + 156] = b"%06o\0 " % total


@kind(45)
def tar_headers(rng: Random, folder: Path, base: Base) -> Case:
    """A field of one header changed, its checksum right; or bytes anywhere."""
    data = bytearray((base.folder / "images.tar").read_bytes())
    starts = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.choice(starts[:6] if rng.random() < 0.5 else starts)
        field = rng.choice(["size", "name", "type", "magic", "mode", "mtime", "prefix", "bytes", "cut", "linkname"])
        sizes = [
            b"77777777777\0",
            b"00000000000\0",
            b"-0000001000\0",
            b"\x80" + b"\xff" * 11,
            b"\xff" * 11 + b"\x00",
            b"xyz" + bytes(9),
            b"\xff" * 10 + b"\xfe\x00",
            b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7,
            bytes(12),
        ]
        if field == "size":
            data[at + 124 : at + 136] = rng.choice(sizes)
        elif field == "name":
            names = [
                b"../../CANARY.png",
                b"/CANARY.png",
                b"\xff\xfe.png",
                b"\x1b[31m.png",
                b".png",
                b"a/b/c.cls",
                b"x" * 100,
                b"",
            ]
            data[at : at + 100] = rng.choice(names)[:100].ljust(100, b"\0")
        elif field == "type":
            data[at + 156 : at + 157] = rng.choice(
                [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"g", b"x", b"L", b"K", b"S", b"\xff"]
            )
        elif field == "magic":
            data[at + 257 : at + 265] = rng.choice([b"ustar  \0", b"xxxxx\x0000", bytes(8)])
        elif field in ("mode", "mtime", "prefix", "linkname"):
            place, length = {"mode": (100, 8), "mtime": (136, 12), "prefix": (345, 155), "linkname": (157, 100)}[field]
            data[at + place : at + place + length] = rng.choice(
                [rng.randbytes(length), b"\xff" * length, b"9" * length]
            )
        elif field == "bytes":
            data[at : at + 512] = scarred(bytes(data[at : at + 512]), rng)[0][:512].ljust(512, b"\0")
        else:
            del data[rng.randrange(len(data)) :]
            break
        if rng.random() < 0.9:
            _resealed(data, at)
    (folder / "x.tar").write_bytes(data)
    return Case(use(rng, folder / "x.tar", folder, base), note=field)


@kind(30)
def tar_members(rng: Random, folder: Path, base: Base) -> Case:
    """Shards that are whole, with odd members in them."""
    files = [file.read_bytes() for file in sorted(base.images.iterdir())]
    labels = [b"%d" % (i % 3) for i in range(12)]
    captions = [b"a dress"] * 12
    odd = rng.choice(["label", "caption", "name", "link", "pax", "gnu", "many", "order", "twice", "empty", "none"])
    worst = {
        "label": [
            b"9" * 5000,
            b"-1",
            b"100000000",
            b"",
            b"\xff",
            b"1.5",
            b"nan",
            b"\x1b[31m",
            b"0x10",
            b"1\n2",
            "٣".encode(),
        ],
        "caption": [b"", b"\xff\xfe", b"x" * 3_000_000, b"\x1b[2J", b"\n\n", b"\x00", b"a" * 5000],
    }
    where = range(12) if rng.random() < 0.3 else [rng.randrange(12)]
    for i in where:
        labels[i] = rng.choice(worst["label"]) if odd == "label" else labels[i]
        captions[i] = rng.choice(worst["caption"]) if odd == "caption" else captions[i]
    members = []
    for i, (image, label, caption) in enumerate(zip(files, labels, captions, strict=True)):
        name = b"%02d" % i
        if odd == "name" and i in where:
            name = rng.choice(
                [
                    b"\xff\xfe",
                    b"../up",
                    b"/abs",
                    b"x" * 4000,
                    b"a\nb",
                    b"\x1b[31m",
                    b"",
                    "é".encode(),
                    b".hidden",
                    b"a.b",
                ]
            )
        members += [(name + b".png", image), (name + b".cls", label), (name + b".txt", caption)]
    if odd == "order":
        rng.shuffle(members)
    elif odd == "twice":
        members += members[:5]
    elif odd == "empty":
        members = [(name, b"") for name, _ in members]
    elif odd == "none":
        members = []
    elif odd == "many":
        members += [(b"%d.cls" % i, b"1") for i in range(3000)]

    def change(member: tarfile.TarInfo) -> None:
        if odd == "link":
            member.type, member.linkname = (
                rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE]),
                "/etc/passwd",
            )
            member.size = 0
        elif odd == "pax":
            key = rng.choice(
                [
                    "size",
                    "path",
                    "GNU.sparse.major",
                    "GNU.sparse.map",
                    "GNU.sparse.realsize",
                    "mtime",
                    "hdrcharset",
                    "\x1b",
                ]
            )
            member.pax_headers = {
                key: rng.choice(["99999999999999999999", "-5", "abc", "", "1,2,3", "nan", "x" * 3000])
            }

    form = (
        tarfile.GNU_FORMAT if odd == "gnu" else tarfile.PAX_FORMAT if odd in ("pax", "name") else tarfile.USTAR_FORMAT
    )
    try:
        data = _tar(rng, members, form, change)
    except (ValueError, UnicodeError):
        data = _tar(rng, members, tarfile.GNU_FORMAT)
    (folder / "shards").mkdir()
    (folder / "shards" / "0.tar").write_bytes(data)
    if rng.random() < 0.2:
        (folder / "shards" / "1.tar").write_bytes(scarred(data, rng)[0])
    return Case(use(rng, folder / "shards", folder, base), note=odd)


@kind(40)
def arrays(rng: Random, folder: Path, base: Base) -> Case:
    """``.npy`` and ``.npz``: other kinds, shapes and names, pickles, scars."""
    good = np.load(base.folder / "images.npy")
    images = rng.choice(
        [
            good,
            good,
            good.astype(np.float32) / 255,
            good.astype(np.int64),
            good[..., :2],
            good[:0],
            good[0],
            good[..., None],
            good.view(bool),
            np.array(["a", "b"]),
            np.array([good[0], None], dtype=object),
            good.transpose(0, 3, 1, 2).copy(),
            good[:, :0],
            np.zeros((2, 2), "V8"),
            good[..., 0],
            np.zeros((3, 1, 100_000, 3), np.uint8),
            good.astype(">u2"),
            np.array(5, np.uint8),
            good[:1],
        ]
    )
    labels = rng.choice(
        [
            np.arange(12) % 3,
            np.arange(12) - 5,
            np.full(12, 10**8),
            np.full(12, 2**62),
            np.arange(12) / 3,
            np.full(12, np.nan),
            np.arange(11),
            np.array(["a", "b", "c"] * 4),
            np.array(["", "b", "c"] * 4),
            np.array([b"a"] * 12),
            np.zeros((12, 3)),
            np.array([None] * 12, dtype=object),
            np.arange(12).astype("M8[s]"),
            np.ones(12, complex),
            np.ones(12, bool),
            np.array(["\x1b[31m"] * 12),
            np.arange(12, dtype=np.uint64),
        ]
    )
    captions = rng.choice(
        [np.array(["a dress"] * 12), np.array(["x" * 100_000] * 12), np.arange(12), np.array([""] * 12), np.array(5)]
    )
    file = folder / f"x.{rng.choice(['npy', 'npz', 'npz', 'npz'])}"
    if file.suffix == ".npy":
        np.save(file, images, allow_pickle=True)
    else:
        name = rng.choice(["images", "images", "arr_0", "x", "../x", "\x1b[31m"])
        saved = {name: images, "labels": labels, "captions": captions}
        (np.savez if rng.random() < 0.7 else np.savez_compressed)(file, **saved)
    note = f"{images.dtype}{images.shape} {labels.dtype}{labels.shape} {captions.dtype}"
    if rng.random() < 0.5:
        data, scars = scarred(file.read_bytes(), rng, 128)
        file.write_bytes(data)
        note += f" {scars}"
    elif rng.random() < 0.2:
        header = rng.choice(
            [
                b"{'descr': '|u1', 'fortran_order': False, 'shape': (10**9, 16, 16, 3)}",
                b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
                b"__import__('os').system('touch CANARY-npy')",
                b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 16, 16, 3)}",
                b"(" * 5000,
            ]
        )
        file = folder / "x.npy"
        file.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100))
        note = repr(header[:60])
    return Case(use(rng, file, folder, base), note=note)


CELLS: list[Any] = [
    None,
    "",
    " ",
    5,
    -1,
    1.5,
    True,
    [],
    ["a", "b"],
    {"a": 1},
    10**8,
    10**30,
    "9" * 5000,
    "x" * 100_000,
    "\x1b[31m",
    "a\nb",
    float("nan"),
    "٣",
    "\ud800",
    [[]],
    "C:\\x",
    "1e5",
    "²",
]


@kind(50)
def metadata(rng: Random, folder: Path, base: Base) -> Case:
    """``metadata.jsonl`` and ``metadata.csv``: wild cells, lines and bytes."""
    data = copied(base.images, folder / "data")
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (base.labelled / "metadata.jsonl").read_text().splitlines()
    ]
    keys = ["file_name", "label", "text"]
    notes = []
    for _ in range(rng.choice([1, 1, 3])):
        how, row = rng.randrange(6), rng.choice(rows)
        if how < 3:
            key, value = rng.choice(keys), rng.choice(CELLS)
            for one in rows if rng.random() < 0.3 else [row]:
                one[key] = value
            notes.append(f"{key} = {value!r}"[:80])
        elif how == 3:
            row.pop(rng.choice(keys), None)
        elif how == 4:
            row["file_name"] = rng.choice(
                ["../../etc/passwd", "/etc/passwd", "none.png", "./00.png", "part\\00.png", "x" * 500, "00.PNG", "\x00"]
            )
            notes.append(row["file_name"][:40])
        else:
            rows.append(dict(row))
    name = rng.choice(["metadata.jsonl", "metadata.jsonl", "metadata.csv"])
    if name.endswith("csv"):
        text = io.StringIO()
        table = csv.DictWriter(text, keys, extrasaction="ignore", delimiter=rng.choice([",", ",", ";"]))
        table.writeheader()
        table.writerows(rows)
        raw = text.getvalue().encode("utf-8", "surrogatepass")
    else:
        raw = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows).encode(
            "utf-8", "surrogatepass"
        )
    if rng.random() < 0.35:
        raw, scars = scarred(raw, rng, len(raw))
        notes.append(scars)
    elif rng.random() < 0.1:
        raw = rng.choice(
            [
                b"",
                b"\n\n",
                b"[]\n",
                b"[" * 50_000,
                b"\xff\xfe",
                b'{"file_name": "00.png", "label": ' + b"9" * 6000 + b"}\n",
                b"file_name\n",
                b"\x00",
            ]
        )
    (data / name).write_bytes(raw)
    return Case(use(rng, data, folder, base, rng.choice(["class", "text"])), note=f"{name} {'; '.join(notes)}")


@kind(15)
def other_tables(rng: Random, folder: Path, base: Base) -> Case:
    """``dataset.json`` of the StyleGAN tools, and parquet."""
    data = copied(base.images, folder / "data")
    if rng.random() < 0.6:
        labels = {"labels": [[f"{i:02d}.png", i % 3] for i in range(12)]}
        values, note = mutated(labels, rng)
        raw = json.dumps(values).encode("utf-8", "surrogatepass")
        if rng.random() < 0.2:
            raw, note = scarred(raw, rng)
        (data / "dataset.json").write_bytes(raw)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {
            "file_name": [f"{i:02d}.png" for i in range(12)],
            "label": [i % 3 for i in range(12)],
            "text": ["a dress"] * 12,
        }
        key = rng.choice(sorted(columns))
        columns[key] = rng.choice(
            [[None] * 12, [b"\xff"] * 12, [1.5] * 12, [["a", "b"]] * 12, ["\x1b[31m"] * 12, [2**40] * 12, [True] * 12]
        )
        pq.write_table(pa.table(columns), data / "metadata.parquet")
        note = f"parquet {key} {columns[key][0]!r}"
        if rng.random() < 0.5:
            raw, scars = scarred((data / "metadata.parquet").read_bytes(), rng)
            (data / "metadata.parquet").write_bytes(raw)
            note += scars
    return Case(use(rng, data, folder, base, rng.choice(["class", "text"])), note=note)


@kind(15)
def caption_files(rng: Random, folder: Path, base: Base) -> Case:
    data = copied(base.captioned, folder / "data")
    choices = [b"", b"\xff\xfe\x00", b"x" * 5_000_000, b"\x1b[2Jx", b"\n", b"\x00", "é".encode("latin-1"), b"a\r\nb"]
    file = data / f"{rng.randrange(12):02d}.txt"
    how = rng.choice(["bytes", "gone", "folder", "pipe", "loop", "zero"])
    file.unlink()
    if how == "bytes":
        file.write_bytes(rng.choice(choices))
    elif how == "folder":
        file.mkdir()
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "loop":
        file.symlink_to(file.name)
    elif how == "zero":
        file.symlink_to("/dev/zero")
    return Case(use(rng, data, folder, base, "text"), note=how)


@kind(30)
def data_folders(rng: Random, folder: Path, base: Base) -> Case:
    """Odd things amid images: pipes, devices, loops, names of all bytes."""
    source = rng.choice(["images", "classes", "labelled"])
    data = copied(base.folder / source, folder / "data")
    notes = []
    for _ in range(rng.choice([1, 2, 4])):
        name = rng.choice(
            [
                b"x.png",
                b"metadata.jsonl",
                b"dataset.json",
                b"dataset_info.json",
                b"x.tar",
                b"x.txt",
                b"a\xff\xfe.png",
                b"\x1b[31m.png",
                b"a\nb.png",
                b"n" * 250 + b".png",
                b".hidden.png",
                b"._x.jpg",
                b"__MACOSX",
                b".ipynb_checkpoints",
                b"10",
                b"\xff",
                b"dataset_dict.json",
                b"state.json",
                b"metadata.csv",
                b"-o.png",
                b"model_index.json",
                b"recipe.yaml",
            ]
        )
        where = os.path.join(os.fsencode(rng.choice([data, *[p for p in data.iterdir() if p.is_dir()]])), name)
        how = rng.choice(["pipe", "folder", "loop", "zero", "full", "dangling", "up", "empty", "image", "unreadable"])
        if os.path.lexists(where):
            continue
        if how == "pipe":
            os.mkfifo(where)
        elif how == "folder":
            os.mkdir(where)
        elif how in ("loop", "zero", "full", "dangling", "up"):
            targets = {"loop": name, "zero": b"/dev/zero", "full": b"/dev/full", "dangling": b"/nowhere", "up": b".."}
            os.symlink(targets[how], where)
        elif how == "empty":
            Path(os.fsdecode(where)).touch()
        else:
            Path(os.fsdecode(where)).write_bytes((base.images / "00.png").read_bytes())
            if how == "unreadable":
                os.chmod(where, 0)
        notes.append(f"{name!r} {how}")
    return Case(use(rng, data, folder, base), note=f"{source} {'; '.join(notes)}"[:300])


@kind(20)
def data_words(rng: Random, folder: Path, base: Base) -> Case:
    """What stands where the data should."""
    (folder / "empty").mkdir()
    (folder / "file.txt").write_text("x")
    os.mkfifo(folder / "pipe.npz")
    os.mkfifo(folder / "pipe.tar")
    (folder / "dir.npz").mkdir()
    (folder / "dir.tar").mkdir()
    (folder / "zero.npy").symlink_to("/dev/zero")
    (folder / "zero.tar").symlink_to("/dev/zero")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    (folder / "hf").mkdir()
    (folder / "hf" / rng.choice(["dataset_info.json", "dataset_dict.json"])).write_bytes(
        rng.choice([b"{}", b"[", b"", b'{"splits": ["a"]}'])
    )
    words = [
        "empty",
        "file.txt",
        "pipe.npz",
        "pipe.tar",
        "dir.npz",
        "dir.tar",
        "zero.npy",
        "zero.tar",
        "loop",
        "pipe",
        "hf",
        "hf:nobody/nothing",
        "hf:",
        "hf:..",
        "hf:\x1b[31m",
        "demo:",
        "demo:x",
        "demo:teacher",
        "",
        " ",
        "/dev/zero",
        "/dev/stdin",
        "/proc",
        "x" * 5000,
        "a/" * 3000,
        "\udcff",
        "~nobody/x",
        "http://127.0.0.1:9/x",
        "hf:hf",
        "-",
        "*.png",
        "data:x",
    ]
    word = rng.choice(words)
    words = use(rng, Path(word), folder, base)
    return Case([word if w == Path(word) else w for w in words], "refused", note=repr(word)[:80])


@kind(12)
def labels_of_folders(rng: Random, folder: Path, base: Base) -> Case:
    """Class folders of odd names; `--class` by number and name."""
    data = folder / "data"
    names = rng.choice(
        [
            ["0", "1", "10"],
            ["a", "A", "á"],
            ["\x1b[31m", "b"],
            ["00000", "00001"],
            ["x" * 200, "y"],
            ["-1", "1"],
            ["1", "01"],
            ["²", "1"],
        ]
    )
    for i, name in enumerate(names):
        (data / name).mkdir(parents=True)
        for k in range(4):
            (data / name / f"{i}{k}.png").write_bytes((base.images / f"{k:02d}.png").read_bytes())
    return Case(use(rng, data, folder, base, "class"), note=repr(names)[:100])


@kind(10)
def python_objects(rng: Random, folder: Path, base: Base) -> Case:
    """What only Python can hand to `slimdpm.slim`."""
    import slimdpm
    from slimdpm import load_pipeline

    good = np.load(base.folder / "images.npy")
    data = rng.choice(
        [
            None,
            5,
            good.astype(float),
            good[:0],
            [good],
            {"images": good},
            object(),
            good[0],
            Path("nowhere"),
            b"x",
            "x",
            wild(rng),
            slimdpm,
        ]
    )
    teacher: Any = rng.choice([base.teacher("pixel"), None, 5, wild(rng), slimdpm, "pipeline", "pipeline"])
    options = rng.choice(
        [
            {},
            {"steps": 1},
            {"steps": wild(rng)},
            {"ratio": wild(rng)},
            {"output": 5},
            {"nothing": 1},
            {"recipe": wild(rng)},
        ]
    )

    def call() -> None:
        from slimdpm.api import slim

        pipeline = load_pipeline(str(base.teacher("pixel"))) if teacher == "pipeline" else teacher
        try:
            slim(pipeline, data, **{"output": str(folder / "out"), **options})
        except TypeError as error:  # as Python's own about arguments
            if "argument" not in str(error):
                raise

    return Case(call=call, note=f"{type(teacher).__name__} {type(data).__name__} {options}"[:200])
