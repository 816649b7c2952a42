"""Sender and receiver: trees arrive whole, through cuts and restarts, whatever is in them."""

from __future__ import annotations

import os
import random

import pytest
from support.transfer_pair import Transfer

from virtserial.guest.files.messages import PIECE, WINDOW
from virtserial.guest.files.target import PARTIAL


def snapshot(root):
    """Path to (mode, time, content) of everything below a folder."""
    found = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content = None
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    content = file.read()
            mode = None if os.path.islink(path) else status.st_mode
            found[os.path.relpath(path, os.fsencode(root))] = (mode, status.st_mtime_ns, content)
    return found


@pytest.fixture
def tree(tmp_path, dice):
    root = tmp_path / "tree"
    (root / "in" / "ner").mkdir(parents=True)
    (root / "bare").mkdir()
    (root / "in" / "large").write_bytes(dice(5 * PIECE + 17))
    (root / "in" / "ner" / "small").write_bytes(b"small")
    (root / "empty").touch()
    (root / "ünïcode 文").write_text("text")
    (tmp_path / os.fsdecode(b"tree/\xff\n")).write_bytes(b"odd name")
    (root / "link").symlink_to("in/large")
    (root / "nowhere").symlink_to("gone")
    (root / "in" / "up").symlink_to("../empty")
    for number in range(2 * WINDOW):
        (root / "bare" / str(number)).write_bytes(b"n" * number)
    (root / "in" / "ner" / "small").chmod(0o640)
    (root / "in" / "ner").chmod(0o500)
    (root / "bare").chmod(0o555)
    os.utime(root / "empty", ns=(0, 999_999_999_999_999_999))
    os.utime(root / "bare", ns=(0, 1))
    yield root
    (root / "bare").chmod(0o755)


def test_tree_arrives_as_it_is(tree, tmp_path):
    with Transfer([f"{tree}/"], tmp_path / "to") as transfer:
        result = transfer.run()
    assert snapshot(tmp_path / "to") == snapshot(tree)
    assert (result.files, result.failures) == (4 + 1 + 2 * WINDOW, 0)
    assert transfer.complaints == {"sender": [], "receiver": []}


def test_folder_without_a_slash_arrives_as_a_folder_and_files_by_their_names(tree, tmp_path):
    with Transfer([tree, tree / "empty", tree / "link"], tmp_path / "to") as transfer:
        transfer.run()
    assert sorted(os.listdir(tmp_path / "to")) == ["empty", "link", "tree"]
    assert snapshot(tmp_path / "to" / "tree") == snapshot(tree)


@pytest.mark.parametrize("seed", range(6))
def test_tree_arrives_through_cuts_at_any_moment(tree, tmp_path, seed):
    dice = random.Random(seed)
    with Transfer([f"{tree}/"], tmp_path / "to") as transfer:
        transfer.connect()
        for _ in range(30):
            for _ in range(dice.randrange(1, 12)):
                transfer.turn(dice.choice([100, 5000, 60000]))
            if transfer.parties["sender"].finished:
                break
            transfer.cut()
        transfer.run()
    assert snapshot(tmp_path / "to") == snapshot(tree)


def test_what_arrived_before_a_cut_is_not_sent_again(tmp_path, dice):
    (tmp_path / "large").write_bytes(dice(100 * PIECE))
    with Transfer([tmp_path / "large"], tmp_path / "to") as transfer:
        transfer.connect()
        while transfer.moved < 90 * PIECE:
            transfer.turn()
        transfer.cut()
        transfer.run()
    assert transfer.moved < 110 * PIECE
    assert (tmp_path / "to" / "large").read_bytes() == (tmp_path / "large").read_bytes()


def test_sender_and_receiver_that_are_started_again_go_on_where_they_were(tmp_path, dice):
    (tmp_path / "large").write_bytes(dice(100 * PIECE))
    moved = 0
    for _ in range(3):
        with Transfer([tmp_path / "large"], tmp_path / "to") as transfer:
            transfer.connect()
            while transfer.moved < 25 * PIECE:
                transfer.turn()
            moved += transfer.moved
    with Transfer([tmp_path / "large"], tmp_path / "to") as transfer:
        transfer.run()
        moved += transfer.moved
    assert moved < 115 * PIECE
    assert (tmp_path / "to" / "large").read_bytes() == (tmp_path / "large").read_bytes()
    assert os.listdir(tmp_path / "to") == ["large"]


def test_only_the_sender_is_started_again(tree, tmp_path):
    with Transfer([f"{tree}/"], tmp_path / "to") as transfer:
        transfer.connect()
        for _ in range(15):
            transfer.turn()
        transfer.start_sender()
        transfer.links["sender"].connected(transfer.now)
        result = transfer.run()
    assert snapshot(tmp_path / "to") == snapshot(tree)
    assert (result.files, result.failures) == (5 + 2 * WINDOW, 0)


def test_second_transfer_of_the_same_tree_moves_no_content(tree, tmp_path):
    with Transfer([f"{tree}/"], tmp_path / "to") as transfer:
        transfer.run()
    with Transfer([f"{tree}/"], tmp_path / "to") as again:
        again.run()
    assert again.moved < 260 * len(snapshot(tree))
    assert snapshot(tmp_path / "to") == snapshot(tree)


