"""Experts that see all sequences as one long text, as Llama 4's, whose sublayers run alone."""

import numpy as np
import pytest
import torch
from test_execution import corpus
from transformers import Llama4ForCausalLM, Llama4TextConfig

from robustness.measurements.observation import observe
from robustness.models.opening import open_model
from robustness.runs.settings import RunOptions
from robustness.sweeps import sweep


@pytest.fixture(scope="module")
def llama4():
    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=101, hidden_size=32, intermediate_size=16, intermediate_size_mlp=64,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        num_local_experts=4, num_experts_per_tok=1, max_position_embeddings=32,
        attention_chunk_size=64, initializer_range=0.4, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    net = Llama4ForCausalLM(config).double().eval()
    net.set_experts_implementation("eager")
    return net


def without(part, net, tokens):
    """Log-probabilities of the plain model, a part of which writes nothing."""

    def nothing(_module, _args, out):
        return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else out * 0

    handle = part.register_forward_hook(nothing) if part else None
    with torch.no_grad():
        found = net(tokens, use_cache=False).logits[:, 1:-1].log_softmax(-1)
    if handle:
        handle.remove()
    return found


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_a_sublayer_left_out_is_one_that_writes_nothing(llama4, kind):
    text = corpus(sequences=3)
    data = sweep(open_model(llama4), text, (f"{kind}-drop",), batch_tokens=100)
    tokens = torch.from_numpy(text.tokens)
    clean = without(None, llama4, tokens)
    for layer, block in enumerate(llama4.model.layers):
        part = block.self_attn if kind == "attention" else block.feed_forward
        changed = without(part, llama4, tokens)
        kl = (clean.exp() * (clean - changed)).sum(-1).mean(1)
        np.testing.assert_allclose(data.kl.isel(layer=layer).squeeze(), kl, atol=1e-9)


def test_what_sublayers_write_does_not_depend_on_the_batch(llama4):
    model, text = open_model(llama4), corpus(sequences=4)
    whole = observe(model, text, ("norms", "similarity"), RunOptions(batch_tokens=1000))
    alone = observe(model, text, ("norms", "similarity"), RunOptions(batch_tokens=1))
    for name, data in whole.items():
        for variable in data.data_vars:
            np.testing.assert_allclose(data[variable], alone[name][variable], atol=1e-6)
