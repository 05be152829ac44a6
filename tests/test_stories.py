"""A really trained model reproduces the text that its author printed, to the letter."""

import re

import pytest

import seriatim
from seriatim.cli import main

FOLDER = "weights/stories260K"
STEPS = (
    256  # run.c's default: one id printed after each of 256 positions, of which id 1 is the first
)


@pytest.fixture(scope="module")
def printed(data):
    """What `run stories260K.bin -t 0.0` printed, up to the newline that it always adds."""
    card = (data / FOLDER / "stories260K.md").read_text(encoding="utf-8")
    return re.search(r" -t 0\.0\n(Once upon a time.*?)\n```", card, re.DOTALL).group(1)


def test_greedy_text_is_the_published_one(stories, printed):
    answer = stories.generate(None, temperature=0, max_tokens=STEPS)
    assert answer.text == answer.output == printed
    assert answer.prompt_ids == [1]
    assert (len(answer.ids), answer.stop) == (STEPS, "max_tokens")


def test_the_text_begins_after_the_space_that_run_c_strips(stories):
    assert not stories.generate("", temperature=0, max_tokens=1).text.startswith(" ")


@pytest.mark.parametrize("options", [{"isa": "plain"}, {"threads": 2}, {"context": 257}])
def test_the_text_does_not_depend_on_how_it_is_computed(data, printed, options):
    path = data / FOLDER / "stories260K.bin"
    model = seriatim.load(path, **{"threads": 1} | options)
    assert model.generate(None, temperature=0, max_tokens=STEPS).text == printed


def test_the_torch_backend_writes_the_same(data, printed, device):
    model = seriatim.load(data / FOLDER / "stories260K.bin", backend="torch", device=device)
    assert model.generate(None, temperature=0, max_tokens=STEPS).text == printed


def test_pieces_of_a_stream_join_to_the_text(stories, printed):
    pieces = list(stories.stream(None, temperature=0, max_tokens=STEPS))
    assert "".join(piece.text for piece in pieces) == printed
    assert sum(len(piece.ids) for piece in pieces) == STEPS


def test_the_command_prints_what_run_c_printed(data, printed, capsys):
    words = ["-m", str(data / FOLDER / "stories260K.bin"), "--temperature", "0", "--threads", "1"]
    with pytest.raises(SystemExit) as done:
        main(["generate", *words, "--max-tokens", str(STEPS)])
    assert done.value.code == 0
    assert capsys.readouterr().out == printed + "\n"


def test_without_a_limit_it_ends_where_the_next_story_would_begin(stories):
    answer = stories.generate(None, temperature=0)
    assert (answer.stop, answer.finish_reason) == (1, "stop")
    assert STEPS < len(answer.ids) < stories.context - 1
    assert answer.usage.generated == len(answer.ids) + 1
