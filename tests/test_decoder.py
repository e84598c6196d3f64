"""The forward pass: against a naive one in numpy, and against itself under every option that must not matter."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import EXPERTS, GEMMA, OLMO

from selfreward_jax.llm import attention, decoder, experts
from selfreward_jax.llm.attention import KVSegment, attend, packed_mask
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import ParamSpec, param_specs, parameter_count

CFG = DecoderConfig(vocab_size=41, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24)
OPTIONS = {
    "tied": {},
    "untied": {"tie_embeddings": False},
    "attention_bias": {"attention_bias": True},
    "qk_norm": {"qk_norm": "head", "rope_theta": 500.0},
    "one_kv_head": {"num_kv_heads": 1},
}
TOKENS = np.random.default_rng(1).integers(0, 41, (2, 7)).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def hidden(cfg, params, tokens, **inputs):
    return Decoder(cfg).apply({"params": params}, tokens, method="hidden_states", **inputs)


@partial(jax.jit, static_argnums=0)
def forward(cfg, params, tokens, **inputs):
    return Decoder(cfg).apply({"params": params}, tokens, **inputs)


def alone(params, text):
    """Logits of one text. It is padded at the end, to the shape already compiled, and cannot attend to padding."""
    rows = np.zeros_like(TOKENS)
    rows[0, : len(text)] = text
    return forward(CFG, params, rows)[0, : len(text)]


def naive_forward(cfg, params, tokens):
    """Logits of one row in float64: one head and one query at a time, as in the Llama paper and its code."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    half = cfg.head_dim // 2

    def norm(x, scale):
        return x / np.sqrt((x * x).mean() + cfg.norm_eps) * scale

    def rotate(x, position):
        out = np.empty_like(x)
        for i in range(half):  # the pair is (i, i + half), as in the Hugging Face weights
            angle = position * cfg.rope_theta ** (-2 * i / cfg.head_dim)
            out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
            out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
        return out

    def project(w, name, y, head, position=None):
        x = y @ w["w" + name][:, head]
        if cfg.attention_bias:
            x = x + w["b" + name][head]
        if position is None:
            return x
        return rotate(norm(x, w[name + "_norm"]) if cfg.qk_norm else x, position)

    stream = [p["embed"][t] for t in tokens]
    for layer in range(cfg.num_layers):
        w = {name: x[layer] for name, x in p["layers"].items()}
        normed = [norm(x, w["attn_norm"]) for x in stream]
        for t in range(len(tokens)):
            added = np.zeros(cfg.dim)
            for head in range(cfg.num_heads):
                shared = head // (cfg.num_heads // cfg.num_kv_heads)
                q = project(w, "q", normed[t], head, t)
                scores = [q @ project(w, "k", normed[s], shared, s) / np.sqrt(cfg.head_dim) for s in range(t + 1)]
                probs = np.exp(scores) / np.exp(scores).sum()
                mixed = sum(probs[s] * project(w, "v", normed[s], shared) for s in range(t + 1))
                added += mixed @ w["wo"][head]
            stream[t] = stream[t] + added
            y = norm(stream[t], w["mlp_norm"])
            gate = y @ w["w_gate"]
            stream[t] = stream[t] + (gate / (1 + np.exp(-gate)) * (y @ w["w_up"])) @ w["w_down"]
    head = p["embed"].T if cfg.tie_embeddings else p["head"]
    return np.array([norm(x, p["norm"]) @ head for x in stream])


@pytest.mark.parametrize("option", OPTIONS)
def test_forward_equals_the_naive_one(option, random_params):
    cfg = replace(CFG, **OPTIONS[option])
    params = random_params(cfg)
    expected = [naive_forward(cfg, params, row) for row in TOKENS]
    np.testing.assert_allclose(forward(cfg, params, TOKENS), expected, atol=2e-5)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_weight_is_initialized_as_declared(option):
    cfg = replace(CFG, **OPTIONS[option], param_dtype="bfloat16")
    made = jax.eval_shape(lambda: Decoder(cfg).init(jax.random.key(0), jnp.zeros((1, 1), int)))["params"]
    declared = param_specs(cfg)
    expected = jax.tree.map(
        lambda w: jax.ShapeDtypeStruct(w.shape, jnp.bfloat16), declared, is_leaf=lambda x: isinstance(x, ParamSpec)
    )
    assert made == expected
    assert parameter_count(param_specs(cfg)) == sum(x.size for x in jax.tree.leaves(made))
    for w in jax.tree.leaves(declared, is_leaf=lambda x: isinstance(x, ParamSpec)):
        assert len(w.axes) == len(w.shape)


