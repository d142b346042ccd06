"""When there are enough timing samples. Seconds throughout."""

import math
from collections.abc import Sequence

import msgspec

from perfkit.model.median import dispersion, relative_half_width


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Why sampling ended, in words, and whether the median had settled by then."""

    reason: str
    converged: bool


class StoppingRule(msgspec.Struct, frozen=True, kw_only=True):
    """When a measurement has enough samples (the scheme of nvbench, on the median instead of the mean).

    Enough is `min_samples` samples and `min_time_s` of sample time, and either a median known to
    `half_width` or noise that has reached its plateau: more samples would then only repeat it. After
    `limit_s` of wall time sampling ends anyway and the reason names what was not met.
    """

    min_samples: int = 10
    min_time_s: float = 0.5
    half_width: float = 0.005
    window: int = 32
    plateau: float = 0.05
    limit_s: float = 5.0

    def check(self, samples: Sequence[float], elapsed_s: float, sample_s: float | None = None) -> Stop | None:
        """None to go on. `elapsed_s` is wall time since the first sample was asked for.

        `sample_s` is the sample time to hold against `min_time_s` where it is not the sum of `samples`.
        """
        unmet = self._unmet_minimum(samples, math.fsum(samples) if sample_s is None else sample_s)
        if not unmet:
            width = relative_half_width(samples)
            if width is not None and width < self.half_width:
                return Stop(
                    reason=f"median known to {width:.2%} (below {self.half_width:.2%})", converged=True
                )
            if width is not None and self.on_plateau(samples):
                return Stop(reason=f"noise plateau: median known to {width:.2%}", converged=True)
            known = "unknown" if width is None else f"known to {width:.2%} only"
            unmet = f"median {known}, not {self.half_width:.2%}, and no noise plateau"
        if elapsed_s >= self.limit_s:
            return Stop(reason=f"time limit of {self.limit_s:g} s: {unmet}", converged=False)
        return None

    def _unmet_minimum(self, samples: Sequence[float], total: float) -> str:
        if len(samples) < self.min_samples:
            return f"{len(samples)} of {self.min_samples} samples"
        return f"{total:.3g} s of {self.min_time_s:g} s sample time" if total < self.min_time_s else ""

    def on_plateau(self, samples: Sequence[float]) -> bool:
        """Whether the noise of one sample stayed within `plateau` over the last window.

        The last window is the newer half, at least `window` samples: dispersion of all samples is held
        against dispersion of those before it. A falling one says that the chip still warms up, a rising
        one that clock or temperature drifts: neither is a plateau.
        """
        before = len(samples) - max(self.window, len(samples) // 2)
        if before < self.window:
            return False
        then, now = dispersion(samples[:before]), dispersion(samples)
        return abs(now - then) <= self.plateau * max(then, now)
