"""The command line: results on stdout, one line on stderr, an exit code, whatever is done to it."""

import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny

import seriatim
from seriatim import __main__, cli, zoo

SOURCE = str(Path(seriatim.__file__).parents[1])
COMMANDS = [
    "generate", "score", "train", "serve", "bench", "info", "models", "codecs", "chat", "quantize",
    "compare", "export", "variants", "verify", "eval",
]  # fmt: skip


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder) -> seriatim.Model:
    return seriatim.load(folder, threads=1)


@pytest.fixture(scope="module")
def endless(tmp_path_factory) -> Path:
    """A model whose context takes longer to fill than any test waits."""
    return tiny.write(tmp_path_factory.mktemp("models") / "endless", max_position_embeddings=10**6)


@pytest.fixture
def shipped(monkeypatch, folder, tmp_path) -> Path:
    """A zoo that holds one model, `tales`."""
    monkeypatch.setattr(zoo, "_HERE", tmp_path / "zoo")
    tales = shutil.copytree(folder, tmp_path / "zoo" / "tales")
    (tales / "README.md").write_text("# tales\n\nTells tales. It is small.\n\n| a | b |\n")
    return tales


@pytest.fixture
def run(capsys) -> Callable[..., Done]:
    """The command, within this process."""

    def run(*words: object) -> Done:
        with pytest.raises(SystemExit) as done:
            cli.main([str(word) for word in words])
        return Done(done.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def generate(run, folder) -> Callable[..., Done]:
    return lambda *words: run("generate", "-m", folder, "--threads", 1, *words)


def command(*words: object, flags: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *flags, "-m", "seriatim", *map(str, words)]


def settings(**changes: str | None) -> dict[str, str]:
    given = os.environ | {"PYTHONPATH": SOURCE} | changes
    return {name: value for name, value in given.items() if value is not None}


def outside(*words: object, shell: str = 'exec "$@"', flags=(), env=None, **how) -> Done:
    """The command in a process of its own, started by a line of shell."""
    done = subprocess.run(
        ["sh", "-c", shell, "sh", *command(*words, flags=flags)],
        env=settings() if env is None else env,
        capture_output=True,
        timeout=60,
        check=False,
        **how,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def interrupted(process: subprocess.Popen) -> Done:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return Done(process.returncode, out.decode(), err.decode())


def started(*words: object, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(*words), env=settings(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def stdin(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# generate


def test_the_result_alone_is_on_stdout_and_what_runs_on_stderr(generate, model):
    done = generate("ab", "--max-tokens", 5, "--seed", 3)
    assert done.code == 0
    assert done.out == model.generate("ab", max_tokens=5, seed=3).text + "\n"
    assert done.err == f"seriatim: {model.facts}\n"


def test_samples_are_lines_and_with_json_objects(generate, model):
    samples = model.generate("ab", n=3, max_tokens=3, seed=3, allowed_ids=range(97, 123)).samples
    options = ["ab", "-n", 3, "--max-tokens", 3, "--seed", 3]
    options += ["--allowed-ids", ",".join(map(str, range(97, 123)))]
    assert generate(*options).out == "".join(f"{sample.text}\n" for sample in samples)
    found = rows(generate(*options, "--json").out)
    assert [row["sample"] for row in found] == [0, 1, 2]
    assert [row["ids"] for row in found] == [sample.ids for sample in samples]
    assert {row["seed"] for row in found} == {3}


def test_every_option_reaches_the_request(generate, model):
    options = {
        "max_tokens": 9, "min_tokens": 2, "temperature": 0.7, "top_k": 60, "top_p": 0.9,
        "min_p": 0.01, "repetition_penalty": 1.2, "presence_penalty": 0.3,
        "frequency_penalty": -0.2, "seed": 11, "logprobs": 2,
    }  # fmt: skip
    words = [w for name, v in options.items() for w in (f"--{name.replace('_', '-')}", v)]
    words += ["--stop", "zz", "--stop", "é", "--ignore-end", "--prompt-logprobs"]
    words += ["--logit-bias", "5=2.5", "--logit-bias", "6=-1", "--banned-ids", "7 8,9"]
    (row,) = rows(generate("ab", *words, "--json").out)
    answer = model.generate(
        "ab",
        **options,
        stop=["zz", "é"],
        ignore_end=True,
        prompt_logprobs=True,
        logit_bias={5: 2.5, 6: -1},
        banned_ids=[7, 8, 9],
    )
    assert row["ids"] == answer.ids
    assert row["logprobs"] == answer.logprobs
    assert row["top_logprobs"] == [[list(pair) for pair in top] for top in answer.top_logprobs]
    assert row["prompt_logprobs"] == answer.prompt_logprobs
    assert (row["text"], row["stop"]) == (answer.text, answer.stop)
    assert set(row) == {"sample", *vars(answer)} - {"output", "samples"}


def test_options_are_spelt_and_defaulted_as_in_python(model):
    """Every sampling option of the library, but those that only a program can give."""
    from inspect import signature

    from seriatim.engine.options import NAMES

    only_python = {"processors", "forced_ids", "priority", "tenant"}
    given = signature(cli.generate).parameters
    assert NAMES - only_python <= set(given)
    assert set(seriatim.load.__kwdefaults__) <= set(given)
    for name, default in seriatim.load.__kwdefaults__.items():
        assert given[name].default == default, name


def test_the_prompt_comes_from_an_argument_stdin_a_file_or_ids(generate, monkeypatch, tmp_path):
    def prompt(*words: object) -> list[int]:
        return rows(generate("--max-tokens", 1, "--json", *words).out)[0]["prompt_ids"]

    assert prompt("né") == [256, 110, 195, 169]
    assert prompt("--", "-x") == [256, 45, 120]
    assert prompt("--", "--debug") == [256, *b"--debug"]
    assert prompt() == prompt("") == [256]
    assert prompt("--prompt-ids", "1, 5 9") == [1, 5, 9]
    (tmp_path / "two words").write_bytes(b"a\r\nb\n")
    assert prompt("--prompt-file", tmp_path / "two words") == [256, 97, 13, 10, 98, 10]
    stdin(monkeypatch, "a\né".encode())
    assert prompt("-") == [256, 97, 10, 195, 169]
    stdin(monkeypatch, b"never read")
    assert prompt() == [256], "stdin is read for - alone"


def test_the_output_is_written_to_a_file_and_then_not_to_stdout(generate, model, tmp_path):
    answer = model.generate("ab", n=2, max_tokens=6, seed=1)
    words = ["ab", "--max-tokens", 6, "--seed", 1, "--out"]
    assert generate(*words, tmp_path / "one.txt").out == ""
    assert (tmp_path / "one.txt").read_bytes() == answer.output, "bytes, though they are no text"
    done = generate(*words, tmp_path / "many.txt", "-n", 2, "--json")
    assert [row["ids"] for row in rows(done.out)] == [sample.ids for sample in answer.samples]
    written = [(tmp_path / f"many-{i}.txt").read_bytes() for i in range(2)]
    assert written == [sample.output for sample in answer.samples]


def test_without_a_codec_ids_go_in_and_out(run, tmp_path):
    path = tiny.write(tmp_path / "bare", codec=False)
    model = seriatim.load(path, threads=1)
    ids = model.generate([1, 2], max_tokens=4, seed=1).ids
    words = ["-m", path, "--threads", 1, "--prompt-ids", "1,2", "--max-tokens", 4, "--seed", 1]
    assert run("generate", *words).out == " ".join(map(str, ids)) + "\n"
    assert run("generate", *words, "--out", tmp_path / "ids").out == ""
    assert (tmp_path / "ids").read_text() == " ".join(map(str, ids)) + "\n"
    refused = run("generate", "text", "-m", path)
    assert refused.code == 2
    assert "needs a codec" in refused.err
    assert "has no codec" in run("score", tmp_path / "ids", "-m", path).err


def test_the_default_model_is_tales_and_said(run, shipped):
    done = run("generate", "Once", "--max-tokens", 3, "--threads", 1)
    assert done.code == 0
    assert done.err.startswith("seriatim: tales: llama, 35,040 weights (f32), ")
    assert done.err.endswith(" (--model chooses another)\n")


# score


def test_scores_are_rows_and_with_json_objects(run, folder, model, monkeypatch, tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "a\ttab and\nline.txt"
    one.write_bytes(b"Once upon a time. " * 40)
    two.write_bytes(b"\xff\x00\n")
    words = ["score", one, two, "-m", folder, "--threads", 1]
    done = run(*words)
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [line[0] for line in lines] == [str(one), str(tmp_path / r"a\ttab and\nline.txt"), "all"]
    score = model.score(one.read_bytes())
    assert lines[0][1] == f"{score.bits_per_unit:.4f} ± {score.error:.4f} bits per byte"
    assert lines[1][2] == "3 ids"
    found = rows(run(*words, "--json").out)
    assert found[0]["bits_per_unit"] == score.bits_per_unit
    assert found[0]["error"] == score.error
    assert found[2]["nats"] == found[0]["nats"] + found[1]["nats"]
    assert [row["scored"] for row in found] == [720, 3, 723]
    stdin(monkeypatch, one.read_bytes())
    (row,) = rows(run("score", "-", "-m", folder, "--threads", 1, "--json").out)
    assert row["nats"] == score.nats


def test_all_files_are_read_before_any_is_scored(run, folder, tmp_path):
    (tmp_path / "fine").write_text("fine")
    done = run("score", tmp_path / "fine", tmp_path / "missing", "-m", folder)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"seriatim: {tmp_path / 'missing'} does not exist\n"


def test_a_file_that_cannot_be_scored_is_named(run, folder, tmp_path):
    (tmp_path / "empty").touch()
    done = run("score", tmp_path / "empty", "-m", folder)
    assert (done.code, done.out) == (2, "")
    assert f"{tmp_path / 'empty'}: there is nothing to score" in done.err


# What there is


def test_models_are_listed(run, shipped):
    size = sum(file.stat().st_size for file in shipped.iterdir())
    assert run("models").out == f"tales\tTells tales. It is small.\tllama\t{size}\n"
    (row,) = rows(run("models", "--json").out)
    assert row["name"] == "tales"
    assert row["bytes"] == size


def test_what_really_ships_is_listed(run):
    assert [row["name"] for row in rows(run("models", "--json").out)] == zoo.names()


def test_codecs_are_listed(run):
    found = {row["name"]: row["does"] for row in rows(run("codecs", "--json").out)}
    assert {"byte", "text"} <= set(found)
    assert all(found.values())
    assert run("codecs").out == "".join(f"{name}\t{does}\n" for name, does in found.items())


def test_the_machine_is_described(run):
    done = run("info")
    facts = dict(line.split("\t") for line in done.out.splitlines())
    assert facts["seriatim"] == seriatim.__version__
    assert facts["isa"].endswith("plain")
    assert json.loads(run("info", "--json").out)["isa"] == facts["isa"].split(", ")


def test_a_model_is_described_with_what_was_ignored(run, folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "noted")
    told = {"eos_token_id": [256, 999], "temperature": 0.6, "top_p": 0.9}
    (path / "generation_config.json").write_text(json.dumps(told))
    facts = json.loads(run("info", path, "--json").out)
    assert facts["model"] == "noted"
    assert (facts["weights"], facts["stored"]) == (35040, ["f32 35,040"])
    assert (facts["vocabulary"], facts["context"], facts["codec"]) == (257, 256, "byte")
    assert facts["ends"] == facts["start"] == [256]
    assert facts["not_applied"] == ["temperature=0.6", "top_p=0.9"]
    assert any("[999]" in note and "ignored" in note for note in facts["notes"])
    lines = run("info", path).out.splitlines()
    assert "not_applied\ttemperature=0.6, top_p=0.9" in lines
    assert all(line.count("\t") == 1 for line in lines)


def test_help_names_every_command_and_every_default(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = run("--help")
    assert done.code == 0
    assert [word for word in [*COMMANDS, "--debug", "--version"] if word not in done.out] == []
    helped = run("generate", "--help").out
    for default in ("tales", "a full context", "one per processor", "the best here", "1.0"):
        assert re.search(rf"\[default: \(?{default}", helped), default
    assert run("--version").out == f"seriatim {seriatim.__version__}\n"


# Errors


ERRORS = [
    (["generat", "x"], ["'generat'", "Did you mean 'generate'?"]),
    (["zzz"], ["'zzz'", "see seriatim --help"]),
    (["--verbose"], ["--verbose", "--version"]),
    (["generate", "x", "--temprature", 1], ["--temprature", "did you mean --temperature?"]),
    (["generate", "x", "--max-token", 3], ["--max-token", "did you mean --max-tokens?"]),
    (["generate", "x", "--zzz"], ["--zzz", "see seriatim generate --help"]),
    (["generate", "x", "--max-tokens", "ten"], ["--max-tokens", "integer"]),
    (["generate", "x", "--max-tokens"], ["--max-tokens", "argument"]),
    (["generate", "two", "words"], ["unexpected", "words"]),
    (["generate", "x", "--max-tokens", 0], ["max_tokens is 0", "1 or more"]),
    (["generate", "x", "--max-tokens", -5], ["max_tokens is -5", "1 or more"]),
    (["generate", "x", "--temperature", "nan"], ["temperature is nan", "[0, inf)"]),
    (["generate", "x", "--top-p", 0], ["top_p is 0.0", "(0, 1]"]),
    (["generate", "x", "-n", 0], ["n is 0", "1 to 128"]),
    (["generate", "x", "-n", 129], ["n is 129", "1 to 128"]),
    (["generate", "x", "--stop", ""], ["stop is ['']", "not empty"]),
    (["generate", "x", "--seed", -1], ["seed is -1"]),
    (["generate", "x", "--min-tokens", 4, "--max-tokens", 3], ["min_tokens <= max_tokens"]),
    (["generate", "x", "--logprobs", 2], ["--json"]),
    (["generate", "x", "--prompt-logprobs"], ["--json"]),
    (["generate", "x", "--logit-bias", "5"], ["--logit-bias is '5'", "ID=NUMBER"]),
    (["generate", "x", "--logit-bias", "999=1"], ["999", "0 to 256"]),
    (["generate", "x", "--logit-bias", "5=nan"], ["logit_bias[5] is nan"]),
    (["generate", "x", "--allowed-ids", "a"], ["--allowed-ids is 'a'", "ids such as"]),
    (["generate", "x", "--allowed-ids", "5", "--banned-ids", "5"], ["no id"]),
    (["generate", "x" * 300], ["has 301 ids", "context is 256"]),
    (["generate", "--prompt-ids", "1,x"], ["--prompt-ids is '1,x'", "ids such as"]),
    (["generate", "--prompt-ids", "1,999"], ["prompt[1] is 999", "0 to 256"]),
    (["generate", "x", "--prompt-ids", "1"], ["PROMPT and --prompt-ids", "one of them"]),
    (["generate", "x", "--prompt-file", "/f"], ["PROMPT and --prompt-file", "one of them"]),
    (["generate", "--prompt-file", "/no/such"], ["/no/such does not exist"]),
    (["generate", "--prompt-file", "/"], ["/ is not a file"]),
    (["generate", "x", "--backend", "tpu"], ["backend is 'tpu'", "'native' or 'torch'"]),
    (["generate", "x", "--device", "cuda"], ["device is 'cuda'", "backend='torch'"]),
    (["generate", "x", "--backend", "torch", "--threads", 2], ["threads is 2", "leave it out"]),
    (["generate", "x", "--precision", "int5"], ["int5", "int8"]),
    (["generate", "x", "--kv", "int4"], ["kv is 'int4'"]),
    (["generate", "x", "--threads", 0], ["threads is 0"]),
    (["generate", "x", "--context", 257], ["context is 257", "256"]),
    (["generate", "x", "--cache-bytes", 5], ["cache_bytes is 5", "64 positions"]),
    (["generate", "x", "--isa", "neon"], ["isa is 'neon'"]),
    (["generate", "x", "--out", "/no/such/file"], ["/no/such/file", "no folder /no/such"]),
    (["generate", "x", "--out", "/"], ["--out / is a folder"]),
    (["generate", "x", "--out", ""], ["is a folder"]),
    (["score"], ["Missing argument 'files'", "see seriatim score --help"]),
    (["score", "/no/such"], ["/no/such does not exist"]),
    (["train", "x"], ["Missing option '--steps'"]),
]


@pytest.mark.parametrize("words, said", ERRORS, ids=lambda v: " ".join(map(str, v))[:50])
def test_an_error_is_one_line_on_stderr_and_a_code(words, said, run, folder):
    where = ["-m", folder] if words[0] in ("generate", "score") else []
    done = run(*words[:1], *where, *words[1:])
    assert done.out == ""
    assert done.err.startswith("seriatim: ")
    assert done.err.count("\n") == 1
    assert not [word for word in said if word not in done.err], done.err
    assert done.code == (1 if "--cache-bytes" in words else 2)


def test_without_a_command_the_help_comes_and_one_line_that_says_why(run):
    done = run()
    assert done.code == 2
    assert "Usage" in done.out
    assert done.err == f"seriatim: no command was given; expected one of {', '.join(COMMANDS)}\n"


def test_unknown_models_and_codecs_suggest_the_nearest(run, shipped, tmp_path):
    for words in (["generate", "x", "-m", "tles"], ["info", "tles"]):
        done = run(*words)
        assert done.code == 2
        assert "'tles'" in done.err
        assert done.err.endswith("did you mean tales?\n")
    pytest.importorskip("torch")
    (tmp_path / "text.txt").write_text("text")
    words = ["--size", "0.01M", "--steps", 2, "--out", tmp_path / "run", "--codec", "bite"]
    done = run("train", tmp_path / "text.txt", *words)
    assert done.code == 2
    assert done.err.endswith("did you mean byte?\n")


def test_what_is_not_utf8_is_refused_with_its_place(generate, run, monkeypatch, tmp_path):
    from seriatim.codecs import text

    path = tiny.write(tmp_path / "text", codec=False, vocab_size=text.specimens()[0].size)
    text.specimens()[0].save(path)
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    for words in (["generate", "--prompt-file"], ["score"]):
        done = run(*words, tmp_path / "bad.txt", "-m", path)
        assert done.code == 2
        assert "bad.txt is not UTF-8: byte 0xff at offset 3" in done.err
    stdin(monkeypatch, b"ab\xff")
    assert "stdin is not UTF-8: byte 2" in generate("-").err
    assert "PROMPT is not UTF-8: byte 1" in generate(os.fsdecode(b"a\xff")).err
    assert "--stop is not UTF-8: byte 0" in generate("x", "--stop", os.fsdecode(b"\xff")).err


def test_names_cannot_move_the_cursor_or_add_lines(run):
    done = run("info", "no\nsuch \x1b[31mmodel\x07")
    assert done.err.count("\n") == 1
    assert done.err[:-1].isprintable()


def test_debug_shows_where_and_keeps_the_code(run, folder):
    for words in (["--debug", "generate", "x"], ["generate", "x", "--debug"]):
        done = run(*words, "-m", folder, "--top-p", 2)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("Traceback")
        assert done.err.endswith("RequestError: top_p is 2.0; expected a number in (0, 1]\n")


def test_an_error_of_ours_is_one_line_too(run, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(seriatim, "load", broken, raising=False)
    done = run("info", "x")
    assert done.code == 1
    assert done.err == "seriatim: ZeroDivisionError: two lines (--debug shows where)\n"


def test_an_output_that_fails_at_its_end_is_said(generate, monkeypatch, tmp_path):
    from seriatim.codecs.byte import ByteCodec

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ByteCodec, "write", full)
    done = generate("x", "--max-tokens", 1, "--out", tmp_path / "o")
    assert done.code == 1
    assert "o: No space left on device; choose another --out" in done.err


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt, 130), (BrokenPipeError, 0)])
def test_an_interrupt_and_a_reader_who_has_left_are_no_errors(error, code, run, monkeypatch):
    def raising(*_, **__):
        raise error

    monkeypatch.setattr(seriatim, "load", raising, raising=False)
    assert run("info", "x") == (code, "", "")


# From outside


def test_the_script_and_the_module_are_one_program():
    assert outside("--version") == (0, f"seriatim {seriatim.__version__}\n", "")
    named = re.search(r'^seriatim = "(.*)"$', pyproject().read_text(), re.MULTILINE)
    assert named
    assert named.group(1) == f"{__main__.__name__}:{__main__.main.__name__}"


def pyproject() -> Path:
    path = Path(__file__).parents[1] / "pyproject.toml"
    if not path.exists():
        pytest.skip("needs pyproject.toml beside the tests")
    return path


@pytest.mark.parametrize("flags", [("-O",), ("-X", "dev", "-W", "error")])
def test_it_runs_without_assertions_and_without_a_warning(flags, folder, model):
    words = ["generate", "ab", "-m", folder, "--threads", 1, "--max-tokens", 4, "--seed", 1]
    expected = model.generate("ab", max_tokens=4, seed=1).text + "\n"
    assert outside(*words, flags=flags) == (0, expected, f"seriatim: {model.facts}\n")


def test_it_runs_without_docstrings():
    done = outside("codecs", flags=("-OO",))
    assert (done.code, done.err) == (0, "")
    assert all(line.endswith("\t") for line in done.out.splitlines())


@pytest.mark.parametrize(
    "env",
    [
        settings(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING=None),
        settings(LANG="C", LC_ALL=None, PYTHONIOENCODING="latin-1"),
        {"PYTHONPATH": SOURCE},
    ],
    ids=["ascii", "latin-1", "nothing"],
)
def test_text_is_utf8_in_any_locale_and_without_a_home(env, folder):
    words = ["généré", "-m", folder, "--threads", 1, "--max-tokens", 1, "--allowed-ids", 195]
    done = outside("generate", *words, env=env)
    assert done[:2] == (0, "\N{REPLACEMENT CHARACTER}\n")
    (row,) = rows(outside("generate", *words, "--json", env=env).out)
    assert bytes(row["prompt_ids"][1:]).decode() == "généré"


def test_help_is_shown_where_only_ascii_can_be():
    env = settings(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING=None)
    done = outside("generate", "--help", env=env)
    assert (done.code, done.err) == (0, "")
    assert "--max-tokens" in done.out


def test_a_folder_that_is_gone_is_no_place_that_is_needed(folder, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    shell = f'cd "{gone}" && rmdir "{gone}" && exec "$@"'
    words = ["generate", "ab", "-m", folder, "--threads", 1, "--max-tokens", 1]
    assert outside(*words, shell=shell).code == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_survived(closed, folder, model):
    words = ["generate", "ab", "-m", folder, "--threads", 1, "--max-tokens", 4, "--seed", 1]
    done = outside(*words, shell=f'exec "$@" {closed}')
    shown = "" if " >&-" in f" {closed}" else model.generate("ab", max_tokens=4, seed=1).text + "\n"
    assert (done.code, done.out) == (0, shown)
    assert done.err == ("" if "2>&-" in closed else f"seriatim: {model.facts}\n")


def test_an_error_is_a_code_where_stderr_is_closed():
    assert outside("zzz", shell='exec "$@" 2>&-') == (2, "", "")


def test_a_closed_stdin_is_said_when_it_is_asked_for(folder):
    done = outside("generate", "-", "-m", folder, shell='exec "$@" <&-')
    assert done.code == 2
    assert done.err.startswith("seriatim: stdin is closed; ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["codecs"], ["--help"]])
def test_a_full_disk_is_one_line(words):
    done = outside(*words, shell='exec "$@" >/dev/full')
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "No space left on device" in done.err


@pytest.mark.parametrize("more", [(), ("--json", "--max-tokens", 300)], ids=["text", "json"])
def test_a_reader_who_leaves_early_ends_it_quietly(more, endless):
    process = started("generate", "-m", endless, "--threads", 1, "--ignore-end", *more)
    if not more:  # which writes while it generates; JSON comes at the end
        assert process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=30) == 0
    assert err.count("\n") == 1, "what runs, and nothing more"


def test_help_into_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command("--help"), env=settings(), stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interrupt_while_the_program_is_imported_is_quiet(tmp_path):
    (tmp_path / "typer.py").write_text("import time\nprint('.', flush=True)\ntime.sleep(60)\n")
    process = started("codecs", PYTHONPATH=os.pathsep.join([str(tmp_path), SOURCE]))
    assert process.stdout.read(1) == b"."
    assert interrupted(process) == (130, "", "")


def test_an_interrupt_while_a_model_is_loaded_is_quiet(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        home = str(tmp_path)
        process = started("info", "a/b", HF_ENDPOINT=endpoint, HF_HOME=home, NO_PROXY="127.0.0.1")
        connection, _ = silent.accept()
        assert interrupted(process) == (130, "", "")
        connection.close()


def test_an_interrupt_while_it_writes_is_quiet(endless):
    process = started("generate", "-m", endless, "--threads", 2, "--ignore-end")
    assert process.stdout.read(1)
    done = interrupted(process)
    assert done.code == 130
    assert done.err.count("\n") == 1, "what runs, and nothing more"


def test_on_a_terminal_the_text_follows_its_prompt(folder, model):
    leader, follower = pty.openpty()
    words = ["--max-tokens", 4, "--seed", 1, "--allowed-ids", "97,98,99"]
    process = subprocess.Popen(
        command("generate", "a [b]", "-m", folder, "--threads", 1, *words),
        env=settings(TERM="xterm", COLUMNS="80"),
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += (got := os.read(leader, 4096))
        except OSError:  # the other side has gone
            break
        if not got:
            break
    os.close(leader)
    assert process.wait(timeout=30) == 0
    text = model.generate("a [b]", max_tokens=4, seed=1, allowed_ids=[97, 98, 99]).text
    assert "loading" in shown.decode()
    assert shown.decode().endswith(f"\x1b[2ma [b]\x1b[0m{text}\r\n")


# From training to a text


def test_what_train_makes_the_other_commands_take(run, tmp_path):
    pytest.importorskip("torch")
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"It was {name} of those days. " * 60)
    out = tmp_path / "run"
    words = ["--size", "0.01M", "--steps", 2, "--codec", "byte", "--batch", 1, "--out", out]
    done = run("train", tmp_path / "*.txt", *words)
    assert (done.code, done.out) == (0, f"{out}\n")
    assert "step 2" in done.err
    assert "Traceback" not in done.err
    again = run("train", tmp_path / "*.txt", *words)
    assert (again.code, again.out) == (2, "")
    assert "not empty" in again.err
    assert rows(run("score", tmp_path / "one.txt", "-m", out, "--json").out)[0]["scored"] > 0
    assert run("generate", "It", "-m", out, "--max-tokens", 2).code == 0
    assert json.loads(run("info", out, "--json").out)["model"] == "run"
