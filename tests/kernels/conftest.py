"""What the kernel tests share: random cases, poisoned outputs, and the rule by which a kernel is right."""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import pytest

#: How q, k and v may lie in memory, beside [B, h, N, d]; `_placed` makes them so.
ORDERS = ("rows first", "packed", "halves", "of a cache", "one batch")


class Case(NamedTuple):
    """One attention call: sizes, mask, dtype name, scale (None: the default), and the order in memory."""

    batch: int = 1
    heads: int = 2
    kv_heads: int = 2
    seq_q: int = 64
    seq_k: int = 64
    head_dim: int = 16
    causal: bool = False
    dtype: str = "float16"
    scale: float | None = None
    rows_first: bool = False  # [B, N, h, d] seen as [B, h, N, d]
    order: str = ""  # one of ORDERS, of q, k and v
    pooled: bool = False  # the same dO for all rows, which then has a stride of 0


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """torch.empty gives NaN, so that an element that a kernel forgets is seen."""
    torch = pytest.importorskip("torch")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def make_case() -> type[Case]:
    return Case


@pytest.fixture
def random_case(make_case: Callable[..., Case]) -> Callable[..., Case]:
    """(number, head dims, lengths) -> the same case for the same number.

    Half of them are causal, a third has grouped heads or other strides.
    """

    def draw(number: int, head_dims: Sequence[int], lengths: Sequence[int]) -> Case:
        rng = random.Random(number)
        kv_heads = rng.choice([1, 2, 3])
        seq_q, seq_k = rng.choice(lengths), rng.choice(lengths)
        return make_case(
            batch=rng.choice([1, 2, 3]),
            heads=kv_heads * rng.choice([1, 1, 2, 4]),
            kv_heads=kv_heads,
            seq_q=seq_q,
            seq_k=rng.choice([seq_q, seq_k]),
            head_dim=head_dims[number % len(head_dims)],
            causal=number // len(head_dims) % 2 == 0,
            dtype=rng.choice(["float16", "bfloat16"]),
            scale=rng.choice([None, None, 0.05, 0.4]),
            rows_first=rng.random() < 0.35,
        )

    return draw


@pytest.fixture
def random_group(make_case: Callable[..., Case]) -> Callable[..., list[Case]]:
    """(head dim, dtype, causal, lengths) -> a case for each (lengths of Q, lengths of K) of `lengths`.

    They differ in sizes, scale and strides, and are the same for the same arguments. What kernels are
    compiled for is given, so that those of a group share them.
    """

    def draw(
        head_dim: int,
        dtype: str,
        causal: bool,
        lengths: Sequence[tuple[Sequence[int], Sequence[int]]],
        orders: Sequence[str] = ORDERS[:-1],
        pooled: float = 0.0,
    ) -> list[Case]:
        rng = random.Random(f"{head_dim} {dtype} {causal}")
        cases = []
        for of_q, of_k in lengths:
            kv_heads, seq_q, seq_k = rng.choice([1, 2, 3]), rng.choice(of_q), rng.choice(of_k)
            same = seq_q in of_k and rng.random() < 0.5
            cases.append(
                make_case(
                    batch=rng.choice([1, 2, 3]),
                    heads=kv_heads * rng.choice([1, 1, 2, 4]),
                    kv_heads=kv_heads,
                    seq_q=seq_q,
                    seq_k=seq_q if same else seq_k,
                    head_dim=head_dim,
                    causal=causal,
                    dtype=dtype,
                    scale=rng.choice([None, None, 0.05, 0.4]),
                    order=rng.choice(["", *orders]),
                    pooled=rng.random() < pooled,
                )
            )
        return cases

    return draw


@pytest.fixture
def make_inputs() -> Callable[..., Any]:
    """(case, device, seed) -> q, k, v, dO, random."""
    import torch

    def inputs(case: Case, device: str = "cpu", seed: int = 0) -> tuple[Any, ...]:
        generator = torch.Generator(device).manual_seed(seed)

        def tensor(heads: int, rows: int) -> Any:
            shape = [case.batch, heads, rows, case.head_dim]
            if case.rows_first:
                shape[1], shape[2] = rows, heads
            made = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
            made = made.to(getattr(torch, case.dtype))
            return made.transpose(1, 2) if case.rows_first else made

        q, dout = (tensor(case.heads, case.seq_q) for _ in range(2))
        k, v = (tensor(case.kv_heads, case.seq_k) for _ in range(2))
        if case.pooled:
            dout = dout[:, :, :1].expand_as(dout)
        return *_placed(case.order, q, k, v), dout

    return inputs


