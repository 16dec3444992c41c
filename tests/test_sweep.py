import pytest

from robustness.errors import Refusal
from robustness.schedules import clean, from_text, swap
from robustness.schedules.built_in import FORMS, PAIRS, intervention
from robustness.schedules.intervention import Intervention
from robustness.schedules.interventions import schedules


def test_a_sweep_has_a_schedule_at_every_layer_where_it_fits():
    found = schedules(["drop", "swap", "repeat-5"], 12)
    assert [layer for name, layer in found if name == "drop"] == list(range(12))
    assert [layer for name, layer in found if name == "swap"] == list(range(11))
    assert [layer for name, layer in found if name == "repeat-5"] == list(range(8))
    assert found["swap", 3] == swap(clean(12), 3)


WRITTEN_OUT = {
    "drop": ("drop", "0-2..7"),
    "swap": ("swap", "0-2-1-3..7"),
    "swap-D": ("swap-3", "0-4-2-3-1-5..7"),
    "attention-drop": ("attention-drop", "0-m1-2..7"),
    "mlp-drop": ("mlp-drop", "0-a1-2..7"),
    "skip-B": ("skip-3", "0-4..7"),
    "repeat-B": ("repeat-2", "0-1-1-2-2-3..7"),
    "repeat-B-contiguous": ("repeat-2-contiguous", "0-1-2-1-2-3..7"),
    "repeat-BxK": ("repeat-2x3", "0-1-1-1-1-2-2-2-2-3..7"),
    "repeat-BxK-contiguous": ("repeat-2x3-contiguous", "0-1-2-1-2-1-2-1-2-3..7"),
    "reverse-B": ("reverse-3", "0-3-2-1-4..7"),
    "shuffle-B": ("shuffle-3", None),
    "middle-repeat-B": ("middle-repeat-3", "0-2-2-2-4..7"),
    "parallel-B": ("parallel-3", "0-(1+2+3)-4..7"),
    "looped-parallel-BxK": ("looped-parallel-3x2", "0-(1+2+3)-(1+2+3)-4..7"),
}
"""A name of every form, and its schedule at layer 1 of 8; None where the order is drawn."""


@pytest.mark.parametrize("form", FORMS)
def test_the_schedule_of_every_form_is_as_it_is_written_out(form):
    name, text = WRITTEN_OUT[form]
    found = intervention(name).edit(clean(8), 1)
    if text is None:
        assert found[:1] == (0,) and sorted(found[1:4]) == [1, 2, 3] and found[4:] == (4, 5, 6, 7)
    else:
        assert found == from_text(text, 8)


def test_every_documented_form_is_an_intervention():
    for form in (*FORMS, *PAIRS):
        name = form.replace("-D", "-2").replace("-B", "-2").replace("xK", "x3")
        assert intervention(name).schedules(6)


