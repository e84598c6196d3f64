"""Self-attention: every implementation against the reference, by itself and in a model on a mesh."""

import importlib
import os
import re
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import EXPERTS, GEMMA, OLMO
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from test_parallel import cudnn_in_jax

from selfreward_jax.llm.attention import KVSegment
from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.packed_texts import PackedTexts
from selfreward_jax.llm.parameters import abstract_params, param_specs
from selfreward_jax.llm.self_attention import attention, resolve_impl, self_attention, self_mask, to_cache_layout
from selfreward_jax.parallel.arrays import put
from selfreward_jax.parallel.hardware import Hardware, hardware_of
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import batch_sharding, param_shardings
from selfreward_jax.train import batches, text_rows
from selfreward_jax.train.logprobs import prefix_shared_logprobs

make_splash_mha = splash.make_splash_mha
ON_GPU = jax.default_backend() == "gpu"


class Case(NamedTuple):
    """The shapes of two rows; whether they hold several texts; the window."""

    length: int
    heads: int
    kv_heads: int
    head_dim: int
    packed: bool = False
    window: int | None = None


CASES = {
    "short": Case(19, 4, 4, 16),
    "grouped": Case(150, 6, 2, 64),
    "several_blocks": Case(300, 2, 1, 16),
    "packed": Case(150, 4, 2, 64, packed=True),
    "window": Case(260, 4, 2, 16, window=50),
    "packed_and_window": Case(150, 4, 2, 128, packed=True, window=7),
    "window_past_the_row": Case(40, 4, 2, 64, packed=True, window=400),
}


