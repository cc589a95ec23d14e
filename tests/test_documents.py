"""What others wrote: YAML and JSON within bounds, and messages that a terminal can show."""

import json
import os
import signal
import subprocess
import sys

import pytest
import yaml
from helpers import TINY, Forked

import slimdpm_command
from slimdpm.cli import main as cli
from slimdpm.method.networks import build, check_config
from slimdpm.recipe_file import load_recipe
from slimdpm.system.documents import parse_json, parse_yaml, read_bytes, read_json, read_yaml
from slimdpm.system.errors import SlimdpmError, blamed
from slimdpm.system.text import one_line
from slimdpm.training import plan
from slimdpm.training.plan import plan_job

NESTED = "[" * 300 + "]" * 300
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x: !!int abc", "no valid YAML: invalid literal"),
        ("x: !!bool abc", "no valid YAML"),
        ("x: 2020-99-99", "no valid YAML: month"),
        ("x: " + "9" * 5000, "no valid YAML"),
        ("x: " + "9" * 40, "more than 32 digits"),
        (f"x: {NESTED}", "beyond reason"),
        (f"x: {'[' * 5000}", "nested too deeply"),
        (BOMB, "beyond reason"),
        ("x: &x [*x]", "beyond reason"),
        ("x: 1\nx: 2", "the key x stands there twice (line 2)"),
        ("x: {? [a] : 1}", "is refused"),
        ("x: !!python/object/apply:os.system ['true']", "is refused: it asks for more than data"),
        ("x: [", "no valid YAML (line 1)"),
        ("x: \x00", "no valid YAML"),
    ],
)
def test_a_yaml_that_is_no_plain_data_is_one_line(text, words):
    with pytest.raises(SlimdpmError) as error:
        parse_yaml(text, "it")
    assert words in str(error.value) and len(str(error.value)) <= 500 and str(error.value).isprintable()


@pytest.mark.parametrize("text", ["x: &a {y: 1}\nz: {<<: *a, w: 2}", "- 1\n- 2.5\n- yes", "", "{a: {b: [1, {c: d}]}}"])
def test_plain_yaml_is_what_pyyaml_makes_of_it(text):
    assert parse_yaml(text, "it") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ('{"a": 1, "a": 2}', "the key a stands there twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": ' + "1" * 5000 + "}", "more than 32 digits"),
    ],
)
def test_a_json_that_is_no_plain_data_is_one_line(text, words):
    with pytest.raises(SlimdpmError, match=words):
        parse_json(text, "it")
    assert parse_json('{"a": [1, -2.5e3, null, "ä"]}', "it") == {"a": [1, -2500.0, None, "ä"]}


def test_only_regular_files_of_some_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(100))
    (tmp_path / "latin").write_bytes("é: 1".encode("latin-1"))
    for file, words in [
        (tmp_path / "pipe", "is no regular file"),
        ("/dev/zero", "is no regular file"),
        (tmp_path, "is a folder"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
        (f"{tmp_path}/a\0b", "cannot be read"),
        (tmp_path / "large", "is too large: 100 bytes, 50 are read"),
    ]:
        with pytest.raises(SlimdpmError, match=words):
            read_bytes(file, 50)
    for read in (read_json, read_yaml):
        with pytest.raises(SlimdpmError, match="line 1 is not valid UTF-8"):
            read(tmp_path / "latin")


def test_messages_are_one_printable_line():
    wild = "\x1b[31mred\x1b[0m\nname\u202etxt.exe\udcff" + "x" * 10_000 + "end"
    line = str(SlimdpmError(wild))
    assert line.startswith("\\x1b[31mred\\x1b[0m name\\u202etxt.exe\\udcff") and line.endswith("xend")
    assert len(line) <= 500 and line.isprintable()
    assert one_line("Größe 3×3, ω", 50) == "Größe 3×3, ω"
    assert len(one_line("\x1b" * 500)) <= 500


def test_what_a_library_raises_is_blamed_on_the_input():
    with pytest.raises(SlimdpmError, match="^it fails: 'a'$"), blamed("it fails"):
        {}["a"]
    with pytest.raises(SlimdpmError, match="^my own$"), blamed("it fails"):
        raise SlimdpmError("my own")
    with pytest.raises(KeyboardInterrupt), blamed("it fails"):
        raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("{layers_per_blok: 1}", "takes no layers_per_blok; did you mean layers_per_block?"),
        ("{layers_per_block: 1000000}", "layers are too many"),
        ("{layers_per_block: x}", "no UNet2DModel can be built"),
        ("{norm_num_groups: x}", "no student can be planned"),
        ("{norm_eps: .nan}", "the value of norm_eps is beyond reason"),
        ("{act_fn: nonsense}", "can be built from its config"),
        ("{down_block_types: [NoBlock, NoBlock]}", "can be built from its config"),
        ("{num_class_embeds: 100000000}", "the value of num_class_embeds is beyond reason"),
    ],
)
def test_overrides_are_tried_at_once(override, words, teacher_folder, image_folder, monkeypatch):
    monkeypatch.setattr("slimdpm.method.networks._MODULES", 1500)  # of the true bound's are built within seconds
    values = {"teacher": str(teacher_folder), "data": {"path": str(image_folder)}, "student": {"width": 8}}
    recipe = load_recipe(None, [f"student.overrides={override}"], values=values)
    for weights in (False, True):
        with pytest.raises(SlimdpmError) as error:
            plan_job(recipe, weights=weights)
        assert words in str(error.value)


