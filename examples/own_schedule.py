"""Run a model whose blocks go in an order of your own, and read what it predicts.

`rewire` gives a model to be traced with nnsight like any other; the original is left as it was.
"""

import torch

from robustness.models import open_model
from robustness.schedules import clean, repeat, swap, to_text
from robustness.sweeps import residuals, rewire

model = open_model("builtin")
schedule = repeat(swap(clean(model.layers), 3), 8, 2)
print("schedule:", to_text(schedule))

tokens = model.tokenizer("Once upon a time there was a", return_tensors="pt").input_ids
edited = rewire(model, schedule)
for name, traced, head in (
    ("clean", model.traced, model.traced.lm_head),
    ("rewired", edited, edited.lm_head),
):
    with torch.no_grad(), traced.trace(tokens):
        logits = head.output.save()
    best = logits[0, -1].softmax(-1).topk(3)
    words = [model.tokenizer.decode(token) for token in best.indices]
    print(name, [f"{word!r} {share:.2f}" for word, share in zip(words, best.values)])

# The residual stream after every step of the schedule, labelled.
states = residuals(model, tokens, schedule)
print((states**2).sum("feature").mean(("sequence", "token")).to_pandas().round(0))
