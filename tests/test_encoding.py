"""A long document's tokens, told from pieces of it, are those of the whole."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers_for_tests import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from robustness.errors import Refusal
from robustness.text import encoding
from robustness.text.sources import documents

PROSE = "\n".join(text for _, text in islice(documents("builtin"), 8))


def trained(kind):
    """A tokenizer of each way in which tokenizers divide text."""
    if kind == "byte-level BPE":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    elif kind == "BPE of whole texts":
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        bytes_too = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<unk>", *bytes_too], max_token_length=12
        )
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=500, unk_token="<unk>", special_tokens=["<unk>"]
        )
    else:
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]"])
    texts = [PROSE[at : at + 200] for at in range(0, len(PROSE), 200)]
    made.train_from_iterator(texts, trainer)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


KINDS = ("byte-level BPE", "BPE of whole texts", "unigram", "word pieces")
TOKENIZERS = {kind: trained(kind) for kind in KINDS} | {"bytes": byte_tokenizer()}


def make_small(patch):
    for name, value in SMALL.items():
        patch.setattr(encoding, name, value)


SMALL = {
    "LONGEST_WHOLE": 4000,
    "PIECE_SIZE": 3000,
    "OVERLAPS": (400, 1500),
    "MARGIN": 100,
    "AGREEING_TOKENS": 16,
}


@pytest.fixture
def small(monkeypatch):
    """Pieces of 3,000 characters."""
    make_small(monkeypatch)


def whole(tokenizer, text):
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return found["input_ids"], [list(span) for span in found["offset_mapping"]]


PARTS = st.one_of(
    st.integers(0, len(PROSE) - 900).map(lambda at: PROSE[at : at + 900]),
    st.sampled_from(
        [" ", "\n", "a", "\0", "é", "😀", "0123456789", "ab", "\u3000", "e\u0301"]
    ).flatmap(lambda unit: st.integers(1, 300).map(lambda count: unit * count)),
    st.text(max_size=300),
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOKENIZERS)
@given(parts=st.lists(PARTS, min_size=12, max_size=24), size=st.integers(1, 5000))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_pieces_give_the_tokens_and_places_of_the_whole_or_a_refusal(kind, parts, size):
    tokenizer, text = TOKENIZERS[kind], "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        chunks = [text[at : at + size] for at in range(0, len(text), size)]
        try:
            found = list(encoding.encode(tokenizer, chunks, spans=True))
        except Refusal as error:
            assert "make several documents" in str(error)
            return
    ids, spans = whole(tokenizer, text)
    assert np.concatenate([piece.ids for piece in found]).tolist() == ids
    assert np.concatenate([piece.spans for piece in found]).tolist() == spans


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_running_text_is_always_divided(small, kind):
    tokenizer = TOKENIZERS[kind]
    text = (PROSE + " ") * (1 + 30_000 // len(PROSE))
    found = list(encoding.encode(tokenizer, [text]))
    assert len(found) > 10
    assert np.concatenate([piece.ids for piece in found]).tolist() == whole(tokenizer, text)[0]
    first = encoding.first_tokens(tokenizer, [text], 2000)
    assert first == whole(tokenizer, text)[0][:2000]


def test_no_more_of_a_document_is_read_than_is_needed(small):
    read = []

    def chunks():
        for at in range(1000):
            read.append(at)
            yield PROSE[:500]

    assert len(encoding.first_tokens(TOKENIZERS["bytes"], chunks(), 100)) == 100
    assert len(read) < 20
