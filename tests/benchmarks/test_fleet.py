"""Fleets of cameras: sized, and failing, held against what is reckoned by hand."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.failures import DAY, Failure, Recovery, Ring, drawn, simulate
from benchmarks.fleet import CAMERAS, FIGURES, Machine, Size, failing, figures, main, sized

FOUND = figures(FIGURES)
RECOVERY = Recovery(
    takeover=5,
    machine_takeover=50,
    start=200,
    machine=300,
    move=0,
    load=0,
    save_interval=0,
    retry=10,
)
SECONDS = 1000.0
DAYS = SECONDS / DAY


def run(cameras: int, machines: int, *failures: Failure, recovery: Recovery = RECOVERY, **more):
    asked = {"days": DAYS, "most": 1000, **more}
    return simulate(cameras, 2.0, machines, failures, recovery, **asked)


# Failures


def test_one_replica_and_one_failure():
    """Nobody takes over: twenty seconds until another is there, and one to load."""
    recovery = replace(RECOVERY, start=20, load=1)
    found = run(1, 1, Failure(100, False, 0.5), recovery=recovery)
    assert found.images == 2000
    assert found.delayed == pytest.approx(2 * 21)
    assert found.given_up == pytest.approx(2 * (21 - 10))
    assert found.worst_seconds == pytest.approx(21)
    assert (found.forgotten, found.overloaded, found.most_down) == (0, 0, 1)


def test_a_machine_is_away_for_longer():
    found = run(1, 1, Failure(100, True, 0.5))
    assert (found.delayed, found.worst_seconds) == (pytest.approx(600), pytest.approx(300))


def test_an_outage_that_lasts_to_the_end_counts_to_the_end():
    assert run(1, 1, Failure(900, True, 0.5)).delayed == pytest.approx(2 * 100)


@pytest.mark.parametrize(("of_machine", "seconds"), [(False, 5), (True, 50)])
def test_the_streams_of_the_dead_wait_and_no_others(of_machine, seconds):
    """With four machines a quarter or so of a hundred cameras."""
    lost = int(Ring(100, 4, 100, 0).counts()[2])
    found = run(100, 4, Failure(100, of_machine, 0.6))
    assert found.delayed == pytest.approx(2 * lost * seconds)
    assert (found.worst_seconds, found.most_down) == (pytest.approx(seconds), 1)


def test_a_stream_whose_new_owner_dies_too_waits_from_the_first_on():
    """Of two machines both; the first to be there again has all streams."""
    found = run(10, 2, Failure(100, False, 0), Failure(103, False, 0))
    first = int(Ring(10, 2, 100, 0).counts()[0])
    assert found.worst_seconds == pytest.approx(200)
    assert found.delayed == pytest.approx(2 * (200 * first + 197 * (10 - first)))
    assert found.most_down == 2


def test_what_was_not_saved_is_forgotten():
    """At most an interval's images; of a stream that was loaded since, those since then."""
    recovery = replace(RECOVERY, start=20, save_interval=60)
    one = run(1, 1, Failure(100, False, 0), recovery=recovery).forgotten
    assert 0 < one < 2 * 60
    two = run(1, 1, Failure(100, False, 0), Failure(123, False, 0), recovery=recovery).forgotten
    assert one < two <= one + 2 * 3
    many = [
        run(1, 1, Failure(t, False, 0), recovery=recovery).forgotten for t in np.arange(100, 160, 1)
    ]
    assert np.mean(many) == pytest.approx(60, abs=1)  # half an interval, two images a second


def test_a_stream_that_moves_between_the_living_waits_shortly():
    recovery = replace(RECOVERY, move=1)
    lost, found = run(100, 4, Failure(100, False, 0.6)), None
    found = run(100, 4, Failure(100, False, 0.6), recovery=recovery)
    moved = (found.delayed - lost.delayed) / 2
    ring = Ring(100, 4, 100, 0)
    ring.remove(2)
    assert moved == pytest.approx(len(ring.add()))
    assert 0 < moved < 60


def test_too_many_cameras_on_the_living_are_told():
    """Of ten cameras on two machines all are on one while the other is away."""
    counts = Ring(10, 2, 100, 0).counts()
    found = run(10, 2, Failure(100, False, 0), most=int(counts.max()))
    assert found.overloaded >= 2 * 10 * 200
    assert run(10, 2, Failure(100, False, 0), most=10).overloaded == 0


def test_failures_come_at_their_rates_and_the_same_again():
    found = drawn(1, 1, 100, 3)
    assert found == drawn(1, 1, 100, 3) == sorted(found)
    assert sum(each.of_machine for each in found) == pytest.approx(100, rel=0.3)
    assert sum(not each.of_machine for each in found) == pytest.approx(2400, rel=0.1)
    assert all(0 <= each.victim < 1 and 0 <= each.time < 100 * DAY for each in found)


