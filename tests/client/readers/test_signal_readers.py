"""Signals on a disc: audio, tables and archives; what is broken is said in a sentence."""

from __future__ import annotations

import csv
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from numpy.lib import format as npy
from scipy.io import wavfile

from fedgraft.client.data.data_set import DataSource, open_records
from fedgraft.client.readers.reader import ReadRequest, TableColumns
from fedgraft.client.readers.reader_table import READERS
from fedgraft.client.readers.signal_file import read_signals
from fedgraft.client.readers.source import Source
from fedgraft.common.errors import UserError, UserErrors
from fedgraft.common.inputs.series import Signal
from fedgraft.common.plan.signal_section import SignalSection
from fedgraft.common.plan.task_section import TaskSection

RATE = 800
TONE = np.sin(np.arange(400) / 7) * 0.7


def one(path: Path, *channels: str) -> Signal:
    signals = read_signals(channels or ("sound",), [path])
    assert isinstance(signals, list)
    return signals[0]


def write(path: Path, samples: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, RATE, samples)
    return path


def pcm24(samples: np.ndarray) -> bytes:
    """A file of 24 bits, which scipy reads and does not write."""
    whole = (samples * (2**23 - 1)).astype("<i4")
    data = whole.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    head = struct.pack("<HHIIHH", 1, 1, RATE, RATE * 3, 3, 24)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data"
    body += struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


# ── audio ─────────────────────────────────────────────────────────────────────────────────────────
WIDTHS: dict[str, tuple[Any, float]] = {
    "u8": (lambda x: (x * 127 + 128).astype(np.uint8), 0.02),
    "i16": (lambda x: (x * (2**15 - 1)).astype(np.int16), 1e-4),
    "i32": (lambda x: (x * (2**31 - 1)).astype(np.int32), 1e-6),
    "f32": (lambda x: x.astype(np.float32), 1e-6),
    "f64": (lambda x: x, 1e-6),
}


@pytest.mark.parametrize("width", WIDTHS)
def test_a_tone_is_the_same_however_many_bits_it_has(width: str, tmp_path: Path) -> None:
    """One hospital's recorder 256 times as loud as another's."""
    convert, error = WIDTHS[width]
    signal = one(write(tmp_path / "a.wav", convert(TONE)))
    assert signal.rate == RATE
    np.testing.assert_allclose(signal.values.numpy(), TONE[None], atol=error)


def test_24_bits_are_read(tmp_path: Path) -> None:
    """What hospitals' recorders write most."""
    (tmp_path / "a.wav").write_bytes(pcm24(TONE))
    np.testing.assert_allclose(one(tmp_path / "a.wav").values.numpy(), TONE[None], atol=1e-5)


def test_stereo_is_two_channels_or_their_mean(tmp_path: Path) -> None:
    """The left ear alone, or two channels for a network of one."""
    path = write(tmp_path / "a.wav", np.stack([TONE, TONE / 2], 1))
    np.testing.assert_allclose(one(path).values.numpy(), 0.75 * TONE[None], atol=1e-6)
    assert one(path, "left", "right").values.shape == (2, 400)
    with pytest.raises(UserError, match="2 channels, where the plan names 3"):
        one(path, "a", "b", "c")


def patch(place: int, form: str, *values: Any) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(form, content, place, *values)


WAVES: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "4e9 bytes": (patch(40, "<I", 2**32 - 8), "cut off or corrupt"),
    "cut off": (lambda content: content.__delitem__(slice(300, None)), "cut off or corrupt"),
    "half a header": (lambda content: content.__delitem__(slice(20, None)), "cut off or corrupt"),
    "no wave": (patch(0, "4s", b"JUNK"), "cut off or corrupt"),
    "no channels": (patch(22, "<H", 0), "cut off or corrupt"),
    "65535 channels": (patch(22, "<H", 65535), "cut off or corrupt|channels"),
    "rate of 0": (patch(24, "<II", 0, 0), "no number of samples a second"),
    "compressed": (patch(20, "<H", 0x55), "compressed|cut off"),
    "silence": (lambda content: patch(44, "800s", b"")(content), "flat"),
}


