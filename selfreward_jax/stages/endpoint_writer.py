"""A model behind an endpoint that writes the prompts of every round, as the paper's fixed writer does."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from selfreward_jax.evaluate.endpoint import NUM_WORKERS, Endpoint
from selfreward_jax.parallel.processes import broadcast_from_primary
from selfreward_jax.runs.run import Run
from selfreward_jax.sampling.engine import Completion, Request, SamplingParams


def open_endpoint(run: Run) -> Endpoint:
    """The endpoint of the settings, sampling as config.prompts says. Replies are cached in prompts_endpoint.jsonl.

    Raises:
      EndpointError: a setting cannot work.
    """
    settings, cache = run.cfg.prompts, run.workdir / "prompts_endpoint.jsonl"
    return Endpoint(run.cfg.endpoint, cache, temperature=settings.temperature, top_p=settings.top_p)


class EndpointWriter:
    """Writes prompts by requests to an endpoint. In a run of several processes the first one sends them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def fits(self, prompt: str, max_new_tokens: int) -> bool:
        """Always True: the server knows its own length, and a prompt beyond it gets no reply."""
        return True

    def generate(self, requests: Sequence[Request], sampling_params: SamplingParams, key: Any) -> list[Completion]:
        """One reply to each request; without a whole reply an unfinished one. The server draws its own random numbers.

        Raises:
          EndpointError: the endpoint refuses or fails, or endpoint.max_requests is reached.
        """
        replies: list[str | None] = []
        for start in range(0, len(requests), NUM_WORKERS):  # few at once, so that no other process waits for long
            few = requests[start : start + NUM_WORKERS]
            prompts, names = [str(request.prompt) for request in few], [request.id for request in few]
            ask = partial(self.endpoint.complete, prompts, sampling_params.max_new_tokens, names)
            replies += broadcast_from_primary(ask)
        return [
            Completion(request.id, 0, (reply or "").strip(), [], [], reply is not None)
            for request, reply in zip(requests, replies, strict=True)
        ]
