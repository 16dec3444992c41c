"""The device that is not there: it refuses, computes and counts as a real one does."""

import pretended
import pytest
import torch
from kills import fork
from pretended import BETWEEN, READ, TO_DEVICE, TO_HOST, guard
from torch.nn.functional import scaled_dot_product_attention

KINDS = ("cuda", "mps")
aten = torch.ops.aten

pytestmark = pretended.needed


@pytest.fixture
def log():
    with pretended.machine("cuda", 2) as log:
        yield log


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_say_where_they_are_and_hold_the_numbers_of_the_cpu(kind):
    with pretended.machine(kind):
        for made in (
            torch.tensor([1.0, 2.0], device=kind),
            torch.tensor([1.0, 2.0]).to(kind),
            torch.arange(1.0, 3.0, device=kind),
            torch.empty(2, device=kind).copy_(torch.tensor([1.0, 2.0])),
            torch.zeros(2, device=kind) + torch.tensor([1.0, 2.0]).to(kind),
        ):
            assert str(made.device) == f"{kind}:0"
            assert (made * 2 - made[0]).tolist() == [1.0, 3.0]
        part = torch.nn.Linear(2, 3).to(kind)
        assert isinstance(part.weight, torch.nn.Parameter) and part.weight.device.type == kind


MIXED = {
    "a sum": lambda here, there: here + there,
    "a product": lambda here, there: here @ there.T,
    "a list": lambda here, there: torch.cat([here, there]),
    "a choice": lambda here, there: torch.where(here > 0, here, there),
    "an index": lambda here, there: here[there.long()],
    "what is written": lambda here, there: here.add_(there),
    "attention": lambda here, there: scaled_dot_product_attention(here, there, here),
    "a number in a list": lambda here, there: torch.stack([here[0, 0], there[0, 0]]),
    "a number in a product": lambda here, there: torch.mv(here, there[0, :1].expand(2)),
}


@pytest.mark.parametrize("case", MIXED)
@pytest.mark.parametrize("places", [("cuda:0", "cuda:1"), ("cpu", "cuda:0"), ("cuda:0", "cpu")])
def test_tensors_of_two_devices_do_not_meet(log, case, places):
    here, there = (torch.ones(2, 2, device=place) for place in places)
    assert isinstance(MIXED[case](here, here.clone()), torch.Tensor)
    if (case, places[1]) == ("an index", "cpu"):
        MIXED[case](here, there)
        assert log.kinds()[TO_DEVICE] == 1, "it is copied"
        return
    with pytest.raises(RuntimeError, match="device"):
        MIXED[case](here, there)


def test_a_number_on_the_cpu_goes_with_an_elementwise_operation_and_costs_nothing(log):
    here, number = torch.ones(3, device="cuda"), torch.tensor(2.0)
    assert (here * number - number).tolist() == [0.0] * 3
    log.clear()
    here[1:] = -1
    here.masked_fill_(here < 0, 5)
    torch.where(here > 0, here, torch.tensor(0.0))
    assert not log.events


def test_copies_and_reads_are_counted_with_the_line_that_caused_them(log):
    here = torch.ones(3, device="cuda")
    here.to("cuda").to("cuda:0").float()
    here.unsqueeze(0).mT.contiguous()
    assert not log.events
    with log.during("moves"):
        moved = here.to("cuda:1")
        moved.cpu()
        torch.zeros(3).copy_(here)
        torch.ones(2).cuda()
        here[[0, 1]]
    assert log.kinds() == {BETWEEN: 1, TO_HOST: 2, TO_DEVICE: 2}
    with log.during("reads"):
        float(here.sum())
        here[0].item()
        bool((here > 0).all())
        here.nonzero()
        here[here > 0]
        torch.equal(here, here)
    assert {event.kind for event in log.within("reads")} == {READ}
    assert len(log.within("reads")) == 6 and len(log.within("moves")) == 5
    assert all("test_pretended_device.py:" in event.place for event in log.events)


