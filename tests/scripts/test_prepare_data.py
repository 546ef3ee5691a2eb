"""Laying out data sets: whole archives are unpacked all or nothing, others refused, and what is missing is said."""

import hashlib
import io
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from papermix.errors import UserError
from papermix.run.catalog import options
from scripts import prepare_data
from scripts.prepare_data import SETS, Archive, download, lacks, lay_out, main

PHOTOS = {"photos/train/a.jpg": b"a" * 40, "photos/train/b.jpg": b"b" * 50, "photos/readme.txt": b"hello", "__MACOSX/x": b"x"}
PARTS = {"photos/train/*.jpg": 2, "photos/readme.txt": 1}


def packed(files: dict[str, bytes], name: str) -> bytes:
    """A zip or tar file of these members."""
    out = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(out, "w") as archive:
            for member, content in files.items():
                archive.writestr(member, content)
    else:
        with tarfile.open(fileobj=out, mode="w:gz" if name.endswith("gz") else "w") as archive:
            for member, content in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def described(data: bytes, name: str, parts: dict[str, int] = PARTS, folder: str = "set", **more) -> Archive:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Archive(name, folder, parts, **{"size": len(data), "digest": digest, "page": "https://publisher.test", **more})


@pytest.fixture
def data(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def put(data, monkeypatch):
    """Write an archive into the data folder and make it the one that the set ``photos`` needs; returns its description."""

    def write(files=PHOTOS, name="photos.zip", place=data, **more) -> Archive:
        content = packed(files, name)
        archive = described(content, name, **more)
        (place / name).write_bytes(content)
        monkeypatch.setitem(SETS, "photos", (archive,))
        return archive

    return write


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


WANTED = {name: content for name, content in PHOTOS.items() if name.startswith("photos")}


def run(data: Path, *arguments: str) -> int:
    return main(["photos", "--data-dir", str(data), *arguments])


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tgz"])
def test_whole_archive_is_unpacked(data, put, capsys, name):
    put(name=name)
    assert run(data) == 0
    assert files(data / "set") == WANTED and (data / name).is_file()
    assert [entry.name for entry in data.iterdir() if entry.name.startswith(".")] == []
    assert re.search(r"photos: ready", capsys.readouterr().out)


def test_unpacked_data_needs_no_archive_and_is_left_alone(data, put, capsys):
    put()
    (data / "set/photos/train").mkdir(parents=True)
    mine = data / "set/photos/train/a.jpg"
    mine.write_bytes(b"my own")
    # half there: what is missing is added, what is there stays
    assert run(data, "--check") == 1 and files(data / "set") == {"photos/train/a.jpg": b"my own"}
    assert "photos: incomplete" in capsys.readouterr().out
    assert run(data) == 0
    assert files(data / "set") == {**WANTED, "photos/train/a.jpg": b"my own"}
    (data / "photos.zip").write_bytes(b"not looked at any more")
    assert run(data) == 0 and run(data, "--check") == 0


def test_check_changes_nothing(data, put, capsys):
    put()
    assert run(data, "--check") == 1
    assert [entry.name for entry in data.iterdir()] == ["photos.zip"]
    assert "photos.zip is whole: run without --check to unpack it" in capsys.readouterr().out


def test_missing_archive_says_where_it_is(data, put, capsys):
    put()
    (data / "photos.zip").unlink()
    assert run(data) == 1
    out = capsys.readouterr().out
    assert "photos: missing" in out and f"get photos.zip from https://publisher.test and put it into {data}" in out
    (data / "set/photos/train").mkdir(parents=True)
    (data / "set/photos/train/b.jpg").touch()
    assert run(data) == 1
    out = capsys.readouterr().out
    assert (
        "photos: incomplete" in out and "photos/train/*.jpg has 1 of 2 files; photos/readme.txt is missing: get photos.zip" in out
    )


def test_other_places_for_archives(data, put, tmp_path):
    put(place=tmp_path)
    assert run(data) == 1
    assert run(data, "--archives", str(tmp_path)) == 0 and files(data / "set") == WANTED
    (data / "own").mkdir()
    put(place=data / "own", folder="own")
    assert run(data) == 0 and (data / "own/photos/readme.txt").read_bytes() == b"hello"


def test_wrong_checksum_is_refused(data, put, capsys):
    put()
    content = bytearray((data / "photos.zip").read_bytes())
    content[60] ^= 1
    (data / "photos.zip").write_bytes(content)
    assert run(data) == 1
    assert not (data / "set").exists()
    assert re.search(
        r"photos.zip is not the publisher's \(its sha256 is \w{64} instead of \w{64}\): replace it", capsys.readouterr().out
    )


def test_truncated_archive_is_refused_by_size(data, put, capsys):
    archive = put()
    (data / "photos.zip").write_bytes((data / "photos.zip").read_bytes()[:-10])
    assert run(data) == 1 and not (data / "set").exists()
    assert f"({archive.size - 10:,} bytes instead of {archive.size:,})" in capsys.readouterr().out


@pytest.mark.parametrize("name, keep", [("photos.zip", 100), ("photos.tar", 540), ("photos.tgz", 80)])
def test_archive_that_breaks_off_leaves_nothing(data, name, keep):
    # as described: what the publisher has is broken itself
    content = packed(PHOTOS, name)[:keep]
    (data / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} cannot be unpacked"):
        lay_out(described(content, name), data / name, data)
    assert [entry.name for entry in data.iterdir()] == [name]


def test_archive_of_other_files_leaves_nothing(data, put, capsys):
    put({"photos/train/a.jpg": b"a", "photos/readme.txt": b"hello"})
    assert run(data) == 1
    assert [entry.name for entry in data.iterdir()] == ["photos.zip"]
    assert "does not hold what its publisher's does (photos/train/*.jpg has 1 of 2 files)" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar"])
@pytest.mark.parametrize("member", ["../evil", "photos/../../evil", "/tmp/papermix-evil", "..\\evil", "C:\\evil"])
def test_members_outside_of_the_folder_are_refused(data, put, capsys, name, member):
    put({**PHOTOS, member: b"evil"}, name=name)
    assert run(data) == 1
    assert [entry.name for entry in data.iterdir()] == [name] and not Path("/tmp/papermix-evil").exists()
    assert [entry.name for entry in data.parent.iterdir()] == ["data"]
    assert f"is refused: its member '{member}'" in capsys.readouterr().out


def test_no_member_is_written_through_a_link(data, tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("photos/train")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(link)
        for name, content in WANTED.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (data / "photos.tar").write_bytes(out.getvalue())
    lay_out(described(out.getvalue(), "photos.tar"), data / "photos.tar", data)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"] and files(data / "set") == WANTED


@pytest.mark.parametrize("there", [False, True])
def test_interrupted_unpacking_leaves_no_half_folder(data, put, monkeypatch, there):
    archive = put()
    if there:
        (data / "set").mkdir()
    copies = []

    def interrupted(*arguments):
        if copies:
            raise KeyboardInterrupt
        copies.append(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_data.shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lay_out(archive, data / "photos.zip", data)
    assert copies and sorted(entry.name for entry in data.iterdir()) == ["photos.zip", *(["set"] if there else [])]
    assert not there or list((data / "set").iterdir()) == []
    # one that was killed could not clean up: the next run does
    hidden = (data / "set" if there else data) / ".unpacking-photos.zip"
    (hidden / "photos/train").mkdir(parents=True)
    (hidden / "photos/train/stray.jpg").touch()
    lay_out(archive, data / "photos.zip", data)
    assert files(data / "set") == WANTED and not hidden.exists()


def test_full_disk_is_told_before(data, put, monkeypatch):
    archive = put()
    monkeypatch.setattr(prepare_data.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 3}))
    with pytest.raises(UserError, match=r"has 3 bytes free, but photos.zip needs at least \d+: make room"):
        lay_out(archive, data / "photos.zip", data)
    assert [entry.name for entry in data.iterdir()] == ["photos.zip"]


def test_nested_archives(data):
    """ImageNet's one archive a class without a folder in it; COCO's with one of its own name."""
    classes = {f"n0{n}.tar": packed({f"n0{n}_{k}.JPEG": bytes([n, k]) for k in range(3)}, "x.tar") for n in (1, 2)}
    content = packed(classes, "train.tar")
    (data / "train.tar").write_bytes(content)
    archive = described(content, "train.tar", {"n*/*.JPEG": 6}, folder="imagenet/train")
    lay_out(archive, data / "train.tar", data)
    assert files(data / "imagenet") == {f"train/n0{n}/n0{n}_{k}.JPEG": bytes([n, k]) for n in (1, 2) for k in range(3)}

    inner = packed({"panoptic_val/1.png": b"1", "__MACOSX/panoptic_val/1.png": b"?"}, "x.zip")
    content = packed({"annotations/panoptic_val.json": b"{}", "annotations/panoptic_val.zip": inner}, "panoptic.zip")
    (data / "panoptic.zip").write_bytes(content)
    parts = {"annotations/panoptic_val.json": 1, "annotations/panoptic_val/*.png": 1}
    # the folder is there already, with another archive's files
    (data / "coco/annotations").mkdir(parents=True)
    (data / "coco/annotations/instances.json").write_bytes(b"[]")
    lay_out(described(content, "panoptic.zip", parts, folder="coco"), data / "panoptic.zip", data)
    assert files(data / "coco") == {
        "annotations/instances.json": b"[]", "annotations/panoptic_val.json": b"{}", "annotations/panoptic_val/1.png": b"1"
    }  # fmt: skip

    escaping = packed({"n01.tar": packed({"../../evil": b"evil"}, "x.tar")}, "bad.tar")
    (data / "bad.tar").write_bytes(escaping)
    with pytest.raises(UserError, match=r"n01.tar is refused: its member '\.\./\.\./evil'"):
        lay_out(described(escaping, "bad.tar", {"n*/*": 1}, folder="bad"), data / "bad.tar", data)
    assert not list(data.parent.rglob("evil")) and not (data / "bad").exists()


def test_a_folder_of_an_archive(data):
    content = packed({"./examples/data/ptb.train.txt": b"text", "./examples/1-train/train.sh": b"run"}, "examples.tgz")
    (data / "examples.tgz").write_bytes(content)
    archive = described(content, "examples.tgz", {"ptb.train.txt": 1}, folder="ptb", only="examples/data")
    lay_out(archive, data / "examples.tgz", data)
    assert files(data / "ptb") == {"ptb.train.txt": b"text"}


def test_optional_archives_do_not_count(data, put, monkeypatch, capsys):
    archive = put()
    extra = Archive("extra.tgz", "extra", {"a": 1}, 10, "md5:0", page="https://elsewhere.test", optional="dataset.more=true")
    monkeypatch.setitem(SETS, "photos", (archive, extra))
    assert run(data) == 0
    out = capsys.readouterr().out
    assert "photos: ready" in out and "only for dataset.more=true" in out
    assert "optional: get extra.tgz from https://elsewhere.test" in out


class Publisher(BaseHTTPRequestHandler):
    """Gives ``content``, or the rest of it from the byte that is asked for; breaks off after ``most`` bytes."""

    content = b""
    most = 10**9
    ranges = True
    asked: list[str | None] = []

    def do_GET(self) -> None:
        wanted = self.headers["Range"] if self.ranges else None
        self.asked.append(self.headers["Range"])
        if self.path != "/photos.zip":
            self.send_error(404)
            return
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        rest = self.content[first:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.most])

    def log_message(self, *arguments) -> None:
        """Quiet."""


