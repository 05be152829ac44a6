"""Code: files around a gap within a budget, and where a line, a block or its braces end."""

import json
import re
from pathlib import Path

import checkpoints
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from test_infill import PUBLISHED, codec, llama, tokenizer

import seriatim
from seriatim import cli
from seriatim.codecs import Watch, code
from seriatim.codecs._repository import Repository, Shown
from seriatim.codecs._until import RULES
from seriatim.errors import RequestError

A, B = "import b\n\n\nclass A:\n    x = 1\n", "y = 2\nz = 3\n"
P, S = "def f(x):\n    return ", "\n\nprint(f(2))\n"
FILES = {"a.py": A, "lib/b.py": B}

# As their authors write a repository: {a} and {b} are the two files, {p} and {s} the sides.
WRITTEN = {
    "StarCoder2": "<repo_name>me/it<file_sep>a.py\n{a}<file_sep>lib/b.py\n{b}<file_sep>"
    "<fim_prefix>src/x.py\n{p}<fim_suffix>{s}<fim_middle>",
    "StarCoder": "<reponame>me/it<filename>a.py\n{a}<filename>lib/b.py\n{b}<filename>"
    "<fim_prefix>src/x.py\n{p}<fim_suffix>{s}<fim_middle>",
    "Qwen2.5-Coder": "<|repo_name|>me/it\n<|file_sep|>a.py\n{a}<|file_sep|>lib/b.py\n{b}"
    "<|file_sep|>src/x.py\n<|fim_prefix|>{p}<|fim_suffix|>{s}<|fim_middle|>",
    "CodeGemma": "a.py\n{a}<|file_separator|>lib/b.py\n{b}"
    "<|file_separator|>src/x.py\n<|fim_prefix|>{p}<|fim_suffix|>{s}<|fim_middle|>",
}
NAMED = [name for name in WRITTEN if name != "CodeGemma"]
COMMENTED = [name for name in PUBLISHED if name not in WRITTEN]


def around(name: str, files=FILES, **rest) -> Repository:
    named = {"name": "me/it"} if name in NAMED else {}
    return Repository(dict(files), **{"file": "src/x.py"} | named | rest)


def ids(name: str, order="psm", **rest) -> tuple[list[int], list[Shown]]:
    own = codec(name)
    return code.surrounded(own, code.of(own), P, S, around(name, **rest), order)


def said(own, made: list[int]) -> str:
    """The text of ids without the marks."""
    return own.decode([id for id in made if id not in own.added.values()])


# ---- files


@pytest.mark.parametrize("name", WRITTEN)
def test_files_stand_before_the_gap_as_the_family_writes_them(name):
    text = WRITTEN[name].format(a=A, b=B, p=P, s=S)
    made, shown = ids(name)
    assert made == tokenizer(name).encode(text, add_special_tokens=False).ids
    assert [(s.path, s.lines, s.total) for s in shown] == [("a.py", 5, 5), ("lib/b.py", 2, 2)]


@pytest.mark.parametrize("name", ["StarCoder2", "StarCoder"])
def test_with_the_suffix_first_files_still_come_before_both(name):
    made, _ = ids(name, "spm")
    text = WRITTEN[name].split("<fim_prefix>")[0].format(a=A, b=B)
    text += f"<fim_prefix><fim_suffix>{S}<fim_middle>src/x.py\n{P}"
    assert made == tokenizer(name).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", COMMENTED)
def test_without_marks_for_files_comments_with_their_paths_begin_the_prefix(name):
    own, (made, _) = codec(name), ids(name)
    text = f"# a.py\n{A}# lib/b.py\n{B}# src/x.py\n{P}"
    assert said(own, made) == text + S
    plain = code.infill(own, code.of(own), text, S)
    special = set(own.added.values())
    assert [i for i in made if i in special] == [i for i in plain if i in special]


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_codellama_has_one_space_before_all_and_none_between(order):
    own = llama()
    family = code.of(own)
    files = {"a.py": "a b\n", "b.py": "c\n"}
    made, _ = code.surrounded(own, family, "x", "y", Repository(files, "x.py"), order)
    before = [made.index(own.added["▁<PRE>"]) + 1, made.index(own.added["▁<SUF>"])]
    if order == "spm":
        before = [made.index(own.added["▁<MID>"]) + 1, len(made)]
    assert own.decode(made[slice(*before)]) == "# a.py\na b\n# b.py\nc\n# x.py\nx"