def test_the_ring_moves_no_more_streams_than_it_has_to():
    """The dead one's, and those that are the new one's; as if it had been dealt anew."""
    ring, random = Ring(500, 6, 20, 1), np.random.default_rng(0)
    for _ in range(40):
        before = ring.owner.copy()
        if len(ring.replicas) > 1 and random.random() < 0.5:
            gone = int(random.choice(ring.replicas))
            moved = ring.remove(gone)
            assert set(moved) == set(np.flatnonzero(before == gone))
        else:
            moved = ring.add()
            assert set(ring.owner[moved]) <= {ring.replicas[-1]}
        assert set(np.flatnonzero(before != ring.owner)) <= set(moved)
        dealt = ring.owner.copy()
        ring._deal(np.arange(500))
        np.testing.assert_array_equal(ring.owner, dealt)
        assert ring.counts().sum() == 500


# Sizes

HUNDRED = Machine(
    dict.fromkeys((1, 1000), 100.0),
    share=0.5,
    door=80,
    gpus=2,
    mib=1000,
    shared_bytes=3e9,
    price=40,
)


def test_a_machine_that_carries_all_is_alone():
    """Seventy of a hundred images a second may be asked for, and half of that behind Ray."""
    size = sized(70, 1.0, HUNDRED, 0.7, FOUND)
    assert (size.machines, size.fullest, size.gpus, size.price) == (1, 70, 2, 40)
    assert size.between_bytes == 0
    assert size.received_bytes == 70 * FOUND["image_bytes"].value
    interval, state = (FOUND[name].value for name in ("save_interval_seconds", "state_bytes"))
    assert size.written_bytes == pytest.approx(70 * state / interval)
    assert size.memory_bytes == 1000 * 2**20 + 70 * FOUND["stream_bytes"].value


def test_of_several_machines_the_fullest_carries_its_own():
    """Thirty-five on average, fifty at most; what comes in at one is passed on to another."""
    size = sized(1000, 1.0, HUNDRED, 0.7, FOUND)
    assert size.machines >= 1000 / 35
    assert size.fullest <= 50
    assert size.memory_bytes == size.machines * 3e9 + 1000 * FOUND["stream_bytes"].value
    passed_on = 1000 * (1 - 1 / size.machines)
    whole = FOUND["image_bytes"].value + FOUND["answer_bytes"].value
    assert size.between_bytes == pytest.approx(passed_on * whole)


def test_a_door_takes_so_much_and_no_more():
    """Where it takes less than its replica, there are as many more machines."""
    size = sized(1000, 1.0, replace(HUNDRED, door=30), 0.7, FOUND)
    assert size.machines >= 1000 / (0.7 * 30)


def test_more_cameras_than_a_cluster_carries_are_in_several():
    """Each of no more machines than a cluster may have, all alike."""
    size = sized(10_000, 1.0, HUNDRED, 0.7, FOUND)
    most = FOUND["cluster_machines"].value
    assert size.clusters > 1
    assert size.machines % size.clusters == 0
    assert size.machines <= most * size.clusters
    one = sized(-(-10_000 // size.clusters), 1.0, HUNDRED, 0.7, FOUND)
    assert (one.clusters, size.machines) == (1, size.clusters * one.machines)
    found = failing(size, 1.0, 50, RECOVERY, replicas_an_hour=1, machines_a_day=0, places=100)
    assert found.outcome.images == pytest.approx(10_000 * found.days * DAY, rel=0.01)
    assert found.outcome.failures / found.days == pytest.approx(24, rel=0.5)


def test_a_camera_that_rarely_sends_is_written_as_rarely():
    size = sized(10, 0.001, HUNDRED, 0.7, FOUND)
    assert size.written_bytes == pytest.approx(10 * 0.001 * FOUND["state_bytes"].value)


@pytest.mark.parametrize("rate", [0.03, 1.0, 10.0])
def test_more_cameras_never_take_less(rate):
    sizes = [sized(cameras, rate, HUNDRED, 0.7, FOUND) for cameras in CAMERAS[:-1]]
    for less, more in pairwise(sizes):
        for name in set(Size._fields) - {"fullest"}:
            assert getattr(less, name) <= getattr(more, name), name


def test_a_camera_too_many_for_a_machine_has_no_fleet():
    assert sized(1, 1000.0, HUNDRED, 0.7, FOUND) is None
    done = CliRunner().invoke(main, ["--rate", "10000"])
    assert done.exit_code == 1
    assert "does not carry a single camera" in done.output


# The page


def test_the_page_has_what_the_script_prints():
    """docs/fleet.md has the output of the command without arguments."""
    page = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()
    written = page.partition("<!-- fleet -->")[2].partition("<!-- /fleet -->")[0]
    done = CliRunner().invoke(main, [])
    assert done.exit_code == 0
    assert written.strip() == done.output.strip()


def test_a_file_of_figures_that_lacks_something_is_refused(tmp_path):
    (tmp_path / "mine.toml").write_text("[state_bytes]\nvalue = 3\n")
    done = CliRunner().invoke(main, ["--figures", str(tmp_path / "mine.toml")])
    assert done.exit_code == 2
    assert "each with value, unit, what, from and measured" in done.output


def test_each_figure_says_where_it_is_from():
    assert all(each.source and each.what for each in FOUND.values())
