"""The ledger never counts too little: under races, kills, replays, changed data and tampering."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.client.node.node_file import load_node
from fedgraft.client.node.policy import Policy
from fedgraft.client.privacy.budget import Budget
from fedgraft.client.privacy.ledger import Ledger, Reservation
from fedgraft.client.privacy.ledger_holds import HeldRounds
from fedgraft.client.privacy.ledger_records import DataSet, patient_digest
from fedgraft.client.privacy.spending import Ceilings, Spending, WholeRun
from fedgraft.client.privacy.statement import markdown, statement
from fedgraft.client.store.chain_entry import parse_head
from fedgraft.common.errors import Refused, UserError
from fedgraft.common.plan.privacy_section import PrivacySection
from fedgraft.common.privacy.accounting import epsilon
from fedgraft.common.privacy.randomness import Randomness
from tests.records import open_records

PLAN, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
TIGHT = Ceilings(total=2.0, delta=1e-5)
FORK = multiprocessing.get_context("fork")


def records(start: int, end: int) -> DataSet:
    return DataSet.from_digests(
        hashlib.sha256(str(number).encode()).digest() for number in range(start, end)
    )


DATA = records(0, 50)


def reserve(ledger: Ledger, round_: int = 1, **changed: Any) -> Reservation:
    row = {"noise_multiplier": 1.0, "sample_rate": 0.01, "steps": 100}
    row |= {key: changed.pop(key) for key in row if key in changed}
    options = {key: changed.pop(key) for key in ("ceilings", "again") if key in changed}
    data = changed.pop("data", DATA)
    said: dict[str, Any] = {"unit": "example", "plan": PLAN, "delta": 1e-5, "accountant": "rdp"}
    said |= changed
    spending = Spending(round=round_, row=tuple(row.values()), **said)
    return ledger.reserve(data, spending, **options)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "node" / "ledger.sqlite")


# ── on the disk ───────────────────────────────────────────────────────────────────────────────────
def test_a_reservation_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch) -> None:
    """A hospital's ledger that forgets in a power cut what was spent; a simulation's, which
    protects nobody, that waits for the disk four times a round.
    """
    flushed: list[str] = []
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for name, durable in {"hospital": True, "simulated": False}.items():
        ledger = Ledger(tmp_path / name / "ledger.sqlite", durable=durable)
        ledger.settle(reserve(ledger))
        assert len(ledger.history(DATA)) == 1
        assert ledger.verify() == []
        connection = ledger._chain._open()
        (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
        connection.close()
        # SQLite's own numbers: EXTRA and OFF
        assert synchronous == (3 if durable else 0)
        assert bool(flushed) is durable
        flushed.clear()


def test_only_noise_that_can_be_drawn_again_spares_the_disk(tmp_path: Path) -> None:
    """A node in a hospital that opens its ledger as a simulation does."""
    budget = Budget(node=None, data=DATA, examples=50)  # type: ignore[arg-type]
    assert budget.is_durable
    repeated = replace(budget, source=lambda *asked: Randomness(bytes(32)))
    assert not repeated.is_durable


# ── spending ──────────────────────────────────────────────────────────────────────────────────────


def test_the_whole_history_is_composed(ledger: Ledger) -> None:
    """ε of the last round alone, or of rounds added up, is not what was spent."""
    for round_ in (1, 2, 3):
        ledger.settle(reserve(ledger, round_, noise_multiplier=float(round_)))
    reserve(ledger, 4, plan=OTHER, sample_rate=0.1)
    rows = [(1.0, 0.01, 100), (2.0, 0.01, 100), (3.0, 0.01, 100), (1.0, 0.1, 100)]
    assert sorted(ledger.history(DATA)) == sorted(rows)
    assert ledger.spent(DATA, 1e-5).epsilon == epsilon(rows, 1e-5)
    assert Ledger(ledger.path).history(DATA) == ledger.history(DATA), (
        "another process must see the same"
    )
    assert ledger.verify() == []


def test_a_ceiling_refuses_before_and_writes_nothing(ledger: Ledger) -> None:
    """A round that is refused after its gradients were taken has leaked all the same."""
    row = (1.0, 0.01, 100)
    granted = next(count for count in range(99) if epsilon([row] * (count + 1), 1e-5, "rdp") > 2.0)
    assert granted > 1
    for round_ in range(granted):
        reserve(ledger, round_ + 1, ceilings=TIGHT)
    with pytest.raises(Refused, match="ceiling of 2"):
        reserve(ledger, granted + 1, ceilings=TIGHT)
    assert len(ledger.history(DATA)) == granted
    assert ledger.left(DATA, TIGHT, 1e-5, "rdp") == pytest.approx(
        2.0 - epsilon([row] * granted, 1e-5, "rdp")
    )
    reserve(
        ledger, 100, ceilings=TIGHT, accountant="prv"
    )  # PRV is tighter: it has room where RDP has none


def test_the_runs_ceiling_counts_one_plan_only(ledger: Ledger) -> None:
    """Another plan's spending must not stop this plan's own promise, only the total may."""
    run = Ceilings(run=1.5)
    reserve(ledger, 1, plan=OTHER, steps=1000)
    reserve(ledger, 1, ceilings=run)
    with pytest.raises(Refused, match="this plan's run"):
        reserve(ledger, 2, steps=1000, ceilings=run)


def test_delta_of_the_policy_is_the_totals_delta(ledger: Ledger) -> None:
    """A plan with a larger δ must not be counted more cheaply than the policy's δ counts it."""
    steps = 300
    at_policy, at_plan = (epsilon([(1.0, 0.01, steps)], delta, "rdp") for delta in (1e-6, 1e-3))
    between = Ceilings(total=(at_policy + at_plan) / 2, delta=1e-6)
    with pytest.raises(Refused, match="ceiling"):
        reserve(ledger, steps=steps, delta=1e-3, ceilings=between)


