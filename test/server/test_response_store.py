"""What is remembered of responses is bounded by bytes and time, and survives in a folder."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
from infinicore_infer.server.json_values import to_json
from infinicore_infer.server.openai.response_files import SUFFIX, ResponseFolder, open_folder
from infinicore_infer.server.openai.response_store import ResponseStore, Turn, history

_NUMBERS = itertools.count()


class Clock:
    """A time that tests set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def put(store: ResponseStore, text: str = "x", parent: Turn | None = None) -> Turn:
    """Stores a response."""
    number = next(_NUMBERS)
    items = [[{"id": f"{kind}_{number}", "text": text}] for kind in ("in", "out")]
    ids = (f"in_{number}", f"out_{number}")
    turn = Turn(f"resp_{number:032x}", to_json(items[0]), to_json(items[1]), parent, ids)
    store.put(turn, {"id": turn.id, "output": items[1]})
    return turn


def texts(turn: Turn | None) -> list[Any]:
    return [item["text"] for item in history(turn)]


def test_bytes() -> None:
    store = ResponseStore(100_000, 60)
    turns = []
    for _ in range(30):
        turns.append(put(store, "x" * 3000))
        assert store.size <= 100_000
    kept = [store.find(turn.id) is not None for turn in turns]
    assert kept == sorted(kept) and 3 < sum(kept) < 12, "the oldest go first"
    # What is larger than all memory is not stored, and costs nobody else theirs.
    huge = put(store, "x" * 100_000)
    assert store.find(huge.id) is None and store.find(turns[-1].id) is not None
    for turn in turns:
        store.remove(turn.id)
    assert store.size == 0 and store.turn_with("in_0") is None


def test_bytes_are_not_characters() -> None:
    """Python keeps some characters in four bytes."""
    plain, wide = (ResponseStore(1 << 30, 60) for _ in range(2))
    put(plain, "x" * 100_000)
    put(wide, "😀" * 100_000)
    assert wide.size > 3.9 * plain.size


def test_time() -> None:
    clock = Clock()
    store = ResponseStore(1 << 20, 60, clock=clock)
    first = put(store)
    clock.now += 40
    second = put(store, parent=first)
    clock.now += 40
    assert store.find(first.id) is None and store.find(second.id) is not None
    assert texts(second) == ["x"] * 4
    clock.now += 40
    assert store.find(second.id) is None and store.size == 0


def test_long_conversations_are_there_once() -> None:
    store = ResponseStore(1 << 20, 60)
    turn, sizes = None, []
    for i in range(12):
        turn = put(store, f"{i}" * 1000, turn)
        sizes.append(store.size)
    steps = {after - before for before, after in itertools.pairwise(sizes)}
    assert max(steps) < 12_000, "each turn adds itself alone"
    # The last one alone holds them all.
    for identity in list(store._stored)[:-1]:
        assert store.remove(identity)
    assert turn is not None and len(texts(turn)) == 24
    assert store.size > 12 * 2000
    assert store.remove(turn.id) and store.size == 0
    assert not store.remove(turn.id)


def test_items_are_found() -> None:
    store = ResponseStore(1 << 20, 60)
    turn = put(store)
    number = turn.id.removeprefix("resp_")
    for kind in ("in", "out"):
        assert store.turn_with(f"{kind}_{int(number, 16)}") is turn
    store.remove(turn.id)
    assert store.turn_with(f"in_{int(number, 16)}") is None


def test_bytes_of_what_is_being_made_count() -> None:
    store = ResponseStore(50_000, 60)
    turn = put(store, "x" * 1000)
    store.reserve(60_000)
    assert store.find(turn.id) is None
    store.reserve(-60_000)
    assert store.size == 0


def reopened(path: Path, **options: Any) -> ResponseStore:
    """Returns a store of what a folder has."""
    store = ResponseStore(options.get("limit", 1 << 20), 60, ResponseFolder(path), Clock())
    store.load()
    return store


def test_folder(tmp_path: Path) -> None:
    store = reopened(tmp_path)
    first = put(store, "one")
    second = put(store, "two", first)
    third = put(store, "three", second)
    other = put(store, "other")
    store.remove(second.id)
    store.remove(other.id)
    store.close()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert len(list(tmp_path.iterdir())) == 3, "the second is needed by the third"
    again = reopened(tmp_path)
    found = again.find(third.id)
    assert found is not None and texts(found.turn) == ["one"] * 2 + ["two"] * 2 + ["three"] * 2
    assert again.find(first.id) is not None
    assert again.find(second.id) is None and again.find(other.id) is None
    again.remove(third.id)
    again.close()
    assert [path.name for path in tmp_path.iterdir()] == [f"{first.id}{SUFFIX}"]


def test_damaged_files_are_named_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = reopened(tmp_path)
    turns = [put(store, f"text {i}") for i in range(5)]
    child = put(store, "child", turns[0])
    store.close()
    paths = [tmp_path / f"{turn.id}{SUFFIX}" for turn in turns]
    paths[0].write_bytes(paths[0].read_bytes()[:-1])
    paths[1].write_bytes(paths[1].read_bytes().replace(b"text 1", b"text 7"))
    paths[2].write_bytes(b"")
    paths[3].rename(tmp_path / f"resp_{'f' * 32}{SUFFIX}")
    (tmp_path / f"made_up{SUFFIX}").write_bytes(b"x")
    (tmp_path / "resp_x.tmp").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    with caplog.at_level(logging.WARNING, "infinicore_infer.server"):
        again = reopened(tmp_path)
    assert list(again._stored) == [turns[4].id]
    for name in (*(p.name for p in paths[:3]), f"resp_{'f' * 32}", "made_up", child.id):
        assert name in caplog.text, name
    assert paths[4].name not in caplog.text
    # Others' files stay; of what this server did not finish, nothing does.
    assert (tmp_path / "notes.txt").exists() and not (tmp_path / "resp_x.tmp").exists()
    again.close()


def test_a_folder_is_bounded(tmp_path: Path) -> None:
    store = reopened(tmp_path)
    for i in range(20):
        put(store, f"{i}" * 1000)
    store.close()
    assert len(list(tmp_path.iterdir())) == 20
    small = reopened(tmp_path, limit=40_000)
    small.close()
    assert small.size <= 40_000 and 1 < len(list(tmp_path.iterdir())) < 9


def test_others_folders_are_not_trusted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o777)
    with caplog.at_level(logging.WARNING, "infinicore_infer.server"):
        assert open_folder(tmp_path) is None
    assert str(tmp_path) in caplog.text
    made = open_folder(tmp_path.parent / "own")
    assert made is not None and (tmp_path.parent / "own").stat().st_mode & 0o777 == 0o700


def test_a_full_disk_costs_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = reopened(tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with caplog.at_level(logging.WARNING, "infinicore_infer.server"):
        turn = put(store)
        store.close()
    assert store.find(turn.id) is not None and "No space left" in caplog.text
    assert not list(tmp_path.iterdir())
