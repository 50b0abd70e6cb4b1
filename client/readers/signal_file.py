"""One signal on a disc: looked at, and read with the channels that a plan names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fedgraft.client.readers.files import FileKind
from fedgraft.client.readers.looked_at import FORBIDDEN, MISSING, ImageEntry, Look
from fedgraft.client.readers.recording import (
    BrokenSignal,
    Recording,
    check_recording,
    choose_channels,
)
from fedgraft.client.readers.source import Prepare, content_digest, digest
from fedgraft.client.readers.wave_file import read_wave
from fedgraft.client.readers.wfdb_record import read_record
from fedgraft.common.errors import UserError
from fedgraft.common.inputs.batch import Batch, concatenate
from fedgraft.common.inputs.series import Signal

Channels = tuple[str, ...]


def _read_audio(path: Path, channels: Channels) -> Recording:
    """Return audio, whose channels have no names."""
    recording = read_wave(path)
    return replace(recording, values=choose_channels(recording.values, channels))


# by the ending of a file's name
FORMATS: Mapping[str, Callable[[Path, Channels], Recording]] = {
    ".wav": _read_audio,
    ".hea": read_record,
}
# files that belong to others, and are no records
BESIDE = (".dat",)
KNOWN = ", ".join(FORMATS)


def is_signal(name: str) -> bool:
    """Return whether a file is called as signals are."""
    return Path(name).suffix.lower() in FORMATS


def signal_files(channels: Channels) -> FileKind:
    """Return how files with these channels are looked at and read."""
    return FileKind(
        look=partial(look_at_signals, channels),
        read=partial(read_signals, channels),
        singular="signal",
        plural="signals",
    )


def read_signals(
    channels: Channels,
    files: Sequence[str | Path],
    prepare: Prepare | None = None,
    bits: int | None = None,
) -> list[Signal] | Batch:
    """Return signals, or what `prepare` makes of them; one after the other, as they may be long.

    Raises:
        UserError: one cannot be used; names it.
    """
    if prepare is None:
        return [_read_or_say(Path(file), channels) for file in files]
    return concatenate([prepare([_read_or_say(Path(file), channels)]) for file in files])


def look_at_signals(
    channels: Channels, where: str, entries: Sequence[ImageEntry], cache: Path | None
) -> list[Look]:
    """Return what looking at each signal gives. Each is read: nothing is remembered yet."""
    return [_look_at(entry, channels) for entry in entries]


def _look_at(entry: ImageEntry, channels: Channels) -> Look:
    try:
        content = _read(Path(entry.file), channels).content()
    except PermissionError:
        return Look(b"", FORBIDDEN)
    except BrokenSignal as error:
        return Look(b"", str(error))
    # ValueError: a name that no file can have
    except (OSError, ValueError):
        return Look(b"", MISSING)
    return Look(digest(content, entry.label), problem="", content=content_digest(content))


def _read_or_say(path: Path, channels: Channels) -> Signal:
    try:
        return _read(path, channels).signal()
    except BrokenSignal as error:
        what = f"a signal that cannot be used: {error}"
        raise UserError(what, where=str(path), remedy="mend it, or take it out") from error
    except (OSError, ValueError) as error:
        what = f"cannot be read ({type(error).__name__})"
        remedy = f"give a file that the node may read: {KNOWN}"
        raise UserError(what, where=str(path), remedy=remedy) from error


def _read(path: Path, channels: Channels) -> Recording:
    """Return a signal that is whole, finite and not flat. Raise `BrokenSignal` or `OSError`."""
    if not path.exists():
        raise FileNotFoundError(path)
    read = FORMATS.get(path.suffix.lower())
    if read is None:
        raise BrokenSignal(f"none of {KNOWN}")
    return check_recording(read(path, channels))