def test_no_noise_has_no_ceiling_that_holds(ledger: Ledger) -> None:
    """σ = 0 is ε = ∞, now and for everything after."""
    with pytest.raises(Refused):
        reserve(ledger, noise_multiplier=0.0, ceilings=Ceilings(total=1e9, delta=1e-5))
    reserve(ledger, noise_multiplier=0.0)
    assert ledger.spent(DATA, 1e-5).epsilon == float("inf")


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 0},
        {"steps": -5},
        {"sample_rate": 1.5},
        {"noise_multiplier": float("nan")},
        {"delta": 0.0},
    ],
)
def test_nonsense_is_not_written(ledger: Ledger, changed: dict[str, Any]) -> None:
    """Negative steps would give budget back."""
    with pytest.raises(UserError):
        reserve(ledger, **changed)
    assert ledger.book().lines == ()


# ── settling ──────────────────────────────────────────────────────────────────────────────────────


def test_a_settled_round_counts_what_was_taken(ledger: Ledger) -> None:
    """Stopping early gives back what was not used; not settling gives nothing back."""
    ledger.settle(reserve(ledger, 1), 40)
    reserve(ledger, 2)
    assert [line.steps for line in ledger.book().lines] == [40, 100]
    assert [line.settled for line in ledger.book().lines] == [True, False]


def test_only_the_holder_settles_and_only_once(ledger: Ledger) -> None:
    """Whoever could settle again, or for another, could lower what was spent."""
    reservation = reserve(ledger)
    for forged in (
        replace(reservation, token="0" * 32),
        replace(reservation, number=1),
        replace(reservation, number=9),
    ):
        with pytest.raises(Refused):
            ledger.settle(forged, 0)
    with pytest.raises(UserError):
        ledger.settle(reservation, -1)
    ledger.settle(reservation, 99)
    with pytest.raises(Refused, match="settled already"):
        ledger.settle(reservation, 0)
    assert ledger.history(DATA) == ((1.0, 0.01, 99),)
    assert reservation.token not in ledger.path.read_bytes().decode("latin1")


def test_more_steps_than_reserved_count_and_are_refused(ledger: Ledger) -> None:
    """What happened must be in the ledger even where it should not have happened."""
    with pytest.raises(Refused, match="nothing is sent"):
        ledger.settle(reserve(ledger), 150)
    assert ledger.history(DATA) == ((1.0, 0.01, 150),)