@pytest.mark.parametrize("name", WAVES)
def test_a_hostile_header_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    """A traceback at a hospital, or all of its memory asked for by one file."""
    change, words = WAVES[name]
    path = write(tmp_path / "a.wav", (TONE * 3e4).astype(np.int16))
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(bytes(content))
    tracemalloc.start()
    with pytest.raises(UserError, match=words):
        one(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**24


def test_an_rf64_header_of_1e12_samples_is_refused(tmp_path: Path) -> None:
    """64-bit sizes: the one wave header that can claim terabytes."""
    size = struct.pack("<QQQI", 2 * 10**12, 2 * 10**12, 10**12, 0)
    head = struct.pack("<HHIIHH", 1, 1, RATE, RATE * 2, 2, 16)
    content = b"RF64" + struct.pack("<I", 2**32 - 1) + b"WAVEds64" + struct.pack("<I", len(size))
    content += size + b"fmt " + struct.pack("<I", len(head)) + head
    content += b"data" + struct.pack("<I", 2**32 - 1) + bytes(range(100))
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UserError, match="cut off or corrupt"):
        one(tmp_path / "a.wav")


def test_any_cut_of_a_file_is_refused_or_read(tmp_path: Path) -> None:
    """A traceback for one of the places where a copy may have stopped."""
    path = write(tmp_path / "a.wav", (TONE[:40] * 3e4).astype(np.int16))
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match="cannot be used"):
            one(path)


def test_what_is_infinite_or_missing_is_refused(tmp_path: Path) -> None:
    """A NaN in every weight of the shared model."""
    for value, words in ((np.nan, "missing samples"), (np.inf, "infinite")):
        path = write(tmp_path / "a.wav", np.where(np.arange(400) == 7, value, TONE))
        with pytest.raises(UserError, match=words):
            one(path)


def test_class_folders_and_lists(tmp_path: Path) -> None:
    """Files that are no signals taken for some; broken ones left out in silence."""
    for number in range(3):
        for kind, factor in (("wheeze", 1.0), ("clear", 0.5)):
            file = tmp_path / "data" / kind / f"p{number}" / "a.wav"
            write(file, (TONE + 0.01 * number) * factor)
    (tmp_path / "data" / "clear" / "p0" / "notes.txt").write_text("x")
    (tmp_path / "data" / "clear" / "broken.wav").write_bytes(b"RIFF")
    request = ReadRequest(str(tmp_path / "data"), channels=("sound",))
    source = READERS["signal-folder"].read(request)
    assert sorted(source.labels) == ["clear"] * 3 + ["wheeze"] * 3
    assert source.problems == {"cut off or corrupt": 1}
    assert source.beside == {"files that are no signals": 1}
    assert len(set(source.digests)) == 6

    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient"])
        writer.writerow(["data/clear/p1/a.wav", "clear", "p1"])
        writer.writerow(["data/wheeze/p1/a.wav", "wheeze", "p1"])
        writer.writerow(["data/clear/broken.wav", "clear", "p2"])
        writer.writerow(["data/nowhere.wav", "clear", "p3"])
    listed = READERS["signal-table"].read(
        ReadRequest(str(tmp_path / "list.csv"), channels=("sound",))
    )
    assert listed.labels == ["clear", "wheeze"]
    assert listed.problems == {"cut off or corrupt": 1, "no such file": 1}
    assert listed.owners("patient") == ["p1", "p1"]
    with pytest.raises(UserError, match="no signals in class folders"):
        READERS["signal-folder"].read(ReadRequest(str(tmp_path / "data" / "clear" / "p0")))


# ── tables ────────────────────────────────────────────────────────────────────────────────────────
def long_table(records: int = 4, length: int = 20, rate: float = 250.0) -> pandas.DataFrame:
    rng = np.random.default_rng(0)
    parts = []
    for number in range(records):
        part = pandas.DataFrame(rng.normal(size=(length, 2)), columns=["II", "V1"])
        part["record"] = f"r{number}"
        part["time"] = np.round(np.arange(length) / rate, 6)
        part["target"] = number % 2
        part["patient"] = f"p{number // 2}"
        parts.append(part)
    return pandas.concat(parts, ignore_index=True)


def read_table(path: Path, *channels: str) -> Source:
    return READERS["signal-table"].read(
        ReadRequest(str(path), TableColumns(), channels=channels or ("II", "V1"))
    )


