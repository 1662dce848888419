"""transformers' `generate()` on `AtlasForCausalLM`, and its cache."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra hf: pip install 'atlas_ext[hf]'")

from hf_models import CLOSE, VOCAB, left_padded, make_model, tokens

from atlas_ext.hf import AtlasForCausalLM, AtlasHFCache


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    """Sizes this small are quicker so."""
    torch.set_num_threads(1)


def greedy(model: AtlasForCausalLM, ids: torch.Tensor, new: int, **options: object) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=new, do_sample=False, **options)


def test_greedy_equals_the_model_s_own() -> None:
    model = make_model()
    expected = model.model.generate(tokens(), max_new_tokens=9, temperature=0)
    assert torch.equal(greedy(model, tokens(), 9), expected)
    assert torch.equal(greedy(model, tokens(), 9, use_cache=False), expected)
    assert torch.equal(greedy(model, tokens(), 9, prefill_chunk_size=5), expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_left_padding_changes_nothing(use_cache: bool) -> None:
    model = make_model()
    ids, mask, rows = left_padded([9, 4, 13])
    out = greedy(model, ids, 8, attention_mask=mask, use_cache=use_cache)
    for i, row in enumerate(rows):
        assert torch.equal(out[i, 13:], greedy(model, row, 8)[0, row.shape[1] :])


def test_sampling_is_reproducible() -> None:
    model = make_model()
    options = {"max_new_tokens": 8, "do_sample": True, "temperature": 0.9, "top_k": 20}
    torch.manual_seed(3)
    first = model.generate(tokens(), **options, num_return_sequences=2)
    torch.manual_seed(3)
    assert torch.equal(model.generate(tokens(), **options, num_return_sequences=2), first)
    assert first.shape == (4, 22) and not torch.equal(first[0], first[1])


def log_probability(model: AtlasForCausalLM, ids: torch.Tensor, start: int) -> torch.Tensor:
    scores = model(ids).logits.log_softmax(-1)[:, start - 1 : -1]
    return scores.gather(2, ids[:, start:, None]).sum((1, 2))


def test_beams_follow_their_cache() -> None:
    """With wrongly reordered states, scores would not be those of the sequences returned."""
    model = make_model()
    with torch.no_grad():  # far from the uniform distribution
        model.model.lm_head.weight.mul_(30)
    ids, mask, rows = left_padded([9, 4])
    options = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.0}
    out = greedy(
        model, ids, 7, attention_mask=mask, **options,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    for i, row in enumerate(rows):
        found = torch.cat([row.expand(4, -1), out.sequences[4 * i : 4 * i + 4, 9:]], 1)
        expected = log_probability(model, found, row.shape[1])
        torch.testing.assert_close(out.sequences_scores[4 * i : 4 * i + 4], expected, **CLOSE)
    plain = greedy(model, ids, 7, attention_mask=mask, **options, use_cache=False)
    assert torch.equal(out.sequences, plain)


def test_generation_goes_on_from_a_cache() -> None:
    model = make_model()
    whole = greedy(model, tokens(), 10)
    cache = AtlasHFCache()
    first = greedy(model, tokens(), 4, cache=cache)
    assert cache.get_seq_length() == 17  # the last token was not read yet
    fork = copy.deepcopy(cache)
    assert torch.equal(greedy(model, first, 6, cache=cache), whole)
    assert torch.equal(greedy(model, first, 6, cache=fork), whole)


def test_stopping_at_the_end_token() -> None:
    model = make_model()
    free = greedy(model, tokens(1), 8)
    end = int(free[0, 16])
    stopped = greedy(model, tokens(1), 8, eos_token_id=end)
    assert stopped[0, -1] == end and torch.equal(stopped, free[:, : stopped.shape[1]])


def test_a_cache_keeps_its_size_and_its_rows() -> None:
    model = make_model()
    with torch.no_grad():
        cache = model(tokens(3), use_cache=True).cache
        size = cache.atlas.num_bytes
        model(tokens(3, 40), cache=cache)
        assert cache.atlas.num_bytes == size and cache.get_seq_length() == 54
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([5, 0]))
        assert cache.batch_size == 2 and len(cache) == 2 and "seen=54" in repr(cache)
        both = torch.cat([tokens(3), tokens(3, 40), tokens(3, 1, seed=9)], 1)[[2, 0]]
        step = model(both[:, -1:], cache=cache).logits
        torch.testing.assert_close(step[:, 0], model(both).logits[:, -1], **CLOSE)
    cache.reset()
    assert cache.batch_size == -1 and not cache.has_previous_state() and len(cache) == 0
    with pytest.raises(NotImplementedError, match="AtlasHFCache: crop: wanted"):
        cache.crop(1)


def test_what_a_memory_cannot_do_is_refused() -> None:
    model = make_model()
    with pytest.raises(ValueError, match="stateful"):
        greedy(model, tokens(1), 4, prompt_lookup_num_tokens=2)
    with pytest.raises(ValueError, match="cache_implementation: wanted None"):
        greedy(model, tokens(1), 4, cache_implementation="static")


def test_the_old_name_of_the_cache() -> None:
    model = make_model()
    cache = model(tokens(), use_cache=True).cache
    step = model(tokens(2, 1), past_key_values=cache)
    assert step.cache is cache and step.logits.shape == (2, 1, VOCAB)
    assert model.train()(tokens()).cache is None
