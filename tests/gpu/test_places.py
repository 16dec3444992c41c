"""Models of which parts are on different devices, real or pretended."""

import pretended
import pytest
import torch
from device_cases import EVERY, NOT_THERE, Case, compare_made, device
from families import BLOCKS, DEEP, LAYERS, tiny
from test_execution import corpus
from test_observation import LOCAL
from tokenizers_for_tests import word_level

from robustness.measurements.observation import observe
from robustness.models.opening import open_model
from robustness.sweeps import sweep

NAMES = ("drop", "swap", "parallel-2", "attention-drop")
ASKED = ("lens", "cka", "norms", "similarity", LOCAL)

TWO, WITH_CPU = ("cuda:0", "cuda:1"), ("cuda:0", "cpu")

PRETENDED = [(family, TWO) for family in DEEP] + [("gpt2", WITH_CPU)] if EVERY else [
    ("gpt2", TWO), ("llama", TWO), ("gpt2", WITH_CPU),
]  # fmt: skip

CASES = [
    *(pytest.param(*chosen, True, marks=NOT_THERE) for chosen in PRETENDED),
    *(
        pytest.param(family, places, False, marks=pytest.mark.gpu)
        for family in DEEP
        for places in (TWO, WITH_CPU)
    ),
]


@pytest.mark.parametrize(("family", "places", "feigned"), CASES)
def test_a_model_in_two_places_has_the_numbers_of_the_cpu(family, places, feigned, tmp_path):
    plain = tiny(family)
    plain.save_pretrained(tmp_path)
    word_level(101).save_pretrained(tmp_path)
    blocks, text = BLOCKS[family], corpus(16, 10)
    ends = {name: places[0] for name, part in plain.named_modules()
            if not list(part.children()) and not name.startswith(blocks)}  # fmt: skip
    ends |= {f"{blocks}.{layer}": places[layer % 2] for layer in range(LAYERS)}
    # A head that is the embedding is where that is.
    tied = plain.config.tie_word_embeddings
    maps = [ends] if tied else [ends, ends | {"lm_head": places[1]}]
    case = Case(family, "cuda", torch.float64, feigned)
    cpu = open_model(tmp_path, dtype="auto", device="cpu")
    wanted = {"sweep": sweep(cpu, text, NAMES), **observe(cpu, text, ASKED)}
    with device("cuda", feigned, len({place for place in places if place != "cpu"})):
        for device_map in maps:
            model = open_model(tmp_path, dtype="auto", device_map=device_map)
            if places == TWO:
                assert len({part.device for part in model.traced._module.parameters()}) == 2
            found = {"sweep": sweep(model, text, NAMES)}
            if device_map is maps[-1]:
                found |= observe(model, text, ASKED)
            made = {name: wanted[name] for name in found}
            compare_made(case, found, made, made)
        kind = pretended.BETWEEN if places == TWO else pretended.TO_DEVICE
        assert not feigned or pretended.LOG.kinds()[kind] > 0
