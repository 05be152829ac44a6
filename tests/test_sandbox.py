"""Programs that a model wrote: none passes but by its values, none does harm, and figures hold."""

import gzip
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from importlib import import_module
from itertools import combinations
from math import comb
from pathlib import Path
from shutil import which
from statistics import fmean

import checkpoints
import pytest
import small

import seriatim
from seriatim.codecs import code
from seriatim.measure.statistics import pass_at_k

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sandbox():
    if sys.platform != "linux":
        pytest.skip("programs are held by Linux alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        found = import_module("sandbox")
        patch.setattr(found, "run", partial(found.run, alone=found.protection().alone))
        yield found


@pytest.fixture(scope="module")
def humaneval(sandbox):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        found = import_module("humaneval")
        patch.setattr(found, "tried", partial(found.tried, alone=sandbox.protection().alone))
        yield found


@pytest.fixture
def tried(sandbox, tmp_path, monkeypatch):
    """Runs a program against checks of `double`; nothing may be left of it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(program: str, checks: str = CHECKS, *, cpu: int = 2, wall: float = 120.0):
        check = sandbox.Check(["double"], checks)
        return sandbox.run(program, check, limits=sandbox.Limits(cpu, wall, 1 << 29))

    yield run
    assert list(tmp_path.iterdir()) == []


CHECKS = "for n in range(5):\n    assert double(n) == 2 * n\nassert double('a') == 'aa'"
RIGHT = "def double(x):\n    return 2 * x\n"


def test_what_must_not_work_does_not_work_here(sandbox):
    """All acts of `ACTS` fail in a trial, and most work where nothing holds them."""
    assert sandbox.protection().held
    names: dict = {}
    exec(sandbox.ACTS, names)
    free = "import sys; exec(sys.stdin.read()); print(*ACTS, sep='|')"
    done = subprocess.run(
        [sys.executable, "-c", free], input=sandbox.ACTS, text=True, capture_output=True
    )
    assert set(done.stdout.strip().split("|")) == set(names["ACTS"])
    for harmless in ("a local socket", "a thread", "a signal to another", "a child"):
        names["ACTS"][harmless]()


def test_a_right_program_passes_and_a_wrong_one_says_what_it_failed(tried):
    assert tried(RIGHT).passed
    wrong = tried("def double(x):\n    return x\n", "assert double(1) == 2, 'one'")
    assert (wrong.passed, wrong.why) == (False, "AssertionError: one")
    assert tried("def triple(x):\n    return x\n").why.startswith("KeyError")
    assert tried("def double(x) return").why.startswith("SyntaxError")
    assert "null bytes" in tried("\0").why
    assert tried("'\ud800'; raise OSError('no')").passed is False


FORGED = {
    "says so": "print('passed'); print('{\"passed\": true}')",
    "leaves at once": "import os; os._exit(0)",
    "leaves when called": "import os\ndef double(x): os._exit(0)",
    "leaves politely": "import sys; sys.exit(0)",
    "leaves politely when called": "import sys\ndef double(x): sys.exit(0)",
    "leaves at the end": "import atexit, os; atexit.register(os._exit, 0)",
    "equals everything": "class All:\n    def __eq__(self, other): return True\n"
    "def double(x): return All()",
    "is an int that equals everything": "class All(int):\n    def __eq__(self, o): return True\n"
    "    def __ne__(self, o): return False\n    def __repr__(self): return '4'\n"
    "def double(x): return All(3)",
    "is a str that equals everything": "class All(str):\n    def __eq__(self, o): return True\n"
    "def double(x): return All('b')",
    "patches asserts away": "import builtins\nbuiltins.AssertionError = SystemExit\n"
    "def double(x): return 0",
    "patches its own server": "import __main__, json\n__main__.plain = lambda v: 'forged'\n"
    'json.dumps = lambda v: \'{"value": true, "passed": true}\'\ndef double(x): return 0',
    "writes to every descriptor": "import os\nfor fd in range(64):\n    try:\n"
    '        os.write(fd, b\'{"passed": true, "why": ""}\')\n    except OSError: pass\n',
    "answers before it is asked": "import os\nfor fd in range(3, 9):\n    try:\n"
    "        os.write(fd, b'{\"value\": 0}\\n' * 99)\n    except OSError: pass\n",
    "answers with errors that end": "class Fake(Exception): pass\nFake.__name__ = 'SystemExit'\n"
    "def double(x): raise Fake(0)",
    "answers with what is no answer": "import os\nfor fd in range(3, 9):\n    try:\n"
    "        os.write(fd, b'[]\\n')\n    except OSError: pass\n",
    "closes its pipes": "import os\nos.closerange(3, 64)\n",
    "reads what it is judged by": "import gc, sys\ndef double(x):\n"
    "    f = sys._getframe()\n    while f:\n        if 'checks' in f.f_locals.get('spec', {}):\n"
    "            return eval(f.f_locals['spec']['checks'])\n        f = f.f_back\n",
    "nests too deep": "x = []\nfor _ in range(99999): x = [x]\ndef double(_): return x",
    "returns itself": "def double(x): return double",
    "returns what contains itself": "def double(x):\n    y = []\n    y.append(y)\n    return y",
}


@pytest.mark.parametrize("how", FORGED)
def test_nothing_but_the_right_values_passes(how, tried):
    outcome = tried(FORGED[how])
    assert not outcome.passed
    assert outcome.why


HARM = {
    "forks without end": "import os\nwhile True: os.fork()",
    "starts threads": "import threading\nthreading.Thread(target=print).start()",
    "starts programs": "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'exit'])",
    "fills the memory": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "fills the memory at once": "x = bytearray(1 << 40)",
    "writes without end": "while True: print('x' * 9999)",
    "answers without end": "import os\nwhile True: os.write(4, b'x' * 9999)",
    "counts without end": "while True: pass",
    "counts when called": "def double(x):\n    while True: pass",
    "returns without end": "import itertools\ndef double(x): return itertools.count()",
    "returns too much": "def double(x): return 'x' * (1 << 23)",
    "asks for input": "input()",
    "opens a connection": "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)",
    "kills its group": "import os, signal\nos.killpg(0, signal.SIGKILL)",
    "kills all": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "ignores signals": "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
    "while True: pass",
    "recurses in C": "import ctypes\nctypes.string_at(0)",
    "recurses": "def double(x): return double(x)",
}


@pytest.mark.parametrize("how", HARM)
def test_a_hostile_program_fails_and_ends(how, tried):
    outcome = tried(HARM[how], cpu=1, wall=6)
    assert not outcome.passed
    assert outcome.why


def test_time_is_up_by_the_processor_and_by_the_clock(tried):
    assert tried("while True: pass", cpu=1).why == "more than 1 seconds of processor time"
    sleeps = "import time\ntime.sleep(99)"
    assert tried(sleeps, wall=0.5).why == "more than 0.5 seconds"
    assert tried(RIGHT, "while True: pass", cpu=1).why == "the checks were ended"


def test_files_stay_as_they_are(tried, tmp_path_factory):
    kept = tmp_path_factory.mktemp("kept") / "file"
    kept.write_text("here")
    for act in (
        f"import shutil; shutil.rmtree({str(kept.parent)!r})",
        f"import os; os.unlink({str(kept)!r})",
        f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.rename({str(kept)!r}, {str(kept)!r} + '2')",
        f"import os; os.chmod({str(kept)!r}, 0)",
        f"open({str(kept)!r}, 'a').write('more')",
        f"open({str(kept.parent)!r} + '/new', 'x')",
        f"import os; os.symlink('/', {str(kept.parent)!r} + '/new')",
    ):
        assert not tried(f"{act}\n{RIGHT}").passed
    assert ([*kept.parent.iterdir()], kept.read_text()) == ([kept], "here")
    assert kept.stat().st_mode & 0o600 == 0o600


def test_a_program_sees_no_environment_no_input_and_no_open_files(tried, monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    program = (
        "import os, sys\n"
        "def double(x):\n"
        "    open_ = []\n"
        "    for fd in range(99):\n"
        "        try:\n            os.fstat(fd)\n            open_.append(fd)\n"
        "        except OSError: pass\n"
        "    return [dict(os.environ).get('SECRET'), sys.stdin.read(), len(open_)]\n"
    )
    shown = tried(program, "got = double(0)\nassert got[:2] == [None, ''] and got[2] <= 6, got")
    assert shown.passed, shown.why


def test_without_namespaces_the_filter_alone_holds(sandbox):
    """As in a container that grants none: the same acts fail, and what holds is said."""
    wrapped = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
    program = (
        "import sandbox, json\n"
        "found = sandbox.protection()\n"
        "print(json.dumps([found.alone, *found.held]))\n"
        "sandbox.run('', sandbox.Check([], ''))\n"
    )
    paths = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT / "src")])
    if not which("unshare") or subprocess.run(["unshare", "-Ur", "true"]).returncode:
        pytest.skip("user namespaces are not granted here: the other tests run without them")
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", wrapped, sys.executable, program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    alone, *held = json.loads(done.stdout)
    assert (alone, len(held)) == (False, 2)
    assert held[0].startswith("no namespaces")
    assert "SeriatimError: a hostile program cannot be held here" in done.stderr


def test_values_cross_as_they_are_and_exceptions_by_name(tried):
    values = (
        "[None, True, 1, 10**400, 1.5, float('inf'), 'é\\ud800', b'\\xff', 1+2j, [], (1, (2,)),"
        " {1, 2}, frozenset('a'), {(1, 2): [3], None: {}}]"
    )
    same = f"for v in {values}:\n    assert repr(double(v)) == repr(v), v\n"
    assert tried("def double(x): return x", same).passed
    lazy = "assert double(3) != [0, 1, 2]\nassert list(double(3)) == [0, 1, 2]"
    assert tried("def double(x): return map(int, range(x))", lazy).passed
    raises = "try:\n    double(1)\nexcept ZeroDivisionError as e:\n    assert 'zero' in str(e)\n"
    assert tried("def double(x): return x / 0", raises + "else: assert False").passed
    named = "assert double(x=2) == 4"
    assert tried(RIGHT, named).passed


# ---- figures


@pytest.mark.parametrize("samples", [1, 5, 9])
def test_the_estimate_is_the_share_of_draws_with_one_that_passes(samples):
    """By its definition: over all ways to draw k of the n samples."""
    for passed in range(samples + 1):
        right = [True] * passed + [False] * (samples - passed)
        for k in range(1, samples + 1):
            draws = [any(draw) for draw in combinations(right, k)]
            assert pass_at_k(samples, passed, k) == pytest.approx(fmean(draws), abs=1e-12)
            exact = 1 - comb(samples - passed, k) / comb(samples, k)
            assert pass_at_k(samples, passed, k) == pytest.approx(exact, abs=1e-12)


def test_the_estimate_is_stable_for_many_samples():
    exact = 1 - comb(9_900, 100) / comb(10_000, 100)
    assert pass_at_k(10_000, 100, 100) == pytest.approx(exact, rel=1e-12)


def records(*, suffix: bool) -> list[dict]:
    """Two problems as HumanEval's files hold them; checks that need more than the function."""
    found = []
    for n, name in enumerate(("twice", "thrice"), 2):
        prompt = f"def once(x):\n    return x\n\n\ndef {name}(x):\n"
        rest = {"suffix": "\n    return y\n"} if suffix else {}
        solution = f"    y = {n} * x" if suffix else f"    return {n} * x\n"
        test = f"def check(f):\n    assert f(once(3)) == {n} * once(3) == {name}(3)\n"
        found.append({"task_id": f"T/{name}", "prompt": prompt, "entry_point": name, **rest,
                      "canonical_solution": solution, "test": test})  # fmt: skip
    return found


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, suffix in (("HumanEval.jsonl.gz", False), ("single.jsonl", True)):
        lines = "".join(json.dumps(r) + "\n" for r in records(suffix=suffix)).encode()
        packed = gzip.compress(lines) if name.endswith(".gz") else lines
        (tmp_path / name).write_bytes(packed)
    return tmp_path


def test_a_model_that_says_the_solution_passes_one_problem_of_two(humaneval, folder, monkeypatch):
    model = small.shared("bytes")
    asked = humaneval.problems(folder / "HumanEval.jsonl.gz")
    forced = model.encode("    return 2 * x\ndef more(")
    monkeypatch.setattr(model.engine, "add", partial(model.engine.add, forced_ids=forced))
    how = dict(fim_order="psm", max_tokens=len(forced), temperature=1.0)
    made = list(humaneval.written(model, asked, 2, seed=1, **how))
    assert [c.text for c in made] == ["    return 2 * x"] * 4
    outcomes = humaneval.tried(made, humaneval.Limits(wall=120), 2)
    assert [o.passed for o in outcomes] == [True, True, False, False]
    found = humaneval.figures(made, outcomes, [1, 2])
    assert found["pass@1"] == found["pass@2"] == (0.5, pytest.approx(0.2887, abs=1e-4))
    assert "exact match" not in found


def infilling_model(place: Path) -> seriatim.Model:
    own = code.specimens()[1]
    ends = dict(bos_token_id=None, eos_token_id=own.ends[0])
    checkpoints._llama(vocab_size=own.size, num_hidden_layers=1, **ends)(place)
    own.save(place)
    return seriatim.load(place, threads=1)


def test_gaps_are_filled_to_the_end_of_the_line_and_compared(humaneval, folder, monkeypatch):
    asked = humaneval.problems(folder / "single.jsonl")
    model = infilling_model(folder / "model")
    forced = model.encode("    y = 3 * x\n    z")
    monkeypatch.setattr(model.engine, "add", partial(model.engine.add, forced_ids=forced))
    made = list(
        humaneval.written(model, asked, 1, 0, fim_order="spm", max_tokens=40, temperature=0)
    )
    assert {c.text for c in made} == {"    y = 3 * x"}
    found = humaneval.figures(made, humaneval.tried(made, humaneval.Limits(wall=120), 1), [1])
    assert found["pass@1"] == found["exact match"]
    assert found["exact match"][0] == 0.5


def test_a_prompt_that_does_not_fit_fails_and_is_counted(humaneval, folder):
    model = small.load("bytes", context=64)
    asked = humaneval.problems(folder / "HumanEval.jsonl.gz")
    asked.append(humaneval.Problem("long", "x" * 100, "", asked[0].check))
    made = list(humaneval.written(model, asked, 1, 0, fim_order="psm", max_tokens=4))
    assert [c.text is None for c in made] == [False, False, True]
    assert humaneval.tried(made[2:], humaneval.Limits(wall=120), 1)[0].why.startswith("the prompt")


def test_the_script_prints_figures_and_keeps_completions(humaneval, folder, monkeypatch, capsys):
    out = folder / "out.jsonl"
    asked = ["humaneval.py", "--data", str(folder), "--wall", "120", "--workers", "1"]
    for way, passed in (("--reference", "1.0000"), ("--empty", "0.0000")):
        monkeypatch.setattr(sys, "argv", [*asked, way, "--out", str(out)])
        humaneval.main()
        said, held = capsys.readouterr()
        assert said.startswith(f"humaneval\tpass@1\t{passed}\t± 0.")
        assert "system calls" in held
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["task_id"] for line in lines] == ["T/twice", "T/thrice"]
        assert {line["passed"] for line in lines} == {way == "--reference"}
    for wrong in ([], ["tales", "--empty"], ["tales", "--k", "2"], ["--empty", "--k", "0"]):
        monkeypatch.setattr(sys, "argv", [*asked, *wrong])
        with pytest.raises(SystemExit):
            humaneval.main()


def test_reference_solutions_pass_and_empty_ones_fail(humaneval, data):
    """A sample of each published set; the script's --reference and --empty take them whole."""
    for name, step in (("humaneval", 20), ("single-line", 200), ("random-span", 30), ("mbpp", 150)):
        asked = humaneval.problems(data / "code" / humaneval.SETS[name])[::step]
        for text, share in ((lambda p: p.solution, 1), (lambda p: "", 0)):
            made = [*humaneval.given(asked, text)]
            outcomes = humaneval.tried(made, humaneval.Limits(wall=120), 2)
            if share or name != "single-line":  # a line may be one that nothing needs
                assert {o.passed for o in outcomes} == {bool(share)}, name