def test_initial_logits_are_small_and_norms_are_the_identity():
    params = jax.jit(lambda: Decoder(CFG).init(jax.random.key(0), jnp.zeros((1, 1), int)))()["params"]
    for scale in (params["norm"], params["layers"]["attn_norm"], params["layers"]["mlp_norm"]):
        np.testing.assert_array_equal(scale, 1)
    k, v = np.asarray(params["layers"]["wk"]), np.asarray(params["layers"]["wv"])
    assert not np.allclose(k, v)  # each weight has its own key
    assert not np.allclose(k[0], k[1])
    assert np.abs(forward(CFG, params, TOKENS)).max() < 1


def test_a_later_token_changes_no_earlier_logits(random_params):
    params = random_params(CFG)
    before = np.asarray(forward(CFG, params, TOKENS))
    for t in range(TOKENS.shape[1]):
        changed = TOKENS.copy()
        changed[:, t] = (changed[:, t] + 1) % 41
        after = np.asarray(forward(CFG, params, changed))
        np.testing.assert_allclose(after[:, :t], before[:, :t], atol=1e-6)
        # And the logits of every token from there on change.
        assert (np.abs(after - before)[:, t:].max(-1) > 1e-4).all()


def values_and_gradients(cfg, params):
    def loss(p):
        logits = Decoder(cfg).apply({"params": p}, TOKENS, key=jax.random.key(3))
        return jnp.sum(jax.nn.log_softmax(logits)[..., 5]), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params), hidden(cfg, params, TOKENS)


# With dropout: the layers must use the same masks under every option.
DROPOUT = replace(CFG, dropout=0.1)


@pytest.fixture(scope="module")
def plain(random_params):
    return values_and_gradients(DROPOUT, random_params(DROPOUT))


def test_experts_are_a_weighted_sum_of_the_chosen_ones(random_params):
    """Against each expert on its own, one token at a time."""
    cfg = replace(CFG, **EXPERTS)
    w = {name: x[0] for name, x in random_params(cfg)["layers"].items()}
    x = np.random.default_rng(0).normal(size=(2, 5, cfg.dim)).astype(np.float32)
    out = jax.jit(partial(experts.mixture, cfg, activation=jax.nn.silu))(w, x)
    for b, t in np.ndindex(2, 5):
        probs = jax.nn.softmax(x[b, t] @ w["router"])
        chosen = np.argsort(-probs)[:2]
        outputs = [(jax.nn.silu(x[b, t] @ w["w_gate"][e]) * (x[b, t] @ w["w_up"][e])) @ w["w_down"][e] for e in chosen]
        expected = sum(probs[e] * y for e, y in zip(chosen, outputs, strict=True)) / probs[chosen].sum()
        np.testing.assert_allclose(out[b, t], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [GEMMA, OLMO, EXPERTS])
def test_scanned_layers_may_be_of_several_kinds(family, random_params):
    cfg = replace(CFG, **family)
    params = random_params(cfg)
    options = ({}, {"scan_layers": True, "remat": "full"})
    (one, (_, one_kv)), (scanned, (_, kv)) = (values_and_gradients(replace(cfg, **o), params) for o in options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, scanned)
    for stacked, layers in zip(kv, one_kv, strict=True):
        np.testing.assert_allclose(stacked, np.stack(layers), atol=1e-5)


@pytest.mark.parametrize(
    "option", [{"scan_layers": True}, {"remat": "full"}, {"remat": "dots"}, {"scan_layers": True, "remat": "full"}]
)
def test_scan_and_remat_change_neither_values_nor_gradients(option, plain, random_params):
    other = values_and_gradients(replace(DROPOUT, **option), random_params(DROPOUT))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), other, plain)


def test_every_dropout_has_its_own_key(random_params, monkeypatch):
    used = []
    monkeypatch.setattr(decoder, "dropout", lambda x, rate, key: used.append(jax.random.key_data(key)) or x)

    @jax.jit
    def keys(params):
        Decoder(DROPOUT).apply({"params": params}, TOKENS, key=jax.random.key(3))
        return jnp.stack(used)

    assert len(np.unique(keys(random_params(DROPOUT)), axis=0)) == 1 + 2 * DROPOUT.num_layers


