"""Permission to read counters, from the texts of the driver and the kernel."""

from perfkit.measure.permission import counter_permission

OPEN = "ResmanDebugLevel: 4294967295\nRmProfilingAdminOnly: 0\n"
CLOSED = "ResmanDebugLevel: 4294967295\nRmProfilingAdminOnly: 1\n"
ROOT = "Name:\tpython\nUid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n"
# A container's usual capabilities (docker's default set) leave out bit 21.
CONTAINER_ROOT = "Name:\tpython\nUid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\n"
USER = "Name:\tpython\nUid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n"
GRANTED = "Name:\tpython\nUid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000200000\n"  # 1 << 21


def test_an_open_driver_allows_everybody() -> None:
    assert counter_permission(OPEN, USER).allowed is True


def test_a_closed_driver_allows_administrators() -> None:
    assert counter_permission(CLOSED, ROOT).allowed is True
    assert counter_permission(CLOSED, GRANTED).allowed is True


def test_a_closed_driver_refuses_users_and_tells_the_fix() -> None:
    answer = counter_permission(CLOSED, USER)
    assert answer.allowed is False
    assert "not an administrator" in answer.reason
    assert "NVreg_RestrictProfilingToAdminUsers=0" in answer.fix


def test_root_in_a_container_without_the_capability_is_refused() -> None:
    answer = counter_permission(CLOSED, CONTAINER_ROOT)
    assert answer.allowed is False
    assert "root without CAP_SYS_ADMIN" in answer.reason
    assert "--cap-add=SYS_ADMIN" in answer.fix


def test_without_a_driver_nothing_is_known() -> None:
    answer = counter_permission("", ROOT)
    assert answer.allowed is None
    assert "driver" in answer.reason


def test_a_driver_that_does_not_say_leaves_it_open_for_users_only() -> None:
    assert counter_permission("ResmanDebugLevel: 1\n", USER).allowed is None
    assert counter_permission("ResmanDebugLevel: 1\n", ROOT).allowed is True


def test_without_capabilities_in_the_text_root_counts() -> None:
    assert counter_permission(CLOSED, "Uid:\t0\t0\t0\t0\n").allowed is True
    assert counter_permission(CLOSED, "").allowed is False