@pytest.mark.parametrize("settled", [True, False])
def test_a_replayed_round_is_refused_or_counted_again(ledger: Ledger, settled: bool) -> None:
    """A server that sends a round twice must not have it twice for the price of one."""
    reservation = reserve(ledger, 3)
    if settled:
        ledger.settle(reservation)
    with pytest.raises(Refused, match="round 3 of this plan"):
        reserve(ledger, 3)
    with pytest.raises(Refused, match="round 3 of this plan"):
        reserve(ledger, 3, data=records(49, 60))
    assert len(ledger.history(DATA)) == 1
    reserve(ledger, 3, purpose="metrics", sample_rate=1.0)
    reserve(ledger, 3, again=True)
    assert len(ledger.history(DATA)) == 3


# ── changed data ──────────────────────────────────────────────────────────────────────────────────


def test_data_that_shares_a_record_inherits_its_history(ledger: Ledger) -> None:
    """One patient more or less must not be a new budget for all the others."""
    reserve(ledger, 1)
    grown, rest, apart = records(0, 80), records(10, 50), records(100, 150)
    assert ledger.history(grown) == ledger.history(rest) == ledger.history(DATA) != ()
    assert ledger.history(apart) == ()
    with pytest.raises(Refused, match="ceiling"):
        reserve(ledger, 2, data=grown, steps=2000, ceilings=TIGHT)
    reserve(ledger, 2, data=grown)
    reserve(ledger, 3, data=apart)
    assert len(ledger.history(DATA)) == 2, "records of the old set were used in the grown one"
    assert len(ledger.history(records(60, 120))) == 2  # shares with grown, and with apart
    assert (
        len(ledger.history(records(79, 80))) == 1
    )  # only in grown: what was run before never saw it
    assert ledger.verify() == []


def test_order_of_records_and_duplicates_do_not_matter() -> None:
    """Shuffling a file must not make it new data."""
    shuffled = list(DATA.records) * 2
    random.Random(0).shuffle(shuffled)
    assert DataSet.from_digests(shuffled) == DATA
    with pytest.raises(UserError):
        DataSet.from_digests([])


def test_a_plan_with_other_columns_reads_the_same_patients(tmp_path: Path) -> None:
    """A server chooses columns; it must not choose itself an unspent ledger by it."""
    path = tmp_path / "heart.csv"
    path.write_text(
        "age,sex,chol,target\n"
        + "".join(f"{40 + i},{i % 2},{200 + i},{i % 2}\n" for i in range(20))
    )

    def data(columns: tuple[str, ...], target: str) -> DataSet:
        kind, classes = "tabular-classification", ("no", "yes")
        return DataSet.of(
            open_records(path=path, kind=kind, classes=classes, columns=columns, target=target)
        )

    whole = data(("age", "sex", "chol"), "target")
    assert data(("chol",), "target") == data(("age", "chol"), "sex") == whole
    path.write_text(
        "sex,age,chol,target\n"
        + "".join(f"{i % 2},{40 + i},{200 + i},{i % 2}\n" for i in range(20))
    )
    os.utime(path, (1, 1))
    assert data(("chol",), "target") == whole, "columns in another order are the same records"


def test_images_are_known_by_their_content(tmp_path: Path) -> None:
    """The same images in another file are the same records. A plan for a part of the classes reads
    some of them; it must not choose itself an unspent ledger by it.
    """
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    labels = np.arange(12) % 3
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    np.savez(tmp_path / "b.npz", images=images[::-1], labels=labels[::-1])
    kind, classes = "image-classification", ("a", "b", "c")
    first, second = (
        DataSet.of(open_records(path=tmp_path / name, kind=kind, classes=classes))
        for name in ("a.npz", "b.npz")
    )
    part = DataSet.of(
        open_records(
            path=tmp_path / "a.npz",
            kind=kind,
            classes=("a", "b"),
            labels=(0, 1),
            reading={"labels_left_out": "allow"},
        )
    )
    assert first == second
    assert part == first


# ── patients and nodes ────────────────────────────────────────────────────────────────────────────


