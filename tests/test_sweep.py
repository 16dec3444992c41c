import pytest

from robustness.refusal import Refusal
from robustness.schedule import clean, repeat, swap
from robustness.sweep import FORMS, intervention, schedules


def test_a_sweep_has_a_schedule_at_every_layer_where_it_fits():
    found = schedules(["drop", "swap", "repeat-5"], 12)
    assert [layer for name, layer in found if name == "drop"] == list(range(12))
    assert [layer for name, layer in found if name == "swap"] == list(range(11))
    assert [layer for name, layer in found if name == "repeat-5"] == list(range(8))
    assert found["swap", 3] == swap(clean(12), 3)


def test_names_say_how_far_how_long_and_how_often():
    whole = clean(8)
    assert intervention("swap-3").edit(whole, 1) == swap(whole, 1, 3)
    assert intervention("repeat-2x3").edit(whole, 1) == repeat(whole, 1, 2, times=3)
    contiguous = intervention("repeat-2-contiguous").edit(whole, 1)
    assert contiguous == repeat(whole, 1, 2, contiguous=True)
    assert intervention("skip-3").edit(whole, 1) == (0, 4, 5, 6, 7)
    assert intervention("reverse-3").edit(whole, 1) == (0, 3, 2, 1, 4, 5, 6, 7)
    assert sorted(intervention("shuffle-4").edit(whole, 2)) == list(whole)


def test_every_documented_form_is_an_intervention():
    for form in FORMS:
        assert intervention(form.replace("-D", "-2").replace("-B", "-2")).schedules(6)


@pytest.mark.parametrize(
    "name", ["", "drop-2", "swap-0", "repeat", "swap-2x2", "skip-2-contiguous"]
)
def test_an_unknown_name_is_refused_with_the_forms_there_are(name):
    with pytest.raises(Refusal, match="there are: drop, swap, swap-D"):
        intervention(name)


def test_what_leaves_nothing_to_execute_is_refused():
    with pytest.raises(Refusal, match="drop leaves nothing to execute on 1"):
        schedules(["drop"], 1)
    with pytest.raises(Refusal, match="repeat-5 leaves nothing"):
        schedules(["repeat-5"], 4)
    with pytest.raises(Refusal, match="no intervention was asked for"):
        schedules([], 4)
    with pytest.raises(Refusal, match="asked for twice"):
        schedules(["drop", "drop"], 4)
