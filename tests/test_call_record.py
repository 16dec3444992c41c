import torch
from torch import nn

from robustness.models import call_record


class Odd(nn.Module):
    """Two ways that share a beginning, and one that adds to the stream itself."""

    def __init__(self):
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 6)
        self.act, self.back, self.rest = nn.Tanh(), nn.Linear(6, 4), nn.Dropout()
        self.bilinear = nn.Bilinear(4, 4, 4)

    def forward(self, x):
        read = self.norm(x)
        x = x + self.rest(self.one(read)) + self.back(self.act(self.two(read)))
        return self.bilinear(self.norm(x), x)


class Whole(nn.Module):
    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.embed, self.odd = nn.Embedding(5, 4), Odd()

    def forward(self, input_ids, use_cache):
        return self.odd(self.embed(input_ids))


def test_calls_are_recorded_and_linked_by_what_they_hand_on():
    net = Whole().train()
    calls = call_record.record(net, [1, 2, 3])
    assert net.training, "left as it was"
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert [call.path for call in sorted(calls, key=lambda call: call.began)] == [
        "embed", "odd", "odd.norm", "odd.one", "odd.two", "odd.act", "odd.back", "odd.norm",
        "odd.bilinear",
    ]  # fmt: skip
    inside = [call for call in calls if call.caller == "odd"]
    assert [[call.path for call in chain] for chain in call_record.chains(inside)] == [
        ["odd.norm", "odd.one"],
        ["odd.norm", "odd.two", "odd.act", "odd.back"],
        ["odd.norm", "odd.bilinear"],
    ]
    assert [call.handed for call in inside] == [None] * 6 + [0]
