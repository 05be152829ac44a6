"""Images: MNIST by the pixel on a stated protocol, and pictures as files to train on.

    python benchmarks/images.py mnist DATA/mnist OUT    # the floor, and the command that trains
    python benchmarks/images.py nats MODEL OUT          # nats per image, beside that floor
    python benchmarks/images.py icons DATA/silk16 OUT   # likewise, for the shipped model `icons`
    python benchmarks/images.py omniglot ZIP OUT        # letters, in folders by alphabet

`mnist`: of the 60,000 training images the first 50,000 are learnt from and the last 10,000 held
out. Each pixel is on with p = grey / 255, drawn once: u < p for u = (x + 1/2) / 2^32, x the word
`pixel & 3` of Philox4x32-10 with key 0 and counter (pixel >> 2, image, 0, 0), pixels and images
from 0 in the given order. Nats are of all 784 pixels and of nothing else: no end, no label. On
other fixed draws of MNIST were published: NADE 88.33 (Larochelle and Murray 2011), PixelCNN 81.30
(van den Oord et al. 2016); independent pixels have 205.8 on the test images.
"""

import argparse
import shutil
import zipfile
from hashlib import sha256
from math import log, sqrt
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import seriatim
from seriatim import codecs
from seriatim.codecs.image import ImageCodec
from seriatim.engine.engine import Engine
from seriatim.errors import SeriatimError
from seriatim.kernels.mathematics import philox
from seriatim.requesting import finish
from seriatim.scoring import Logprobs

SIDE, LEARNT, SHEET = 28, 50_000, 10_000
FILES = [f"mnist_batch_{number}.png" for number in range(20)]
PACK = 7  # a divisor of the width, so that an id is always the same columns
ICONS = "size=16,mode=palette,colours=64"
TOGETHER = 64  # images that are scored at once


# ---- MNIST ------------------------------------------------------------------------------------


def digits(folder: Path) -> np.ndarray:
    """The given images: uint8 [image, pixel]."""
    return np.concatenate([np.asarray(Image.open(folder / name).convert("L")) for name in FILES])


def drawn(grey: np.ndarray) -> np.ndarray:
    """Which pixels are on, by the one fixed draw: bool [image, pixel]."""
    return np.concatenate([_row(image, row) for image, row in enumerate(grey)])