def test_a_path_says_which_comment_names_it():
    own, files = codec("DeepSeek-Coder"), {"a.rs": "fn a() {}\n", "b.sql": "select 1\n", "c": "d\n"}
    made, _ = code.surrounded(own, code.of(own), P, S, Repository(files, "x.cpp"))
    named = "// a.rs\nfn a() {}\n-- b.sql\nselect 1\n# c\nd\n// x.cpp\n"
    assert said(own, made) == named + P + S


texts = st.dictionaries(
    st.sampled_from(["a.py", "b.py", "c.py", "d.py"]),
    st.text("ab \n<", max_size=60),
    max_size=4,
)


@pytest.mark.parametrize(
    "name", ["StarCoder2", "Qwen2.5-Coder", "CodeGemma", "SantaCoder", "Llama"]
)
@settings(max_examples=60)
@given(files=texts, budget=st.integers(0, 150))
def test_files_never_take_more_than_their_budget_and_all_are_accounted_for(name, files, budget):
    own = llama() if name == "Llama" else codec(name)
    family = code.of(own)
    rest = {"file": "x.py"}
    bare, _ = code.surrounded(own, family, P, S, Repository(**rest))
    made, shown = code.surrounded(own, family, P, S, Repository(files, budget=budget, **rest))
    spent = sum(s.ids for s in shown)
    assert [s.path for s in shown] == list(files)
    assert spent <= budget
    if name != "Llama":  # whose own file begins with a space where no other comes before it
        assert len(made) - len(bare) in (spent, spent + (name == "CodeGemma"))
    for s in shown:
        assert 0 <= s.lines <= s.total
        assert (s.ids > 0) or s.lines == 0


def test_whole_files_come_first_and_the_nearest_before_all():
    sizes = {s.path: s.ids for s in ids("StarCoder2")[1]}
    _, (a, b) = ids("StarCoder2", budget=sizes["a.py"])
    assert (a.lines, b.lines) == (0, 2)  # the nearest whole; of the other nothing
    _, (a, b) = ids("StarCoder2", budget=sizes["a.py"] + sizes["lib/b.py"] - 1)
    assert (0 < a.lines < a.total, b.lines) == (True, 2)
    _, (a, b) = ids("StarCoder2", files={"a.py": B, "lib/b.py": A * 9}, budget=sizes["a.py"])
    assert (a.lines, b.lines) == (2, 0) or (a.lines == 2 and b.lines < b.total)


def test_what_is_cut_is_the_beginning_up_to_a_line_and_as_much_as_fits():
    own, family = codec("StarCoder2"), code.of(codec("StarCoder2"))
    text = "".join(f"line{n} = {n}\n" for n in range(40))
    costs = []
    for lines in range(1, 40):
        head = "".join(text.splitlines(keepends=True)[:lines])
        costs.append(1 + len(code.part(own, family, f"a.py\n{head}")))
    for budget in (0, costs[0] - 1, costs[0], costs[7], costs[7] + 1, costs[38]):
        _, (shown,) = ids("StarCoder2", files={"a.py": text}, budget=budget)
        fit = [n for n, cost in enumerate(costs, 1) if cost <= budget]
        assert shown.lines == max(fit, default=0)
        assert shown.ids == (costs[shown.lines - 1] if fit else 0)


@settings(max_examples=30)
@given(data=st.data())
def test_no_file_and_no_name_is_ever_read_as_a_mark(data):
    own = codec("StarCoder2")
    family = code.of(own)
    odd = st.lists(st.sampled_from([*own.specials, "a", "\n"]), max_size=4).map("".join)
    files = {"a<file_sep>": data.draw(odd), "<repo_name>": data.draw(odd)}
    marks = set(own.added.values())
    made, _ = code.surrounded(
        own, family, data.draw(odd), data.draw(odd), Repository(files, "<fim_middle>", "<file_sep>")
    )
    empty, _ = code.surrounded(own, family, "", "", Repository(dict.fromkeys(files, ""), "x", "y"))
    assert [i for i in made if i in marks] == [i for i in empty if i in marks]


