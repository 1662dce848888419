"""A tokenizer whose ids are bytes, for transformers; made on the spot, nothing to download."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END_ID, PAD_ID, VOCAB_SIZE = 256, 257, 258


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte b is id b, as in `train_lm.py`; then <end> and <pad>. Pads on the left."""
    tokenizer = Tokenizer(models.BPE(vocab=_byte_symbols(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    assert (fast.eos_token_id, fast.pad_token_id, len(fast)) == (END_ID, PAD_ID, VOCAB_SIZE)
    return fast


def _byte_symbols() -> dict[str, int]:
    """The printable character that byte-level tokenizers write for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return {symbols[byte]: byte for byte in range(256)}
