import logging
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.fake_browser import FakeBrowser
from jointdreamer.errors import UserError
from jointdreamer.viewer.server import (
    ViewerSettings,
    check_viewer,
    free_port,
    open_server,
    random_untouched,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def taken():
    """A port of this machine on which somebody listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_in_use_is_passed_over(taken):
    assert free_port("127.0.0.1", taken) not in (0, taken)
    free = free_port("127.0.0.1", 0)
    assert free_port("127.0.0.1", free) == free


@pytest.mark.parametrize("host", ["192.0.2.7", "no such host", "", "\udcff"])
def test_a_host_that_is_no_address_of_this_machine(host):
    with pytest.raises(UserError, match="viewer.host=.*127.0.0.1"):
        free_port(host, 0)


def test_without_the_extra_one_line_names_it(monkeypatch):
    monkeypatch.setattr("jointdreamer.viewer.server.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[viewer\]'"):
        check_viewer(ViewerSettings())
    check_viewer(ViewerSettings(open=False))


def test_a_block_leaves_the_random_generators_where_they_were():
    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    with random_untouched():
        first = draws()
    assert draws() == first


# With viser itself


@pytest.fixture
def opened(monkeypatch):
    """opened(host, port) -> a running server; all are stopped in the end."""
    pytest.importorskip("viser")
    servers = []

    def make(host="127.0.0.1", port=0):
        servers.append(open_server(host, port))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def test_a_server_says_where_it_is_and_when_it_had_to_move(opened, taken, caplog, capsys):
    with caplog.at_level(logging.INFO, "jointdreamer"):
        port = opened(port=taken).get_port()
    assert port != taken
    assert f"viewer: port {taken} is in use, taking {port}" in caplog.messages
    assert f"viewer: http://127.0.0.1:{port}" in caplog.messages
    assert not any("anyone" in said for said in caplog.messages)
    assert capsys.readouterr() == ("", "")


def test_an_open_address_is_a_warning(opened, caplog):
    with caplog.at_level(logging.INFO, "jointdreamer"):
        port = opened("0.0.0.0").get_port()
    [said] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "viewer.host=0.0.0.0: anyone on the network can look" in said.getMessage()
    assert f"viewer: http://localhost:{port}" in caplog.messages


def test_it_listens_on_this_machine_alone(opened):
    port = opened().get_port()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}") as page:
        assert b"<html" in page.read()[:2000].lower()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=2)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/..%2f..%2f__init__.py")


def test_opening_and_keeping_a_connection_draws_no_random_number():
    """In a process of its own, where nothing is imported yet; a ping goes out each 20 s, here at once."""
    pytest.importorskip("viser")
    code = """if True:
        import logging, random, time, numpy, torch
        from jointdreamer.runs.checkpoint import random_state
        from jointdreamer.viewer.server import open_server
        before = random_state()
        server = open_server("127.0.0.1", 0)
        from websockets.asyncio import connection
        drawn = []
        class Counted(random.Random):
            def getrandbits(self, k):
                drawn.append(k)
                return super().getrandbits(k)
        own = connection.random
        assert isinstance(own, random.Random)
        connection.random = Counted()
        import asyncio
        from benchmarks.fake_browser import FakeBrowser
        state = random.getstate()
        browser = FakeBrowser(server.get_port())
        random.setstate(state)  # what the client draws is the client's
        browser.look()
        time.sleep(0.3)
        [inside] = server._websock_server._live_connections.values()
        async def ping():
            await inside.ping()
        asyncio.run_coroutine_threadsafe(ping(), server.get_event_loop()).result(5)
        after = random_state()
        assert drawn == [32]
        assert torch.equal(before["torch"], after["torch"]), "torch"
        assert before["numpy"] == after["numpy"], "numpy"
        assert before["python"] == after["python"], "python"
        server.stop()
        print("same")
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


def test_nobody_can_ask_for_a_public_address(opened, capfd):
    server = opened()
    with FakeBrowser(server.get_port()) as browser:
        browser.look()
        browser.say(type="ShareUrlRequest")
        heard = browser.hear()
    assert not [one for one in heard if one["type"].startswith("ShareUrl") and one.get("share_url")]
    assert capfd.readouterr().err == ""


def test_what_is_no_browser_s_message_is_no_traceback(opened, capfd):
    server = opened()
    with socket.create_connection(("127.0.0.1", server.get_port())) as raw:
        raw.sendall(b"\x00\xffjunk\r\n\r\n")
    with FakeBrowser(server.get_port()) as browser:
        browser.socket.send("text")
    with FakeBrowser(server.get_port()) as browser:
        browser.socket.send(b"\xc1\x00")
    time.sleep(0.3)
    said = capfd.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    with FakeBrowser(server.get_port()) as browser:  # and it serves the next one
        browser.look()
        assert browser.hear()
