"""How likely a text is: bits per byte, and which words surprised the model."""

import seriatim

model = seriatim.load("tales")
score = model.score("It was a dark and stormy night; the rain fell in torrents.")
print(f"{score.bits_per_unit:.3f} bits per {score.unit}, {score.nats:.1f} nats in all")

for id, logprob in zip(score.ids, score.logprobs, strict=True):
    print(f"{logprob:8.3f}  {model.decode([id])!r}")

before = model.score(" upon a time", given="Once").nats
assert before < model.score(" upon a time", given="Whale").nats