# ---- of a model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> seriatim.Model:
    folder = tmp_path_factory.mktemp("models") / "code"
    own = codec("StarCoder2")
    checkpoints._llama(
        vocab_size=own.size, num_hidden_layers=1, bos_token_id=None, eos_token_id=0
    )(folder)  # fmt: skip
    own.save(folder)
    return seriatim.load(folder, threads=1)


GAP = dict(prefix=P, suffix=S, file="src/x.py", repository="me/it")
HOW = dict(max_tokens=6, seed=5)


def test_a_request_says_what_it_shows_of_each_file(model, tmp_path):
    (tmp_path / "b.py").write_text(B)
    files = {"a.py": A, "lib/b.py": tmp_path / "b.py"}
    result = model.generate(**GAP, files=files, n=2, **HOW)
    assert result.prompt_ids == [*model.codec.start, *ids("StarCoder2")[0]]
    assert [s.lines for s in result.files] == [5, 2]
    assert result.samples[1].files == result.files
    stream = model.stream(**GAP, files=files, context_budget=30, **HOW)
    assert stream.result().files == stream.files == ids("StarCoder2", budget=30)[1]
    assert model.generate(prefix=P, suffix=S, **HOW).files is None


def test_without_a_budget_files_that_the_context_cannot_hold_are_refused(model):
    with pytest.raises(RequestError, match=str(model.context)):
        model.generate(**GAP, files={"a.py": A * 1000}, **HOW)
    kept = model.generate(**GAP, files={"a.py": A * 1000}, context_budget=40, **HOW)
    assert (kept.files[0].total, kept.files[0].lines > 0) == (5000, True)


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (dict(prompt="a", files=FILES), "files is given without prefix"),
        (dict(prompt="a", file="x.py"), "file is given without prefix"),
        (dict(prefix=P, files=[A]), "files is"),
        (dict(prefix=P, files={"a.py": 3}), r"files\['a.py'\] is a int"),
        (dict(prefix=P, files={"a\nb": A}), "name on one line"),
        (dict(prefix=P, files={"": A}), "name on one line"),
        (dict(prefix=P, files={3: A}), "name on one line"),
        (dict(prefix=P, files=FILES, file="a.py"), "the file with the gap"),
        (dict(prefix=P, files={"a.py": A, Path("a.py"): A}), "twice"),
        (dict(prefix=P, files=FILES, repository=""), "repository is ''"),
        (dict(prefix=P, context_budget=9), "context_budget is given without files"),
        (dict(prefix=P, files=FILES, context_budget=-1), "context_budget is -1"),
        (dict(prefix=P, files=FILES, context_budget=True), "context_budget is True"),
        (dict(prefix=P, files={"a.py": Path("/nowhere")}), "nowhere"),
        (dict(prefix=P, files={"a.py": "\ud800"}), "surrogate"),
    ],
)
def test_what_cannot_be_shown_is_refused(model, asked, names):
    for call in (model.generate, model.stream):
        with pytest.raises(seriatim.SeriatimError, match=names):
            call(**asked)


def test_a_family_refuses_what_it_has_no_place_for():
    own = codec("SantaCoder")
    with pytest.raises(RequestError, match="no mark for its name"):
        code.surrounded(own, code.of(own), P, S, Repository(name="me/it"))
    with pytest.raises(RequestError, match="no mark between files"):
        code.surrounded(own, code.of(own), P, S, Repository(FILES))


def command(capsys, *words) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        cli.main([*map(str, words)])
    return done.value.code, *capsys.readouterr()


