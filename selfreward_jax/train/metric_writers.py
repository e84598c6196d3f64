"""Training curves for other programs to show: TensorBoard's event files, and Weights & Biases if somebody asks for it.
What they show is in events.jsonl too, which is always written."""

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

# What TRL's trainers call it, so that runs of both lie in one chart.
NAMES = {
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

Add = Callable[[int, Mapping[str, float]], None]


@contextlib.contextmanager
def metric_writer(cfg: ConfigDict, workdir: epath.Path, name: str, step: int) -> Iterator[Add]:
    """Where the curves of a training go that begins, or goes on, at a step: a function that takes a step's values."""
    with contextlib.ExitStack() as stack:
        sinks = []
        if processes.is_primary():
            if cfg.report.tensorboard and not storage.is_remote(workdir):
                sinks.append(stack.enter_context(_events(workdir / "tensorboard" / name, step)))
            if cfg.report.wandb:
                sinks.append(stack.enter_context(_wandb(cfg, workdir, name)))

        def add(step: int, values: Mapping[str, float]) -> None:
            named = {f"train/{NAMES.get(key, key)}": value for key, value in values.items()}
            for sink in sinks:
                sink(step, named)

        yield add


@contextlib.contextmanager
def _events(folder: epath.Path, step: int) -> Iterator[Add]:
    """An event file, which every start of a run begins anew; of steps that are redone the later ones count."""
    flushed = time.monotonic()
    with storage.translate_os_errors(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
        file = EventsWriter(str(folder / "events"), f".{len(list(folder.iterdir()))}")  # two may begin in one second
        file.write_event(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))

    def add(step: int, values: Mapping[str, float]) -> None:
        nonlocal flushed
        found = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        with storage.translate_os_errors(folder, found.ByteSize()):
            file.write_event(Event(wall_time=time.time(), step=step, summary=found))
            if time.monotonic() - flushed > FLUSH_EVERY:
                file.flush()
                flushed = time.monotonic()

    try:
        yield add
    finally:
        with storage.translate_os_errors(folder, 0):
            file.close()


@contextlib.contextmanager
def _wandb(cfg: ConfigDict, workdir: epath.Path, name: str) -> Iterator[Add]:
    """What is sent elsewhere may fail: the run goes on, and events.jsonl has all of it."""
    told: list[str] = []

    @contextlib.contextmanager
    def tried() -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not told:
                storage.warn(f"{name}: report.wandb does not take the curves ({type(error).__name__}: {error})")
            told.append(name)

    sent = None
    with tried():
        how = {"group": workdir.name, "name": f"{workdir.name} {name}", "config": cfg.to_dict()}
        sent = importlib.import_module("wandb").init(project=cfg.report.wandb, **how)

    def add(step: int, values: Mapping[str, float]) -> None:
        if not told:
            with tried():
                sent.log(dict(values), step=step)

    yield add
    if sent is not None:
        with tried():
            sent.finish()
