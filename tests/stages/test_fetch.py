"""Data that a person asks for: from a server that has them, one that breaks off, and none."""

import http.server
import socket
import threading
import time

import pytest

from pipeline import fetching
from pipeline.__main__ import main
from pipeline.errors import UsageError
from pipeline.fingerprint import fingerprint
from stages.catalog import CATALOG
from stages.data import fetch, prepare
from tests.stages.context import context
from tests.stages.true_files import archive, cifar_files, md5, mnist_files, placed

FOLDER = "cifar-10-batches-py"


class Server:
    """A server of `files`; names in `cut` break off in the middle, those in `mute` never come."""

    def __init__(self):
        self.files, self.cut, self.mute, self.asked = {}, set(), set(), []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rpartition("/")[2]
                outer.asked.append(name)
                if name in outer.mute:
                    outer.over.wait(30)
                    return
                if name not in outer.files:
                    self.send_error(404)
                    return
                content = outer.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if name in outer.cut else content)

            def log_message(self, *arguments):
                pass

        self.over = threading.Event()
        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/"

    def close(self):
        self.over.set()
        self.httpd.shutdown()
        self.httpd.server_close()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """One with a small MNIST and CIFAR-10, which torchvision takes for the true ones."""
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    idx, batches = mnist_files(), cifar_files()
    tar = archive(FOLDER, batches)
    server.files = {**idx, "cifar-10-python.tar.gz": tar}
    mnist, cifar = (fetch._torchvision(kind) for kind in ("MNIST", "CIFAR10"))
    monkeypatch.setattr(mnist, "mirrors", [server.url])
    monkeypatch.setattr(mnist, "resources", [(name, md5(data)) for name, data in idx.items()])
    monkeypatch.setattr(cifar, "url", f"{server.url}cifar-10-python.tar.gz")
    monkeypatch.setattr(cifar, "tgz_md5", md5(tar))
    listed = [[name, md5(data)] for name, data in batches.items()]
    monkeypatch.setattr(cifar, "train_list", listed[:5])
    monkeypatch.setattr(cifar, "test_list", listed[5:6])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": listed[6][1]})
    yield server
    server.close()


def run(*words):
    """The command's exit code."""
    return main(["fetch", *words])


def refused(capsys, *words) -> str:
    assert run(*words) == 2
    said = capsys.readouterr().err
    error = said[said.index("error: ") :]
    assert error.count("\n") == 1
    assert "Traceback" not in said
    return error


@pytest.mark.parametrize(
    ("name", "there", "preset"),
    [
        ("mnist", set(mnist_files()), "wavelet --preset mnist32"),
        ("cifar10", {FOLDER}, "icr --preset cifar10-4096"),
    ],
)
def test_data_come_in_one_command_and_their_run_is_said(
    server, tmp_path, capsys, name, there, preset
):
    assert run(name) == 0
    assert {path.name for path in (tmp_path / "data" / name).iterdir()} == there
    said = capsys.readouterr().out
    assert said.endswith(f"checksums right\nnext: python -m pipeline run {preset}\n")
    asked = len(server.asked)
    assert run(name) == 0
    assert f"{name} is there" in capsys.readouterr().out
    assert len(server.asked) == asked
    settings = prepare.PrepareSettings(dataset=name, path=f"data/{name}")
    out = tmp_path / "out"
    out.mkdir()
    assert prepare.run(context(out, settings)).metrics["num_train"] in (60, 100)


def test_another_place_is_named_in_the_run(server, tmp_path, capsys):
    assert run("mnist", "--to", "else where") == 0
    place = tmp_path / "else where"
    assert capsys.readouterr().out.endswith(f" --preset mnist32 data.path='{place}'\n")
    assert run("mnist", "--to", str(tmp_path / "data" / "mnist")) == 0
    assert capsys.readouterr().out.endswith(" --preset mnist32\n")


def test_a_download_that_breaks_off_does_not_count(server, tmp_path, capsys):
    server.cut = {"t10k-images-idx3-ubyte.gz", "cifar-10-python.tar.gz"}
    for name in ("mnist", "cifar10"):
        error = refused(capsys, name)
        assert f"{name} could not be fetched (127.0.0.1:" in error
        assert f"in {tmp_path / 'data' / name} and run this again" in error
        assert not (tmp_path / "data" / name).exists()
    server.cut = set()
    assert run("mnist") == run("cifar10") == 0


