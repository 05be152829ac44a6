"""From a text file to a model folder that seriatim and transformers load, in under a minute."""

import tempfile
from pathlib import Path

import seriatim

with tempfile.TemporaryDirectory() as folder:
    book = Path(folder) / "rhymes.txt"
    book.write_text("One, two, buckle my shoe.\nThree, four, knock at the door.\n" * 400)
    run = seriatim.train(
        book, codec="byte", size="0.02M", steps=60, context=64, out=Path(folder) / "rhymes"
    )
    model = seriatim.load(run)
    print(model)
    print(model.generate("One, two,", max_tokens=60, temperature=0).text)