def inputs(case, dtype="float32"):
    """Queries, keys, values and segments: three texts a row, with padding after them in the first row."""
    rng = np.random.default_rng(0)
    sizes = (case.heads, case.kv_heads, case.kv_heads)
    qkv = [jnp.asarray(rng.normal(size=(2, case.length, n, case.head_dim)), dtype) for n in sizes]
    segments = np.zeros((2, case.length), np.int32)
    for row, end in enumerate((case.length * 4 // 5, case.length)):
        for number, cut in ((3, end), (2, end // 2), (1, end // 6)):
            segments[row, :cut] = number
    return qkv, segments if case.packed else None


@partial(jax.jit, static_argnames=("impl", "window"))
def run(impl, qkv, segments, window):
    """The output, and the gradients in q, k and v of a weighted sum of it."""

    def loss(qkv):
        out = self_attention(impl, *qkv, segments, window)
        by = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
        return jnp.sum(out * by), out

    grads, out = jax.grad(loss, has_aux=True)(qkv)
    return {"out": out, **dict(zip("qkv", grads, strict=True))}


def assert_close(actual, expected, atol):
    for name, x in expected.items():
        np.testing.assert_allclose(
            np.asarray(actual[name], np.float32), np.asarray(x, np.float32), atol=atol, rtol=0, err_msg=name
        )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("impl", ["xla", "splash"])
def test_values_and_gradients_equal_those_of_the_reference(impl, name):
    qkv, segments = inputs(CASES[name])
    actual, expected = (run(h, qkv, segments, CASES[name].window) for h in (impl, "reference"))
    assert_close(actual, expected, 2e-5)


@pytest.mark.parametrize(("prefix_len", "length"), [(40, 70), (128, 150), (300, 20)])
@pytest.mark.parametrize("impl", ["xla", "splash", "cudnn"])
def test_attention_with_a_prefix_equals_the_reference(impl, prefix_len, length, monkeypatch):
    """Two padded prompts, each followed by two texts: values and gradients, also in the prompts' keys and values."""
    (_, *prefix_kv), _ = inputs(Case(prefix_len, 4, 2, 16))
    (q, k, v), _ = inputs(Case(length, 4, 2, 16))
    own = [jnp.concatenate([x, x[::-1] + 1]) for x in (q, k, v)]
    mask = (jnp.arange(prefix_len)[None] < jnp.array([prefix_len, prefix_len // 3])[:, None])[:, None]
    by = np.random.default_rng(1).normal(size=own[0].shape).astype(np.float32)

    @partial(jax.jit, static_argnames="impl")
    def both(impl, own, prefix_kv):
        def loss(own, prefix_kv):
            out = attention(impl, *own, None, None, [KVSegment(*to_cache_layout(*prefix_kv), mask)])
            return jnp.sum(out * by), out

        grads, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(own, prefix_kv)
        return {"out": out, **{str(i): x for i, x in enumerate(jax.tree.leaves(grads))}}

    expected = both("reference", own, prefix_kv)
    called = []
    monkeypatch.setattr(splash, "make_splash_mha", lambda *a, **k: called.append("splash") or make_splash_mha(*a, **k))
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *a, **k: called.append("cudnn") or cudnn_in_jax(*a, **k)
    )
    assert_close(both(impl, own, prefix_kv), expected, 2e-5)
    assert set(called) == {impl} - {"xla"}


# Values up to 7; bfloat16 has 8 bits, the last of which is 0.03 there.
HALF = 0.06


def assert_half_is_close(impl, case):
    qkv, segments = inputs(case, "bfloat16")
    actual = run(impl, qkv, segments, case.window)
    assert {x.dtype for x in actual.values()} == {jnp.dtype("bfloat16")}
    expected = run("reference", [x.astype(jnp.float32) for x in qkv], segments, case.window)
    assert all(np.abs(x).max() > 1 for x in expected.values())
    assert_close(actual, expected, HALF)


@pytest.mark.parametrize("impl", ["xla", "splash"])
def test_bfloat16_differs_only_by_its_rounding(impl):
    assert_half_is_close(impl, CASES["packed"]._replace(window=30))


@pytest.mark.skipif(not ON_GPU, reason="cuDNN needs an NVIDIA GPU")
@pytest.mark.parametrize("name", CASES)
def test_cudnn_equals_the_reference(name):
    assert_half_is_close("cudnn", CASES[name])


@pytest.mark.skipif(not ON_GPU, reason="cuDNN needs an NVIDIA GPU")
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].packed])
def test_cudnn_by_text_equals_the_reference(name):
    case = CASES[name]
    qkv, segments = inputs(case, "bfloat16")
    is_token = (segments > 0)[:, :, None, None]
    zeroed = lambda run: jax.tree.map(lambda x: np.where(is_token, np.asarray(x, np.float32), 0), run)  # noqa: E731
    qkv = [x * is_token for x in qkv]  # padding attends to padding in the reference alone
    actual = zeroed(run("cudnn", qkv, packed_texts(segments), case.window))
    expected = zeroed(run("reference", [x.astype(jnp.float32) for x in qkv], segments, case.window))
    assert all(np.abs(x).max() > 1 for x in expected.values())
    assert_close(actual, expected, HALF)


@pytest.mark.skipif(not ON_GPU, reason="cuDNN needs an NVIDIA GPU")
def test_cudnn_after_a_prefix_equals_the_reference():
    """Two padded prompts, each followed by two texts, with gradients in the queries."""
    (_, *prompts), _ = inputs(Case(48, 4, 2, 64), "bfloat16")
    (q, k, v), _ = inputs(Case(80, 4, 2, 64), "bfloat16")
    q, k, v = (jnp.concatenate([x, x[::-1]]) for x in (q, k, v))
    mask = (jnp.arange(48)[None] < jnp.array([48, 16])[:, None])[:, None]

    def run(impl, dtype):
        def loss(q):
            past = KVSegment(*to_cache_layout(*(x.astype(dtype) for x in prompts)), mask)
            out = attention(impl, q, k.astype(dtype), v.astype(dtype), None, None, [past])
            return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)), out

        grads, out = jax.jit(jax.grad(loss, has_aux=True))(q.astype(dtype))
        return {"out": out, "q": grads}

    assert_close(run("cudnn", jnp.bfloat16), run("reference", jnp.float32), HALF)


def packed_texts(segments):
    """The same texts, and rows of their own for them."""
    lengths = [[int(np.sum(row == text)) for text in range(1, row.max() + 1)] for row in segments]
    examples = [Example([1] * n, [True] * n) for of_row in lengths for n in of_row]
    numbers = iter(range(len(examples)))
    rows = [[next(numbers) for _ in of_row] for of_row in lengths]
    of_texts = text_rows.text_rows([len(e.ids) for e in examples], rows, segments.shape[1])
    batch = batches.packed_batch(examples, rows, batches.PackedLayout(segments.shape[1], 0, of_texts))
    np.testing.assert_array_equal(batch["segments"], segments)
    return PackedTexts(*(batch[name] for name in ("segments", "text_slots", "text_places")))


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("rows", ["alone", "packed", "by text"])
def test_cudnn_has_a_bias_for_packed_rows_alone(rows, window, monkeypatch):
    """Read from the text that is lowered for CUDA, without a GPU. Texts in rows of their own have none."""
    cudnn = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    B, T = 2, 256
    q, kv = jnp.zeros((B, T, 4, 64), jnp.bfloat16), jnp.zeros((B, T, 2, 64), jnp.bfloat16)
    ids = np.repeat([[1] * 60 + [2] * 68 + [3] * 128], B, axis=0).astype(np.int32)
    segments = {"alone": None, "packed": jnp.array(ids), "by text": packed_texts(ids)}[rows]
    loss = lambda *qkv: self_attention("cudnn", *qkv, segments, window).astype(jnp.float32).sum()  # noqa: E731
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, kv, kv).lower(lowering_platforms=("cuda",))
    bias, calls = "ScaleBias" if rows == "packed" else "", len(segments.slots) if rows == "by text" else 1
    assert Counter(re.findall(r"__cudnn\$(\w+)", lowered.as_text())) == {
        f"fmha{bias}Softmax": calls,
        f"fmha{bias}SoftmaxBackward": calls,
    }
    assert bool(re.search(rf"tensor<\d+x\d+x{T}x{T}x", lowered.as_text())) == (rows == "packed")
    mask = "PADDING_CAUSAL" if rows == "by text" else "CAUSAL"  # lengths let it skip padding
    assert rows == "packed" or set(re.findall(r"mask_type\\22: \\22(\w+)", lowered.as_text())) == {mask}
    assert "scatter" not in lowered.as_text()  # gradients are gathered


