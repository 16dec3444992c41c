"""The room of a request follows from what a server says that it has assigned."""

import math

import pytest

from robustness.ndif.room import Assigned, Room, least, read_assigned, room_of

GB = 10**9
PARAMETERS = 70 * GB
WEIGHTS = 2 * PARAMETERS


def padded(weights):
    """What NDIF's controller assigns: `math.ceil(base + base * factor + bias)`."""
    return math.ceil(weights + weights * 0.15 + 500 * 2**20)


ENTRY = {
    "dtype": "bfloat16", "n_params": PARAMETERS, "size_bytes": padded(WEIGHTS), "gpus": 4,
    "execution_timeout_seconds": 300.0, "actor_class": "ndif.services.ray.tp.model.TPModelActor",
}  # fmt: skip


def test_what_is_assigned_besides_the_weights_is_divided_over_the_cards():
    room = room_of(read_assigned(ENTRY), "bfloat16", 1)
    assert room == Room((padded(WEIGHTS) - WEIGHTS) // 4, 4, True, 300.0)
    assert not read_assigned(ENTRY | {"actor_class": "ndif.modeling.ModelActor"}).sharded
    # Less than the weights cannot be all that is assigned.
    assert room_of(read_assigned(ENTRY), "float32", 1).free_bytes == (
        (padded(2 * WEIGHTS) - 2 * WEIGHTS) // 4
    )


def test_where_a_server_says_nothing_the_room_is_what_its_source_would_assign():
    room = room_of(Assigned(), "bfloat16", PARAMETERS)
    assert room.cards == 3 == math.ceil(padded(WEIGHTS) / 80e9)
    assert room.free_bytes == (padded(WEIGHTS) - WEIGHTS) // 3
    assert room == least([], PARAMETERS) and room.seconds is None


@pytest.mark.parametrize(
    "absurd",
    [None, True, -1, 0, math.nan, math.inf, -math.inf, 10**400, "4", [4], {"4": 4}, 10.0**300],
)
@pytest.mark.parametrize("name", ["n_params", "size_bytes", "gpus", "execution_timeout_seconds"])
def test_what_cannot_be_true_falls_back(name, absurd):
    room = room_of(read_assigned(ENTRY | {name: absurd}), "bfloat16", PARAMETERS)
    assert 0 < room.free_bytes < 12 * GB and 1 <= room.cards <= 4
    assert room.seconds in (None, 300.0)


def test_of_several_replicas_the_one_with_the_least_room_counts():
    few = read_assigned(ENTRY | {"size_bytes": WEIGHTS + GB, "execution_timeout_seconds": None})
    room = least([(read_assigned(ENTRY), "bfloat16"), (few, "bfloat16")], 1)
    assert room == Room(GB // 4, 4, True, 300.0)