@pytest.fixture
def publisher(monkeypatch):
    monkeypatch.setattr(Publisher, "content", packed(PHOTOS, "photos.zip"))
    monkeypatch.setattr(Publisher, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Publisher)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    archive = described(Publisher.content, "photos.zip", url=f"http://127.0.0.1:{server.server_port}/photos.zip")
    monkeypatch.setitem(SETS, "photos", (archive,))
    yield archive
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(data, publisher, capsys):
    assert run(data) == 1 and Publisher.asked == []
    assert f"get photos.zip from {publisher.url}" in capsys.readouterr().out
    assert run(data, "--download") == 0
    assert files(data / "set") == WANTED and (data / "photos.zip").read_bytes() == Publisher.content
    assert run(data, "--download") == 0 and Publisher.asked == [None]


def test_download_goes_on_where_it_was(data, publisher, monkeypatch, capsys):
    monkeypatch.setattr(Publisher, "most", 100)
    assert run(data, "--download") == 1
    assert (data / "photos.zip.part").stat().st_size == 100 and not (data / "photos.zip").exists()
    assert f"broke off after 100 of {publisher.size:,} bytes" in capsys.readouterr().out
    monkeypatch.setattr(Publisher, "most", 10**9)
    assert run(data, "--download") == 0 and Publisher.asked == [None, "bytes=100-"]
    assert files(data / "set") == WANTED and not (data / "photos.zip.part").exists()


