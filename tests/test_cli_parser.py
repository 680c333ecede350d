"""The parser: light, complete, and with an opinion on options that would do nothing."""

import argparse
import os
import signal
import subprocess
import sys

import pytest

from arrag_engine.__main__ import interrupt
from arrag_engine.cli import main, make_parser
from arrag_engine.cli.evaluate import SuiteParser
from arrag_engine.cli.progress import QUIET, SHARE, SILENCE, Lines, progress_bar

DRAW = "generate --model {model} --prompt red --out {tmp}/a.png"
INDEX = "--index {files}/index.safetensors"
ADAPTER = "--adapter {files}/adapter.safetensors"


def parsers(parser=None, name=""):
    """(name, parser) of every command and of commands below commands."""
    parser = parser or make_parser()
    if isinstance(parser, SuiteParser):
        parser.complete()
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                yield from parsers(sub, f"{name} {word}".strip())


ALL = dict(parsers())


def test_every_command_is_walked():
    assert {"generate", "train faid", "train merge", "export-sources", "eval pocket"} < set(ALL)
    assert {"--seeds", "--scorer"} < set(ALL["eval pocket"]._option_string_actions)


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_described_and_its_default_told(name):
    parser = ALL[name]
    assert parser.description
    formatter = parser._get_formatter()
    for action in parser._actions:
        told = formatter._expand_help(action) if action.help else ""
        assert told, f"{name} {action.dest} has no help"
        silent = action.required or action.nargs == 0 or not action.option_strings
        assert silent or "default" in told, f"{name} {action.option_strings} tells no default"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--help", 0),
        ("generate --help", 0),
        ("train faid --help", 0),
        ("calibrate --help", 0),
        ("eval --help", 0),
        ("eval pocket --help", 0),
        ("paint", 2),
        ("generate --prompt x --out a.png --sedd 3", 2),
        ("generate --prompt x --out a.png --decoding none", 2),
        ("generate --prompt x --out a.png --weight 0.5", 2),
        ("generate --prompt x --out a.png --index pocket --neighbours 0", 2),
        ("generate --prompt x --out a.jpg", 2),
        ("generate --prompt x --out a.png --model nowhere", 2),
        ("build --images nowhere --out i.index", 2),
        ("train faid --images x --work w --out a.safetensors", 2),
        ("eval nowhere", 2),
        ("eval pocket --methods magic", 2),
        ("eval pocket --kinds magic", 2),
        ("eval pocket --scorer nowhere", 2),
        ("calibrate --index pocket --images x --out i.safetensors --harm 2", 2),
        ("verify nowhere", 2),
    ],
)
def test_help_and_what_is_refused_come_without_torch(line, code):
    program = (
        "import sys\n"
        "from arrag_engine.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as exit:\n    code = exit.code or 0\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", program, *line.split()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "option",
    [
        *("--only a", "--neighborhood causal-8", "--borders zero", "--key-space codebook"),
        *("--position-weight 1", "--weight 0.5", "--weight auto", "--retrieval-temperature 0.2"),
        *("--neighbours 4", "--duplicates first", "--retrieval-top-p 0.5"),
    ],
)
def test_an_option_of_retrieval_needs_an_index(run, tmp_path, option):
    name = option.split()[0]
    for more in ("", ADAPTER):
        code, out, err = run(f"{DRAW} {more} {option}")
        assert (code, out) == (2, "")
        assert err == (
            f"error: {name} needs --index; pass an index, such as 'pocket', or omit {name}\n"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option", ["--strength 1", "--strength 0.5", "--candidates 0", "--semantics step"]
)
def test_an_option_of_adapters_needs_one(run, option):
    """Even one that is set to its default: whoever passes it expects something of it."""
    name = option.split()[0]
    for more in (INDEX, f"{INDEX} --decoding daid", f"{INDEX} --decoding plain"):
        code, _, err = run(f"{DRAW} {more} {option}")
        assert code == 2
        assert err.startswith(f"error: {name} needs an adapter; pass --adapter, or --decoding faid")
        assert err.endswith(f", or omit {name}\n")


def test_several_options_are_named_in_one_sentence(run):
    code, _, err = run(f"{DRAW} --weight 0.5 --only a --neighbours 3")
    assert code == 2
    assert err == (
        "error: --only, --weight and --neighbours need --index; pass an index, such as 'pocket', "
        "or omit them\n"
    )


