"""From the options of a command to the op and its workloads."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from perfkit.errors import UsageError
from perfkit.model.units import parse_count
from perfkit.ops import find_op
from perfkit.ops.attention_workload import AttentionWorkload
from perfkit.ops.base import Op
from perfkit.ops.patterns import canonical

if TYPE_CHECKING:
    from perfkit.ops.models import Model

#: Phase of serving -> its op, and whether it is causal.
PHASES: Final = {"prefill": ("attention", True), "decode": ("decode-attention", False)}
#: What an attention workload has, unless something says otherwise.
USUAL: Final = {"batch": 1, "heads": 16, "head_dim": 64, "causal": False}

Options = Mapping[str, Any]


def op_of(options: Options) -> Op:
    """The op that --op or --phase asks for. UsageError names what is allowed."""
    name, phase = options.get("op"), options.get("phase")
    if phase is None:
        return find_op(name or "attention")
    if phase not in PHASES:
        raise UsageError(f"unknown phase '{phase}'", f"allowed: {', '.join(PHASES)}")
    wanted = PHASES[phase][0]
    if name not in (None, wanted):
        raise UsageError(f"--phase {phase} is {wanted}, and --op says {name}", "leave one of them out")
    return find_op(wanted)


def workloads(op: Op, options: Options, heads: int | None = None) -> list[AttentionWorkload]:
    """The workloads that the options describe, by batch, length and mask; UsageError says what is allowed.

    An option that is given comes first, then the model of --like, then the op's own default. `heads` is the
    command's default.
    """
    model = _model(options.get("like"))
    fields = {
        **USUAL,
        **({"heads": heads} if heads else {}),
        **op.defaults,
        **_of_model(model),
        **_given(options),
    }
    fields.setdefault("kv_heads", fields["heads"])
    masks = [{"pattern": one, "causal": bool(options.get("causal"))} for one in _patterns(op, options, model)]
    found = []
    for batch in options["batch"].split(","):
        for seq in options["seq"].split(","):
            sizes = {"batch": parse_count(batch, "--batch"), **_lengths(op, options, seq, model)}
            if op.cached and options.get("causal") is None:
                fields["causal"] = sizes["seq_q"] > 1
            found += [AttentionWorkload(**{**fields, **sizes, **mask}) for mask in masks or [{}]]
    return list(dict.fromkeys(found))


def _model(name: str | None) -> "Model | None":
    if name is None:
        return None
    from perfkit.ops.models import find_model

    return find_model(name)


def _of_model(model: "Model | None") -> dict[str, Any]:
    if model is None:
        return {}
    return {"heads": model.heads, "kv_heads": model.kv_heads, "head_dim": model.head_dim}


def _window(model: "Model | None") -> int | None:
    """The window of a model that has it in all of its layers; others have layers that see every key."""
    if model is None or model.windowed_layers < model.layers:
        return None
    return model.window


def _given(options: Options) -> dict[str, Any]:
    """The fields of a workload that options give, whatever its op."""
    found: dict[str, Any] = {"dtype": options["dtype"], "pass_": options["pass_"]}
    for name in ("heads", "kv_heads", "head_dim", "page", "prefix", "padding"):
        text = options.get(name)
        if text is not None:
            found[name] = 0 if text == "0" and name in _FROM_ZERO else parse_count(text, _flag(name))
    if options.get("phase") and options.get("causal") is None:
        found["causal"] = PHASES[options["phase"]][1]
    elif options.get("causal") is not None:
        found["causal"] = options["causal"]
    for name in ("dropout", "cache_dtype", "append"):
        if options.get(name):
            found[name] = options[name]
    return found


#: Counts that may be 0.
_FROM_ZERO: Final = frozenset({"page", "prefix", "padding"})


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _lengths(op: Op, options: Options, seq: str, model: "Model | None") -> dict[str, int]:
    """N_q and N_k. Of a cache --seq is its length, and a model with a window keeps no more than that."""
    tokens, seq_k = options.get("tokens"), options.get("seq_k")
    length = parse_count(seq, "--seq")
    if tokens and seq_k:
        raise UsageError("--tokens and --seq-k both say how keys and queries differ", "leave one of them out")
    if op.cached:
        if seq_k:
            raise UsageError(f"--seq is the length of the cache in {op.name}", "leave --seq-k out")
        if (window := _window(model)) is not None:
            length = min(length, window)
    if tokens:
        return {"seq_q": parse_count(tokens, "--tokens"), "seq_k": length}
    if op.cached:
        return {"seq_q": op.defaults["seq_q"], "seq_k": length}
    return {"seq_q": length, "seq_k": parse_count(seq_k, "--seq-k") if seq_k else length}


def _patterns(op: Op, options: Options, model: "Model | None") -> list[str]:
    """The masks: --pattern, --window with --dilation, the model's window, or the op's own; none of these."""
    pattern, window, dilation = options.get("pattern"), options.get("window"), options.get("dilation")
    if pattern and window:
        raise UsageError("--pattern and --window both say what the mask is", "leave one of them out")
    if op.cached and (pattern or window):
        raise UsageError(
            f"{op.name} has no mask: a cache with a window keeps only the last keys",
            "give the window as --seq",
        )
    if window is None and dilation:
        raise UsageError("--dilation needs --window", "such as --window 512 --dilation 4")
    if window:
        width = parse_count(window, "--window")
        if dilation:
            return [f"dilated:{width}+{parse_count(dilation, '--dilation')}"]
        return [f"window:{width}"]
    if pattern:
        return [canonical(one) for one in pattern.split(",")]
    if op.cached:
        return []
    if (own := _window(model)) is not None:
        return [f"window:{own}"]
    return [op.defaults["pattern"]] if "pattern" in op.defaults else []