def test_a_pair_shares_its_prompt_with_cudnn(monkeypatch):
    """Read from the text that is lowered for CUDA: lengths, no bias, no scatter, also for the prompt's gradients."""
    cudnn = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    S, T = 96, 32
    q, kv = jnp.zeros((4, T, 4, 64), jnp.bfloat16), jnp.zeros((4, T, 2, 64), jnp.bfloat16)
    prompts = jnp.zeros((2, 2, S, 64), jnp.bfloat16)
    mask = (jnp.arange(S) < jnp.array([[96], [10]]))[:, None]

    def loss(q, k, v, of_prompts):
        past = KVSegment(of_prompts.swapaxes(2, 3), of_prompts, mask)
        return attention("cudnn", q, k, v, None, None, [past]).astype(jnp.float32).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).trace(q, kv, kv, prompts)
    text = gradients.lower(lowering_platforms=("cuda",)).as_text()
    assert re.findall(r"__cudnn\$(\w+)", text) == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
    assert set(re.findall(r"mask_type\\22: \\22(\w+)", text)) == {"PADDING_CAUSAL"}
    assert not re.search(rf"x{S + T}x{S + T}x", text)
    assert "scatter" not in text


@pytest.mark.skipif(ON_GPU, reason="needs a machine without a GPU")
def test_cudnn_is_refused_without_a_gpu():
    qkv, _ = inputs(CASES["short"], "bfloat16")
    with pytest.raises(RuntimeError, match="cuDNN"):
        self_attention("cudnn", *qkv, None, None)


@pytest.mark.parametrize("impl", ["reference", "xla", "splash"])
def test_with_a_window_of_one_each_token_gets_its_own_value(impl):
    (q, k, v), _ = inputs(CASES["grouped"])
    out = jax.jit(partial(self_attention, impl, window=1))(q, k, v, segment_ids_BT=None)
    np.testing.assert_allclose(out, np.repeat(v, 3, axis=2), atol=1e-6)  # two value heads for six query heads


def test_a_mask_of_two_texts_and_a_window_by_hand():
    segments = np.array([[1, 1, 1, 2, 2, 0]])
    expected = """
        x.....
        xx....
        .xx...
        ...x..
        ...xx.
        .....x
    """
    mask = ["".join(".x"[int(x)] for x in row) for row in self_mask(6, segments, 2)[0]]
    assert mask == expected.split()
    alone = ["".join(".x"[int(x)] for x in row) for row in self_mask(4, None, 3)[0]]
    assert alone == ["x...", "xx..", "xxx.", ".xxx"]