@pytest.mark.parametrize(
    "flags",
    [
        f"{INDEX} --weight 0.5 --neighbours 4",
        f"{INDEX} {ADAPTER} --weight 0.5 --strength 0.5 --candidates 2 --semantics stepzero",
        f"{ADAPTER} --strength 0.5",
        f"{INDEX} --weight 0.5 --decoding plain",
    ],
)
def test_beside_what_they_need_options_are_taken(run, flags):
    assert run(f"{DRAW} {flags}")[0] == 0


def test_blenders_of_the_model_itself_are_an_adapter(run):
    """The refusal is that this model has none, not that no --adapter was passed."""
    code, _, err = run(f"{DRAW} --decoding faid --strength 0.5")
    assert code == 2
    assert "has no FAiD blenders of its own" in err


@pytest.mark.skipif(os.name == "nt", reason="no signal reaches a single process")
@pytest.mark.parametrize("module", ["arrag_engine.cli", "numpy", "torch", "torch.nn", "tokenizers"])
def test_a_stop_while_modules_are_imported_is_one_word(tmp_path, module):
    """The signal comes while a module is looked for."""
    program = (
        "import os, signal, sys\n"
        "from arrag_engine.__main__ import main\n"
        "class Stopping:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stopping())\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", program, "generate", "--prompt", "a red car"]
    command += ["--out", str(tmp_path / "a.png")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "stopped\n")
    assert not list(tmp_path.iterdir())


def test_a_stop_anywhere_else_is_an_exception():
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGINT, None)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def lines_of(capsys):
    return capsys.readouterr().err.splitlines()


def test_short_work_prints_no_lines(capsys):
    clock = Clock()
    with Lines("token", clock) as bar:
        bar.total = 100
        for _ in range(100):
            clock.now += QUIET / 101
            bar.update()
    assert lines_of(capsys) == []


def test_long_work_prints_a_line_at_every_tenth(capsys):
    clock = Clock()
    with Lines("token", clock) as bar:
        bar.total = 100
        for _ in range(100):
            clock.now += 1
            bar.update()
    told = lines_of(capsys)
    assert len(told) == 1 / SHARE
    assert told[0] == "token 10 of 100 (10%), 10 s, about 90 s left"
    assert told[-1] == "token 100 of 100 (100%), 100 s"


def test_slow_work_prints_a_line_after_a_silence(capsys):
    clock = Clock()
    bar = Lines("step", clock)
    bar.total = 1000
    bar.set_postfix_str("3.2 bits a token", refresh=False)
    for _ in range(8):
        clock.now += SILENCE / 4
        bar.update()
    assert lines_of(capsys) == [
        "step 4 of 1000 (0%), 30 s, about 2.1 h left, 3.2 bits a token",
        "step 8 of 1000 (1%), 60 s, about 2.1 h left, 3.2 bits a token",
    ]


def test_no_two_lines_are_close_together_and_a_silenced_bar_prints_none(capsys):
    clock = Clock()
    fast, silenced = Lines("a", clock), Lines("b", clock)
    fast.total = silenced.total = 10
    silenced.disable = True
    for _ in range(10):
        clock.now += 1
        fast.update()
        silenced.update()
    assert len(lines_of(capsys)) == 10 / QUIET


def test_where_stderr_is_no_terminal_there_are_lines_and_on_one_a_bar(monkeypatch):
    assert isinstance(progress_bar("x"), Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar("x") as bar:
        assert not isinstance(bar, Lines)


@pytest.mark.parametrize(
    ("line", "resumes"),
    [
        ("build --images x --out i.safetensors", True),
        ("train faid --images x --index i --work w --out a.safetensors", True),
        ("train loss --images x", False),
        ("generate --prompt x --out a.png", False),
        ("calibrate --index pocket --images x --out i.safetensors", False),
    ],
)
def test_what_continues_says_so_when_it_is_stopped(monkeypatch, capsys, line, resumes):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("arrag_engine.cli.check_needs", stop)
    assert main(line.split()) == 1
    told = "stopped; the same command continues\n" if resumes else "stopped\n"
    assert capsys.readouterr().err == told
