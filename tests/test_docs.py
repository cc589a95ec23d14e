"""The documentation says what the code does."""

import ast
import importlib
import inspect
import json
import re
import shlex
from argparse import Namespace
from pathlib import Path

import cold_start
import compiled
import demo_choices
import equal_seconds
import export_bits
import exported
import exports_agree
import free_size
import garments_guided
import garments_seconds
import garments_students
import numpy as np
import pytest
import recipe_keys
import sampler_tables
import timed_budget
import train_step
import typer
import widths
import yaml
from ablation import tables

from slimdpm.cli.main import app
from slimdpm.method.cost import measure
from slimdpm.method.presets import PRESETS, find_network
from slimdpm.recipe_file import flatten, load_recipe, validate
from slimdpm.system import amounts

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def snippets(*languages):
    """Each fenced block of these languages, called by its page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if block[1] in languages:
                line = text.count("\n", 0, block.start()) + 1
                found.append(pytest.param(block[2], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


def test_every_key_of_a_recipe_is_documented_as_it_is():
    text = recipe_keys.PAGE.read_text(encoding="utf-8")
    assert recipe_keys.page(text) == text, "run python docs/recipe_keys.py"
    defaults = flatten(validate({"data": {"path": "x"}}).model_dump(mode="json"))
    rows = re.findall(r"^\| `([a-z._]+)` \| .+ \| .+ \|$", text, re.MULTILINE)
    assert rows == list(defaults)


@pytest.mark.parametrize("file", [*sorted(ROOT.glob("recipes/*.yaml"))])
def test_every_recipe_is_valid(file):
    recipe = load_recipe(file)
    if recipe.student.base is not None:
        find_network(recipe.student.base)


def commands(block):
    """The words of each command of slimdpm in a block of a shell."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for start in ("slimdpm", "slimdpm.cli"):
            if start in words:
                yield words[words.index(start) + 1 :]


@pytest.mark.parametrize("block", snippets("bash", "sh", "console"))
def test_commands_of_the_docs_are_understood(block):
    keys = flatten(validate({"data": {"path": "x"}}).model_dump(mode="json"))
    for words in commands(block):
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            assert words[0] in command.commands, words
            command, words = command.commands[words[0]], words[1:]
        given = command.make_context(command.name, list(words)).params  # unknown options and missing words raise
        for setting in given.get("set_") or ():
            assert setting.partition("=")[0] in keys, setting


class Calls(ast.NodeVisitor):
    """What a snippet imports exists, and takes what it is called with."""

    def __init__(self):
        self.known = {}

    def visit_Import(self, node):
        for alias in node.names:
            importlib.import_module(alias.name)
            name = alias.asname or alias.name.split(".")[0]
            self.known[name] = importlib.import_module(alias.name if alias.asname else name)

    def visit_ImportFrom(self, node):
        module = importlib.import_module(node.module)
        for alias in node.names:
            self.known[alias.asname or alias.name] = getattr(module, alias.name)

    def of(self, node):
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute) and (owner := self.of(node.value)) is not None:
            return getattr(owner, node.attr)
        return None

    def visit_Attribute(self, node):
        self.of(node)
        self.generic_visit(node)

    def visit_Call(self, node):
        self.generic_visit(node)
        called = self.of(node.func)
        if getattr(called, "__module__", "").startswith("slimdpm"):
            given = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(called).bind_partial(*node.args, **given)


@pytest.mark.parametrize("block", snippets("python"))
def test_python_of_the_docs_calls_what_there_is(block):
    visitor = Calls()
    visitor.known["slimdpm"] = importlib.import_module("slimdpm")  # of the snippet before it on the page
    visitor.visit(ast.parse(block))


@pytest.mark.parametrize("block", snippets("yaml"))
def test_yaml_of_the_docs_has_known_keys(block):
    known = flatten(validate({"data": {"path": "x"}}).model_dump(mode="json"))
    given = flatten(yaml.safe_load(block))
    assert all(key in known or key.startswith("student.overrides") for key in given)


@pytest.mark.parametrize("block", snippets("json"))
def test_json_of_the_docs_is_json(block):
    for line in [block] if block.lstrip().startswith(("[", "{\n")) else block.splitlines():
        json.loads(line)


