"""Instruction sets: which one this processor gets and why, and that all give the same bits, those
of other machines and compilers' levels included."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native_runs import native

from seriatim.kernels.native import isas, why

ROOT = Path(__file__).parents[1]
ORDER = ["avx512vnni", "avx512", "avxvnni", "avx2", "neon", "plain"]


def test_instruction_sets_come_best_first_and_plain_runs_everywhere():
    every = [name for name, _ in native.isas()]
    assert every == [name for name in ORDER if name in every]
    assert native.isas()[-1] == ("plain", [])
    assert all(
        native.features().count(feature) == 0 for _, lacks in native.isas() for feature in lacks
    )


CHOICES = [
    ([("avx2", []), ("plain", [])], "avx2: the best here"),
    ([("avx512", []), ("avxvnni", ["avxvnni"]), ("plain", [])], "avx512: the best here"),
    (
        [("avxvnni", ["avxvnni"]), ("avx2", ["fma", "avx2"]), ("plain", [])],
        "plain: the best here; avxvnni needs avxvnni; avx2 needs fma, avx2",
    ),
]


@pytest.mark.parametrize("choices, expected", CHOICES)
def test_why_names_what_better_ones_lack(monkeypatch, choices, expected):
    monkeypatch.setattr(native, "isas", lambda: choices)
    assert why() == expected
    assert isas() == [name for name, lacks in choices if not lacks]


def needs(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"needs {program}")


def build(folder: Path, *options: str, target: str = "isa_bits") -> Path:
    """A program of tests/native, linked statically, without Python."""
    needs("cmake")
    configure = ["cmake", "-S", ROOT, "-B", folder, "-DSERIATIM_MODULE=OFF", *options]
    for command in (
        [*configure, "-DCMAKE_EXE_LINKER_FLAGS=-static"],
        ["cmake", "--build", folder, "--target", target, "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / target


def run(*command: str | Path) -> list[str]:
    """The report's lines, all passed."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def digests(report: list[str]) -> list[str]:
    return [line for line in report if line.startswith("PASS plain")]


def proof(test):
    """Builds programs for minutes: not by default, and in one process."""
    return pytest.mark.slow(pytest.mark.xdist_group("isa_bits")(test))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def here(folder) -> list[str]:
    """The report of this machine's instruction sets."""
    return run(build(folder), *isas())


@proof
def test_every_instruction_set_of_this_processor_gives_the_same_bits(here):
    assert {line.split()[1] for line in here if line.startswith("runs:")} == set(isas())


@proof
def test_the_optimiser_changes_no_bit(here, tmp_path):
    assert digests(run(build(tmp_path, "-DCMAKE_CXX_FLAGS_RELEASE=-O1"))) == digests(here)


@proof
@pytest.mark.skipif("avx2" not in isas(), reason="needs AVX2")
def test_vnni_gives_the_same_bits_by_its_definition(here, folder):
    report = run(build(folder, target="isa_bits_emulated"), "avxvnni", "products")
    assert set(digests(report)) <= set(digests(here))
    assert sum(line.startswith("PASS avxvnni linear int") for line in report) == 3


CROSS = [
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
]


@proof
def test_neon_gives_the_bits_of_this_machine(here, tmp_path):
    needs("aarch64-linux-gnu-g++", "qemu-aarch64-static")
    program = build(tmp_path, *CROSS)
    assert digests(run("qemu-aarch64-static", program, "neon")) == digests(here)
    older = run("qemu-aarch64-static", "-cpu", "cortex-a53", program, "ops")
    assert [line for line in older if line.startswith("runs:")] == ["runs: plain"]


@proof
@pytest.mark.skipif("avx2" not in isas(), reason="needs a machine of x86-64")
def test_a_processor_without_avx2_works_and_info_says_why():
    needs("qemu-x86_64-static")
    here = [sys.executable, "-m", "seriatim"]
    old = ["qemu-x86_64-static", "-cpu", "Nehalem", *here]
    facts = run(*old, "info")
    assert "isa\tplain" in facts
    lacking = "why\tplain: the best here; avx512vnni needs f16c, fma, avx2,"
    assert any(line.startswith(lacking) for line in facts)
    greedy = ["generate", "Once", "--max-tokens", "6", "--temperature", "0"]
    assert run(*old, *greedy) == run(*here, *greedy)
