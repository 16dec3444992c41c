"""Find the blocks that cost least, write the smaller models, and load them with transformers alone.

The losses are of documents that nothing was chosen on.
"""

import torch
from transformers import AutoModelForCausalLM

from robustness.models import open_model
from robustness.pruning import PruningSettings, prune
from robustness.reordered.exporting import export
from robustness.text.corpus import cut

model = open_model("builtin", dtype="auto")
corpus = cut("builtin", model.tokenizer, context=256, tokens=5120)
found = prune(model, [corpus], PruningSettings(remove=3))
held_out = torch.from_numpy(corpus.tokens[found.part == "held-out"])
for step in found.step.values:
    schedule = found.chosen.sel(strategy="pairwise", step=step).item()
    path = export(model, schedule, "outputs/example-pruned", fresh=True)
    pruned = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        loss = pruned(held_out, labels=held_out).loss
    print(f"{schedule:20} {pruned.num_parameters():9,} weights, loss {loss:.2f} nats")