def test_configs_have_bounds():
    check_config({**TINY, "trained_betas": [0.1] * 1000}, "it")
    for key, value in {
        "sample_size": [10**9, 1],
        "block_out_channels": [8] * 1000,
        "in_channels": float("inf"),
    }.items():
        with pytest.raises(SlimdpmError, match=key):
            build({**TINY, "_class_name": "UNet2DModel", key: value})


def run_main(monkeypatch, capsys, error, *arguments):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["slimdpm", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (SlimdpmError("wrong"), 2, "error: wrong"),
        (PermissionError(13, "Permission denied", "secret\x1b.txt"), 2, "error: secret\\x1b.txt: Permission denied"),
        (ModuleNotFoundError("no", name="scipy"), 2, "error: this needs the package scipy: pip install 'slimdpm[metr"),
        (MemoryError(), 2, "error: out of memory"),
        (RuntimeError("unable to open x: Too many open files (24)"), 2, "error: too many files are open at once"),
        (KeyboardInterrupt(), 130, "stopped"),
        (ZeroDivisionError("oh\nno"), 1, "error: ZeroDivisionError: oh (this is a fault of slimdpm; --traceback shows"),
    ],
)
def test_whatever_is_raised_is_one_line(error, code, words, monkeypatch, capsys):
    found, err = run_main(monkeypatch, capsys, error)
    assert found == code and err.startswith(words) and err.count("\n") == 1


def test_a_fault_of_ours_is_shown_where_on_request(monkeypatch, capsys):
    with pytest.raises(ZeroDivisionError):
        run_main(monkeypatch, capsys, ZeroDivisionError(), "slim", "--traceback")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slim", "--nonsense"], "error: No such option: --nonsense; see slimdpm slim --help"),
        (["nonsense\x1b"], "error: No such command 'nonsense\\x1b'"),
        (["sample", "x", "-n", "many"], "error: Invalid value for '-n' / '--count'"),
    ],
)
def test_slips_on_the_command_line_are_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["slimdpm", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    err = capsys.readouterr().err
    assert left.value.code == 2 and err.startswith(message) and err.count("\n") == 1, err


def test_ctrl_c_is_one_line_also_while_a_run_is_planned(tmp_path):
    def ctrl_c(*args, **options):
        os.kill(os.getpid(), signal.SIGINT)

    def planned():
        plan.load_teacher = ctrl_c
        sys.argv = ["slimdpm", "slim", "demo:teacher", str(tmp_path)]
        slimdpm_command.main()

    (tmp_path / "a.png").write_bytes(b"")
    done = Forked(planned).wait()
    assert (done.code, done.out, done.err) == (130, "", "stopped\n")


@pytest.mark.slow
def test_ctrl_c_is_one_line_also_while_libraries_load(tmp_path):
    """The process says when it is there: at its start."""
    program = f"""
import sys, time
class Spot:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("here", flush=True)
            time.sleep(600)
sys.meta_path.insert(0, Spot())
sys.argv = ["slimdpm", "slim", "demo:teacher", {str(tmp_path)!r}]
from slimdpm_command import main
main()
"""
    (tmp_path / "a.png").write_bytes(b"")
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Who runs the tests in the background has Ctrl-C ignored, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (130, "stopped\n")


def test_a_config_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "_class_name": "UNet2DModel"})[:-1])
    with pytest.raises(SlimdpmError, match="config.json cannot be read as JSON"):
        read_json(tmp_path / "config.json")
