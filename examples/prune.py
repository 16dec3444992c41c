"""Leave out the blocks that matter least, write the model, and load it with transformers alone.

Run after `make demo`, from where `outputs/` is.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from robustness.files.netcdf import load
from robustness.models import open_model
from robustness.reordered.exporting import export
from robustness.schedules import clean, to_text
from robustness.text.corpus import cut

kl = load(Path("outputs/builtin/sweep.nc")).kl.sel(intervention="drop").mean("sequence")
order = kl.argsort().values.tolist()

model = open_model("builtin", dtype="auto")
corpus = cut("builtin", model.tokenizer, context=64, tokens=2048)
tokens = torch.from_numpy(corpus.tokens)
for count in (0, 1, 2, 4):
    schedule = tuple(block for block in clean(model.layers) if block not in order[:count])
    path = export(model, schedule, "outputs/example-pruned", fresh=True)
    pruned = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        loss = pruned(tokens, labels=tokens).loss
    print(f"{to_text(schedule):20} {pruned.num_parameters():9,} weights, loss {loss:.2f} nats")