def test_download_from_a_server_that_cannot_go_on(data, publisher, monkeypatch):
    monkeypatch.setattr(Publisher, "ranges", False)
    (data / "photos.zip.part").write_bytes(b"?" * 50)
    assert download(publisher, data).read_bytes() == Publisher.content
    # whole already, only not renamed: nothing is asked
    (data / "photos.zip").rename(data / "photos.zip.part")
    assert download(publisher, data).read_bytes() == Publisher.content and Publisher.asked == ["bytes=50-"]


def test_download_of_another_file(data, publisher, monkeypatch):
    monkeypatch.setattr(Publisher, "content", b"!" * len(Publisher.content))
    with pytest.raises(UserError, match=r"gave another file \(its sha256"):
        download(publisher, data)
    (data / "photos.zip.part").write_bytes(b"?" * (publisher.size + 1))
    with pytest.raises(UserError, match=r"gave another file .*bytes instead of"):
        download(publisher, data)
    assert list(data.iterdir()) == []
    gone = described(b"", "gone.zip", size=5, url=publisher.url.replace("photos", "gone"))
    with pytest.raises(UserError, match=r"gone.zip cannot be got .*404.*try again later"):
        download(gone, data)


def test_what_needs_a_registration_is_not_downloaded(data, put, capsys):
    put()
    (data / "photos.zip").unlink()
    assert run(data, "--download") == 1
    assert "get photos.zip from https://publisher.test" in capsys.readouterr().out


