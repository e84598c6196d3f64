"""Training metrics for other programs: TensorBoard event files, and Weights & Biases if report.wandb is set.

events.jsonl holds the same metrics and is always written.
"""

import contextlib
import importlib
import time
from collections.abc import Callable, Iterator, Mapping

from etils import epath
from ml_collections import ConfigDict
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from selfreward_jax import storage
from selfreward_jax.parallel import processes

# TRL's names of our metrics, so that runs of both share a chart.
TRL_NAMES = {
    "lr": "learning_rate",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "chosen_logprob": "logps/chosen",
    "rejected_logprob": "logps/rejected",
    "nll": "nll_loss",
    "dpo": "dpo_loss",
    "replay": "replay_loss",
}
FLUSH_EVERY = 5.0  # seconds

WriteMetrics = Callable[[int, Mapping[str, float]], None]


@contextlib.contextmanager
def metric_writer(cfg: ConfigDict, workdir: epath.Path, name: str, step: int) -> Iterator[WriteMetrics]:
    """A function that writes the metrics of a step, for training that starts or resumes at `step`."""
    with contextlib.ExitStack() as stack:
        sinks = []
        if processes.is_primary():
            if cfg.report.tensorboard and not storage.is_remote(workdir):
                sinks.append(stack.enter_context(_events(workdir / "tensorboard" / name, step)))
            if cfg.report.wandb:
                sinks.append(stack.enter_context(_wandb(cfg, workdir, name)))

        def write(step: int, metrics: Mapping[str, float]) -> None:
            named = {f"train/{TRL_NAMES.get(key, key)}": value for key, value in metrics.items()}
            for sink in sinks:
                sink(step, named)

        yield write


@contextlib.contextmanager
def _events(folder: epath.Path, step: int) -> Iterator[WriteMetrics]:
    """A TensorBoard event file. Each start of a run writes a new one; of repeated steps the later ones count."""
    flushed = time.monotonic()
    with storage.translate_os_errors(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
        file = EventsWriter(str(folder / "events"), f".{len(list(folder.iterdir()))}")  # two starts may share a second
        file.write_event(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))

    def write(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal flushed
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()])
        with storage.translate_os_errors(folder, summary.ByteSize()):
            file.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            if time.monotonic() - flushed > FLUSH_EVERY:
                file.flush()
                flushed = time.monotonic()

    try:
        yield write
    finally:
        with storage.translate_os_errors(folder, 0):
            file.close()


@contextlib.contextmanager
def _wandb(cfg: ConfigDict, workdir: epath.Path, name: str) -> Iterator[WriteMetrics]:
    """A run of Weights & Biases. If it fails, the training continues; events.jsonl has all metrics."""
    failed = False

    @contextlib.contextmanager
    def warn_once() -> Iterator[None]:
        nonlocal failed
        try:
            yield
        except Exception as error:
            if not failed:
                storage.warn(f"{name}: report.wandb failed, metrics are not sent ({type(error).__name__}: {error})")
            failed = True

    wandb_run = None
    with warn_once():
        options = {"group": workdir.name, "name": f"{workdir.name} {name}", "config": cfg.to_dict()}
        wandb_run = importlib.import_module("wandb").init(project=cfg.report.wandb, **options)

    def write(step: int, metrics: Mapping[str, float]) -> None:
        if not failed:
            with warn_once():
                wandb_run.log(dict(metrics), step=step)

    yield write
    if wandb_run is not None:
        with warn_once():
            wandb_run.finish()
