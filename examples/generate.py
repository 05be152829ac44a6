"""Continue a prompt: whole, in pieces, in batches, and again from the same seed."""

import seriatim

model = seriatim.load("tales")
print(model)

answer = model.generate("Once upon a time", max_tokens=60, temperature=0.8, seed=1)
print(answer.output, answer.finish_reason, answer.usage)

for piece in model.stream("The old house", max_tokens=40, seed=2):
    print(piece.text, end="", flush=True)
print()

# A request in company gives the same ids, bit for bit, as alone.
together = model.generate(
    ["The sea", "A letter", "Once upon a time"], max_tokens=60, temperature=0.8, seed=1
)
assert together[2].ids == answer.ids

for sample in model.generate("He said", n=3, seed=7, max_tokens=20).samples:
    print(repr(sample.output))
