"""Products of tiles whose columns lie in shared memory panel by panel: a head dim need be no power of two.

Tiles are [panels, 1, 1, rows, columns], as TMA fills them. A warpgroup multiplies 64 rows.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma, warpgroup_mma


@gluon.jit
def panel(tiles, index):  # type: ignore[no-untyped-def]
    """The index-th panel, [rows, columns]."""
    ROWS: gl.constexpr = tiles.shape[3]
    COLUMNS: gl.constexpr = tiles.shape[4]
    return tiles.index(index).reshape([ROWS, COLUMNS])


@gluon.jit  # type: ignore[untyped-decorator]
def load_panels(desc, place, full, tiles, first, PANELS: gl.constexpr):  # type: ignore[no-untyped-def]
    """Loads the rows at `place` (batch, head, row) into PANELS panels of `tiles` from `first` on."""
    batch, head, row = place
    COLUMNS: gl.constexpr = tiles.shape[4]
    for p in gl.static_range(PANELS):
        tma.async_copy_global_to_shared(desc, [batch, head, row, p * COLUMNS], full, tiles.index(first + p))


@gluon.jit  # type: ignore[untyped-decorator]
def products(left, right, first_left, first_right, PANELS: gl.constexpr):  # type: ignore[no-untyped-def]
    """left right^T, [64, rows of right] in float32, over all panels: under way in PANELS groups."""
    ROWS: gl.constexpr = right.shape[3]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    acc = gl.zeros([64, ROWS], gl.float32, LAYOUT)
    for p in gl.static_range(PANELS):
        one = panel(left, first_left + p)
        other = panel(right, first_right + p).permute((1, 0))
        acc = warpgroup_mma(one, other, acc, use_acc=p > 0, is_async=True)
    return acc


@gluon.jit  # type: ignore[untyped-decorator]
def zero_panels(COLUMNS: gl.constexpr, PANELS: gl.constexpr):  # type: ignore[no-untyped-def]
    """PANELS accumulators of 64 rows and COLUMNS columns."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    made = ()
    for _ in gl.static_range(PANELS):
        made += (gl.zeros([64, COLUMNS], gl.float32, LAYOUT),)  # type: ignore[assignment]
    return made


@gluon.jit  # type: ignore[untyped-decorator]
def accumulate(acc, left, right, first, PANELS: gl.constexpr):  # type: ignore[no-untyped-def]
    """acc + left right, panel by panel, with `left` in registers: under way in PANELS groups."""
    made = ()
    for p in gl.static_range(PANELS):
        product = warpgroup_mma(left, panel(right, first + p), acc[p], is_async=True)
        made += (product,)  # type: ignore[assignment]
    return made
