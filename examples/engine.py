"""Your own loop: add requests at any time, step, abort. Ids never depend on who else is running."""

import seriatim

model = seriatim.load("tales")
engine = seriatim.Engine(model, budget=64)

first = engine.add(model.prompt_ids("The captain"), max_tokens=24, seed=1)
for _ in range(5):
    engine.step()
late = engine.add(model.prompt_ids("The widow"), max_tokens=24, seed=1, priority=1)
gone = engine.add(model.prompt_ids("Nobody"), max_tokens=10_000)

while not (first.done and late.done):
    engine.step()
engine.abort(gone)
engine.check()  # every cache block is accounted for

for request in (first, late):
    print(model.decode(request.ids[request.prompt :]))
alone = model.generate("The captain", max_tokens=24, seed=1)
assert alone.ids == first.ids[first.prompt :]
