"""Downloads from a hub of our own on this machine: interrupted, resumed, corrupted, gone."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from jointdreamer.errors import UserError
from jointdreamer.weights.download import download, download_url, downloaded_url
from jointdreamer.weights.find import find_weights, known_checksums

COMMIT = "1234567890123456789012345678901234567890"
BIG = bytes(range(256)) * 8192  # 2 MiB


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub:
    """What the client asks of huggingface.co, for one repository; files that end in .safetensors or .pt are "large"."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []  # (method, path, range)
        self.cut_at: int | None = None  # the connection breaks after so many bytes of a large file ...
        self.broken = False  # ... and then nothing more comes
        self.lies: dict[str, bytes] = {}  # what is sent instead of what was announced
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format, *args):
                pass

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                path = self.path.partition("?")[0]
                hub.asked.append((self.command, path, self.headers.get("Range")))
                if path.startswith("/api/models/org/repo"):
                    listed = [{"rfilename": name} for name in hub.files]
                    sizes = [
                        {"type": "file", "path": name, "size": len(content), "oid": digest(content)[:40]}
                        for name, content in hub.files.items()
                    ]
                    tree = "/tree/" in path
                    self.send(json.dumps(sizes if tree else {"id": "org/repo", "sha": COMMIT, "siblings": listed}))
                    return
                name = path.partition("/resolve/")[2].partition("/")[2] or path[1:]
                if name not in hub.files:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content = hub.files[name]
                large = name.endswith((".safetensors", ".pt"))
                if body and hub.broken and large:
                    self.send_error(503)
                    return
                start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
                self.send_response(206 if start else 200)
                self.send_header("ETag", f'"{digest(content) if large else digest(content)[:40]}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                if body:
                    sent = hub.lies.get(name, content)[start:]
                    if large and hub.cut_at is not None:
                        sent, hub.broken = sent[: hub.cut_at], True
                        self.close_connection = True
                    self.wfile.write(sent)

            def send(self, text):
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(text.encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def sent(self, name: str) -> list[str | None]:
        """The ranges in which a file was asked for."""
        return [part for method, path, part in self.asked if method == "GET" and path.endswith(name)]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)  # what is lost at most: 10 MB of the real ones
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("JOINTDREAMER_CACHE", str(tmp_path / "ours"))
    yield made
    made.server.shutdown()  # waits for its next look around
    made.server.server_close()


def test_a_file_of_a_pinned_revision_comes_once_and_is_found_offline(hub, monkeypatch):
    hub.files["model.pt"] = BIG
    path = find_weights(f"org/repo@{COMMIT}", "model", file="model.pt")
    assert path.read_bytes() == BIG and path.resolve().name == digest(BIG) and COMMIT in path.parts
    assert known_checksums(f"org/repo@{COMMIT}", path) == {path: digest(BIG)}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert find_weights(f"org/repo@{COMMIT}", "model", file="model.pt") == path
    assert len(hub.asked) == asked and hub.sent("model.pt") == [None]


def test_an_interrupted_download_goes_on_where_it_was(hub):
    hub.files["model.pt"], hub.cut_at = BIG, 1_500_000
    with pytest.raises(UserError, match="model not found"):
        find_weights("org/repo", "model", file="model.pt")
    hub.cut_at, hub.broken = None, False
    hub.asked.clear()
    assert find_weights("org/repo", "model", file="model.pt").read_bytes() == BIG
    (resumed,) = hub.sent("model.pt")
    assert resumed is not None and 1_000_000 <= int(resumed[6:].rstrip("-").split("-")[0]) <= 1_500_000


FOLDER = {"unet/config.json": b"{}", "unet/model.safetensors": BIG, "vae/config.json": b"{}", "vae/model.bin": b"x"}
EXTRA = {"unet/model.fp16.safetensors": b"half", "unet/model.bin": b"y", "big.ckpt": b"z", "safety/model.pt": b"s"}


def test_a_folder_comes_without_second_copies_and_a_half_one_is_completed(hub):
    hub.files = {**FOLDER, **EXTRA}
    needs = ("unet/config.json", "vae/config.json")
    hub.cut_at = 1000
    with pytest.raises(UserError):
        find_weights("org/repo", "model", needs=needs)
    hub.cut_at, hub.broken = None, False
    folder = find_weights("org/repo", "model", needs=needs)
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == set(FOLDER)
    (folder / "unet" / "model.safetensors").unlink()  # a download by another program that stopped here
    assert find_weights("org/repo", "model", needs=needs, download=False) == folder
    find_weights("org/repo", "model", needs=needs)
    assert (folder / "unet" / "model.safetensors").read_bytes() == BIG


def test_what_is_not_what_the_hub_announced_is_a_wrong_checksum_and_is_not_kept(hub, tmp_path):
    hub.files["model.pt"], hub.lies = BIG, {"model.pt": BIG[::-1]}
    with pytest.raises(UserError, match=f"wrong checksum: .*{digest(BIG[::-1])}, wanted {digest(BIG)}") as error:
        find_weights("org/repo", "model", file="model.pt")
    assert "\n" not in str(error.value)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size == len(BIG)]