def test_the_command_shows_files_and_says_what_it_leaves_out(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib").mkdir()
    for name, text in FILES.items():
        Path(name).write_text(text)
    asked = ["generate", "--prefix", P, "--suffix", S, "--file", "src/x.py", "--repository"]
    asked += ["me/it", "--context-file", "a.py", "--context-file", "lib/b.py", "--max-tokens", 6]
    asked += ["--seed", 5, "--threads", 1, "-m", model.checkpoint.path, "--json"]
    code_, out, err = command(capsys, *asked)
    assert (code_, "are shown" in err) == (0, False)
    said = json.loads(out)
    assert said["prompt_ids"] == [*model.codec.start, *ids("StarCoder2")[0]]
    assert [file["lines"] for file in said["files"]] == [5, 2]
    code_, out, err = command(capsys, *asked, "--context-budget", 30)
    assert "--context-file a.py: " in err
    assert "of 5 lines are shown" in err
    code_, _, err = command(capsys, *asked, "--context-file", "a.py")
    assert (code_, "twice" in err) == (2, True)


# ---- until


class Letters:
    """A stream whose ids are texts."""

    def feed(self, id):
        return id

    def finish(self):
        return ""


def watched(pieces, rule, before="", **rest) -> tuple[str, str | None]:
    """What is shown of a text in pieces, and what was met."""
    watch, shown = Watch(Letters(), rule=RULES[rule](before), **rest), []
    for piece in pieces:
        text, met = watch.feed(piece)
        shown.append(text)
        if met is not None:
            return "".join(shown) + watch.finish(), met
    return "".join(shown) + watch.finish(), None


BLOCKS = [
    # before, text up to the end of the block, and what lies behind it
    ("def f(x):\n", "    y = x\n\n    return y", "\n\n\ndef g():\n    pass\n"),
    ("def f(x):", "\n    return x", "\n\nf(1)\n"),
    ("def f(x):\n    ", "y = x\n    return y", "\nf(1)"),
    ("def f(x):\n    return ", "x + (\n1\n)  # )", "\n# more"),
    ("def f(x):\n    return (", "x +\n1)\n    y", "\nf(1)"),
    ("def f(x):\n    if x", " > 0:\n        return 1", "\n    return 2\n"),
    ("def f(x):\n    if x:\n        return 1\n    ", "return 2", "\n\nf(1)"),
    ("def f():\n    '''Do", " it:\nwell.\n'''\n    return 1", "\nf()"),
    ('def f():\n    """It\'s', ' it."""\n    return "\\""', "\nf()"),
    ("def f():\n", '    x = """\na\n  "\n""" + \'#\'\n    y = \\\n1\n    return [\n\n]', "\nz"),
    ("def f():\n", "    a = \"\"\n    b = 'it\\'s ('\n    return a", "\nz"),
    ("def f():\n", "    broken = 'no end\n    return 1", "\nz"),
    ("class A:\n\tdef f(self):\n", "\t\treturn 1", "\r\n\tdef g"),
    ("def f():\n", "        deep\n         deeper", "\n    less"),
    ("def f():\n", "", "y = 1\n"),
    ("", "    a\n    b", "\nc"),
    ("x = {1: (2,\n", " 3)}\ny = 2\n", None),
]
BRACED = [
    ("int f() {\n", "  if (x) { return '}'; }\n  return \"}\"; // }", "\n}\n"),
    ("int f() {\n  /* { */", " return 1; /* } */", "\n}"),
    ("function f() { ", "return `}\n}`; ", "}"),
    ("function f()", " {\n  return {a: 1};\n}", "\nf()"),
    ("", "let x = '{';\nif (x) {\n}", " else {}"),
    ("func a() {}\nfunc b() {\n\tif x {\n", "\t\treturn", "\n\t}\n}"),
    ("", "", "}"),
]
LINES = [
    ("", "x = 1", "\ny"),
    ("x", "\n\n  return 1", "\r\n"),
    ("", " \n \n", None),
    ("", "a\rb", "\n"),
]
CASES = [
    pytest.param(rule, *case, id=f"{rule}-{n}")
    for rule, cases in (("block", BLOCKS), ("braces", BRACED), ("line", LINES))
    for n, case in enumerate(cases)
]
every_case = pytest.mark.parametrize(("rule", "before", "inside", "behind"), CASES)


@every_case
def test_a_piece_ends_where_its_rule_says(rule, before, inside, behind):
    text = inside + (behind or "")
    expected = (inside, None if behind is None else rule)
    assert watched([text], rule, before) == watched(text, rule, before) == expected


@every_case
def test_the_text_alone_decides_and_not_how_it_is_cut(rule, before, inside, behind):
    text = inside + (behind or "")
    for size in (2, 3, 5, 8):
        pieces = [text[n : n + size] for n in range(0, len(text), size)]
        assert watched(pieces, rule, before) == watched([text], rule, before)


@every_case
def test_nothing_that_is_shown_is_taken_back(rule, before, inside, behind):
    watch, shown = Watch(Letters(), rule=RULES[rule](before)), ""
    for letter in inside + (behind or ""):
        shown += watch.feed(letter)[0]
        assert inside.startswith(shown)


letters = st.text("a:#'\"()[{}]\\ \t\r\n/*`", max_size=40)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=150)
@given(before=letters, text=letters, cuts=st.lists(st.integers(1, 6), min_size=40, max_size=40))
def test_any_text_at_all_is_read_and_shown_alike(rule, before, text, cuts):
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(text[at : at + cut])
        at += cut
    shown, met = watched(pieces, rule, before)
    assert (shown, met) == watched(text, rule, before)
    assert text.startswith(shown)
    assert met is not None or shown == text