def test_keys_and_values_have_the_layout_of_the_cache(plain):
    _, (_, (k, v)) = plain
    k, v = jnp.stack(k), jnp.stack(v)
    assert k.shape == (2, 2, 2, 8, 7)  # L, B, K, H, S
    assert v.shape == (2, 2, 2, 7, 8)  # L, B, K, S, H


def test_packed_texts_equal_each_text_alone(random_params):
    params = random_params(CFG)
    row = TOKENS[:1]
    # The middle text has a neighbor on each side that could leak into it.
    segments, positions = np.array([[1, 1, 1, 2, 2, 3, 0]]), np.array([[0, 1, 2, 0, 1, 0, 0]])
    packed = np.asarray(forward(CFG, params, row, positions_BT=positions, segment_ids_BT=segments))
    assert np.isfinite(packed).all()  # the padding too
    for text in (slice(0, 3), slice(3, 5), slice(5, 6)):
        np.testing.assert_allclose(packed[0, text], alone(params, row[0, text]), atol=1e-5)


def test_packed_mask_by_hand():
    expected = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], bool)
    np.testing.assert_array_equal(packed_mask(jnp.array([[1, 1, 2, 0]]))[0], expected)


def test_left_padding_does_not_change_the_last_logits(random_params):
    params = random_params(CFG)
    lengths, T = [4, 7], 7
    tokens, positions = np.zeros((2, T), np.int32), np.zeros((2, T), np.int32)
    real = np.zeros((2, T), bool)
    for r, n in enumerate(lengths):
        tokens[r, T - n :], positions[r, T - n :], real[r, T - n :] = TOKENS[r, :n], np.arange(n), True
    states, _ = hidden(CFG, params, tokens, positions_BT=positions, segment_ids_BT=real.astype(np.int32))
    last = np.asarray(states[:, -1]) @ np.asarray(params["embed"]).T
    for r, n in enumerate(lengths):
        np.testing.assert_allclose(last[r], alone(params, TOKENS[r, :n])[-1], atol=1e-5)


def test_segments_equal_their_concatenation_and_shared_keys_equal_copies():
    rng = np.random.default_rng(0)
    P, G, T, K, R, H, S1, S2 = 2, 3, 2, 2, 2, 4, 5, 3
    q = rng.normal(size=(P * G, T, K * R, H)).astype(np.float32)
    # Large scores in the second segment: the maximum must be taken over both.
    k1, k2 = (rng.normal(size=(n, K, H, s)).astype(np.float32) * c for n, s, c in ((P, S1, 1), (P * G, S2, 30)))
    v1, v2 = (rng.normal(size=(n, K, s, H)).astype(np.float32) for n, s in ((P, S1), (P * G, S2)))
    m1, m2 = rng.random((P, 1, S1)) < 0.7, np.ones((1, T, S2), bool)
    out = jax.jit(attend)(q, [KVSegment(k1, v1, m1), KVSegment(k2, v2, m2)])

    k, v = np.concatenate([k1.repeat(G, 0), k2], 3), np.concatenate([v1.repeat(G, 0), v2], 2)
    mask = np.concatenate([np.broadcast_to(m1.repeat(G, 0), (P * G, T, S1)), np.broadcast_to(m2, (P * G, T, S2))], 2)
    scores = np.einsum("BTKRH,BKHS->BTKRS", q.reshape(P * G, T, K, R, H), k) / np.sqrt(H)
    scores = np.where(mask[:, :, None, None], scores, -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    expected = np.einsum("BTKRS,BKSH->BTKRH", probs, v).reshape(out.shape)
    np.testing.assert_allclose(out, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("option", "prefix_len"),
    [
        ({"sliding_window": 3}, 0),
        ({}, 2),
        ({"sliding_window": 3}, 2),
        (GEMMA, 2),
        ({"scan_layers": True} | OLMO, 2),
        ({"remat": "full", "attention_bias": True}, 2),
    ],
)
def test_last_index_gives_the_same_values_as_all_tokens(option, prefix_len, random_params):
    """Hidden states, keys, values and gradients; also after a prefix that both rows share."""
    cfg = replace(CFG, **option)
    last_index, prefix, rest = np.array([4, 1]), TOKENS[:1, :prefix_len], TOKENS[:, prefix_len:]
    positions = np.broadcast_to(np.arange(rest.shape[1]) + prefix_len, rest.shape)

    @partial(jax.jit, static_argnums=1)
    def values_and_gradients(params, one):
        def loss(params):
            run = partial(Decoder(cfg).apply, {"params": params}, method="hidden_states")
            past = []
            if prefix_len:
                past = [KVSegment(*run(prefix)[1], jnp.ones((1, 1, prefix_len), bool), jnp.arange(prefix_len)[None])]
            states, kv = run(rest, positions_BT=positions, past=past, **({"last_index_B": last_index} if one else {}))
            states = states if one else states[jnp.arange(2), last_index][:, None]
            return jnp.sum(jnp.sin(states)), (states, kv)

        return jax.value_and_grad(loss, has_aux=True)(params)

    params = random_params(cfg)
    one, every = values_and_gradients(params, True), values_and_gradients(params, False)
    assert one[0][1][0].shape == (2, 1, cfg.dim)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, every)