@pytest.mark.parametrize(
    "name",
    [
        "", "drop-2", "swap-0", "repeat", "swap-2x2", "skip-2-contiguous", "attention-drop-2",
        "parallel", "parallel-2x2", "looped-parallel-2", "drop-pair-2", "reverse-span",
        "repeat-٣", "repeat-2x٣", "repeat-" + "1" * 5000, "repeat-2x" + "1" * 5000, "x" * 10**6,
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_forms_there_are(name):
    with pytest.raises(Refusal, match="there are: drop, swap, swap-D") as caught:
        intervention(name)
    assert len(str(caught.value)) < 500


def test_what_leaves_nothing_to_execute_is_refused():
    with pytest.raises(Refusal, match="drop leaves nothing to execute on 1"):
        schedules(["drop"], 1)
    with pytest.raises(Refusal, match="repeat-5 takes 5 blocks, and the model has 4"):
        schedules(["repeat-5"], 4)
    with pytest.raises(Refusal, match="no intervention was asked for"):
        schedules([], 4)
    with pytest.raises(Refusal, match="asked for twice"):
        schedules(["drop", "drop"], 4)


def painters(layers: int, start: int) -> tuple[range, dict[str, tuple[int, ...]]]:
    """What is done to the middle in Transformer Layers as Painters: all but `start` + 1 each side.

    After the released code: blocks `start` + 1 to L - `start` - 1 are the middle, and block L // 2
    is the one that is repeated.
    """
    middle = range(start + 1, layers - start)
    before, after = tuple(range(start + 1)), tuple(range(layers - start, layers))
    return middle, {
        "skip": before + after,
        "middle-repeat": before + (layers // 2,) * len(middle) + after,
        "reverse": before + tuple(reversed(middle)) + after,
    }


@pytest.mark.parametrize(("layers", "start"), [(12, 2), (13, 2), (24, 5), (7, 1)])
def test_the_painters_interventions_are_those_of_the_paper(layers, start):
    middle, expected = painters(layers, start)
    for family, schedule in expected.items():
        edit = intervention(f"{family}-{len(middle)}").edit
        assert edit(clean(layers), middle[0]) == schedule, family


def test_interventions_on_two_layers_are_made_at_every_two_in_order():
    found = schedules(list(PAIRS), 4)
    at = {name: [place for found_name, *place in found if found_name == name] for name in PAIRS}
    every = [[i, j] for i in range(4) for j in range(i, 4)]
    assert at["drop-pair"] == at["repeat-span"] == every
    assert at["swap-pair"] == [[i, j] for i, j in every if i < j]
    assert at["skip-span"] == [place for place in every if place != [0, 3]], "something is left"
    assert found["drop-pair", 1, 3] == (0, 2) and found["drop-pair", 1, 1] == (0, 2, 3)
    assert found["swap-pair", 0, 2] == (2, 1, 0, 3)
    assert found["skip-span", 1, 2] == (0, 3)
    assert found["repeat-span", 1, 2] == (0, 1, 2, 1, 2, 3)


def test_some_layers_restrict_both():
    found = schedules(["drop-pair", "swap-pair"], 6, [1, 4])
    assert [place for place in found if place[0] == "drop-pair"] == [
        ("drop-pair", 1, 1), ("drop-pair", 1, 4), ("drop-pair", 4, 4),
    ]  # fmt: skip
    assert [place for place in found if place[0] == "swap-pair"] == [("swap-pair", 1, 4)]


def test_one_layer_and_two_do_not_go_together():
    with pytest.raises(Refusal, match="drop-pair is made at every two layers and drop at every"):
        schedules(["drop", "drop-pair"], 4)
    with pytest.raises(Refusal, match="swap-pair takes 2 blocks"):
        schedules(["swap-pair"], 1)


@pytest.mark.parametrize(
    ("names", "layers", "problem"),
    [
        (["repeat-1x1000000"], 12, r"repeat-1x1000000 would execute 1,000,012 blocks, and 10,000"),
        (["looped-parallel-2x999999999"], 12, "would execute 2,000,000,008 blocks"),
        (["repeat-999999999"], 12, "takes 999999999 blocks, and the model has 12"),
        (["drop", "repeat-999999999x999999999"], 12, "takes 999999999 blocks"),
        (["repeat-1x9000"], 1000, r"1,000 schedules of repeat-1x9000 .* 5,000,000 are the most"),
        (list(PAIRS), 200, r"80,200 schedules of drop-pair, .* `layers`"),
    ],
)
def test_what_would_take_too_long_to_plan_is_refused_before_it_is_built(
    monkeypatch, names, layers, problem
):
    def build(*_, **__):
        raise AssertionError("a schedule was built")

    monkeypatch.setattr("robustness.schedules.intervention.clean", build)
    with pytest.raises(Refusal, match=problem):
        schedules(names, layers)


def test_fewer_layers_make_room_for_pairs_of_a_deep_model():
    found = schedules(list(PAIRS), 200, range(150, 200))
    assert len(found) == 4 * 50 * 51 // 2 - 50
    assert {max(map(len, found.values())), min(map(len, found.values()))} == {250, 150}


def test_layers_that_are_not_there_are_refused_without_a_list_of_all():
    with pytest.raises(Refusal, match="there is no layer 4: the model has layers 0 to 3"):
        schedules(["drop"], 4, range(10**12))


def rotate(schedule, layer, length=3):
    """Move a block behind the ones that follow it."""
    span = schedule[layer : layer + length]
    return (*schedule[:layer], *span[1:], *span[:1], *schedule[layer + length :])


def test_an_intervention_of_ones_own_is_made_wherever_its_span_fits():
    own = Intervention("rotate-3", 3, rotate, "move it behind the next two")
    made = schedules(["drop", own], 4)
    assert made["rotate-3", 0] == (1, 2, 0, 3) and made["rotate-3", 1] == (0, 2, 3, 1)
    assert len(made) == 4 + 2


@pytest.mark.parametrize("span", [1, 2])
def test_a_span_that_is_smaller_than_what_an_edit_changes_is_refused(span):
    """Slices are silent where they reach over the end: it would be another edit at the last."""
    with pytest.raises(Refusal, match=f"the span of rotate-3 is larger than {span}, or its edit"):
        schedules([Intervention("rotate-3", span, rotate)], 4)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda schedule, layer: schedule[layer + 9], "makes no schedule"),
        (lambda schedule, layer: 3, "makes no schedule"),
        (lambda schedule, layer: ("a",), "is no step of a schedule"),
        (lambda schedule, layer: (*schedule[:layer], float(layer), *schedule[layer + 1 :]), "step"),
        (lambda schedule, first, last: schedule, "with `pair`, it takes two"),
        (lambda schedule, layer: ([0],), "makes no schedule"),
        (lambda schedule, layer: (*schedule[:layer], 9, *schedule[layer + 1 :]), "no block 9"),
        (lambda schedule, layer: schedule[::-1], "changes blocks outside its span, 0 to 0"),
    ],
)
def test_an_edit_that_makes_no_schedule_of_its_span_is_refused_with_its_place(edit, problem):
    with pytest.raises(Refusal, match=rf"own at layer 0 .*{problem}"):
        schedules([Intervention("own", 1, edit)], 3)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (("", 1, rotate), "needs a name"),
        (("a, b", 1, rotate), "leave out commas"),
        (("a\n", 1, rotate), "is no name"),
        (("a", 0, rotate), "takes 1 or more"),
        (("a", rotate, 1), r"Intervention\(name, span, edit\)"),
        (("a", "3", rotate), r"Intervention\(name, span, edit\)"),
        (("a", 3, None), r"Intervention\(name, span, edit\)"),
    ],
)
def test_a_record_with_a_wrong_field_is_refused(fields, problem):
    with pytest.raises(Refusal, match=problem):
        Intervention(*fields)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([rotate], "is a name, or a record"),
        (Intervention("own", 3, rotate), "are a list"),
        (rotate, "are a list"),
        ("drop", "are a list"),
        ([Intervention("drop", 3, rotate)], "drop is the name of a built-in intervention"),
        ([Intervention("reverse-3", 3, rotate)], "reverse-3 is the name of a built-in"),
    ],
)
def test_what_is_no_list_of_interventions_is_refused(given, problem):
    with pytest.raises(Refusal, match=problem):
        schedules(given, 6)


def test_a_record_of_a_built_in_intervention_is_itself():
    for name in ("drop", "reverse-3", "repeat-2x3-contiguous", "skip-span"):
        assert schedules([intervention(name)], 6) == schedules([name], 6)
