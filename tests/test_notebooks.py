"""The notebooks: their format, their set-up in Colab and elsewhere, and that they run with the smallest preset."""

import ast
import fnmatch
import glob
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
import types

import nbclient
import nbformat
import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
COLAB = REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github") + "/blob/main/notebooks/"
SHARED = ["setup-text", "setup", "device-text", "device", "drive-text", "drive"]
GPU = "GPU 0: Tesla T4 (UUID: GPU-0)\n"


def cells(path):
    return json.loads(path.read_text())["cells"]


def source(cell_id):
    return next("".join(c["source"]) for c in cells(NOTEBOOKS[0]) if c["id"] == cell_id)


class Machine:
    """What the notebooks see of a machine: its devices and nvidia-smi. It keeps the commands that they run."""

    def __init__(self):
        self.devices, self.gpus, self.commands = [], None, []

    def glob(self, pattern):
        return [d for d in self.devices if fnmatch.fnmatch(d, pattern)]

    def run(self, words, **options):
        if words[0] == "nvidia-smi":
            if self.gpus is None:
                raise FileNotFoundError("nvidia-smi")
            return subprocess.CompletedProcess(words, *self.gpus)
        assert options == {"check": True}  # else a failure would go unnoticed
        self.commands.append(words)
        return subprocess.CompletedProcess(words, 0)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine without accelerator, outside of Colab, in an empty folder."""
    machine = Machine()
    monkeypatch.setattr(glob, "glob", machine.glob)
    monkeypatch.setattr(subprocess, "run", machine.run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    for name in ("TPU_WORKER_ID", "COLAB_TPU_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.chdir(tmp_path)
    return machine


@pytest.fixture
def colab(machine, monkeypatch):
    """The same in Colab. Returns the folders at which the notebooks mount the Drive."""
    mounted = []
    module = types.ModuleType("google.colab")
    module.drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", module)
    return mounted


def run_cell(cell_id, names=None):
    names = {} if names is None else names
    exec(source(cell_id), names)
    return names


def test_the_notebooks_exist():
    assert [path.stem for path in NOTEBOOKS] == ["colab_tpu", "reading_a_run", "tour"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_format_of_a_notebook(path):
    book = json.loads(path.read_text())
    nbformat.validate(nbformat.from_dict(book))
    first, code = book["cells"][0], [c for c in book["cells"] if c["cell_type"] == "code"]
    assert f"({COLAB}{path.name})" in "".join(first["source"])
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code)
    for cell in code:
        ast.parse("".join(cell["source"]))
    assert "jax.devices()" in "".join(code[1]["source"])  # after the set-up
    assert sum("assert " in "".join(c["source"]) for c in code) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_set_up_is_the_same_in_all_notebooks(path):
    assert cells(path)[1:7] == cells(NOTEBOOKS[0])[1:7]
    assert [c["id"] for c in cells(path)[1:7]] == SHARED


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_address_of_the_repository_is_a_constant(path):
    """Nowhere else than in the badge is it repeated."""
    assert f'\nREPOSITORY = "{REPOSITORY}"\n' in source("setup")
    assert path.read_text().count(REPOSITORY.removeprefix("https://github.com/")) == 2


@pytest.mark.parametrize(
    ("environment", "devices", "libtpu", "gpus", "found"),
    [
        ({}, [], True, None, ""),
        ({"TPU_WORKER_ID": "0"}, [], False, None, "tpu"),
        ({"COLAB_TPU_ADDR": "10.0.0.2:8470"}, [], False, None, "tpu"),
        ({"TPU_WORKER_ID": "", "COLAB_TPU_ADDR": ""}, [], False, None, ""),
        ({}, ["/dev/accel0", "/dev/accel1"], False, None, "tpu"),
        ({}, ["/dev/accel", "/dev/accel/accel0"], True, None, ""),  # a laptop's accelerator
        ({}, ["/dev/vfio/0", "/dev/vfio/vfio"], True, None, "tpu"),
        ({}, ["/dev/vfio/0", "/dev/vfio/vfio"], False, None, ""),  # another device
        ({}, ["/dev/vfio/vfio"], True, None, ""),  # no device at all
        ({}, [], False, (0, GPU), "cuda"),
        ({}, [], False, (0, "No devices found.\n"), ""),
        ({}, [], False, (9, "GPU access blocked by the operating system\n"), ""),
    ],
)
def test_which_accelerator_a_machine_has(machine, monkeypatch, environment, devices, libtpu, gpus, found):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if libtpu and name == "libtpu" else None)
    machine.devices, machine.gpus = devices, gpus
    assert run_cell("setup")["accelerator"] == found
    assert machine.commands == []  # nothing is installed outside of Colab


def test_a_gpu_that_does_not_answer_is_none(machine, monkeypatch):
    names = run_cell("setup")

    def hang(words, timeout, **_):
        raise subprocess.TimeoutExpired(words, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert names["find_accelerator"]() == ""


@pytest.mark.parametrize(("environment", "gpus", "extra"), [
    ({}, None, ""),
    ({"TPU_WORKER_ID": "0"}, None, "[tpu]"),
    ({}, (0, GPU), "[cuda]"),
])  # fmt: skip
def test_colab_gets_the_project_with_the_right_extra(machine, colab, monkeypatch, tmp_path, environment, gpus, extra):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    machine.gpus = gpus
    run_cell("setup")
    clone, install = machine.commands
    assert clone == ["git", "clone", "-q", "--depth=1", REPOSITORY, "selfreward_jax"]
    assert install == [sys.executable, "-m", "pip", "install", "-q", f"./selfreward_jax{extra}"]
    assert extra == "" or extra.strip("[]") in PROJECT["optional-dependencies"]

    (tmp_path / "selfreward_jax").mkdir()
    (tmp_path / "selfreward_jax" / "pyproject.toml").touch()
    run_cell("setup")  # again, in the same machine
    assert machine.commands[2:] == [install]


def test_a_notebook_of_a_clone_uses_the_clone(machine, monkeypatch):
    for folder in (ROOT / "notebooks", ROOT):
        monkeypatch.chdir(folder)
        run_cell("setup")
        assert sys.path.pop(0) == str(ROOT)


@pytest.mark.parametrize(
    ("accelerator", "platform", "wanted", "parts"),
    [
        ("", "cpu", "", None),
        ("cuda", "cpu", "", ("an NVIDIA GPU", "jax[cuda12]")),
        ("cuda", "cpu", "cuda,cpu", ("an NVIDIA GPU", "jax[cuda12]")),
        ("cuda", "cpu", "cpu", None),
        ("cuda", "gpu", "", None),
        ("tpu", "cpu", "", ("a TPU", "jax[tpu]")),
        ("tpu", "cpu", "cpu", None),
        ("tpu", "tpu", "", None),
    ],
)
def test_the_cpu_is_refused_where_there_is_an_accelerator(machine, monkeypatch, accelerator, platform, wanted, parts):
    import jax

    kind = types.SimpleNamespace(platform=platform, device_kind="a device")
    monkeypatch.setattr(jax, "devices", lambda: [kind])
    monkeypatch.setenv("JAX_PLATFORMS", wanted)
    names = run_cell("setup")
    names["accelerator"] = accelerator
    if parts is None:
        run_cell("device", names)
        assert names["device"] is kind
        return
    with pytest.raises(names["Stop"]) as stop:
        run_cell("device", names)
    line = str(stop.value)
    for part in (*parts, "restart the runtime", "JAX_PLATFORMS=cpu"):
        assert part in line
    assert stop.value._render_traceback_() == [line]
    assert "\n" not in line
    # What it says to install is what the extra installs.
    assert any(r.startswith(f"{parts[1]}>") for r in PROJECT["optional-dependencies"][accelerator])


def test_a_command_that_fails_stops_the_notebook(machine, capsys):
    names = run_cell("device", run_cell("setup"))
    names["command"]("--version")
    with pytest.raises(names["Stop"], match="run this cell again"):
        names["command"]("report", "--workdir=nothing_here")
    assert "nothing_here" in capsys.readouterr().err


def test_runs_are_kept_on_the_drive_in_colab(machine, colab):
    names = run_cell("drive", run_cell("setup"))
    assert colab == ["/content/drive"]
    assert str(names["RUNS"]).startswith("/content/drive/MyDrive/")


def test_runs_are_kept_in_the_project_elsewhere(machine, monkeypatch, tmp_path):
    names = run_cell("drive", run_cell("setup"))
    assert names["RUNS"] == tmp_path / "runs"
    monkeypatch.chdir(ROOT / "notebooks")
    assert run_cell("drive", run_cell("setup"))["RUNS"] == ROOT / "runs"  # which git ignores


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("SELFREWARD_PRESET", "micro")
    monkeypatch.setenv("SELFREWARD_WORKDIR", str(tmp_path / "run"))
    book = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_a_refusal_is_shown_as_one_line(tmp_path, monkeypatch):
    """In a kernel, with a GPU in the machine and JAX for the CPU."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{GPU.strip()}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    book = nbformat.read(NOTEBOOKS[0], as_version=4)
    client = nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(ROOT / "notebooks")}})
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        client.execute()
    (cell,) = [c for c in book.cells if c["id"] == "device"]
    (lines,) = [output["traceback"] for output in cell.outputs if output["output_type"] == "error"]
    assert len(lines) == 1
    assert lines[0].startswith("This machine has an NVIDIA GPU, but JAX uses only the CPU")
