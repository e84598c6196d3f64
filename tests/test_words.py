"""The project's names are the field's: words that it once had for itself do not come back."""

import ast
import re
import subprocess

import pytest
from conftest import ROOT

# Names that only this project had for a thing.
PRIVATE_NAMES = set(
    "Damaged Diverged Game HubError Novelty RowFile WorldWriter accept_changes admit agreed apart as_kept asked "
    "at_ends batches_of begun beside breaches by_row canaries continued_logprobs converse declared_shardings dice "
    "ends_B fit_to_show fitting found framed gathered goes_on guards inert initialise laid layout_of least_votes "
    "least_words listening longest_common lying most_attempts most_bad most_words moving our_template own_shots "
    "places_of probed readout release_engine restart_from row_number said save_every sealed seed_shots "
    "segments_BT set_aside settle shown_prompts skip_nonfinite stop_within supervised their_shape to_the_end told "
    "unframed up_to wave within write_sealed".split()
)
PRIVATE_PHRASES = (
    "set aside",
    "made anew",
    "goes on from",
    "said aloud",
    "the last bit of",
    "reckoned",
    "dice judge",
    "votes that can be read",
    "taken apart",
)
# Strings that look like such names and stay, each with the reason.
KEPT = {
    "selfreward_jax/runs/workspace.py": "base, candidates, canaries and judgements are hashed into random keys",
    "selfreward_jax/worlds/toy/generator.py": "'told' is a word of the toy world's judgments, which models learn",
}


def tracked(*patterns):
    names = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True).stdout.split()
    return [name for name in names if (ROOT / name).exists()]


SOURCES = tracked("selfreward_jax/*.py", "benchmarks/*.py", "configs/*.py", "docs/*.py")
PAGES = [name for name in tracked("*.md", "*.sh", "*.sbatch", "*.yaml", "*.ipynb") if name != "CHANGELOG.md"]


def defined(tree):
    """The names that a file defines: functions, classes, parameters, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@pytest.mark.skipif(not SOURCES, reason="not a git checkout")
def test_no_private_name_is_defined():
    for name in SOURCES:
        private = {n for n in defined(ast.parse((ROOT / name).read_text())) if n.lstrip("_") in PRIVATE_NAMES}
        assert not private, name


def test_no_private_phrase_is_written():
    for name in [*SOURCES, *PAGES]:
        text = re.sub(r"\s+", " ", (ROOT / name).read_text()).lower()
        assert [phrase for phrase in PRIVATE_PHRASES if phrase in text] == [], name


def test_what_is_kept_is_there_for_its_reason():
    for name, reason in KEPT.items():
        text = (ROOT / name).read_text()
        assert re.search(r"canaries|told", text), (name, reason)
