"""What a machine may have odd about it: GPUs, addresses, folders, locales, streams, limits."""

import ast
import io
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline import (
    address,
    apart,
    cluster,
    environment,
    gpus,
    provenance,
    rayfiles,
    session,
    sources,
    track,
)
from pipeline.__main__ import main
from pipeline.errors import UsageError
from pipeline.plan import Request
from pipeline.store import Store
from pipeline.track.uri import file_location, sqlite_path, sqlite_uri
from tests.inline import run_all
from tests.toy.table import CATALOG

ROOT = Path(__file__).parents[2]
UUIDS = ("GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3")


def command(*arguments, cwd=None, module="tests.toy", python=(), **variables):
    """The command line in a process of its own; None unsets a variable."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [sys.executable, *python, "-m", module, *map(str, arguments)],
        capture_output=True,
        cwd=cwd,
        env={name: value for name, value in env.items() if value is not None},
        timeout=60,
    )


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, ["0", "1", "2"]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("none", []),
        ("void,0", []),
        ("0", ["0"]),
        (" 2 , 0", ["2", "0"]),
        ("+1", ["1"]),
        ("0,-1,1", ["0"]),
        ("1,7,0", ["1"]),
        ("0,,1", ["0"]),
        ("1gpu,2x", ["1", "2"]),
        ("0,0", []),
        ("GPU-aaaa-1,GPU-cc", ["GPU-aaaa-1", "GPU-cc"]),
        ("GPU-aa", []),  # which of two?
        ("GPU-dddd", []),
        ("MIG-1234,MIG-5678", ["MIG-1234", "MIG-5678"]),
        ("MIG-GPU-aaaa-1/3/0", ["MIG-GPU-aaaa-1/3/0"]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(listed, expected):
    assert gpus.visible(listed, UUIDS) == expected


@pytest.mark.parametrize("listed", ["0", "0,1", "GPU-aaaa", "MIG-1234", "NoDevFiles", None])
def test_a_machine_without_driver_has_no_gpus(listed):
    assert gpus.visible(listed, ()) == []


def test_a_long_or_closed_tmpdir_gives_way_to_a_usual_place(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert rayfiles.ray_folder().moved == ""
    long = tmp_path / ("long" * 20)
    long.mkdir()
    for wrong, words in ((long, "too long"), (tmp_path / "none", "cannot be written")):
        monkeypatch.setenv("TMPDIR", str(wrong))
        folder = rayfiles.ray_folder()
        assert len(folder.path) <= rayfiles.LONGEST
        assert folder.moved.startswith(f"TMPDIR ({wrong})")
        if len(str(wrong)) <= rayfiles.LONGEST - 4:
            assert words in folder.moved
        monkeypatch.setattr(rayfiles, "USUAL", (str(tmp_path / "nor this"),))
        with pytest.raises(UsageError, match="set TMPDIR to a short folder"):
            rayfiles.ray_folder()
        monkeypatch.undo()
        monkeypatch.delenv("RAY_TMPDIR", raising=False)


def test_ray_tmpdir_counts_before_tmpdir(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none"))
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert rayfiles.ray_folder().moved.startswith("RAY_TMPDIR")


@pytest.mark.parametrize(
    ("option", "variable", "expected"),
    [
        (None, None, None),
        (None, "", None),
        (None, " ", None),
        (None, "local", None),
        (None, "h:1", "h:1"),
        ("g:2", "h:1", "g:2"),
        ("local", "h:1", None),
    ],
)
def test_the_address_option_counts_before_the_variable(option, variable, expected, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert address.given(option) == expected


@pytest.fixture
def listener():
    """A port at which something answers each word with what it is given."""
    sockets = []

    def start(answer):
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                sockets.append(connection)
                if answer:
                    connection.recv(64)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return server.getsockname()[1]

    yield start
    for opened in sockets:
        opened.close()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_refused_in_time(scheme):
    begun = time.monotonic()
    with pytest.raises(UsageError, match=r"no Ray cluster answers.*refused.*unset RAY_ADDRESS"):
        address.check_alive(f"{scheme}127.0.0.1:1", wait_seconds=1)
    assert time.monotonic() - begun < 5


def test_an_unknown_host_is_refused():
    with pytest.raises(UsageError, match="no Ray cluster answers"):
        address.check_alive("no-host.invalid:6379", wait_seconds=1)


def test_what_listens_but_is_no_ray_is_refused(listener, monkeypatch):
    with pytest.raises(UsageError, match="is not Ray"):
        address.check_alive(f"ray://127.0.0.1:{listener(b'HTTP/1.1 400 Bad Request')}")
    monkeypatch.setattr(address, "ANSWER_SECONDS", 0.5)
    for scheme in ("", "ray://"):
        with pytest.raises(UsageError, match="did not answer in time"):
            address.check_alive(f"{scheme}127.0.0.1:{listener(b'')}")
    settings = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    address.check_alive(f"ray://127.0.0.1:{listener(settings)}")


def test_a_stale_address_is_one_sentence_without_lines_of_ray(tmp_path):
    begun = time.monotonic()
    process = command("run", "chain", "--store", tmp_path, RAY_ADDRESS="127.0.0.1:1")
    assert process.returncode == 2
    assert time.monotonic() - begun < 10
    assert process.stdout == b""
    assert process.stderr.decode().count("\n") == 1
    assert list(tmp_path.glob("runs/*")) == []


def test_mlflows_variable_counts_where_no_option_is_given(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert track.chosen_uri(None) is None
    for blank in ("", "  "):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", blank)
        assert track.chosen_uri(None) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert track.chosen_uri(None) == "http://host:5000"
    assert track.chosen_uri("http://other:1") == "http://other:1"
    store = Store(tmp_path)
    how = session.Options(track.chosen_uri(None))
    assert session.tracking_uri(store, how) == "http://host:5000"


@pytest.mark.parametrize("uri", ["databricks", "./mlruns", "file:///tmp/mlruns", "htp://host:1"])
def test_an_unusable_mlflow_variable_is_named(uri, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["run", "chain", "--store", str(tmp_path)], lambda: CATALOG) == 2
    assert "MLFLOW_TRACKING_URI" in capsys.readouterr().err
    assert main(["doctor", "--store", str(tmp_path)], lambda: CATALOG) == 2
    assert "MLFLOW_TRACKING_URI" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a b", "ha#sh", "per%41cent", "q?m", "all #?%20 ü"])
def test_a_store_of_any_name_is_found_by_mlflow(name, tmp_path):
    sqlalchemy = pytest.importorskip("sqlalchemy")
    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    uri = sqlite_uri(path)
    assert sqlite_path(uri) == path
    with sqlalchemy.create_engine(uri).connect() as connection:
        connection.execute(sqlalchemy.text("create table t (x int)"))
    assert path.is_file()
    from mlflow.utils.file_utils import local_file_uri_to_path

    assert local_file_uri_to_path(file_location(path)) == str(path)


def test_a_store_whose_path_is_no_text_is_refused(tmp_path):
    name = os.fsencode(tmp_path) + b"/b\xff"
    process = command("run", "chain", "--store", os.fsdecode(name))
    assert process.returncode == 2
    assert b"no text in UTF-8" in process.stderr


def test_a_full_disk_is_told_before_work(tmp_path, monkeypatch, capsys):
    usage = environment.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    assert main(["run", "chain", "--store", str(tmp_path)], lambda: CATALOG) == 2
    said = capsys.readouterr().err
    assert f"the disk of store {tmp_path} is full" in said
    assert "1.0 MiB are free" in said
    assert list(tmp_path.glob("runs/*")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_disk_that_is_full_in_truth(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        (tmp_path / "fill").write_bytes(bytes(1 << 20))
        process = command("run", "chain", "--store", tmp_path / "store")
        assert process.returncode == 2
        assert process.stderr.decode().count("\n") == 1
        assert b"is full: 0.0 MiB" in process.stderr
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_errors_of_the_machine_are_sentences(capsys, monkeypatch):
    def full(root, options):
        raise OSError(28, "No space left on device", "/store/x")

    from pipeline import commands

    monkeypatch.setattr(commands, "COMMANDS", {"runs": full})
    assert main(["runs"], lambda: CATALOG) == 2
    assert capsys.readouterr().err.startswith("error: /store/x: No space left on device; free")
    assert environment.sentence(FileNotFoundError(2, "No such file")) is None


def test_a_removed_working_folder_is_one_sentence(tmp_path):
    script = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.executable, sys.argv[1:])"
    folder = tmp_path / "gone"
    folder.mkdir()
    process = subprocess.run(
        [sys.executable, "-c", script, sys.executable, "-m", "tests.toy", "plan", "chain"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    assert process.stderr.startswith("error: the working folder cannot be used")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store with a run whose scores have a standard error, shown behind a sign of its own."""
    folder = tmp_path_factory.mktemp("finished") / "ümlaut ±"
    store = Store(folder)
    artifacts = run_all(CATALOG, store, Request("chain"))
    from pipeline import plan as planning
    from pipeline import record

    plan = planning.make(CATALOG, store, Request("chain"))
    data = record._new("20260101-000000-chain-0000", plan, ["±"])
    for node in data["nodes"].values():
        node["state"] = "done"
    store.write_run(data["id"], data | {"state": "finished", "command": "python ± ✓ \udcff"})
    assert artifacts
    return folder


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"python +- + \xff"),
        ({"PYTHONIOENCODING": "ascii:strict"}, b"python +- + \xff"),
        ({"PYTHONIOENCODING": "latin-1"}, b"python \xb1 + \xff"),
        ({"LC_ALL": "C"}, "python ± ✓ ".encode()),
        ({"LC_ALL": "POSIX"}, "python ± ✓ ".encode()),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"python +- + "),
    ],
)
def test_terminals_show_what_they_can(variables, shown, finished):
    clean = {"PYTHONUTF8": None, "PYTHONIOENCODING": None, "LC_ALL": None}
    process = command("show", "--store", finished, **clean | variables)
    assert process.returncode == 0, process.stderr
    assert shown in process.stdout
    assert process.stderr == b""