def rows(*first):
    """The rows of the pages' tables that begin with these cells, without them."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
            if line.startswith("|") and tuple(cells[: len(first)]) == first:
                yield cells[len(first) :]


@pytest.mark.parametrize(("frequencies", "key"), [("all", "overall"), ("upper half", "upper")])
def test_the_table_of_the_crops_is_that_of_its_results(frequencies, key):
    results = json.loads((ROOT / "benchmarks/results/demo_variants.json").read_text())["results"]

    def errors(name):  # (seeds, noise levels)
        return np.array([results[name][str(seed)][key] for seed in range(3)])

    lite, ours = errors("lite"), errors("default")
    (told,) = rows(frequencies, "error of Lite")
    assert [float(cell) for cell in told] == pytest.approx([*lite.mean(0), lite.mean()], rel=0.06, abs=6e-5)
    (told,) = rows(frequencies, "Spectral ÷ Lite")
    figures = [float(figure) for figure in re.findall(r"[0-9.]+", " ".join(told))]
    ratios = ours / lite
    expected = [*ratios.mean(0), ratios.mean(), *ratios.mean(1)]
    assert figures == pytest.approx(expected, abs=0.00501)


def test_tables_of_the_ablation_are_those_of_its_results():
    results = json.loads((ROOT / "benchmarks/results/ablation_32.json").read_text())
    made = [tables.markdown(*make(results)) for make in (tables.headlines, tables.effects, tables.changes, tables.rows)]
    lines = [line for table in made for line in table.splitlines()]
    headings = {table.splitlines()[0] for table in made}
    found = 0
    for page in [*PAGES, ROOT / "benchmarks/results/ablation_32.md"]:
        table = []
        for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
            if line.startswith("|"):
                table.append(line)
            elif table:
                if table[0] in headings:
                    found += 1
                    assert not [row for row in table if row not in lines], page
                table = []
    assert found >= 3


FINDINGS = {  # a row's beginning, and the student of the ablation that it is
    "Spectral from random weights": "spectral",
    "Spectral from the teacher's weights": "spectral from teacher",
    "the same with min-SNR": "spectral from teacher, min-SNR",
}


@pytest.mark.parametrize("about", FINDINGS)
def test_findings_are_those_of_the_ablation(about):
    results = json.loads((ROOT / "benchmarks/results/ablation_32.json").read_text())
    found = tables.summaries(results, FINDINGS[about])
    (told,) = [row[1:] for row in rows() if row[0].startswith(about)]
    low, high = found["kernel distance"].interval
    assert told[0] == f"{found['kernel distance'].mean:.2f} ({low:.2f} to {high:.2f})"
    assert told[1:3] == [f"{found[key].mean:.2f}" for key in ("error of ε", "upper half")]


def test_gated_and_plain_differ_by_what_the_ablation_measured():
    cells = json.loads((ROOT / "benchmarks/results/ablation_32.json").read_text())["cells"]
    names = ("spectral from teacher", "lite + distilled from teacher", "lite")
    gated, plain, lite = ([cells[name]["seeds"][seed]["measures"] for seed in "012"] for name in names)

    def kernel(some, others):
        return np.mean(
            [one["kernel distance"] / other["kernel distance"] for one, other in zip(some, others, strict=True)]
        )

    (told,) = rows("kernel distance of the samples ÷ Lite's")
    assert told == [f"{kernel(gated, lite):.3f}", f"{kernel(plain, lite):.3f}"]
    text = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    assert f"The gated student has {kernel(gated, plain):.3f} of the plain one's kernel distance" in text


def test_findings_at_equal_seconds_are_those_measured():
    for name in ("", "_weighed", "_weighed_300"):
        results = json.loads((ROOT / f"benchmarks/results/equal_seconds{name}.json").read_text())
        assert equal_seconds.table(results) in (ROOT / "docs/findings.md").read_text(encoding="utf-8")
    minutes = json.loads((ROOT / "benchmarks/results/demo_choices.json").read_text())["networks"]
    assert demo_choices.table(minutes) in (ROOT / "docs/findings.md").read_text(encoding="utf-8")


def test_the_students_of_garments_are_worth_what_was_measured():
    findings = (ROOT / "docs/findings.md").read_text(encoding="utf-8")
    for benchmark in (garments_students, garments_seconds, garments_guided):
        results = json.loads((ROOT / f"benchmarks/results/{benchmark.__name__}.json").read_text())
        assert benchmark.table(results) in findings
    for name in ("epsilon", "cpu"):
        results = json.loads((ROOT / f"benchmarks/results/garments_seconds_{name}.json").read_text())
        assert garments_seconds.table(results) in findings


def test_the_distilled_student_follows_its_teacher_as_closely_as_was_measured():
    networks = json.loads((ROOT / "benchmarks/results/garments_seconds.json").read_text())["networks"]
    plain, lite = (
        [networks[f"12-{kind}-{seed}"][garments_seconds.APART] for seed in range(3)] for kind in ("plain", "lite")
    )
    ratio = np.mean(np.divide(plain, lite))
    for page in ("README.md", "docs/findings.md"):
        assert f"{ratio:.2f} as far from the teacher's" in (ROOT / page).read_text(encoding="utf-8").replace("\n ", "")


def test_costs_of_presets_are_those_counted():
    told = {name[1]: row[1:] for row in rows() if (name := re.match(r"`([\w-]+)`", row[0])) and name[1] in PRESETS}
    assert len(told) >= 5
    for name, (params, macs, macs_all, _) in told.items():
        cost = measure(PRESETS[name].config, tokens=PRESETS[name].tokens)
        assert params == amounts.parameters(cost.params)
        assert (macs, macs_all) == (amounts.macs(cost.macs), amounts.macs(cost.macs_all))


def test_the_demos_student_is_beside_lite_where_it_was_measured():
    seeds = json.loads((ROOT / "benchmarks/results/demo_seeds.json").read_text())
    error, upper, distance = (
        f"{np.mean([seed['plain'][what] for seed in seeds]):.3f}" for what in ("error", "upper half", "kernel distance")
    )
    pages = ("docs/findings.md", "README.md")
    findings, readme = (" ".join((ROOT / page).read_text(encoding="utf-8").split()) for page in pages)
    assert f"three seeds: {error} of its error, {upper} of that in the upper half and {distance} of" in findings
    assert f"{error} and {distance}, with good" in readme
    assert max(seed["plain"]["kernel distance"] for seed in seeds) < 1


def test_compiling_is_worth_what_was_measured():
    results = json.loads((ROOT / "benchmarks/results/compiled.json").read_text())
    assert compiled.table(results) in (ROOT / "docs/cost.md").read_text(encoding="utf-8")


def test_steps_on_a_gpu_take_as_long_as_was_measured():
    results = json.loads((ROOT / "benchmarks/results/train_step_cuda.json").read_text())
    (family,) = results["families"].values()
    told = train_step.table(family["seconds"], family["macs"], Namespace(peak=989, batch=results["batch"]))
    assert told in (ROOT / "docs/cost.md").read_text(encoding="utf-8")


def test_kills_are_those_that_were_tried():
    table = json.loads((ROOT / "benchmarks/results/kills.json").read_text())["table"]
    assert not [fault for row in table for fault in row["faults"]]
    kills, stops = (sum(row[name] for row in table for name in names) for names in (["SIGKILL"], ["SIGINT", "SIGTERM"]))
    assert f"{kills} kills and {stops} stops at random moments" in (ROOT / "docs/cache.md").read_text(encoding="utf-8")
    (exported,) = [row["SIGKILL"] for row in table if row["kind"] == "export"]
    assert f"{exported} kills at random moments of an export" in (ROOT / "docs/run-anywhere.md").read_text("utf-8")


def test_milliseconds_are_those_measured():
    families = json.loads((ROOT / "benchmarks/results/latency.json").read_text())["families"]
    names = {"crops, 32×32": "demo", "garments, 32×32": "garments"}
    told = [row for row in rows() if row[0].partition(":")[0] in names]
    assert len(told) == 6
    for about, params, macs, *images in told:
        family, _, network = about.partition(": ")
        found, network = families[names[family]], network.lower()
        for figure, key in ((params, "params"), (macs, "macs")):
            assert float(figure.split()[0]) == pytest.approx(found["networks"][network][key] / 1e6, rel=0.005)
        for batch, figures in zip((1, 8), images, strict=True):
            measured = found["milliseconds"][f"one thread, processor time, batch {batch}"][network].values()
            assert [float(f) for f in re.findall(r"[0-9.]+", figures)] == pytest.approx([*measured], rel=0.01)


def test_a_budget_in_time_is_worth_what_was_measured():
    page = (ROOT / "docs/cost.md").read_text(encoding="utf-8")
    distances = {}
    for runtime in ("pytorch", "onnxruntime"):
        results = json.loads((ROOT / f"benchmarks/results/timed_budget_32_{runtime}.json").read_text())
        assert timed_budget.table(results).strip() in page
        for name in results["networks"].keys() - {"teacher"}:
            pairs = [(seed[name], seed["ratio 12"]) for seed in results["seeds"].values()]
            distances[runtime, name] = np.mean([a["kernel distance"] / b["kernel distance"] for a, b in pairs])
    shallow, deep = (distances["pytorch", name] for name in ("in time", "in time, deepest"))
    assert f"{shallow:.2f} of its kernel distance" in page and f"has {deep:.2f} of it" in page.replace("\n", " ")
    exported_too = distances["onnxruntime", "in time"]
    assert f"with {exported_too:.2f} of its kernel distance" in page.replace("\n", " ")
    assert f"`--speedup 5` has {exported_too:.2f}" in (ROOT / "docs/findings.md").read_text(encoding="utf-8")
    widths_table = widths.table(json.loads((ROOT / "benchmarks/results/widths.json").read_text()))
    assert widths_table.strip() in page
    for beside in ("README.md", "docs/findings.md"):
        assert f"{shallow:.2f} of its kernel distance" in (ROOT / beside).read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"has {shallow / deep:.2f} of the\n  kernel distance of a deep" in changelog


def test_how_much_faster_exported_students_are_is_what_was_measured():
    page = (ROOT / "docs/run-anywhere.md").read_text(encoding="utf-8").replace("\n", " ")
    families = json.loads((ROOT / "benchmarks/results/exported.json").read_text())["families"]
    teacher, student = (families["ffhq"][name]["milliseconds"] for name in ("teacher", "spectral"))
    eager, exported_too = teacher["eager"] / student["onnx"], teacher["onnx"] / student["onnx"]
    assert f"call is {eager:.1f} times faster than the eager teacher's** and {exported_too:.1f} times than the" in page
    assert f"[{int(eager)} times faster](docs/run-anywhere.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    crops, ours = ({n: values["milliseconds"] for n, values in families[f].items()} for f in ("crops", "demo"))
    shallow = crops["teacher"]["eager"] / crops["shallow"]["onnx"]
    demo = ours["teacher"]["eager"] / ours["plain"]["onnx"]
    assert f"The student of `make demo` is {demo:.1f} times faster" in page
    assert f"for no more MACs: {shallow:.1f} times faster than the eager teacher" in page
    assert f"[{int(shallow)} times faster](docs/run-anywhere.md#how-fast" in (ROOT / "README.md").read_text("utf-8")


def test_what_a_first_image_takes_is_what_was_measured():
    ways = json.loads((ROOT / "benchmarks/results/cold_start.json").read_text())["ways"]
    ours, theirs = (
        (f"{ways[way]['installed'] / 1e6:.0f} MB", f"{ways[way]['seconds']:.1f} s")
        for way in ("generate.py, ONNX Runtime", "diffusers")
    )
    sentence = f"{ours[0]} to install and {ours[1]} to a first small image, with diffusers {theirs[0]} and {theirs[1]}"
    assert sentence in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("exported", exported.table),
        ("export_bits", lambda found: export_bits.table(found["weights"])),
        ("free_size", free_size.table),
        ("exports_agree", exports_agree.table),
        ("cold_start", cold_start.table),
        ("sampler_tables", lambda found: sampler_tables.table(found["samplers"])),
    ],
)
def test_tables_of_exported_folders_are_what_was_measured(name, table):
    results, page = ROOT / "benchmarks/results", (ROOT / "docs/run-anywhere.md").read_text(encoding="utf-8")
    told = [row for row in table(json.loads((results / f"{name}.json").read_text())).splitlines() if row[:1] == "|"]
    assert len(told) > 4 and not [line for line in told if line not in page]