def _row(image: int, grey: np.ndarray) -> np.ndarray:
    counter = np.zeros((len(grey) // 4, 4), np.uint32)
    counter[:, 0], counter[:, 1] = np.arange(len(counter)), image
    x = philox(counter, 0).astype(np.uint64).reshape(1, -1)
    # (x + 1/2) / 2^32 < grey / 255 in whole numbers
    return (2 * x + 1) * np.uint64(255) < grey.astype(np.uint64) << np.uint64(33)


def bernoulli(learnt: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Nats of each held-out image under independent pixels (one count added to each side)."""
    p = (learnt.sum(0) + 1) / (len(learnt) + 2)
    return -(held @ np.log(p) + ~held @ np.log1p(-p))


def mnist(asked: argparse.Namespace) -> None:
    """Write the draw as sheets, an image in each row; print floors and the command."""
    on = drawn(digits(asked.data))
    asked.out.mkdir(parents=True, exist_ok=True)
    for at in range(0, len(on), SHEET):
        name = f"learn-{at // SHEET}.png" if at < LEARNT else "held.png"
        Image.fromarray(on[at : at + SHEET]).save(asked.out / name)
    digest = sha256(np.packbits(on).tobytes()).hexdigest()
    print(f"pixels that are on: {on.mean():.6f}; sha256 of the bits {digest}")
    show("floor, independent pixels", bernoulli(on[:LEARNT], on[LEARNT:]))
    codec = f"image:size={SIDE},mode=binary,pack={PACK},sheet=rows"
    context = SIDE * SIDE // PACK + 2  # the mark before it and the one after it
    print(f"seriatim train '{asked.out}/learn-*.png' --validation {asked.out}/held.png "
          f"--codec {codec} --context {context} --size 1M --batch 32 --steps 12000 "
          f"--weight-decay 0.1 --threads 2 --out runs/mnist")  # fmt: skip


def nats(asked: argparse.Namespace) -> None:
    """Score held-out images with a model, beside what independent pixels give them."""
    model = seriatim.load(asked.model, threads=asked.threads)
    codec, held = model.codec, asked.out / "held.png"
    assert isinstance(codec, ImageCodec), "its codec is image"
    images = [raw for _, raw in codec.records(held)][: asked.most]
    prompts = [codec.prompt(raw) for raw in images if not isinstance(raw, SeriatimError)]
    found = [
        value
        for at in range(0, len(prompts), TOGETHER)
        for value in scored(model.engine, prompts[at : at + TOGETHER])
    ]
    show(str(asked.model), np.array(found))
    learnt, away = (
        np.concatenate([np.asarray(Image.open(path).convert("1")) for path in paths])
        for paths in (sorted(asked.out.glob("learn-*.png")), [held])
    )
    show("floor, independent pixels", bernoulli(learnt, away)[: asked.most])
    print("published: independent pixels 205.8, NADE 88.33, PixelCNN 81.30")


def scored(engine: Engine, prompts: list[list[int]]) -> list[float]:
    """Nats of what follows the first id of each."""
    sinks = [Logprobs(ids) for ids in prompts]
    finish(engine, [engine.add(s.ids, rows=s, generate=False, seed=0) for s in sinks])
    return [-float(sink.values[1:].sum()) for sink in sinks]


def show(name: str, nats: np.ndarray) -> None:
    error = nats.std(ddof=1) / sqrt(len(nats))
    print(f"{name}: {nats.mean():.3f} ± {error:.3f} nats per image, of {len(nats)} held out "
          f"({nats.mean() / log(2):.2f} bits)")  # fmt: skip


# ---- files to train on ------------------------------------------------------------------------


def icons(asked: argparse.Namespace) -> None:
    """Copy icons to OUT/learn and OUT/held, those of a family (cart, cart_add, ...) to one side.

    OUT/mirrored has those to learn from, left to right: 879 icons are few.
    """
    for path in sorted(asked.data.glob("*.png")):
        family = path.stem.partition("_")[0]
        side = "held" if sha256(family.encode()).digest()[0] < 26 else "learn"  # about a tenth
        (asked.out / side).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, asked.out / side / path.name)
    (asked.out / "mirrored").mkdir(exist_ok=True)
    for path in sorted((asked.out / "learn").iterdir()):
        ImageOps.mirror(Image.open(path).convert("RGBA")).save(asked.out / "mirrored" / path.name)
    for side in ("learn", "held"):
        print(f"{side}: {len(list((asked.out / side).iterdir()))} icons")
    learnt, held = (sorted((asked.out / side).iterdir()) for side in ("learn", "held"))
    codec = codecs.made(f"image:{ICONS}")
    assert isinstance(codec, ImageCodec)
    codec = codec.fitted(learnt)
    ids, away = (
        np.array([codec.encode(codec.read(path)) for path in paths]) for paths in (learnt, held)
    )
    seen = np.stack([(ids == id).sum(0) for id in range(codec.values)], 1)  # [pixel, colour]
    table = np.log((seen + 1) / (len(ids) + codec.values))
    show("floor, independent pixels", -table[np.arange(ids.shape[1]), away].sum(1))
    print(f"seriatim train {asked.out}/learn=0.6 {asked.out}/mirrored=0.4 "
          f"--validation {asked.out}/held --codec image:{ICONS} "
          f"--context {codec.style.count + 2} --size 0.9M --batch 8 --steps 700 "
          f"--weight-decay 0.3 --store bf16 --threads 2 --out runs/icons")  # fmt: skip


def omniglot(asked: argparse.Namespace) -> None:
    """Copy letters to OUT/ALPHABET/CHARACTER_DRAWING.png: the folder is the label."""
    with zipfile.ZipFile(asked.data) as archive:
        for name in archive.namelist():
            if name.endswith(".png"):
                alphabet, character, drawing = Path(name).parts[-3:]
                place = asked.out / alphabet / f"{character}_{drawing}"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(archive.read(name))
    labels = "/".join(sorted(path.name for path in asked.out.iterdir()))
    print(f"image:size=28,mode=binary,pack=7,fit=scale,labels={labels}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(required=True)
    for what in (mnist, icons, omniglot):
        verb = verbs.add_parser(what.__name__, help=what.__doc__)
        verb.add_argument("data", type=Path)
        verb.add_argument("out", type=Path)
        verb.set_defaults(what=what)
    verb = verbs.add_parser("nats", help=nats.__doc__)
    verb.add_argument("model")
    verb.add_argument("out", type=Path, help="what `mnist` wrote")
    verb.add_argument("--most", type=int, help="how many images; default: all")
    verb.add_argument("--threads", type=int, default=2)
    verb.set_defaults(what=nats)
    asked = parser.parse_args()
    asked.what(asked)


if __name__ == "__main__":
    main()
