"""A verdict is a status and a reason; "undecided" and "unchecked" are answers."""

from typing import Literal

import msgspec

#: `found` states a fact that is not judged; `unchecked` says that nothing was there to check.
VerdictStatus = Literal["holds", "violated", "found", "undecided", "unchecked"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One check: expected against measured (same unit), the relative tolerance, and why it ended so."""

    check: str
    status: VerdictStatus
    reason: str
    expected: float | None = None
    measured: float | None = None
    tolerance: float | None = None

    @property
    def deviation(self) -> float | None:
        """(measured - expected) / expected; None where either is absent."""
        if self.expected is None or self.measured is None or self.expected == 0:
            return None
        return self.measured / self.expected - 1


def judge(
    check: str, expected: float, measured: float, tolerance: float, reason: str, slack: float = 0.0
) -> Verdict:
    """`holds` if `measured` is within `tolerance` (relative) or `slack` (absolute) of `expected`.

    Otherwise `violated`; `undecided` where `expected` is no more than the slack, so that nothing could fail.
    """
    status: VerdictStatus
    if expected <= slack:
        status, reason = "undecided", "too little traffic to tell it from noise"
    else:
        near = abs(measured - expected) <= max(tolerance * expected, slack)
        status = "holds" if near else "violated"
    return Verdict(
        check=check, status=status, reason=reason, expected=expected, measured=measured, tolerance=tolerance
    )


def unchecked(check: str, reason: str, expected: float | None = None) -> Verdict:
    """Nothing to hold the expectation against, and why."""
    return Verdict(check=check, status="unchecked", reason=reason, expected=expected)