def visits(year: int, first: int, last: int) -> DataSet:
    """A record for each of some patients, of a year's own."""
    patients = range(first, last)
    return DataSet.from_digests(
        [hashlib.sha256(f"{year}/{patient}".encode()).digest() for patient in patients],
        [patient_digest(str(patient)) for patient in patients],
    )


def test_a_patients_history_goes_with_the_patient(ledger: Ledger) -> None:
    """A new file every year, of the same patients: no record is the same, and ε of each began at
    nothing.
    """
    reserve(ledger, 1, unit="patient", data=visits(2024, 0, 50))
    assert len(ledger.history(visits(2025, 49, 90), "patient")) == 1
    assert ledger.history(visits(2025, 50, 90), "patient") == ()
    refused = 0
    for year in range(2025, 2045):
        spending = {"unit": "patient", "plan": str(year), "data": visits(year, 0, 50)}
        try:
            reserve(ledger, 1, ceilings=TIGHT, steps=200, **spending)
        except Refused:
            refused += 1
    rows = ledger.history(visits(2099, 0, 1), "patient")
    assert refused > 0
    assert epsilon(rows, 1e-5, "rdp") <= 2.0
    assert ledger.verify() == []


def test_other_records_of_a_patient_are_other_examples(ledger: Ledger) -> None:
    """Where single records are promised, a new year's records are not in the last year's ε; but
    once patients are promised, everything of theirs counts, and units do not compose.
    """
    reserve(ledger, 1, data=visits(2024, 0, 50))
    assert ledger.history(visits(2025, 0, 50), "example") == ()
    reserve(ledger, 1, data=visits(2025, 0, 50))
    with pytest.raises(Refused, match="unit example"):
        reserve(ledger, 1, unit="patient", data=visits(2026, 0, 50))


def test_everything_counts_where_the_node_is_the_unit(ledger: Ledger) -> None:
    """Plans on disjoint records of one node: each stated its own ε, and the node lost the sum."""
    reserve(ledger, 1, unit="node", data=records(0, 50))
    assert len(ledger.history(records(50, 100), "node")) == 1
    with pytest.raises(Refused, match="unit node"):
        reserve(ledger, 1, data=records(50, 100))
    reserve(ledger, 1, unit="node", plan=OTHER, data=records(50, 100))
    book = ledger.book()
    assert len(book.lines_on(records(0, 50).fingerprint)) == 2
    assert [row["epsilon"] for row in statement(ledger)["data_sets"]] == [
        pytest.approx(epsilon([(1.0, 0.01, 200)], 1e-5))
    ] * 2


# ── what is held for a run ────────────────────────────────────────────────────────────────────────


def whole_run(plan: str, rounds: int = 3, steps: int = 100) -> WholeRun:
    held = HeldRounds("training", tuple(range(1, rounds + 1)), (1.0, 0.01, steps))
    return WholeRun("example", plan, (held,), 1e-5, "rdp")


def test_a_run_that_was_admitted_ends(ledger: Ledger) -> None:
    """Two runs at once were both admitted, and both died midway with all ε gone."""
    run = whole_run(PLAN, rounds=5, steps=1000)
    ceilings = Ceilings(total=epsilon([(1.0, 0.01, 6500)], 1e-5, "rdp"), delta=1e-5)
    ledger.hold(DATA, run, ceilings, seconds=3600)
    with pytest.raises(Refused, match="held for other runs"):
        ledger.hold(records(49, 99), whole_run(OTHER, rounds=2, steps=1000), ceilings, seconds=3600)
    with pytest.raises(Refused, match="held for a run"):
        reserve(ledger, 1, plan=OTHER, steps=2000, ceilings=ceilings)
    ledger.hold(DATA, run, ceilings, seconds=3600)
    for round_ in range(1, 6):
        ledger.settle(reserve(ledger, round_, steps=1000, ceilings=ceilings))
    reserve(ledger, 1, plan=OTHER, steps=1000, ceilings=ceilings)
    assert [entry.is_open(ledger.book().lines, 0) for entry in ledger.book().holds] == [False]
    assert ledger.verify() == []


