"""What publishers report on the suites for their own instruction-tuned models, to stand beside a run's figures.

Harness, prompt, metric and length differ between publishers, by up to tens of points for one model: compare M0 to M3
with each other, and these figures with nothing but their order of size.
"""

# By layers, width and width of the MLP, which a cut vocabulary leaves as they are; percent.
FIGURES: dict[tuple[int, int, int], tuple[str, dict[str, float]]] = {
    (18, 640, 2048): ("Gemma 3 270M IT", {"ifeval": 51.2}),
    (30, 576, 1536): ("SmolLM2 135M Instruct", {"ifeval": 29.9, "gsm8k": 1.4}),
    (32, 960, 2560): ("SmolLM2 360M Instruct", {"ifeval": 41.0, "gsm8k": 7.4}),
    (24, 896, 4864): ("Qwen2.5 0.5B Instruct", {"ifeval": 27.9, "gsm8k": 49.6}),
    (28, 1024, 3072): ("Qwen3 0.6B", {"ifeval": 54.5}),
    (16, 2048, 8192): ("Llama 3.2 1B Instruct", {"ifeval": 59.5, "gsm8k": 44.4}),
    (28, 3072, 8192): ("Llama 3.2 3B Instruct", {"ifeval": 77.4, "gsm8k": 77.7}),
}


def published_figure(suite: str, shape: tuple[int, int, int]) -> list[str | float] | None:
    """An instruction-tuned model of this shape and its published share of a suite, in [0, 1]; None if not known."""
    name, figures = FIGURES.get(shape, ("", {}))
    return [name, figures[suite] / 100] if suite in figures else None