def _placed(order: str, q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """The same values in another order, with NaN around them where there is something around them."""
    import torch

    if order == "rows first":
        q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
    elif order == "packed":  # one tensor [B, N, heads, d]; of K and V alone where there is another N of Q
        parts = (q, k, v) if q.shape[2] == k.shape[2] else (k, v)
        packed = torch.cat([t.transpose(1, 2) for t in parts], 2)
        cut = [t.transpose(1, 2) for t in packed.split([t.shape[1] for t in parts], 2)]
        q, k, v = cut if len(cut) == 3 else (q, *cut)
    elif order == "halves":  # K and V in the same rows
        k, v = torch.cat((k, v), -1).chunk(2, -1)
        q = torch.cat((q, torch.full_like(q, torch.nan)), -1)[..., : q.shape[3]]
    elif order == "of a cache":  # rows in the middle of more
        q, k, v = (
            torch.nn.functional.pad(t, (0, 0, 3, 200), value=torch.nan)[:, :, 3:-200] for t in (q, k, v)
        )
    elif order == "one batch":  # strides of 0
        k, v = (t[:1].expand_as(t) for t in (k, v))
    return q, k, v


@pytest.fixture
def assert_right(make_inputs: Callable[..., Any]) -> Callable[..., None]:
    """The rule: largest error against the float64 oracle at most 2x that of the eager path in the same dtype.

    Plus half a unit in the last place of the largest value, which rounding the output alone may cost, and
    what float32 sums of d products leave where the exact result cancels to 0 (one key: dQ = P (dP - D) with
    dP = D). The largest of a handful of errors is luck: the eager path of a small case has several draws.
    Those of out, dq, dk and dv that are `fixed` have the same bits in a second run.
    """
    import torch

    from perfkit.kernels.attention import reference, standard

    def check(
        attention: Any, case: Case, device: str = "cpu", seed: int = 0, fixed: Collection[str] = ()
    ) -> None:
        q, k, v, dout = make_inputs(case, device, seed)
        exact = reference.forward(q, k, v, case.causal, case.scale)[:1]
        exact += reference.backward(q, k, v, dout, case.causal, case.scale)
        eager = _run(standard.attention, q, k, v, dout, case)
        ours = _run(attention, q, k, v, dout, case)
        again = _run(attention, q, k, v, dout, case) if fixed else ours
        unit = torch.finfo(q.dtype).eps
        lucky = [_eager_errors(make_inputs(case, device, seed + draw), case) for draw in range(1, _draws(q))]
        for at, (name, mine, theirs, right) in enumerate(zip(_NAMES, ours, eager, exact, strict=True)):
            assert mine.dtype == q.dtype
            assert name not in fixed or torch.equal(mine, again[at]), f"{case} {name}: other bits"
            error, allowed = (mine - right).abs().max().item(), (theirs - right).abs().max().item()
            allowed = max(allowed, *(errors[at] for errors in lucky)) if lucky else allowed
            # dK of a single key is a sum over all rows of what cancels in each.
            terms = case.head_dim + (case.seq_q if case.seq_k == 1 else 0)
            slack = 0.5 * unit * right.abs().max().item() + terms * 2.0**-22
            assert error <= 2 * allowed + slack, f"{case} {name}: error {error:.2e}, eager {allowed:.2e}"

    def _eager_errors(inputs: tuple[Any, ...], case: Case) -> list[float]:
        q, k, v, dout = inputs
        exact = reference.forward(q, k, v, case.causal, case.scale)[:1]
        exact += reference.backward(q, k, v, dout, case.causal, case.scale)
        eager = _run(standard.attention, q, k, v, dout, case)
        return [(a - b).abs().max().item() for a, b in zip(eager, exact, strict=True)]

    return check


_NAMES = ("out", "dq", "dk", "dv")


def _draws(q: Any) -> int:
    return 16 if q.numel() < 4096 else 1


def _run(attention: Any, q: Any, k: Any, v: Any, dout: Any, case: Case) -> tuple[Any, ...]:
    import torch

    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    out = attention(leaves[0], leaves[1], leaves[2], causal=case.causal, scale=case.scale)
    return out.detach(), *torch.autograd.grad(out, leaves, dout)