def test_a_hold_never_lets_more_through(ledger: Ledger) -> None:
    """A hold is no leave to spend: what it held and was not reserved does not count as spent, and a
    run cannot go above the ceiling by it.
    """
    ceilings = Ceilings(total=2.0, delta=1e-5)
    ledger.hold(DATA, whole_run(PLAN, steps=10), ceilings, seconds=3600)
    assert ledger.history(DATA) == ()
    with pytest.raises(Refused, match="ceiling of 2"):
        reserve(ledger, 1, steps=100_000, ceilings=ceilings)


def hold_at_once(path: Path, plan: str, start: Any, refused: Any) -> None:
    start.wait()
    try:
        Ledger(path).hold(DATA, whole_run(plan), TIGHT, seconds=3600)
    except Refused:
        with refused.get_lock():
            refused.value += 1


def test_holds_of_many_processes_fit_together(ledger: Ledger) -> None:
    """Two processes that read before either wrote: each finds its own run to fit."""
    fits = 0
    while epsilon([(1.0, 0.01, 300 * (fits + 1))], 1e-5, "rdp") <= 2.0:
        fits += 1
    assert fits >= 1
    start = FORK.Event()
    refused = FORK.Value("i", 0)
    processes = []
    for number in range(fits + 4):
        plan = f"sha256:{number:064d}"
        processes.append(
            FORK.Process(target=hold_at_once, args=(ledger.path, plan, start, refused))
        )
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert refused.value == 4
    assert len(ledger.book().holds) == fits


def test_what_is_held_is_stated(ledger: Ledger) -> None:
    """An officer who reads how much is left, and cannot see that it is promised away."""
    ledger.settle(reserve(ledger, 1))
    ledger.hold(DATA, whole_run(OTHER), TIGHT, seconds=3600)
    stated = statement(ledger, accountant="rdp", ceilings=TIGHT)
    (held,) = stated["held"]
    assert (held["plan"], held["steps"]) == (OTHER, 300)
    assert held["epsilon"] == pytest.approx(epsilon([(1.0, 0.01, 300)], 1e-5, "rdp"))
    (data,) = stated["data_sets"]
    both = epsilon([(1.0, 0.01, 400)], 1e-5, "rdp")
    assert data["left"] == pytest.approx(2.0 - both)
    assert data["epsilon"] == pytest.approx(epsilon([(1.0, 0.01, 100)], 1e-5, "rdp"))
    assert "Held for runs" in markdown(stated)
    ledger.release(OTHER)
    assert statement(ledger, accountant="rdp", ceilings=TIGHT)["held"] == []


def test_data_keeps_its_unit(ledger: Ledger) -> None:
    """ε for examples and ε for patients do not compose: alternating would spend twice."""
    reserve(ledger, 1)
    with pytest.raises(Refused, match="unit"):
        reserve(ledger, 2, unit="patient")
    with pytest.raises(Refused, match="unit"):
        reserve(ledger, 2, unit="patient", data=records(49, 99))
    reserve(ledger, 2, unit="patient", data=records(100, 150))


# ── races and crashes ─────────────────────────────────────────────────────────────────────────────


def _spend(path: Path, start: Any, who: int, out: Any) -> None:
    ledger, granted = Ledger(path), 0
    start.wait()
    try:
        for round_ in range(1, 100):
            reserve(ledger, round_, plan=f"plan-{who}", ceilings=TIGHT)
            granted += 1
    except Refused as refusal:
        out.put((granted, refusal.reason))