def test_a_second_mirror_serves_where_the_first_does_not(server, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        mirrors = [f"http://127.0.0.1:{closed.getsockname()[1]}/", server.url]
        monkeypatch.setattr(fetch._torchvision("MNIST"), "mirrors", mirrors)
        assert run("mnist") == 0


def test_without_a_network_a_sentence_says_what_to_place(server, tmp_path, monkeypatch, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        monkeypatch.setattr(fetch._torchvision("MNIST"), "mirrors", [address, address])
        monkeypatch.setattr(fetch._torchvision("CIFAR10"), "url", f"{address}x.tar.gz")
        error = refused(capsys, "mnist")
        assert "Connection refused" in error
        assert f"place {', '.join(mnist_files())} in {tmp_path / 'data' / 'mnist'}" in error
        error = refused(capsys, "cifar10", "--to", "here")
        assert f"place cifar-10-python.tar.gz in {tmp_path / 'here'}" in error
        assert not (tmp_path / "data").exists()
        # What a person places is checked, and unpacked.
        placed(tmp_path / "data" / "mnist", mnist_files())
        assert run("mnist") == 0
        tar = server.files["cifar-10-python.tar.gz"]
        placed(tmp_path / "data" / "cifar10", {"cifar-10-python.tar.gz": tar})
        assert run("cifar10") == 0
        assert (tmp_path / "data" / "cifar10" / FOLDER / "data_batch_5").is_file()


def test_a_server_that_says_nothing_is_given_up(server, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "IDLE_SECONDS", 0.5)
    server.mute = {"train-images-idx3-ubyte.gz"}
    began = time.monotonic()
    assert "nothing came for 0.5 seconds" in refused(capsys, "mnist")
    assert time.monotonic() - began < 10


def test_a_damaged_file_is_made_anew_and_others_are_kept(server, tmp_path, capsys):
    assert run("mnist") == run("cifar10") == 0
    file = tmp_path / "data" / "mnist" / "t10k-labels-idx1-ubyte.gz"
    batch = tmp_path / "data" / "cifar10" / FOLDER / "test_batch"
    digests = [fingerprint.__wrapped__(tmp_path / "data" / name) for name in ("mnist", "cifar10")]
    for one in (file, batch):
        one.write_bytes(one.read_bytes()[:-3])
    del server.asked[:]
    assert run("mnist") == run("cifar10") == 0
    said = capsys.readouterr().out
    assert "t10k-labels-idx1-ubyte.gz in" in said
    assert said.count("another checksum, so made anew") == 2
    assert {*server.asked} == {file.name, "cifar-10-python.tar.gz"}
    again = [fingerprint.__wrapped__(tmp_path / "data" / name) for name in ("mnist", "cifar10")]
    assert again == digests


def test_an_unpacked_file_that_differs_from_its_archive_is_told(server, tmp_path, capsys):
    import gzip

    assert run("mnist") == 0
    file = tmp_path / "data" / "mnist" / "train-labels-idx1-ubyte.gz"
    plain = file.with_suffix("")
    plain.write_bytes(gzip.decompress(file.read_bytes()))
    assert run("mnist") == 0
    plain.write_bytes(b"other")
    assert f"{plain} is not what {file.name} beside it holds; remove it" in refused(capsys, "mnist")


def test_what_cannot_be_asked_for_is_one_sentence(server, tmp_path, capsys):
    assert "did you mean 'mnist'? (known: cifar10, cifar100, mnist" in refused(capsys, "mnits")
    assert "error: name the data, such as: python -m pipeline fetch cifar10" in refused(capsys)
    (tmp_path / "file").write_text("x")
    assert "cannot be written (Not a directory)" in refused(capsys, "mnist", "--to", "file/below")
    assert "cannot be written (File exists)" in refused(capsys, "mnist", "--to", "file")


def test_where_nothing_can_be_fetched_that_is_said(capsys):
    from tests.toy.table import CATALOG as TOY

    for words in ([], ["mnist"]):
        assert main(["fetch", *words], root=lambda: TOY) == 2
        assert "(known: none)" in capsys.readouterr().err


def test_every_data_set_has_its_class_in_torchvision_and_names_its_files():
    for name, known in fetch.SETS.items():
        kind = fetch._torchvision(known.kind)
        files = [file for file, _ in getattr(kind, "resources", ())] or [kind.filename]
        assert known.files == CATALOG.fetches[name].files == tuple(files)
        assert fetch._wanted(kind)


# --- plans without the data ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "recipe", "name"),
    [
        ("mnist32", "wavelet", "mnist"),
        ("mnist64", "wavelet", "mnist"),
        ("cifar10-4096", "icr", "cifar10"),
        ("cifar10", "wavelet", "cifar10"),
    ],
)
def test_a_plan_says_what_to_fetch_and_a_run_asks_for_it(
    tmp_path, monkeypatch, capsys, preset, recipe, name
):
    monkeypatch.chdir(tmp_path)
    words = [recipe, "--preset", preset, "--store", "store"]
    assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    assert f"data/{name} is not there: get it with python -m pipeline fetch {name}, which" in said
    assert " cached, " in said
    assert main(["run", *words, "--dry-run"]) == 0
    capsys.readouterr()
    assert main(["run", *words]) == 2
    error = capsys.readouterr().err
    assert f"error: {tmp_path / 'data' / name} is not there: get it with python -m pip" in error
    assert not (tmp_path / "store").exists()


def test_other_places_that_are_not_there_are_refused_by_plans_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["wavelet", "--preset", "mnist32", "data.path=elsewhere", "--store", "store"]
    assert main(["plan", *words]) == 2
    assert "elsewhere do not exist" in capsys.readouterr().err


def test_only_the_usual_folder_is_said_to_be_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usual = prepare.PrepareSettings(dataset="mnist", path="data/mnist")
    assert "fetch mnist" in fetching.absent(CATALOG, usual)
    assert fetching.absent(CATALOG, usual.revised(path="elsewhere")) is None
    assert fetching.absent(CATALOG, prepare.PrepareSettings()) is None
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    assert fetching.absent(CATALOG, usual) is None
    with pytest.raises(UsageError, match="unknown data 'x'"):
        fetching.fetch(CATALOG, "x", None)
