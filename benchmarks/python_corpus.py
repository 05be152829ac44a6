"""The standard library of the Python that runs this, as files to train on and files held out.

    python benchmarks/python_corpus.py FOLDER

copies FOLDER/train and FOLDER/held for `seriatim train FOLDER/train --validation FOLDER/held`,
json/decoder.py as json.decoder.py, with the licence beside them: they are the Python Software
Foundation's, under the PSF License. Which files follows from their names alone. Whole top-level
packages are held out. No tests are in either, so none of those packages' tests; nor are tables made
by programs (character maps, the texts of pydoc, what the build wrote down), nor packages that
somebody installed.
"""

import argparse
import shutil
import sys
import sysconfig
from pathlib import Path

HELD = {"email", "http", "json", "logging", "sqlite3", "tomllib"}
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
TABLES = {"encodings", "pydoc_data"}


def files(library: Path) -> list[Path]:
    """Names within the library of the files that are meant, sorted."""
    found = (path.relative_to(library) for path in library.rglob("*.py"))
    return sorted(name for name in found if _meant(name) and (library / name).stat().st_size)


def _meant(name: Path) -> bool:
    made = name.parts[0] in TABLES or name.name.startswith("_sysconfigdata")
    return not made and not LEFT_OUT & set(name.parts)


def is_text(path: Path) -> bool:
    """Whether it is UTF-8."""
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True


def copy(library: Path, out: Path) -> dict[str, list[int]]:
    """Sizes of the files of each half."""
    sizes: dict[str, list[int]] = {"train": [], "held": []}
    for name in files(library):
        if not is_text(library / name):
            print(f"left out, not UTF-8: {name}", file=sys.stderr)
            continue
        half = "held" if name.parts[0] in HELD else "train"
        (place := out / half / ".".join(name.parts)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library / name, place)
        sizes[half].append(place.stat().st_size)
    shutil.copyfile(library / "LICENSE.txt", out / "LICENSE.txt")
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description="The standard library as training data.")
    parser.add_argument("out", type=Path, help="A folder that does not exist yet.")
    out = parser.parse_args().out
    if out.exists():
        parser.error(f"{out} exists")
    library = Path(sysconfig.get_path("stdlib"))
    for half, sizes in copy(library, out).items():
        print(f"{half}\t{len(sizes)} files\t{sum(sizes):,} bytes")
    print(f"Python {sys.version.split()[0]}; held out: {', '.join(sorted(HELD))}")


if __name__ == "__main__":
    main()