def test_list_and_names(data, put, capsys):
    put()
    assert main(["--data-dir", str(data)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"photos +missing", out) and re.search(r"imagenet +missing", out) and "cifar10" in out
    assert run(data) == 0
    assert main(["--data-dir", str(data)]) == 0
    assert re.search(r"photos +ready", capsys.readouterr().out)
    assert main(["--check", "--data-dir", str(data)]) == 1
    with pytest.raises(UserError, match=r"no data set 'voc_segmentaton' .*did you mean 'voc_segmentation'"):
        main(["voc_segmentaton"])
    with pytest.raises(UserError, match=r"cifar10 gets itself: python train.py dataset=cifar10 dataset.download=true"):
        main(["cifar10"])
    with pytest.raises(UserError, match="say which data sets: coco_panoptic"):
        main(["--download"])


def test_sets_share_archives_and_work_is_done_once(data, put, monkeypatch, capsys):
    archive = put()
    monkeypatch.setitem(SETS, "again", (archive,))
    seen = []
    monkeypatch.setattr(prepare_data, "lay_out", lambda *arguments: (seen.append(1), lay_out(*arguments)))
    assert main(["photos", "again", "--data-dir", str(data)]) == 0 and seen == [1]
    assert "again: ready" in capsys.readouterr().out


def test_table_of_facts():
    for name, archives in SETS.items():
        for archive in archives:
            kind, _, digest = archive.digest.partition(":")
            assert re.fullmatch(r"[0-9a-f]+", digest) and len(digest) == {"md5": 32, "sha256": 64}[kind]
            assert archive.source().startswith("http") and archive.parts and all(archive.parts.values())
            # what is downloaded goes on by its size
            assert archive.size is not None or archive.url is None
            assert not archive.url or archive.url.endswith(archive.name)
        assert name == "ptb" or name in options("dataset") or name.startswith("coco")
    train = {part: count for archive in SETS["coco_panoptic"] for part, count in archive.parts.items()}
    assert train["train2017/*.jpg"] == train["annotations/panoptic_train2017/*.png"] == 118_287


def test_imagenet_in_class_folders_counts(tmp_path):
    """The validation images may have been sorted into class folders."""
    val = SETS["imagenet"][1]
    few = Archive(val.name, "val", dict.fromkeys(val.parts, 2), None, val.digest)
    (tmp_path / "n01").mkdir()
    (tmp_path / "ILSVRC2012_val_00000001.JPEG").touch()
    assert lacks(few, tmp_path) == ["**/ILSVRC2012_val_*.JPEG has 1 of 2 files"]
    (tmp_path / "n01/ILSVRC2012_val_00000002.JPEG").touch()
    assert lacks(few, tmp_path) == []


def test_command_is_light(tmp_path):
    code = "import sys, scripts.prepare_data as p; p.main(['--data-dir', sys.argv[1]]); sys.exit('torch' in sys.modules)"
    root = Path(prepare_data.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "scripts/prepare_data.py", "imagnet", "--data-dir", str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.startswith(
        "error: there is no data set 'imagnet' to prepare (did you mean 'imagenet'?)"
    )