def test_views_of_a_tensor_are_written_through(log):
    whole = torch.zeros(3, 4, device="cuda")
    whole[:, 1] = 1
    whole.T[2].add_(2)
    whole.view(-1)[[0, 4]] = 7
    whole.unsqueeze(0).squeeze_(0)[2, 3] = 9
    assert whole.tolist() == [[7, 1, 2, 0], [7, 1, 2, 0], [0, 1, 2, 9]]


def test_mps_has_no_float64():
    wide = torch.zeros(2, dtype=torch.float64)
    with pretended.machine("mps"):
        here = torch.zeros(2, device="mps")
        for make in (
            here.double,
            lambda: wide.to("mps"),
            lambda: here.to("cpu", torch.float64),
            lambda: torch.zeros(2, device="mps", dtype=torch.float64),
            lambda: torch.empty_like(wide, device="mps"),
            lambda: here.sum(dtype=torch.float64),
        ):
            with pytest.raises(TypeError, match="doesn't support float64"):
                make()
        assert here.cpu().double().dtype == torch.float64
    with pretended.machine("cuda"):
        assert wide.to("cuda").sum().dtype == torch.float64


def test_products_of_bfloat16_are_summed_in_float32_on_cuda_alone(log):
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 40, 40, generator=generator).bfloat16()
    exact = left.double() @ right.double()
    found = torch.mm(left.cuda(), right.cuda(), out_dtype=torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu().double(), exact, rtol=0, atol=1e-5)
    rounded = (left.cuda() @ right.cuda()).cpu().double()
    assert (rounded - exact).abs().max() > 1e-3
    batched = torch.bmm(left.cuda()[None], right.cuda()[None], out_dtype=torch.float32)
    assert torch.equal(batched[0].cpu(), found.cpu())
    for wrong in (
        lambda: torch.mm(left, right, out_dtype=torch.float32),
        lambda: torch.mm(left.cuda().float(), right.cuda(), out_dtype=torch.float32),
        lambda: torch.mm(left.cuda(), right.cuda(), out_dtype=torch.float64),
    ):
        with pytest.raises(RuntimeError):
            wrong()


def test_autocast_rounds_what_it_rounds_on_cuda(log):
    here = torch.randn(3, 3, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert (here @ here).dtype == torch.bfloat16
        assert here.bfloat16().softmax(-1).dtype == torch.float32
        assert (here + here).dtype == torch.float32


def test_afterwards_there_is_no_device_and_libraries_know_it():
    from transformers.utils.import_utils import is_torch_cuda_available

    with pretended.machine("cuda", 2):
        assert torch.cuda.is_available() and torch.cuda.device_count() == 2
        assert is_torch_cuda_available()
    assert not torch.cuda.is_available() and not is_torch_cuda_available()
    with pytest.raises((RuntimeError, AssertionError)):
        torch.empty(0, device="cuda")
    with torch.device("meta"):
        assert torch.tensor([1.0]).is_meta


def test_without_a_compiler_it_is_said_so_and_in_ci_it_fails(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.delenv("CI", raising=False)
    assert "no C++ compiler" in pretended.obstacle()
    monkeypatch.setenv("CI", "1")
    assert not pretended.obstacle()
    monkeypatch.setattr(guard, "_built", lambda: guard._compile(guard.Path("never.so")))
    with pytest.raises(AssertionError, match=r"no C\+\+ compiler"):
        guard.install.__wrapped__()


def test_a_process_that_has_pretended_and_compiled_can_be_forked_after_a_backward_pass():
    def learn():
        torch.ones(1, requires_grad=True).sum().backward()

    with pretended.machine("cuda"):
        torch.ones(2, device="cuda")
    compiled = torch.compile(lambda tensor: tensor + 1, backend="eager", fullgraph=True)
    assert compiled(torch.ones(3)).tolist() == [2, 2, 2]
    learn()
    assert fork(learn) == 0