def test_file_of_same_size_and_time_but_other_content_is_replaced(tmp_path):
    for folder, content in (("from", b"right"), ("to", b"wrong")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_bytes(content)
        os.utime(tmp_path / folder / "file", ns=(5, 5))
    with Transfer([tmp_path / "from" / "file"], tmp_path / "to") as transfer:
        transfer.run()
    assert (tmp_path / "to" / "file").read_bytes() == b"right"


def test_part_that_another_process_spoiled_is_dropped(tmp_path, dice):
    (tmp_path / "large").write_bytes(dice(40 * PIECE))
    with Transfer([tmp_path / "large"], tmp_path / "to") as transfer:
        transfer.connect()
        while transfer.moved < 20 * PIECE:
            transfer.turn()
    (part,) = (tmp_path / "to" / os.fsdecode(PARTIAL)).iterdir()
    with part.open("r+b") as file:
        file.write(b"spoiled")
    with Transfer([tmp_path / "large"], tmp_path / "to") as transfer:
        transfer.run()
    assert (tmp_path / "to" / "large").read_bytes() == (tmp_path / "large").read_bytes()


def test_holes_stay_holes_and_take_no_time_on_the_way(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(b"beginning")
        file.seek(300 << 20)
        file.write(b"middle")
        file.truncate(400 << 20)
    if path.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system has no holes")
    with Transfer([path], tmp_path / "to") as transfer:
        transfer.run()
    copy = tmp_path / "to" / "sparse"
    assert transfer.moved < 1 << 20
    assert copy.stat().st_size == 400 << 20
    assert copy.stat().st_blocks * 512 < 1 << 20
    with copy.open("rb") as file:
        assert file.read(9) == b"beginning"
        file.seek(300 << 20)
        assert file.read(7) == b"middle\0"


def test_file_that_changes_while_it_is_sent_fails_and_the_rest_arrives(tmp_path, dice):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a").write_bytes(dice(20 * PIECE))
    (tmp_path / "from" / "b").write_bytes(b"rest")
    with Transfer([f"{tmp_path}/from/"], tmp_path / "to") as transfer:
        transfer.connect()
        while transfer.moved < 8 * PIECE:
            transfer.turn()
        with (tmp_path / "from" / "a").open("r+b") as file:
            file.write(b"changed")
        os.utime(tmp_path / "from" / "a", ns=(1, 1))
        result = transfer.run()
    assert os.listdir(tmp_path / "to") == ["b"]
    assert transfer.complaints["receiver"] == ["a: the file changed while it was sent"]
    assert transfer.complaints["sender"] == [f"{tmp_path}/from/a: the file changed while it was sent"]
    assert (result.files, result.failures) == (1, 1)


@pytest.mark.parametrize("change", ["vanish", "shrink", "become a link"])
def test_file_that_is_not_what_was_announced(tmp_path, change):
    (tmp_path / "from").mkdir()
    for number in range(40):
        (tmp_path / "from" / f"{number:02}").write_bytes(b"content")
    victim = tmp_path / "from" / "20"
    with Transfer([f"{tmp_path}/from/"], tmp_path / "to") as transfer:
        transfer.connect()
        transfer.turn(600)
        transfer.turn(600)
        victim.unlink()
        if change == "shrink":
            victim.write_bytes(b"c")
        elif change == "become a link":
            victim.symlink_to("/etc/passwd")
        result = transfer.run()
    assert len(os.listdir(tmp_path / "to")) == result.files
    assert result.files == 39 or (change == "shrink" and victim.read_bytes() == b"c")


def test_what_is_no_file_is_told_and_not_sent(tmp_path):
    (tmp_path / "from").mkdir()
    os.mkfifo(tmp_path / "from" / "fifo")
    (tmp_path / "from" / "file").touch()
    with Transfer([f"{tmp_path}/from/"], tmp_path / "to") as transfer:
        transfer.run()
    assert transfer.complaints["sender"] == [f"{tmp_path}/from/fifo: is no file, folder or symbolic link"]
    assert os.listdir(tmp_path / "to") == ["file"]


def test_set_user_id_does_not_travel(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o6755)
    with Transfer([tmp_path / "file"], tmp_path / "to") as transfer:
        transfer.run()
    assert (tmp_path / "to" / "file").stat().st_mode & 0o7777 == 0o755


def test_limit_on_what_is_received(tmp_path):
    (tmp_path / "from").mkdir()
    for number in range(3):
        (tmp_path / "from" / str(number)).write_bytes(bytes(1000))
    with Transfer([f"{tmp_path}/from/"], tmp_path / "to", limit=2500) as transfer:
        result = transfer.run()
    assert transfer.complaints["receiver"] == ["2: more than 2500 bytes in all"]
    assert (result.files, result.failures) == (2, 1)


def test_two_receivers_into_one_folder_do_not_disturb_each_other(tmp_path, dice):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(dice(30 * PIECE))
    to = tmp_path / "to"
    with Transfer([tmp_path / "one"], to) as first, Transfer([tmp_path / "two"], to) as second:
        for transfer in (first, second):
            transfer.connect()
            while transfer.moved < 10 * PIECE:
                transfer.turn()
        first.run()
        second.run()
    assert sorted(os.listdir(to)) == ["one", "two"]
    assert (to / "two").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_receiver_that_ends_leaves_the_folder_of_parts_to_another(tmp_path, dice):
    """It removed the folder, as it was empty, and the other received nothing more."""
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(dice(PIECE))
    to = tmp_path / "to"
    with Transfer([tmp_path / "two"], to) as second:
        with Transfer([tmp_path / "one"], to) as first:
            first.run()
        assert second.run().failures == 0
    assert sorted(os.listdir(to)) == ["one", "two"]
