"""Reading prompts and continuing them: what the cache of keys and values must not change, and what is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from src.errors import InputError
from src.gpt.generation import Decoder, greedy, sampler
from src.gpt.model import GPT, GPTConfig

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=16, context_length=12, vocab_size=23)
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [3, 5, 8, 9, 7, 9, 3]]
NO_STOP = -1


@pytest.fixture
def gpt() -> GPT:
    """Random weights, large enough for one token to be far more probable than the next."""
    made = GPT(CONFIG, seed=1).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(8)
    return made


def batch(prompts: list[list[int]], padding: int = 0, longer: int = 0) -> tuple[Tensor, Tensor]:
    """ids (B, T) padded on the right, to `longer` more than need be, and length (B,)."""
    longest = max(map(len, prompts)) + longer
    padded = torch.tensor([prompt + [padding] * (longest - len(prompt)) for prompt in prompts])
    return padded, torch.tensor([len(prompt) for prompt in prompts])


def written(
    gpt: GPT, given: tuple[Tensor, Tensor], n: int, stop: int = NO_STOP, choose: Callable[[Tensor], Tensor] = greedy
) -> list[list[int]]:
    """Up to `n` new ids after each prompt of a batch."""
    return Decoder(gpt, *given, max_new_tokens=n).generate(n, stop, choose)


@torch.no_grad()
def reference(gpt: GPT, prompt: list[int], n: int, stop: int = NO_STOP) -> list[int]:
    """Greedy decoding of one prompt by reading all of it anew for each token."""
    ids = list(prompt)
    for _ in range(n):
        token = int(gpt.logits(gpt(torch.tensor([ids])))[0, -1].argmax())
        if token == stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


@torch.no_grad()
def log_probability(gpt: GPT, prompt: list[int], answer: list[int]) -> float:
    """Of an answer after one prompt, by reading both at once."""
    log_p = gpt.logits(gpt(torch.tensor([prompt + answer])))[0, len(prompt) - 1 : -1].log_softmax(-1)
    return float(log_p.gather(1, torch.tensor(answer)[:, None]).sum())


@pytest.mark.parametrize(("padding", "longer"), [(0, 0), (22, 0), (7, 3)])
def test_the_cache_changes_nothing_for_prompts_of_different_lengths(gpt, padding, longer):
    expected = [reference(gpt, prompt, 5) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS)
    assert written(gpt, batch(PROMPTS, padding, longer), 5) == expected


def test_the_context_can_be_filled_to_its_last_token_and_the_one_after_it(gpt):
    full = [i % 23 for i in range(CONFIG.context_length)]
    for prompts in (PROMPTS, [full]):
        n = CONFIG.context_length + 1 - len(prompts[-1])  # the last one is written and never read
        expected = [reference(gpt, prompt, n) for prompt in prompts]
        assert len(expected[-1]) == n
        assert written(gpt, batch(prompts), n) == expected


def test_a_continuation_ends_before_the_stop_token_and_the_others_go_on(gpt):
    free = [reference(gpt, prompt, 5) for prompt in PROMPTS]
    for stop in {token for ids in free for token in ids}:
        expected = [reference(gpt, prompt, 5, stop) for prompt in PROMPTS]
        assert written(gpt, batch(PROMPTS), 5, stop) == expected
        assert any(len(ids) < 5 for ids in expected)


@pytest.mark.parametrize("answer", [[7], [5, 6, 7], [22, 0, 1, 1, 8]])
def test_an_answer_is_as_probable_as_without_the_cache(gpt, answer):
    p = Decoder(gpt, *batch(PROMPTS), max_new_tokens=5).loglikelihood(torch.tensor(answer))
    assert p.tolist() == pytest.approx([log_probability(gpt, prompt, answer) for prompt in PROMPTS], rel=1e-5)


def test_a_continuation_leaves_no_trace_in_the_next(gpt):
    decoder, answer = Decoder(gpt, *batch(PROMPTS), max_new_tokens=5), torch.tensor([5, 6, 7])
    p = decoder.loglikelihood(answer)
    assert decoder.generate(5, NO_STOP) == [reference(gpt, prompt, 5) for prompt in PROMPTS]
    assert torch.equal(decoder.loglikelihood(answer), p)
    assert decoder.generate(5, NO_STOP) == [reference(gpt, prompt, 5) for prompt in PROMPTS]


def test_the_output_layer_may_be_another_and_no_gradient_is_kept(gpt):
    decoder = Decoder(gpt, *batch(PROMPTS), max_new_tokens=3, logits=lambda hidden: gpt.logits(hidden).roll(1, -1))
    assert [ids[0] for ids in decoder.generate(1, NO_STOP)] == [(reference(gpt, p, 1)[0] + 1) % 23 for p in PROMPTS]
    assert not decoder.loglikelihood(torch.tensor([1, 2])).requires_grad


def test_sampling_is_the_same_for_the_same_seed_alone(gpt):
    def drawn(seed: int) -> list[list[int]]:
        return written(gpt, batch(PROMPTS), 5, NO_STOP, sampler(temperature=5.0, top_k=23, seed=seed))

    first = drawn(0)
    torch.manual_seed(5)  # not from here
    assert drawn(0) == first
    assert drawn(1) != first


def test_the_most_probable_of_one_is_greedy_decoding(gpt):
    best = sampler(temperature=3.0, top_k=1, seed=0)
    assert written(gpt, batch(PROMPTS), 5, NO_STOP, best) == written(gpt, batch(PROMPTS), 5)


def test_tokens_are_drawn_with_the_probabilities_of_the_top_k_at_the_temperature():
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0])
    draws = sampler(temperature=2.0, top_k=3, seed=0)(logits.expand(20_000, 4))
    expected = torch.tensor([-torch.inf, 1.5, 0.5, 1.0]).softmax(0)
    shares = torch.bincount(draws, minlength=4) / len(draws)
    assert shares[0] == 0
    assert (shares - expected).abs().max() < 4 * 0.5 / len(draws) ** 0.5  # four standard errors


@pytest.mark.parametrize(
    ("prompts", "n", "named"),
    [
        (PROMPTS, 7, "7 tokens and 7 new ones .* 12"),
        ([[1] * 13], 1, "13 tokens and 1 new ones .* 12"),
        ([[1]], 0, "0 new ones"),
        ([[1, 2], []], 3, "empty prompt"),
    ],
)
def test_what_cannot_be_continued_is_refused(gpt, prompts, n, named):
    with pytest.raises(InputError, match=named):
        written(gpt, batch(prompts), n)


def test_a_gpt_that_reads_from_both_sides_is_refused():
    both = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, context_length=8, vocab_size=5, causal=False))
    with pytest.raises(InputError, match=r"gpt\.causal=false"):
        written(both, batch([[1, 2]]), 2)


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, 5), (-1.0, 5), (1.0, 0)])
def test_a_sampler_that_cannot_be_is_refused(temperature, top_k):
    with pytest.raises(InputError, match=f"temperature={temperature} .*top_k={top_k}"):
        sampler(temperature, top_k, seed=0)
