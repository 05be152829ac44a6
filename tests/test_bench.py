"""`seriatim bench`: every promised figure is there, and the figures agree with one another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small

import seriatim
from seriatim import cli
from seriatim.measure.bench import bench, lines, step_bytes

TINY = dict(prompt_tokens=8, max_tokens=5, batch=3, seconds=0.05)


@pytest.fixture(scope="module")
def tales() -> seriatim.Model:
    return seriatim.load("tales", threads=1)


def command(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        cli.main(["bench", *map(str, words)])
    return done.value.code, *capsys.readouterr()


def words() -> list[object]:
    return [w for name, value in TINY.items() for w in (f"--{name.replace('_', '-')}", value)]


def test_the_json_of_the_command_has_every_promised_field(capsys):
    code, out, _ = command(capsys, "tales", "--threads", 1, *words(), "--json")
    found = json.loads(out)
    assert code == 0
    assert {name: found[name] for name in ("prompt_tokens", "max_tokens", "batch")} == {
        name: TINY[name] for name in ("prompt_tokens", "max_tokens", "batch")
    }
    for name in ("prefill", "decode", "batched"):
        assert found[f"{name}_tokens_s"] > 0
    for name in ("first_token_ms", "between_tokens_ms"):
        spread = found[name]
        assert 0 < spread["p50"] <= spread["p90"] <= spread["p99"]
    assert found["between_tokens_ms"]["count"] == 4 * found["first_token_ms"]["count"]
    assert 0 < found["memory"]["weights"] < found["memory"]["peak_rss"]
    assert found["memory"]["cache"] > 0
    assert found["share"].keys() == {"bandwidth", "arithmetic"}
    assert all(value > 0 for value in (*found["share"].values(), *found["machine"].values()))


def test_the_figures_agree_with_one_another(tales):
    found = bench(tales, **TINY)
    assert found.model == tales.facts
    first, gaps = found.first_token_ms, found.between_tokens_ms
    assert found.prefill_tokens_s <= 8 * 1000 / (first.p50 / first.count)
    assert found.decode_tokens_s <= 1000 / (gaps.p50 / gaps.count)
    read = found.decode_tokens_s * step_bytes(tales, 8 + 2) / 1e9
    assert found.share.bandwidth == pytest.approx(read / found.machine.read_gb_s)
    assert list(lines(found))[:3] == ["model", "prefill", "decode"]


def test_a_step_reads_the_weights_once_and_the_context(tales):
    position = tales.runtime.block_bytes / 64
    assert step_bytes(tales, 100) - step_bytes(tales, 0) == pytest.approx(100 * position)
    assert tales.checkpoint.spec.tied
    assert step_bytes(tales, 0) == tales.weight_bytes == _stored(tales)
    apart = small.shared("llama3")
    assert not apart.checkpoint.spec.tied
    embedding = apart.checkpoint.weights["embed.weight"].nbytes
    assert step_bytes(apart, 0) == pytest.approx(_stored(apart) - embedding)


def test_weights_are_counted_as_they_are_loaded():
    wide = small.load("llama3")
    assert small.load("llama3", precision="bf16").weight_bytes == wide.weight_bytes / 2


@pytest.mark.parametrize(
    "option, value, said",
    [
        ("--prompt-tokens", 0, "prompt_tokens is 0"),
        ("--max-tokens", 1, "max_tokens is 1"),
        ("--max-tokens", 10**6, "at most the context"),
        ("--batch", 0, "batch is 0"),
        ("--seconds", "nan", "seconds is nan"),
        ("--seconds", -1, "seconds is -1"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(capsys, option, value, said):
    code, out, err = command(capsys, "tales", "--threads", 1, option, value)
    assert (code, out) == (2, "")
    assert said in err


def _stored(model: seriatim.Model) -> int:
    return sum(array.nbytes for array in model.checkpoint.weights.values())


# benchmarks/peers.py

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PROMISED = {
    "row", "peer", "peer_value", "seriatim_value", "ratio", "pass", "bytes_per_token",
}  # fmt: skip


def test_a_peer_that_cannot_run_stands_in_the_table_and_the_json_by_name(tmp_path):
    """No interpreter for two of three, and for the third one that is not there."""
    script = [sys.executable, str(BENCHMARKS / "peers.py"), "--llama", str(tmp_path / "python")]
    shape = ["--shape", "32,64,1,2,1,256", "--cache", str(tmp_path)]
    brief = ["--rounds", "1", "--seconds", "0.01", "--only", "decode int4$", "--threads", "1"]
    out = tmp_path / "out.json"
    done = subprocess.run(
        [*script, *shape, *brief, "--json", str(out)],
        env=os.environ | {"PYTHONPATH": str(Path(seriatim.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["machine"]["read_gb_s"] > 0
    assert all(line.keys() >= PROMISED for line in found["rows"])
    peers = ["llama.cpp (q4_0.gguf)", "OpenVINO (openvino-int4)", "transformers (bf16)"]
    assert [line["peer"] for line in found["rows"]] == peers
    for line in found["rows"]:
        assert (line["peer_value"], line["ratio"]) == (None, None)
        assert f"{line['peer']} FAILED: {line['error']}" in done.stdout
    assert str(tmp_path / "python") in found["rows"][0]["error"]
    assert found["rows"][1]["error"] == "no interpreter was given for it"


def _stored(model: seriatim.Model) -> int:
    return sum(array.nbytes for array in model.checkpoint.weights.values())