def text_calls(tree):
    """Calls that read or write text without saying in which encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        words = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in words or None in words:
            continue
        if name in ("read_text", "write_text") or {"text", "universal_newlines"} & words.keys():
            yield node
        elif name in ("open", "fdopen"):
            own = isinstance(function, ast.Attribute) and name == "open"
            mode = words.get("mode", next(iter(node.args[0 if own else 1 :]), None))
            text = mode.value if isinstance(mode, ast.Constant) else None
            if (isinstance(text, str) and "b" not in text and set(text) <= set("rwaxt+")) or (
                mode is None and not own
            ):
                yield node


@pytest.mark.parametrize("package", ["pipeline", "stages", "sweeps"])
def test_text_files_have_an_encoding(package):
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for call in text_calls(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("path.read_text()", True),
        ("path.write_text(x, encoding='utf-8')", False),
        ("open(p)", True),
        ("open(p, 'rb')", False),
        ("path.open('a')", True),
        ("path.open('wb')", False),
        ("store.open(stage, key)", False),
        ("os.fdopen(1, 'w')", True),
        ("run(c, text=True)", True),
    ],
)
def test_the_search_for_encodings_finds_them(line, bad):
    assert bool(list(text_calls(ast.parse(line)))) is bad


@pytest.mark.parametrize("level", ["1", "2"])
def test_optimised_python_does_the_same(level, tmp_path):
    script = (
        "from pipeline.sources import closure; "
        "print(closure(['stages.training.train', 'stages.methods.stein']))"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ
        | {"PYTHONOPTIMIZE": level, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = sources.closure(["stages.training.train", "stages.methods.stein"])
    assert ast.literal_eval(process.stdout) == expected
    for arguments in (["--help"], ["plan", "full"], ["config", "full"]):
        module = command(*arguments, module="pipeline", PYTHONOPTIMIZE=level, cwd=tmp_path)
        plain = command(*arguments, module="pipeline", PYTHONOPTIMIZE=None, cwd=tmp_path)
        assert (module.returncode, module.stdout) == (0, plain.stdout), module.stderr


def test_nothing_depends_on_assert():
    for package in ("pipeline", "stages", "sweeps"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), path


def test_closed_streams_and_readers_that_leave(finished):
    shell = f"'{sys.executable}' -m tests.toy show --store '{finished}'"
    for tail in ("<&-", ">&-", "2>&-", "| head -n 1; exit ${PIPESTATUS[0]}"):
        process = subprocess.run(
            ["bash", "-c", f"{shell} {tail}"],
            capture_output=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert (process.returncode, process.stderr) == (0, b""), tail


def test_a_run_is_not_ended_by_a_reader_that_leaves():
    class Left(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "full")

    stream = environment.Unheard(Left())
    assert stream.write("words") == 5
    assert not stream.isatty()
    with pytest.raises(OSError, match="full"):
        environment.Unheard(Full()).write("words")


def test_proxies_do_not_lead_to_this_machine(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example.org")
    monkeypatch.delenv("NO_PROXY", raising=False)
    environment.prepare()
    hosts = os.environ["no_proxy"].split(",")
    assert hosts == ["inside.example.org", *environment.LOOPBACK]
    environment.prepare()
    assert os.environ["no_proxy"].split(",") == hosts


def test_too_few_open_files_are_told(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(UsageError, match=r"only 64 files .*ulimit -n"):
        environment.check_limits()


def test_no_home_is_no_matter(tmp_path):
    gone = "import pathlib; pathlib.Path.home = lambda: (_ for _ in ()).throw(RuntimeError('no'))"
    run = "import sys; from tests.toy.__main__ import main, root; sys.exit(main(root=root))"
    for variables in ({}, {"XDG_CACHE_HOME": "/proc/none"}, {"HOME": "/proc/none"}):
        process = subprocess.run(
            [sys.executable, "-c", f"{gone}; {run}", "plan", "chain", "--store", str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": ""} | variables,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"COLUMNS": "1"},
        {"COLUMNS": "junk"},
        {"NO_COLOR": "1"},
        {"TZ": "Mars/Phobos"},
        {"OMP_NUM_THREADS": "many"},
        {"LC_ALL": "xx_YY.none"},
    ],
)
def test_odd_variables_are_no_matter(variables, finished):
    for arguments in (["--help"], ["plan", "chain"], ["runs", "--store", finished]):
        process = command(*arguments, **variables)
        assert (process.returncode, process.stderr) == (0, b"")


def test_a_ray_that_does_not_start_is_not_one_that_was_lost(monkeypatch):
    pytest.importorskip("ray")
    tries = []

    def fail(error):
        def init(**options):
            tries.append(options["num_gpus"])
            raise error

        return init

    for error, count in ((RuntimeError("\n no raylet\nmore"), 2), (ValueError("no raylet"), 1)):
        tries.clear()
        monkeypatch.setattr("ray.init", fail(error))
        with pytest.raises(UsageError, match="Ray does not start on this machine: no raylet"):
            cluster.connect(None, 1, 0, ROOT)
        assert tries == [0] * count


def test_code_in_a_repository_of_something_else_has_no_revision(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "module.py").touch()
    assert provenance.git_state(installed) == {}
    assert provenance.code({}, 12) == "the installed package"


def test_a_command_beside_a_ray_of_this_process_runs_apart(monkeypatch, capsys):
    class Ray:
        @staticmethod
        def is_initialized():
            return True

    monkeypatch.setitem(sys.modules, "ray", Ray)
    assert apart.is_wanted("run")
    assert not apart.is_wanted("show")
    assert main(["run", "chain"], lambda: CATALOG) == 2
    assert "call ray.shutdown() first" in capsys.readouterr().err
    assert main(["run", "ful"]) == 2
    assert "did you mean 'full'" in capsys.readouterr().out
