"""Imports point down, the front door is small and light, and nothing can run a file's code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import small

import seriatim

SOURCE = Path(seriatim.__file__).parent
FILES = sorted(path for path in SOURCE.rglob("*.py"))

# Level of each module or folder, and what of its own level it may import besides itself.
LEVELS = {
    "errors": 0, "registry": 0, "zoo": 0,
    "codecs": 1, "files": 1, "kernels": 1, "_native": 1,
    "models": 2,
    "engine": 3, "quant": 3,
    "api": 4, "loading": 4, "requesting": 4, "results": 4, "scoring": 4, "breakers": 4,
    "speculating": 4, "constraints": 4, "search": 4, "chatting": 4, "infilling": 4, "prefixes": 4,
    "verify": 4, "quantising": 4, "exporting": 4,
    "train": 5, "measure": 5, "serve": 5, "scale": 5,
    "cli": 6, "weighing": 6, "progress": 6, "arguments": 6, "terminal": 6, "talking": 6,
    "serving": 6, "verifying": 6, "training": 6, "evaluating": 6, "rating": 6,
    "__main__": 6, "__init__": 6,
}  # fmt: skip
BESIDE = {
    "codecs": {"files"},
    "kernels": {"_native"},
    "registry": {"errors"},
    "api": {
        "chatting", "constraints", "infilling", "prefixes", "requesting", "results", "scoring",
        "search", "speculating", "verify",
    },
    "chatting": {"requesting", "results"},
    "infilling": {"requesting"},
    "search": {"breakers", "constraints", "requesting", "results"},
    "requesting": {"breakers", "constraints", "results", "scoring", "speculating"},
    "results": {"scoring"},
    "loading": {"api"},
    "quantising": {"loading", "scoring"},
    "cli": {
        "arguments", "evaluating", "progress", "rating", "serving", "talking", "terminal",
        "training", "verifying", "weighing", "__init__",
    },
    "training": {"progress", "__init__"},
    "serving": {"arguments", "terminal", "__init__"},
    "evaluating": {"arguments", "terminal", "__init__"},
    "rating": {"arguments", "terminal", "__init__"},
    "talking": {"arguments", "terminal", "__init__"},
    "verifying": {"arguments", "terminal", "__init__"},
    "weighing": {"arguments", "terminal", "__init__"},
    "exporting": {"loading"},
    "arguments": {"terminal"},
    "__main__": {"cli", "terminal"},
}  # fmt: skip
# The table names what a lower level may not reach although it lies below.
NEVER = {
    "models": {"codecs"},
    "engine": {"codecs", "files"},
    "quant": {"codecs"},
}


def part(module: str) -> str:
    """`seriatim.engine.cache` -> `engine`; the package itself is its front door."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in it the import stands."""
    package = ["seriatim", *path.relative_to(SOURCE).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= (
                {module} if module != "seriatim" else {f"seriatim.{a.name}" for a in node.names}
            )
    return found


def ours(path: Path) -> set[str]:
    """The parts of the package that a file imports; public names stand for the front door."""
    names = {m for m in imports(path) if m.split(".")[0] == "seriatim"}
    names -= {"seriatim.__version__"}  # a constant, there before anything is imported
    parts = {part(name) for name in names}
    return {p if p in LEVELS else "__init__" for p in parts}


def own(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def named(path: Path) -> str:
    return str(path.relative_to(SOURCE))


every_file = pytest.mark.parametrize("path", FILES, ids=named)


@every_file
def test_imports_point_down(path):
    here = own(path)
    assert here in LEVELS, f"{here} has no level"
    if here == "__init__":
        return  # the front door names what it opens on
    for other in ours(path) - {here}:
        below = LEVELS[other] < LEVELS[here] and other not in NEVER.get(here, ())
        assert below or other in BESIDE.get(here, ()), f"{named(path)} imports {other}"


def test_the_test_sees_an_import_that_points_up(tmp_path):
    """Inside a function, under TYPE_CHECKING and relative: each is counted."""
    file = SOURCE / "engine" / "imagined.py"
    text = """
def late():
    from seriatim.codecs import text
if TYPE_CHECKING:
    from seriatim import loading
from ..train import loop
import seriatim.cli as c
"""
    path = type("Imagined", (type(file),), {"read_text": lambda self, **_: text})(file)
    assert ours(path) == {"codecs", "loading", "train", "cli"}


@every_file
def test_torch_stays_where_it_is_allowed(path):
    """Core runs without torch: only the references and training know it."""
    heavy = {m.split(".")[0] for m in imports(path)} & {"torch", "transformers", "triton"}
    here = named(path)
    allowed = here == "kernels/reference.py" or here.startswith(("kernels/torch_", "train/"))
    assert allowed or not heavy


@every_file
def test_no_path_leads_from_a_file_to_code(path):
    """No pickle in any of its names, no eval, no exec, nothing of a model is ever run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {m.split(".")[0] for m in imports(path)}
    assert not modules & {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert called not in {"eval", "exec", "compile", "__import__", "torch.load"}
            assert called != "np.load" or given.get("allow_pickle") == "False"
            assert "trust_remote_code" not in given


@every_file
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


def test_the_front_door_is_small():
    assert sorted(seriatim.__all__) == seriatim.__all__ == [
        "Engine", "FileError", "Model", "ModelError", "NumericError", "RequestError",
        "ResourceError", "SeriatimError", "load", "train",
    ]  # fmt: skip
    assert set(dir(seriatim)) == {*seriatim.__all__, "__version__"}
    for name in seriatim.__all__:
        assert callable(getattr(seriatim, name))
    with pytest.raises(AttributeError, match="lode"):
        seriatim.lode  # noqa: B018


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh process has loaded after running `code`."""
    program = f"{code}\nimport sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(ran.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_neither_torch_nor_numpy():
    assert not modules_after("import seriatim") & {"torch", "numpy", "tokenizers", "rich", "typer"}


def test_generating_on_the_cpu_does_not_import_torch():
    code = f"""
import seriatim
model = seriatim.load({str(small.folder("text"))!r}, threads=1)
assert len(model.generate("The cat", max_tokens=3, ignore_end=True).ids) == 3
model.score("The cat")
"""
    assert not modules_after(code) & {"torch", "transformers", "huggingface_hub"}


def test_laws_hold_under_python_without_asserts():
    """`python -O` removes them: no refusal may rest on one."""
    code = f"""
import seriatim
model = seriatim.load({str(small.folder("bytes"))!r}, threads=1)
for bad in (dict(max_tokens=0), dict(temperature=-1), dict(top_p=2), dict(allowed_ids=[])):
    try:
        model.generate("x", **bad)
    except seriatim.RequestError:
        continue
    raise SystemExit(f"{{bad}} was not refused")
print(model.generate("x", max_tokens=3, seed=1, ignore_end=True).ids)
"""
    ran = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    expected = small.shared("bytes").generate("x", max_tokens=3, seed=1, ignore_end=True).ids
    assert (ran.stdout.strip(), ran.returncode) == (str(expected), 0), ran.stderr