@pytest.mark.parametrize(
    ("attention_impl", "device", "dtype", "expected"),
    [
        ("auto", ("cpu", ""), "float32", "reference"),
        ("auto", ("cpu", ""), "bfloat16", "reference"),
        ("auto", ("tpu", ""), "float32", "reference"),
        ("auto", ("tpu", ""), "bfloat16", "splash"),
        ("auto", ("gpu", "9.0"), "bfloat16", "cudnn"),
        ("auto", ("gpu", "8.0"), "float16", "cudnn"),
        ("auto", ("gpu", "10.0"), "float32", "xla"),
        ("auto", ("gpu", "7.5"), "bfloat16", "reference"),  # a T4
        ("auto", ("gpu", "gfx942"), "bfloat16", "reference"),  # of AMD
        ("xla", ("tpu", ""), "bfloat16", "xla"),
        ("splash", ("cpu", ""), "float32", "splash"),
    ],
)
def test_auto_depends_on_the_device_and_dtype(attention_impl, device, dtype, expected):
    platform, capability = device
    hardware = hardware_of(SimpleNamespace(platform=platform, compute_capability=capability))
    assert resolve_impl(attention_impl, hardware, dtype) == expected


def test_large_heads_have_no_cudnn_kernel():
    assert resolve_impl("auto", Hardware("gpu", (9, 0)), "bfloat16", 256) == "xla"


# --- in a model ----------------------------------------------------------------------------------------------------

CFG = DecoderConfig(vocab_size=48, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24)
ROWS = 4


def model_inputs():
    """Tokens, and the positions and segments of packed rows."""
    tokens = np.random.default_rng(1).integers(0, 48, (ROWS, 21)).astype(np.int32)
    segments = np.repeat([[1] * 8 + [2] * 9 + [0] * 4], ROWS, axis=0).astype(np.int32)
    positions = np.repeat([[*range(8), *range(9), *[0] * 4]], ROWS, axis=0).astype(np.int32)
    return tokens, {"positions_BT": positions, "segment_ids_BT": segments}


def logits_and_gradients(cfg, mesh, packed):
    """Logits and gradients on a mesh; the weights do not depend on it."""
    declared = param_specs(cfg)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype("f"), abstract_params(declared, "float32"))
    params = jax.tree.map(put, params, param_shardings(declared, mesh))
    tokens, more = jax.tree.map(lambda x: put(x, batch_sharding(mesh, 2)), model_inputs())

    def loss(params):
        logits = Decoder(cfg).apply({"params": params}, tokens, **(more if packed else {}))
        return jnp.mean(jax.nn.log_softmax(logits)[..., 5]), logits

    with jax.set_mesh(mesh):
        return jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params))


def prefix_shared(cfg, mesh):
    """Log-probs and gradients of pairs of texts after shared prompts, as in a DPO step."""
    declared = param_specs(cfg)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype("f"), abstract_params(declared, "float32"))
    params = jax.tree.map(put, params, param_shardings(declared, mesh))
    prompts, texts = (rng.integers(0, 48, shape).astype(np.int32) for shape in ((ROWS, 11), (2 * ROWS, 7)))
    arrays = [put(x, batch_sharding(mesh, x.ndim)) for x in (prompts, np.array([11, 3, 1, 8], np.int32), texts)]

    def loss(params):
        logprobs = prefix_shared_logprobs(Decoder(cfg), params, *arrays)
        return jnp.mean(logprobs * jnp.cos(jnp.arange(7.0))), logprobs

    with jax.set_mesh(mesh):
        return jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params))


def on_eight_devices():
    """Compares the models, in a separate process with eight devices. Returns how many comparisons held."""
    assert jax.device_count() == 8
    one, eight = make_mesh(devices=jax.devices()[:1]), make_mesh(fsdp=2, tensor=2)
    assert dict(eight.shape) == {"replica": 1, "data": 2, "fsdp": 2, "tensor": 2}
    held = 0
    for packed, options in ((False, OLMO | EXPERTS), (True, GEMMA | {"scan_layers": True, "remat": "full"})):
        cfg = DecoderConfig(**vars(CFG) | options)
        expected = logits_and_gradients(cfg, one, packed)
        actual = logits_and_gradients(DecoderConfig(**vars(cfg) | {"attention": "splash"}), eight, packed)
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), actual, expected)
        assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(expected))
        held += 1
    expected, actual = (
        prefix_shared(CFG, one),
        prefix_shared(DecoderConfig(**vars(CFG) | {"attention": "splash"}), eight),
    )
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), actual, expected)
    return held + 1


@pytest.mark.slow
def test_a_model_on_eight_devices_is_the_same_with_splash():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_self_attention import on_eight_devices as run; "
        "print(run())"
    )
    assert int(conftest.on_eight_devices(script, os.path.dirname(__file__))) == 2 + 1  # models, and pairs of texts