def test_a_stop_string_and_a_rule_that_end_together_show_what_neither_takes():
    assert watched(["a", "\n", "b"], "line", stop=["a\n"]) == ("", "a\n")
    assert watched(["  a", "\n", "b"], "line", stop=["\n"]) == ("  a", "\n")
    assert watched(["    a\n\nb"], "block", stop=["b"]) == ("    a", "block")


def test_what_passes_unwatched_is_read_but_ends_nothing():
    assert watched(["a", "\n", "b", "\n", "c"], "line", minimum=2) == ("a\nb", "line")
    assert watched(["    a", "\n", "b", "\nc"], "block", minimum=3) == ("    a\nb", "block")
    before = "def f():\n"
    assert watched(["    a", "\n", "b"], "block", before, minimum=2) == ("    a\n", "block")


SOURCE = "    y = x\n    return y\n\n\ndef g(x):\n"


@pytest.mark.parametrize("kind", ["bytes", "text"])
@pytest.mark.parametrize("speculate", [None, "ngram"])
def test_a_request_ends_with_its_block_streamed_or_not_and_whatever_is_guessed(kind, speculate):
    model = small.shared(kind)
    prompt = "def f(x):\n" + "    y = x\n    return y\n" * 3
    how = dict(forced_ids=model.encode(SOURCE), until="block", temperature=0, speculate=speculate)
    whole = model.generate(prompt, **how)
    assert (whole.text, whole.stop, whole.finish_reason) == (SOURCE.rstrip()[:22], "block", "stop")
    said = whole.output if isinstance(whole.output, str) else whole.output.decode()
    assert said == whole.text
    stream = model.stream(prompt, **how)
    assert "".join(piece.text for piece in stream) == whole.text
    assert stream.result().ids == whole.ids
    line = model.generate(prompt, **how | {"until": "line"})
    assert (line.text, line.stop) == ("    y = x", "line")


def test_the_block_of_a_gap_is_that_of_its_prefix(model):
    forced = model.encode("x + 1\nprint(3)\n")
    how = dict(forced_ids=forced, seed=1, ignore_end=True)
    for prefix, text in ((P, "x + 1"), ("y = ", "x + 1\nprint(3)\n")):
        result = model.generate(
            prefix=prefix, suffix=S, until="block", max_tokens=len(forced), **how
        )
        assert result.text == text


def test_the_command_ends_with_a_line(tmp_path, capsys):
    asked = ["generate", "x", "--until", "line", "--threads", 1, "-m", small.folder("bytes")]
    done, out, _ = command(capsys, *asked, "--seed", 3, "--json")
    result = small.shared("bytes").generate("x", until="line", seed=3)
    assert (done, json.loads(out)["text"]) == (0, result.text)


@pytest.mark.parametrize("wrong", ["lines", "", 3, ["line"], True])
def test_a_rule_that_is_none_is_refused(wrong):
    with pytest.raises(RequestError, match="'line' or 'block' or 'braces'"):
        small.shared("bytes").generate("a", until=wrong)


def test_until_needs_text_and_a_search_by_beams_cannot_honour_it():
    with pytest.raises(RequestError, match="until needs a codec"):
        small.shared("llama3").generate([1, 2], until="line")
    with pytest.raises(RequestError, match="cannot honour until"):
        small.shared("bytes").beam("a", until="line")


def test_the_documents_examples_run():
    text = (Path(__file__).parents[1] / "docs" / "code.md").read_text(encoding="utf-8")
    printed: list[tuple] = []
    exec(
        "\n".join(re.findall(r"```python\n(.*?)```", text, re.S)),
        {"print": lambda *said: printed.append(said)},
    )
    assert [said[0] for said in printed[:2]] == ["README.md", "shapes.py"]
    assert len(printed) == 3
