"""The names of tensors in the ledger, and which of the ledger's steps an operation of torch is."""

from typing import Final

#: Argument of a kernel -> tensor. An argument that is not here keeps its own name.
TENSORS: Final = {
    "q": "Q",
    "k": "K",
    "v": "V",
    "out": "O",
    "lse": "LSE",
    "delta": "D",
    "dout": "dO",
    "dq": "dQ",
    "dk": "dK",
    "dv": "dV",
    "row_sum": "l",
    "row_max": "m",
    "scores": "S",
    "ends": "spans",
    "table": "block table",
    "k_scale": "K scale",
    "v_scale": "V scale",
    "new_k": "new K",
    "new_v": "new V",
}

#: The same for arguments that mean something else in each kernel.
TENSORS_OF: Final = {
    ("flash1_forward", "partial"): "O in fp32",
    ("flash1_backward", "partial"): "dQ in fp32",
    ("sparse1_forward", "partial"): "O in fp32",
    ("sparse1_backward", "partial"): "dQ in fp32",
    ("square_output", "scores"): "S again",
    ("decode_split", "partial"): "O in fp32",
    ("decode_combine", "partial"): "O in fp32",
}

#: (operation of torch, tensors that it reads) -> (step, tensor that it writes).
STEPS: Final[dict[tuple[str, frozenset[str]], tuple[str, str]]] = {
    ("gt", frozenset({"index"})): ("mask", "mask"),
    ("baddbmm", frozenset({"Q", "K"})): ("S = Q K^T", "S"),
    ("baddbmm_", frozenset({"mask", "Q", "K"})): ("S = Q K^T", "S"),
    ("_softmax", frozenset({"S"})): ("P = softmax(S)", "P"),
    ("bmm", frozenset({"P", "V"})): ("O = P V", "O"),
    ("bmm", frozenset({"P", "dO"})): ("dV = P^T dO", "dV"),
    ("bmm", frozenset({"dO", "V"})): ("dP = dO V^T", "dP"),
    ("_softmax_backward_data", frozenset({"dP", "P"})): ("dS", "dS"),
    ("bmm", frozenset({"dS", "K"})): ("dQ = dS K", "dQ"),
    ("mul", frozenset({"dQ"})): ("scale dQ", "dQ"),
    ("bmm", frozenset({"dS", "Q"})): ("dK = dS^T Q", "dK"),
    ("mul", frozenset({"dK"})): ("scale dK", "dK"),
    # gpt2. The lengths of the sequences come in without a name. One name is given to all that an operation
    # writes, so that Z, which dropout writes beside P o Z, is P o Z too.
    ("ge", frozenset({"index", "unnamed"})): ("padding mask", "mask"),
    ("add_", frozenset({"S", "mask"})): ("S + mask", "S"),
    ("native_dropout", frozenset({"P"})): ("P o Z", "P o Z"),
    ("bmm", frozenset({"P o Z", "V"})): ("O = (P o Z) V", "O"),
    ("bmm", frozenset({"P o Z", "dO"})): ("dV = (P o Z)^T dO", "dV"),
    ("native_dropout_backward", frozenset({"dP", "P o Z"})): ("dP o Z", "dP o Z"),
    ("_softmax_backward_data", frozenset({"dP o Z", "P"})): ("dS", "dS"),
    ("baddbmm", frozenset({"dS", "K"})): ("dQ = dS K", "dQ"),
    ("baddbmm", frozenset({"dS", "Q"})): ("dK = dS^T Q", "dK"),
}


def tensor_name(kernel: str, argument: str) -> str:
    """The ledger's name of a kernel's argument."""
    return TENSORS_OF.get((kernel, argument)) or TENSORS.get(argument, argument)


def step_of(operation: str, reads: frozenset[str]) -> tuple[str, str]:
    """(step, name of what it writes) of an operation of torch; where no step is it, its name for both."""
    named = "index" if operation == "arange" else f"aten::{operation}"
    return STEPS.get((operation, reads), (f"aten::{operation}", named))