def test_a_repository_whose_file_is_not_the_one_we_know_is_refused_before_it_is_downloaded(hub, monkeypatch):
    hub.files["model.pt"] = BIG
    monkeypatch.setattr("jointdreamer.weights.find.SHA256", {"org/repo": {"model.pt": "0" * 64}})
    with pytest.raises(UserError, match="wrong checksum: org/repo offers model.pt"):
        find_weights("org/repo", "model", file="model.pt")
    assert hub.sent("model.pt") == []


def test_the_next_source_is_taken_and_all_that_was_tried_is_told(hub, tmp_path):
    hub.files["model.pt"] = BIG
    tried = [str(tmp_path / "nowhere"), "org/gone@abc", "org/repo"]
    assert find_weights(tried, "model", file="model.pt").read_bytes() == BIG
    with pytest.raises(UserError) as error:
        find_weights(tried[:2], "multi_view", file="model.pt")
    said = str(error.value)
    assert "multi-view model not found" in said and "\n" not in said and said.index("nowhere") < said.index("org/gone")
    assert "python -m jointdreamer.weights prefetch multi_view" in said
    assert "hf download org/gone model.pt --revision abc" in said


def test_what_is_at_hand_comes_before_a_download(hub, tmp_path):
    hub.files["model.pt"] = BIG
    (tmp_path / "model.pt").write_bytes(b"mine")
    assert find_weights(["org/repo", str(tmp_path)], "model", file="model.pt") == tmp_path / "model.pt"
    assert hub.asked == []


def test_a_plain_address_is_kept_and_resumed_and_a_new_version_is_another_file(hub, tmp_path):
    url, cache = f"{hub.url}/some/model.pt", tmp_path / "ours"
    hub.files["some/model.pt"], hub.cut_at = BIG, 1_500_000
    with pytest.raises(UserError, match="not downloaded; download: "):
        find_weights(url, "model")
    assert downloaded_url(url, cache) is None
    hub.cut_at, hub.broken = None, False
    hub.asked.clear()
    path = find_weights(url, "model")
    assert path.read_bytes() == BIG and path.name == "model.pt" and hub.sent("model.pt") != [None]
    assert find_weights(url, "model", download=False) == path
    hub.files["some/model.pt"] = b"new"
    assert download_url(url, cache).read_bytes() == b"new" and path.read_bytes() == BIG


def test_a_part_that_is_longer_than_the_file_begins_again(hub, tmp_path):
    hub.files["model.pt"] = b"short"
    (tmp_path / "model.pt.part").write_bytes(BIG)
    target = tmp_path / "model.pt"
    assert download(f"{hub.url}/model.pt", target, size=5, checksum=digest(b"short")) == target
    assert target.read_bytes() == b"short" and not (tmp_path / "model.pt.part").exists()
