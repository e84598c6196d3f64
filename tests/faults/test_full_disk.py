"""A full disk, a folder that cannot be written: one line, nothing is lost, the same command resumes."""

import contextlib
import errno
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, arguments, assert_mentions, micro, refused, run
from test_loop import contents

from selfreward_jax import config, loop, storage
from selfreward_jax.train import checkpoints

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from selfreward_jax import main
sys.exit(main.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_every_write_may_be_refused_once(finished_run, tmp_path, monkeypatch, capsys):
    """The first time that a file, or a checkpoint, is written, the disk is full: the run ends, and is started again."""
    workdir, refused = tmp_path / "run", []
    append, write, save = storage.append, storage.write_atomic, checkpoints.ocp.save

    def refuse(path):
        name = re.sub(r"steps/\d+", "steps/N", str(path).removeprefix(str(workdir)))
        if str(workdir) in str(path) and name not in refused:
            refused.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half_written(write, path, data):
        with storage.translate_os_errors(path, len(data)):
            try:
                refuse(path)
            except OSError:
                path.parent.mkdir(parents=True, exist_ok=True)
                torn = path if write is append else path.with_name(path.name + ".tmp")
                with torn.open("ab") as f:
                    f.write(data[: len(data) // 2])
                raise
        write(path, data)

    def no_room(path, tree, **options):
        with contextlib.suppress(OSError):
            refuse(path)
            return save(path, tree, **options)
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    lines = []
    for module in (storage, storage.files):  # callers use the first, and the second itself
        monkeypatch.setattr(module, "append", lambda path, data: half_written(append, path, data))
        monkeypatch.setattr(module, "write_atomic", lambda path, data: half_written(write, path, data))
    monkeypatch.setattr(checkpoints.ocp, "save", no_room)
    for _ in range(200):
        try:
            loop.run(micro(2), str(workdir))
            break
        except (storage.StorageError, config.ConfigError) as error:
            lines.append(str(error))
    refused.remove("/report.html")  # which ends no run
    assert_mentions(capsys.readouterr().err, "report.html", "StorageError")
    assert len(lines) == len(refused)
    for name, line in zip(refused, lines, strict=True):
        assert_mentions(re.sub(r"steps/\d+", "steps/N", line), f"{workdir}{name}", os.strerror(errno.ENOSPC))
    for name in (
        "responses.jsonl.partial",
        "pairs.jsonl",
        "pairs.manifest.json",
        "checkpoint",
        "steps/N",
        "eval.json",
    ):
        assert any(r.endswith(name) for r in refused), name
    assert "/summary.json" in refused
    assert contents(workdir) == contents(finished_run)


def limited(size, workdir):
    argv = [sys.executable, "-c", LIMITED, str(size), *arguments(workdir, 2)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_a_quota_on_files_ends_every_stage_in_one_line(finished_run, tmp_path):
    workdir, seen = tmp_path / "run", []
    for size in (64, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18):
        done = limited(size, workdir)
        assert done.returncode == 2, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
        seen.append(done.stderr.strip().splitlines()[-1])
        assert os.strerror(errno.EFBIG) in seen[-1]
        assert str(workdir) in seen[-1]
    assert len({re.search(rf"{re.escape(str(workdir))}\S*", line)[0] for line in seen}) >= 3
    run(workdir, 2)
    assert contents(workdir) == contents(finished_run)


def test_a_read_only_folder_is_refused(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "run").mkdir(mode=0o500)
    assert_mentions(refused(*arguments(tmp_path / "run", 1)), tmp_path / "run", os.strerror(errno.EACCES))


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    assert_mentions(refused(*arguments(tmp_path / "run", 1)), tmp_path / "run")