def test_last_index_of_packed_rows_is_refused(random_params):
    with pytest.raises(ValueError, match=r"\blast_index_B\b.*\bsegment_ids_BT\b"):
        hidden(
            CFG,
            random_params(CFG),
            TOKENS,
            last_index_B=np.array([6, 6]),
            segment_ids_BT=np.ones(TOKENS.shape, np.int32),
        )


def test_with_last_index_the_last_layer_computes_only_that_token(random_params):
    def flops(**inputs):
        return hidden.lower(CFG, random_params(CFG), TOKENS, **inputs).cost_analysis()["flops"]

    skipped = TOKENS.size - len(TOKENS)  # tokens for which the last layer computes only keys and values
    inward, outward, feed = (
        CFG.dim * CFG.num_heads * CFG.head_dim,
        CFG.num_heads * CFG.head_dim * CFG.dim,
        CFG.dim * CFG.mlp_dim,
    )
    assert flops() - flops(last_index_B=np.array([6, 6])) >= 2 * skipped * (inward + outward + 3 * feed)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_bfloat16_is_close_to_float32(scan_layers, random_params):
    cfg = replace(CFG, dtype="bfloat16", scan_layers=scan_layers)
    params = random_params(cfg)
    states, kv = hidden(cfg, params, TOKENS)
    assert {states.dtype, *(x.dtype for x in jax.tree.leaves(kv))} == {jnp.dtype("bfloat16")}
    logits, exact = (np.asarray(forward(c, params, TOKENS)) for c in (cfg, CFG))
    assert logits.dtype == np.float32
    assert 0 < np.sqrt(np.mean((logits - exact) ** 2)) < 0.03 * np.std(exact)


def test_impossible_shapes_are_refused_with_their_numbers():
    with pytest.raises(ValueError, match=r"\bnum_heads\b.*\b4\b.*\bnum_kv_heads\b.*\b3\b"):
        replace(CFG, num_kv_heads=3)
    with pytest.raises(ValueError, match=r"\bhead_dim\b.*\b7\b"):
        replace(CFG, head_dim=7)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_attention_in_parts_equals_attention_at_once(parts, monkeypatch):
    rng = np.random.default_rng(parts)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    P, G, T, K, R, H = 2, 2, 7, 2, 2, 4
    q = draw(P * G, T, K * R, H)
    # One row for all, one per prompt, one per query: masks that differ by query, by prompt, or not at all.
    rows = (
        (1, rng.random((P * G, T, 3)) < 0.7),
        (P, rng.random((P, 1, 5)) < 0.7),
        (P * G, np.tri(T, dtype=bool)[None]),
    )
    keys = [(draw(n, K, H, m.shape[-1]), draw(n, K, m.shape[-1], H)) for n, m in rows]

    def values(keys):
        segments = [KVSegment(k, v, jnp.asarray(m)) for (k, v), (_, m) in zip(keys, rows, strict=True)]
        out = attend(q, segments)
        return jnp.sum(jnp.sin(out)), out

    graded = lambda: jax.jit(jax.value_and_grad(lambda x: values(x), has_aux=True))(keys)  # noqa: E731 (traced again)
    (_, at_once), expected = graded()
    monkeypatch.setattr(attention, "MAX_SCORES", -(-q.size // H * 15 // parts))
    (_, in_parts), gradients = graded()
    np.testing.assert_allclose(in_parts, at_once, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, expected)
