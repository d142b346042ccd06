"""A trace of requests that needs no file: long-tailed lengths, the same on every machine.

Prompts and generated tokens are drawn from tables of deciles whose means, 165 and 338 tokens, are near those
of the ShareGPT conversations in Kwon et al., arXiv 2309.06180, Figure 11 (161 and 338). Only `Random.random`,
which Python keeps stable, and arithmetic that every machine rounds alike take part.
"""

from collections.abc import Sequence
from random import Random
from typing import Final

from perfkit.analysis.cache_trace import Request
from perfkit.errors import UsageError

#: A length lies between two neighbours, each pair being as likely, and evenly within.
PROMPT_DECILES: Final = (4, 10, 16, 24, 34, 48, 70, 110, 190, 400, 1500)
GENERATED_DECILES: Final = (8, 40, 90, 150, 210, 280, 350, 430, 520, 680, 1260)

#: Below it most steps are idle, and every policy is as good.
LEAST_RATE: Final = 0.001
MOST_REQUESTS: Final = 100_000


def synthetic_trace(
    requests: int, seed: int, rate: float, max_len: int, prefix_tokens: int = 0
) -> tuple[Request, ...]:
    """`requests` of them; in each decode step one arrives with the probability `rate`, 0.001 to 1.

    Every prompt begins with the same `prefix_tokens`, which come on top of its drawn length. What is longer
    than `max_len` is cut, the prompt first. UsageError where the prefix leaves no room.
    """
    if not LEAST_RATE <= rate <= 1:
        raise UsageError(f"--rate must be from {LEAST_RATE} to 1 request a step, not {rate:g}")
    if requests > MOST_REQUESTS:
        raise UsageError(f"--requests must be at most {MOST_REQUESTS:,}, not {requests:,}")
    if prefix_tokens + 2 > max_len:
        raise UsageError(
            f"a prefix of {prefix_tokens} tokens leaves no room in {max_len}",
            "lower --prefix-tokens or raise --max-len",
        )
    random, step, found = Random(seed), 0, []
    for _ in range(requests):
        while random.random() >= rate:
            step += 1
        prompt = min(prefix_tokens + _draw(random, PROMPT_DECILES), max_len - 1)
        generated = min(_draw(random, GENERATED_DECILES), max_len - prompt)
        found.append(
            Request(
                arrival=step,
                prompt=prompt,
                generated=generated,
                prefix="system" if prefix_tokens else None,
                prefix_tokens=prefix_tokens,
            )
        )
        step += 1
    return tuple(found)


def _draw(random: Random, deciles: Sequence[int]) -> int:
    """A length in [deciles[0], deciles[-1])."""
    at = int(random.random() * (len(deciles) - 1))
    low, high = deciles[at], deciles[at + 1]
    return low + int(random.random() * (high - low))