def test_processes_cannot_both_spend_the_last_of_it(ledger: Ledger) -> None:
    """Reading the history and writing the reservation must be one act."""
    epsilon([(1.0, 0.01, 100)], 1e-5, "rdp")  # Opacus once, before the fork
    start, out = FORK.Barrier(4), FORK.Queue()
    workers = [FORK.Process(target=_spend, args=(ledger.path, start, who, out)) for who in range(4)]
    for worker in workers:
        worker.start()
    ends = [out.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert all("ceiling" in reason for _, reason in ends), "stopped by another, not by the ceiling"
    granted = sum(count for count, _ in ends)
    row = (1.0, 0.01, 100)
    assert (
        epsilon([row] * granted, 1e-5, "rdp") <= 2.0 < epsilon([row] * (granted + 1), 1e-5, "rdp")
    )
    assert len(ledger.history(DATA)) == granted
    assert ledger.verify() == []


def _train(path: Path, witness: int, life: int, seed: int) -> None:
    """Rounds as a node runs them; every step that is taken is told to the witness before it is
    taken.
    """
    ledger, draw = Ledger(path), random.Random(seed)
    for round_ in range(1, 10_000):
        steps = draw.randint(1, 20)
        reservation = reserve(ledger, round_, plan=f"life-{life}", steps=steps)
        taken = draw.randint(0, steps)
        for _ in range(taken):
            os.write(witness, f"{life} {round_}\n".encode())
        ledger.settle(reservation, taken)


def kill_at_random_moments(ledger: Ledger, kills: int, seed: int) -> None:
    epsilon([(1.0, 0.01, 100)], 1e-5, "rdp")
    draw = random.Random(seed)
    witness = ledger.path.parent.parent / "witness"
    file = os.open(witness, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    filed = None
    for life in range(kills):
        worker = FORK.Process(target=_train, args=(ledger.path, file, life, seed + life))
        worker.start()
        worker.join(
            draw.uniform(0.0, 0.15)
        )  # alive for so long: before, within or between its transactions
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert worker.exitcode == -signal.SIGKILL

        taken = Counter(tuple(line.split()) for line in witness.read_text().splitlines())
        counted: Counter[tuple[str, str]] = Counter()
        for line in ledger.book().lines:
            counted[line.plan.removeprefix("life-"), str(line.round)] += line.steps
        assert not taken - Counter({(a, b): n for (a, b), n in counted.items()}), (
            "a step that is not counted"
        )
        assert ledger.verify(filed) == []
        filed = ledger.book().head
    os.close(file)
    assert filed is not None
    assert filed.count > 0
    if kills >= 50:
        assert any(not line.settled for line in ledger.book().lines), (
            "no kill fell between reserving and settling"
        )
    reserve(ledger, 1, plan="after all that")
    assert ledger.verify(filed) == []


def test_killed_at_some_random_moments(ledger: Ledger) -> None:
    """A crash may count too much, never too little, and never leaves a ledger that does not
    verify.
    """
    kill_at_random_moments(ledger, kills=8, seed=1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(100, 600, 100))
def test_killed_at_many_random_moments(ledger: Ledger, seed: int) -> None:
    """The same, five times 50."""
    kill_at_random_moments(ledger, kills=50, seed=seed)


# ── tampering ─────────────────────────────────────────────────────────────────────────────────────


def full(ledger: Ledger) -> None:
    ledger.settle(reserve(ledger, 1), 90)
    ledger.settle(reserve(ledger, 2, data=records(0, 60)))
    reserve(ledger, 3)


CHANGES = {
    "steps lowered": (
        "UPDATE entry SET body = replace(body, '\"steps\":100', '\"steps\":1') WHERE number = 2"
    ),
    "noise raised": (
        "UPDATE entry SET body = replace(body, '\"noise_multiplier\":1.0',"
        " '\"noise_multiplier\":9.0')"
    ),
    "time moved": "UPDATE entry SET time = '1.0' WHERE number = 3",
    "made a settlement": "UPDATE entry SET kind = 'settle' WHERE number = 7",
    "not JSON": "UPDATE entry SET body = 'x' WHERE number = 2",
    "one removed": "DELETE FROM entry WHERE number = 3",
    "the first removed": "DELETE FROM entry WHERE number = 1",
    "removed and closed up": (
        "DELETE FROM entry WHERE number = 3;UPDATE entry SET number = number - 1 WHERE number > 3"
    ),
    "two exchanged": (
        "UPDATE entry SET number = -2 WHERE number = 2; UPDATE entry SET number = 2 WHERE number ="
        " 5;UPDATE entry SET number = 5 WHERE number = -2"
    ),
    "the last cut off": "DELETE FROM entry WHERE number = 7",
    "the tail cut off": "DELETE FROM entry WHERE number > 2",
    "all removed": "DELETE FROM entry",
    "one repeated": (
        "INSERT INTO entry SELECT 8, kind, time, body, hash FROM entry WHERE number = 7"
    ),
    "another format": "PRAGMA user_version = 9",
}
UNCHAINED = {
    "a record removed": "DELETE FROM record WHERE rowid_of = 0",
    "a record added": "INSERT INTO record VALUES (x'00', 1)",
    "records of no data set": "INSERT INTO record VALUES (x'00', 99)",
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_ledger_is_found_and_not_trained_on(ledger: Ledger, what: str) -> None:
    """Each way to make a spent budget look unspent."""
    full(ledger)
    assert ledger.verify() == []
    _execute(ledger.path, CHANGES[what])
    assert ledger.verify() != []
    with pytest.raises(Refused, match="does not verify"):
        reserve(ledger, 4)
    with pytest.raises(Refused, match="does not verify"):
        ledger.history(DATA)
    stated = statement(ledger, accountant="rdp")
    assert stated["problems"]
    assert "does not verify" in markdown(stated)


@pytest.mark.parametrize("what", UNCHAINED)
def test_changed_records_are_found(ledger: Ledger, what: str) -> None:
    """Taking a record out of the ledger would give the data that has it a new budget."""
    full(ledger)
    one = f"digest = x'{DATA.records[0].hex()}'"
    _execute(ledger.path, UNCHAINED[what].replace("rowid_of = 0", one))
    assert any("records of" in problem for problem in ledger.verify())


def test_an_older_copy_is_refused(ledger: Ledger) -> None:
    """Restoring last week's backup would give last week's budget back."""
    full(ledger)
    backup = shutil.copy(ledger.path, ledger.path.with_name("backup"))
    ledger.settle(reserve(ledger, 4))
    now = shutil.copy(ledger.path, ledger.path.with_name("now"))
    shutil.copy(backup, ledger.path)
    with pytest.raises(Refused, match="older copy"):
        reserve(ledger, 5)
    shutil.copy(now, ledger.path)
    assert ledger.verify() == []


@pytest.mark.parametrize(
    "what", ["ledger", "anchor", "emptied", "not a database", "anchor unreadable"]
)
def test_a_lost_half_is_refused(ledger: Ledger, what: str) -> None:
    """Deleting the file must not be the way to a new budget."""
    full(ledger)
    anchor = ledger.path.with_name(ledger.path.name + ".head")
    match what:
        case "ledger":
            ledger.path.unlink()
        case "anchor":
            anchor.unlink()
        case "emptied":
            ledger.path.write_bytes(b"")
        case "not a database":
            ledger.path.write_bytes(b"x" * 9000)
        case _:
            anchor.write_text("7")
    with pytest.raises(Refused, match="ledger"):
        reserve(ledger, 4)
    if what != "not a database":
        assert ledger.verify() != []


def test_rewriting_both_places_is_seen_by_a_filed_statement(ledger: Ledger) -> None:
    """What the node itself cannot see: someone who rewrites ledger and anchor together. The
    officer's copy can.
    """
    full(ledger)
    filed = parse_head(statement(ledger, accountant="rdp")["head"])
    for path in ledger.path.parent.iterdir():
        path.unlink()
    for round_ in range(1, 6):
        reserve(ledger, round_, steps=1)
    assert ledger.verify() == []
    assert ledger.verify(filed) != []


def test_an_anchor_that_lags_is_a_crash_and_not_tampering(ledger: Ledger) -> None:
    """A crash between entry and anchor must not lock a hospital out."""
    full(ledger)
    anchor = ledger.path.with_name(ledger.path.name + ".head")
    before = anchor.read_text()
    reserve(ledger, 4)
    anchor.write_text(before)
    assert ledger.verify() == []
    reserve(ledger, 5)
    assert anchor.read_text() != before


def _execute(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(sql)
    connection.commit()
    connection.close()


# ── what people see ───────────────────────────────────────────────────────────────────────────────


def test_a_statement_says_what_was_spent_reserved_and_left(ledger: Ledger) -> None:
    """An officer files it: ε with unit, neighbours, sampling, δ and accountant, by plan, with what
    is left.
    """
    ledger.settle(reserve(ledger, 1), 90)
    reserve(ledger, 1, plan=OTHER)
    stated = statement(ledger, accountant="rdp", ceilings=TIGHT)
    [data] = json.loads(json.dumps(stated))["data_sets"]
    assert data["epsilon"] == pytest.approx(epsilon([(1.0, 0.01, 190)], 1e-5, "rdp"))
    assert data["epsilon_settled"] == pytest.approx(epsilon([(1.0, 0.01, 90)], 1e-5, "rdp"))
    assert data["left"] == pytest.approx(2.0 - data["epsilon"])
    assert [(plan["plan"], plan["steps"], plan["reserved_steps"]) for plan in data["plans"]] == [
        (PLAN, 90, 0),
        (OTHER, 0, 100),
    ]
    document = markdown(stated)
    for words in (
        "one example added or removed",
        "Poisson",
        "1e-05",
        "RDP",
        stated["head"],
        "Not covered",
    ):
        assert words in document
    assert DATA.records[0].hex() not in json.dumps(stated)


def test_an_empty_ledger_has_a_statement_too(ledger: Ledger) -> None:
    """Looking must not make a file."""
    assert "Nothing was ever run" in markdown(statement(ledger))
    assert ledger.verify() == []
    assert not ledger.path.exists()


def test_the_files_are_their_owners_only(ledger: Ledger) -> None:
    """Hashes of records are patient data."""
    reserve(ledger)
    assert {path.stat().st_mode & 0o777 for path in ledger.path.parent.iterdir()} == {0o600}


# ── the policy ────────────────────────────────────────────────────────────────────────────────────

STRICT = Policy(
    dp_required=True,
    max_epsilon_run=3.0,
    max_epsilon_total=8.0,
    max_delta=1e-5,
    min_noise_multiplier=0.5,
    allowed_units=("patient",),
)
PRIVATE = PrivacySection(mode="sample", unit="patient", target_epsilon=5.0, delta=1e-5)


@pytest.mark.parametrize(
    ("changed", "clause"),
    [
        ({"mode": "none", "target_epsilon": None, "delta": None}, "dp_required"),
        ({"mode": "central", "unit": "node"}, "central"),
        ({"unit": "example"}, "unit"),
        ({"delta": 1e-4}, "max_delta"),
        ({"noise_multiplier": 0.3, "target_epsilon": None}, "min_noise_multiplier"),
    ],
)
def test_a_laxer_plan_is_refused(changed: dict[str, Any], clause: str) -> None:
    """A server can not loosen what the hospital demands."""
    STRICT.check_privacy(PRIVATE)
    with pytest.raises(Refused, match=clause):
        STRICT.check_privacy(PrivacySection(**(PRIVATE.model_dump() | changed)))
    with pytest.raises(Refused, match="min_noise_multiplier"):
        STRICT.check_privacy(PRIVATE, noise_multiplier=0.49)
    Policy().check_privacy(PrivacySection())


def test_the_stricter_ceiling_wins() -> None:
    """Plan 5, policy 3: it is 3; plan 2: it is 2; neither: none."""
    assert STRICT.ceilings(PRIVATE) == Ceilings(3.0, 8.0, 1e-5)
    assert STRICT.ceilings(PRIVATE.model_copy(update={"target_epsilon": 2.0})).run == 2.0
    assert Policy().ceilings(PrivacySection()) == Ceilings(None, None, None)


@pytest.mark.parametrize(
    ("clauses", "key"),
    [
        ("max_epsilon_total: 3, max_delta: 1.0e-5", "dp_required"),
        ("dp_required: true, max_epsilon_total: 3", "max_delta"),
        ("dp_required: true, max_delta: 1", "max_delta"),
        ("allowed_units: []", "allowed_units"),
    ],
)
def test_a_policy_that_would_not_hold_is_told(tmp_path: Path, clauses: str, key: str) -> None:
    """An ε ceiling that plans without privacy walk past is worse than none."""
    path = tmp_path / "node.yaml"
    path.write_text(f"name: n\ndata: {{path: x.npz}}\nstore: s\npolicy: {{{clauses}}}\n")
    with pytest.raises(UserError, match=key):
        load_node(path)
