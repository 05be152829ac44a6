"""Examples in docstrings run, public names have one, and links between documents lead somewhere."""

import doctest
import inspect
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest

import seriatim
from seriatim.train.loop import train

ROOT = Path(__file__).parents[1]
MODULES = [m.name for m in pkgutil.walk_packages(seriatim.__path__, "seriatim.")]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
EXAMPLES = [
    pytest.param(test, id=test.name)
    for name in MODULES
    if name not in ("seriatim.__main__", "seriatim._native")
    for test in doctest.DocTestFinder(exclude_empty=True).find(import_module(name), name)
    if test.examples
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctest.DocTestRunner(optionflags=FLAGS).run(example).failed == 0


@pytest.mark.parametrize(
    "thing",
    [
        seriatim.load,
        train,
        seriatim.Engine,
        seriatim.Model.generate,
        seriatim.Model.score,
        seriatim.Model.chat,
        seriatim.Model.beam,
        seriatim.Model.best_of,
        seriatim.Model.vote,
        seriatim.Model.mbr,
    ],
    ids=lambda thing: thing.__qualname__,
)
def test_a_public_name_is_documented_with_an_example(thing):
    text = inspect.getdoc(thing) or ""
    assert "Args:" in text
    assert ">>>" in text


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")), ids=str
)
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
