"""Sweep a model on a text of your own, and ask one of the paper's claims of it.

python examples/measure_and_judge.py MODEL TEXT
"""

import sys
from pathlib import Path

from recipes.evidence.files import Files
from recipes.judging.verdicts import judge
from robustness.models import open_model
from robustness.sweeps import sweep
from robustness.text.corpus import cut

name, text = [*sys.argv[1:], "builtin", "builtin"][:2]
model = open_model(name)
corpus = cut(text, model.tokenizer, context=64, tokens=6400)
out = Path("outputs") / f"example-{model.name}-{Path(text).stem}"
sweep(model, corpus, interventions=("drop", "swap"), out=out / "sweep.nc")

for verdict in judge([Files(out)]):
    if verdict.recipe.name == "E1" and verdict.numbers:
        print(f"{verdict.claim.name} {verdict.claim.text} {verdict.verdict.upper()}")
        for number in verdict.numbers:
            print(f"    {number.check.what}: {number.text}")
