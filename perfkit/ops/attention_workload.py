"""The attention workload: shapes, dtype, mask and pass, validated when made."""

from typing import Literal, get_args

import msgspec

from perfkit.errors import UsageError
from perfkit.model.dtype import DTYPE_BYTES
from perfkit.ops import patterns

Pass = Literal["fwd", "bwd", "fwd-bwd"]
PASSES: tuple[str, ...] = get_args(Pass)
#: Rows a head, at most: row indices in kernels are 32 bit, and nobody has more.
LONGEST = 128 << 20
DTYPES = ("bf16", "fp16", "fp32")
#: What the elements of a K/V cache may be instead: fp8 in e4m3, with scales.
CACHE_DTYPES = ("fp8",)


class AttentionWorkload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """O = softmax(Q K^T / sqrt(d)) V for Q [B, h, N_q, d] and K, V [B, h_kv, N_k, d].

    A causal mask is aligned to the bottom right: query i sees keys j <= i + N_k - N_q, as a decoder with a
    cache needs it. `pattern` is a mask, `ops.patterns` says in which words. `dropout` is the share of P that
    is dropped. With `padding` the sequences of a batch are of different lengths, from N_k down to
    N_k - padding, and the keys beyond are masked.
    Of a K/V cache: `cache_dtype` is what its elements are stored in, where not in `dtype`; `page` are the
    tokens of its pages, 0 where each sequence is in one piece; the first `prefix` tokens of all sequences are
    the same pages; with `append` the last N_q keys are given apart and have to be written to it first.
    Raises UsageError for shapes that mean nothing.
    """

    batch: int = 1
    heads: int = 16
    kv_heads: int = 16
    seq_q: int
    seq_k: int
    head_dim: int = 64
    dtype: str = "bf16"
    causal: bool = False
    pass_: Pass = msgspec.field(default="fwd", name="pass")
    pattern: str | None = None
    dropout: float = 0.0
    padding: int = 0
    cache_dtype: str | None = None
    page: int = 0
    prefix: int = 0
    append: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "heads", "kv_heads", "seq_q", "seq_k", "head_dim"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("seq_q", "seq_k"):
            if getattr(self, name) > LONGEST:
                raise UsageError(f"{name} must be at most 128m, not {getattr(self, name)}")
        if self.heads % self.kv_heads:
            divisors = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
            raise UsageError(
                f"kv-heads must divide heads: {self.heads} heads cannot share {self.kv_heads} K/V heads",
                f"allowed for {self.heads} heads: {', '.join(map(str, divisors))}",
            )
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype '{self.dtype}'", f"allowed: {', '.join(DTYPES)}")
        if self.pass_ not in PASSES:
            raise UsageError(f"unknown pass '{self.pass_}'", f"allowed: {', '.join(PASSES)}")
        if self.head_dim > 1024:
            raise UsageError(f"head-dim is the width of one head, at most 1024, not {self.head_dim}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is a share from 0 to below 1, not {self.dropout}")
        if not 0 <= self.padding < self.seq_k:
            raise UsageError(f"padding must be from 0 to below the {self.seq_k} keys, not {self.padding}")
        if self.pattern is not None:
            self._check_pattern(self.pattern)
        self._check_cache()

    def _check_pattern(self, pattern: str) -> None:
        if pattern != (form := patterns.canonical(pattern)):
            raise UsageError(f"pattern '{pattern}' is not as patterns are written", f"write {form}")
        patterns.check_size(pattern, self.seq_q, self.seq_k)
        if self.causal or self.dropout or self.padding:
            raise UsageError("a pattern excludes a causal mask, dropout and padding", "leave one of them out")

    def _check_cache(self) -> None:
        if self.cache_dtype not in (None, *CACHE_DTYPES):
            raise UsageError(
                f"unknown cache dtype '{self.cache_dtype}'", f"allowed: {', '.join(CACHE_DTYPES)}"
            )
        if not 0 <= self.page <= 256:
            raise UsageError(f"page is a number of tokens from 1 to 256, not {self.page}")
        shortest = self.seq_k - self.padding
        if self.prefix and (not self.page or self.prefix % self.page or self.prefix > shortest):
            raise UsageError(
                f"prefix must be whole pages and at most the {shortest} keys of the shortest sequence, "
                f"not {self.prefix}",
                "name a page size that divides it",
            )
        if self.append and self.seq_q > shortest - self.prefix:
            own = shortest - self.prefix
            raise UsageError(f"{self.seq_q} keys cannot be appended where a sequence has {own} of its own")

    @property
    def features(self) -> tuple[str, ...]:
        """What not every implementation serves: of these those in use."""
        used = {
            "pattern": self.pattern is not None,
            "dropout": self.dropout > 0,
            "padding": self.padding > 0,
            "fp8 cache": self.cache_dtype is not None,
            "pages": self.page > 0,
            "append": self.append,
        }
        return tuple(name for name, on in used.items() if on)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Keys that are no padding, a sequence of the batch: spread evenly, the longest first."""
        last = max(1, self.batch - 1)
        return tuple(self.seq_k - self.padding * at // last for at in range(self.batch))

    @property
    def element_bytes(self) -> int:
        """Bytes per element of Q, K, V and O."""
        return DTYPE_BYTES[self.dtype]

    @property
    def rows(self) -> int:
        """Query rows over batch and heads."""
        return self.batch * self.heads * self.seq_q

    @property
    def query_bytes(self) -> int:
        """Bytes of Q (and of O, dO and dQ)."""
        return self.rows * self.head_dim * self.element_bytes

    @property
    def key_bytes(self) -> int:
        """Bytes of K (and of V, dK and dV)."""
        return self.batch * self.kv_heads * self.seq_k * self.head_dim * self.element_bytes

    @property
    def cached_tokens(self) -> int:
        """Tokens in the K/V cache over the batch, those of a shared prefix once."""
        return sum(self.lengths) - (self.batch - 1) * self.prefix

    @property
    def cache_element_bytes(self) -> int:
        """Bytes per element of the K/V cache."""
        return 1 if self.cache_dtype else self.element_bytes

    @property
    def cache_bytes(self) -> int:
        """Bytes of the K/V cache, K and V together: 2 h_kv d e for each token, without scales and tables."""
        return 2 * self.kv_heads * self.cached_tokens * self.head_dim * self.cache_element_bytes

    @property
    def appended_bytes(self) -> int:
        """Bytes of the keys and values that are given apart, in the working dtype; 0 without `append`."""
        rows = self.batch * self.seq_q if self.append else 0
        return 2 * rows * self.kv_heads * self.head_dim * self.element_bytes

    @property
    def scores_bytes(self) -> int:
        """Bytes of one N_q x N_k matrix over batch and heads, in the working dtype."""
        return self.rows * self.seq_k * self.element_bytes

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that it sees, over batch and heads.

        Causal: query i sees max(0, i + 1 + N_k - N_q) keys; for N_q = N_k that is N (N + 1) / 2.
        """
        if self.pattern is not None:
            return self.batch * self.heads * patterns.pairs(self.pattern, self.seq_q, self.seq_k)
        if not self.causal:
            return self.heads * self.seq_q * sum(self.lengths)
        return self.heads * sum(_causal_pairs(self.seq_q, length) for length in self.lengths)


def _causal_pairs(seq_q: int, seq_k: int) -> int:
    seeing = min(seq_q, seq_k)  # the last `seeing` queries see any key at all
    first = seq_k - seeing + 1  # keys that the first of them sees
    return seeing * (first + seq_k) // 2