def save(table: pandas.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return path


def texts_of(source: Source, name: str) -> list[str]:
    assert source.column is not None
    return source.column(name)


def values_of(source: Source) -> list[Signal]:
    return source.read(np.arange(len(source)), None)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_row_a_sample(suffix: str, tmp_path: Path) -> None:
    """Samples of two people in one record, in the order of a file rather than of time."""
    table = long_table()
    shuffled = table.sample(frac=1, random_state=1)
    source = read_table(save(shuffled, tmp_path / f"a{suffix}"), "V1", "II")
    rows = [source.place(row) for row in range(len(source))]
    assert len(set(rows)) == 4
    by_label = dict(zip(texts_of(source, "record"), values_of(source), strict=True))
    for number in range(4):
        wanted = np.asarray(table[table["record"] == f"r{number}"][["V1", "II"]]).T
        np.testing.assert_allclose(by_label[f"r{number}"].values.numpy(), wanted, rtol=1e-6)
        assert by_label[f"r{number}"].rate == 250.0
    labels = dict(zip(texts_of(source, "record"), source.labels, strict=True))
    assert labels == {"r0": 0, "r1": 1, "r2": 0, "r3": 1}
    owners = source.owners("patient")
    assert owners is not None
    assert sorted(owners) == ["p0", "p0", "p1", "p1"]


def test_a_row_a_record_is_the_same_record(tmp_path: Path) -> None:
    """Another layout of one file would be other patients, to the ledger too."""
    table = long_table().drop(columns="time")
    rows = []
    for name, part in table.groupby("record"):
        row: dict[str, Any] = {"target": part["target"].iloc[0], "who": name}
        for channel in ("II", "V1"):
            row |= {f"{channel}_{at}": value for at, value in enumerate(part[channel])}
        rows.append(row)
    wide = pandas.DataFrame(rows)
    # the last is a shorter record
    for channel in ("II", "V1"):
        wide.loc[3, [f"{channel}_18", f"{channel}_19"]] = None
    one_a_row = read_table(save(wide, tmp_path / "wide.csv"))
    one_a_sample = read_table(save(table, tmp_path / "long.csv"))
    assert one_a_row.digests[:3] == one_a_sample.digests[:3]
    assert [signal.values.shape for signal in values_of(one_a_row)][2:] == [(2, 20), (2, 18)]
    assert values_of(one_a_row)[0].rate is None


def test_a_record_with_a_missing_sample_is_left_out_and_counted(tmp_path: Path) -> None:
    """A hole that becomes 0, or a record that is gone in silence."""
    table = long_table()
    table.loc[25, "V1"] = None
    source = read_table(save(table, tmp_path / "a.csv"))
    assert (len(source), source.skipped) == (3, 1)
    assert source.problems == {"missing samples (NaN) inside a record": 1}
    assert texts_of(source, "record") == ["r0", "r2", "r3"]
    assert source.place(1) == f"{tmp_path / 'a.csv'}:42"
    # a channel that the plan does not ask for may lack what it likes
    assert len(read_table(tmp_path / "a.csv", "II")) == 4


def spell(table: pandas.DataFrame) -> pandas.DataFrame:
    cells = table.astype({"V1": object})
    cells.loc[3, "V1"] = "high"
    return cells


TABLES: dict[str, tuple[Callable[[pandas.DataFrame], pandas.DataFrame], str]] = {
    "no channel": (
        lambda t: t.rename(columns={"V1": "V2"}),
        r"(?s)no column 'V1'.*the file has II",
    ),
    "no label": (lambda t: t.drop(columns="target"), "no column 'target'"),
    "no layout": (lambda t: t.drop(columns="record"), r"(?s)none 'II_0'.*a row a sample"),
    "a word": (spell, ":5.*not a num"),
    "two labels": (lambda t: t.assign(target=range(len(t))), "not the same"),
    "two patients": (lambda t: t.assign(patient=range(len(t))), "not the same"),
    "no name": (lambda t: t.assign(record=[None, *t["record"][1:]]), "no record is named"),
    "no time": (lambda t: t.assign(time=[None, *t["time"][1:]]), "the time is missing"),
    "uneven": (lambda t: t.assign(time=t["time"] ** 2), "equally far apart"),
    "one time": (lambda t: t.assign(time=1.0), "equally far apart"),
    "flat": (lambda t: t.assign(II=1.0, V1=2.0), "flat"),
    "infinite": (lambda t: t.assign(II=1e300), "infinite"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_wrong_says_where(name: str, tmp_path: Path) -> None:
    """A traceback, or a record that is made of two."""
    change, words = TABLES[name]
    path = save(change(long_table()), tmp_path / "a.csv")
    with pytest.raises((UserError, UserErrors), match=words):
        read_table(path)


def test_channels_of_several_lengths_are_refused(tmp_path: Path) -> None:
    """A channel whose last column was lost, half a second late ever after."""
    (tmp_path / "a.csv").write_text("II_0,II_1,V1_0,target\n1,2,3,0\n")
    with pytest.raises(UserError, match="several lengths: II 2, V1 1"):
        read_table(tmp_path / "a.csv")


def test_a_table_is_read_under_a_plan(tmp_path: Path) -> None:
    """Another reader of .csv in the way, or channels of the plan before."""
    path = save(long_table(records=12), tmp_path / "a.csv")
    task = TaskSection(kind="series-classification", classes=("a", "b"))
    section = SignalSection(channels=("V1",))
    records = open_records(DataSource(path, test_fraction=0.5, signal=section), task)
    assert records.read(np.arange(2))[0].values.shape == (1, 20)
    both = DataSource(path, test_fraction=0.5, signal=SignalSection(channels=("II", "V1")))
    assert open_records(both, task).read(np.arange(2))[0].values.shape == (2, 20)
    assert records.owners is not None
    texts = TaskSection(kind="text-classification", classes=("a", "b"), text=("II",))
    with pytest.raises(UserError, match="signals, but the plan's task is text"):
        open_records(DataSource(path, format="signal-table"), texts)


# ── archives ──────────────────────────────────────────────────────────────────────────────────────
def read_archive(path: Path, *channels: str) -> Source:
    return READERS["signal-npz"].read(ReadRequest(str(path), channels=channels or ("II", "V1")))


def archive(path: Path, **changes: Any) -> Path:
    series = np.random.default_rng(0).normal(size=(6, 2, 30)).astype(np.float32)
    arrays = {"series": series, "labels": np.arange(6) % 2, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_an_archive_is_read(tmp_path: Path) -> None:
    """A rate that is taken for the plan's, a padded record that is missing."""
    series = np.random.default_rng(0).normal(size=(6, 2, 30))
    series[5, :, 20:] = np.nan
    series[4, 0, 3] = np.nan
    path = archive(tmp_path / "a.npz", series=series, rate=50, patient=np.array(list("aabbcc")))
    source = read_archive(path)
    assert source.labels == [0, 1, 0, 1, 1]
    assert source.problems == {"missing samples (NaN) inside a record": 1}
    assert values_of(source)[4].values.shape == (2, 20)
    assert {signal.rate for signal in values_of(source)} == {50.0}
    assert source.owners("patient") == ["a", "a", "b", "b", "c"]
    assert source.place(4) == f"{path}: series[5]"
    single = read_archive(
        archive(tmp_path / "b.npz", series=series[:4, 0], labels=np.arange(4)), "x"
    )
    assert values_of(single)[0].values.shape == (1, 30)


ARCHIVES: dict[str, tuple[dict[str, Any], str]] = {
    "no series": ({"series": None}, "no array 'series'"),
    "no labels": ({"labels": None}, "no array 'labels'"),
    "fewer labels": ({"labels": np.arange(5)}, "labels has shape"),
    "texts": ({"series": np.array([["a"]])}, "series is"),
    "rates": ({"rate": np.ones(5)}, "rate is"),
    "rate of words": ({"rate": np.array("fast")}, "rate is"),
    "rate of nothing": ({"rate": np.nan}, "no number of samples a second"),
    "channels": ({"series": np.random.default_rng(0).normal(size=(6, 3, 30))}, "3 channels"),
    "pickled": ({"series": np.array([{}], dtype=object)}, "pickled"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_is_wrong_says_so(name: str, tmp_path: Path) -> None:
    """A traceback, or code out of a file."""
    changes, words = ARCHIVES[name]
    with pytest.raises(UserError, match=words):
        read_archive(archive(tmp_path / "a.npz", **changes))


def test_an_array_that_claims_1e12_samples_is_refused(tmp_path: Path) -> None:
    """NumPy makes room for what a header claims before it looks at what is there."""
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 1, 10**6)}
    npy.write_array_header_1_0(header, about)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("series.npy", header.getvalue() + bytes(400))
    with pytest.raises(UserError, match="claims to be larger than it is"):
        read_archive(tmp_path / "a.npz")
