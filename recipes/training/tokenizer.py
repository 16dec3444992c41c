"""Tokenizers for training: trained on the text, or taken from another model."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from robustness.errors import Refusal, reading
from robustness.models.checkpoint import load_tokenizer, resolve
from robustness.text.formats import SEPARATOR

REMEDY = "take a model with a tokenizer.json that transformers reads"
"""Advice for a tokenizer that cannot be used."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with one special token, which is both BOS and EOS."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocabulary, special_tokens=[SEPARATOR], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        unk_token=SEPARATOR,
    )


def open_tokenizer(source: str | Path) -> Any:
    """Open the tokenizer of a model without running code that comes with it.

    Parameters
    ----------
    source : str or path
        A built-in model, a directory, or a hub id.

    Raises
    ------
    Refusal
        If there is none, it is code of its own, or it lacks what training needs.
    """
    path = Path(source).expanduser()
    name, where = (path.name, str(path)) if path.is_dir() else resolve(str(source))
    with reading(f"the tokenizer of {name}", REMEDY):
        _refuse_code(name, Path(where))
        # Without this argument, transformers asks on standard input whether to run such code.
        tokenizer = load_tokenizer(name, where, trust_remote_code=False)
        check(name, tokenizer)
    return tokenizer


def check(name: str, tokenizer: Any) -> None:
    """Refuse a tokenizer that lacks what training needs."""
    if _names_code(getattr(tokenizer, "init_kwargs", {})) or tokenizer._auto_class is not None:
        _raise_code(name)
    for kind in ("bos", "eos"):
        if not isinstance(getattr(tokenizer, f"{kind}_token_id"), int):
            raise Refusal(
                f"the tokenizer of {name} has no {kind.upper()}, which training sets between "
                "documents: take one with both BOS and EOS"
            )
    found = tokenizer("A word, 1 word.", add_special_tokens=False)["input_ids"]
    if not found or min(found) < 0:
        raise Refusal(f"the tokenizer of {name} gives no tokens for plain English: {REMEDY}")


def size_of(tokenizer: Any) -> int:
    """Return the number of tokens that a model needs for a tokenizer, whose ids may have gaps."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))


def hash_of(tokenizer: Any) -> str:
    """Hash the rules by which a tokenizer encodes text, and its BOS and EOS."""
    # A slow tokenizer does not tell its rules; its vocabulary stands for them.
    fast = getattr(tokenizer, "backend_tokenizer", None)
    rules = fast.to_str() if fast is not None else repr(sorted(tokenizer.get_vocab().items()))
    ends = f"{tokenizer.bos_token_id} {tokenizer.eos_token_id}"
    return hashlib.sha256(f"{ends} {rules}".encode(errors="surrogatepass")).hexdigest()


def _refuse_code(name: str, directory: Path) -> None:
    file = directory / "tokenizer_config.json"
    if file.is_file():
        if _names_code(json.loads(file.read_bytes())):
            _raise_code(name)


def _names_code(settings: Mapping[str, Any]) -> bool:
    """Whether settings name a tokenizer of code of its own."""
    named = settings.get("auto_map", {})
    return not isinstance(named, dict) or "AutoTokenizer" in named


def _raise_code(name: str) -> None:
    raise Refusal(
        f"the tokenizer of {name} is code of its own (auto_map), which is not run: {REMEDY}"
    )
