from __future__ import annotations

import numpy as np
import pytest

from pyllm.models.blueprint import Heads
from pyllm.models.families import offset

KINDS = {
    "llama": Heads(4, 64, 64, 10000.0, 64**-0.5, interleaved=True),
    "gemma4-swa": Heads(4, 256, 256, 10000.0, 1.0, normed=True),
    "gemma4-global": Heads(4, 512, 512, 1e6, 1.0, normed=True, still=64),
    "gemma4-global-without-values": Heads(4, 512, 512, 1e6, 1.0, normed=True, still=64, content=0.1),
    "qwen35": Heads(4, 256, 64, 1e7, 256**-0.5, normed=True, gated=True),
    "dflash": Heads(4, 128, 128, 10000.0, 128**-0.5, normed=True),
}
N_EMBD = 64
LEVEL = 3.0


def rotate(rows, positions, heads):
    """RoPE of rows of shape (tokens, dim)."""
    count = heads.n_rot // 2
    index = np.arange(count)
    first, second = (2 * index, 2 * index + 1) if heads.interleaved else (index, index + count)
    theta = heads.base ** (-2.0 * index / heads.n_rot)
    if heads.still is not None:
        theta[heads.still :] = 0.0
    angle = positions[:, None] * theta
    turned = rows.copy()
    turned[:, first] = rows[:, first] * np.cos(angle) - rows[:, second] * np.sin(angle)
    turned[:, second] = rows[:, first] * np.sin(angle) + rows[:, second] * np.cos(angle)
    return turned


def scores(heads, offsets, n_tokens):
    """Scores of the last token's heads over a sequence, as the graphs compute them."""
    rng = np.random.default_rng(0)
    stream = rng.standard_normal((n_tokens, N_EMBD))
    stream[:, offset.CONSTANT] = LEVEL
    stream[:, offset.FIRST] = 0.0
    stream[0, offset.FIRST] = LEVEL
    width = heads.dim * (2 if heads.gated else 1)
    query = offset.queries((heads.count * width, N_EMBD), heads, offsets, LEVEL)
    plain = Heads(1, heads.dim, heads.n_rot, heads.base, heads.scale, heads.interleaved, heads.still, heads.normed)
    key = offset.keys((heads.dim, N_EMBD), plain, LEVEL, LEVEL)
    if heads.content:
        key = key + offset.content((heads.dim, N_EMBD), Heads(**{**vars(plain), "content": heads.content}), LEVEL, rng)
    positions = np.arange(n_tokens)
    keys = stream @ key.T
    queries = (stream[-1:] @ query.T).reshape(heads.count, -1)[:, : heads.dim]
    if heads.normed:
        scale = offset.head_scale(heads)
        keys = keys / np.sqrt((keys**2).mean(-1, keepdims=True)) * scale
        queries = queries / np.sqrt((queries**2).mean(-1, keepdims=True)) * scale
    keys = rotate(keys, positions, heads)
    last = np.full(heads.count, n_tokens - 1)
    return rotate(queries, last, heads) @ keys.T * heads.scale


@pytest.mark.parametrize("name", KINDS)
def test_all_weight_is_on_the_token_at_the_offset(name):
    offsets = [1, 2, 9, 24]
    found = scores(KINDS[name], offsets, 200)
    assert (199 - found.argmax(1)).tolist() == offsets
    ordered = np.sort(found, 1)
    assert (ordered[:, -1] - ordered[:, -2]).min() > offset.GAP / 4


@pytest.mark.parametrize("name", KINDS)
def test_beyond_the_beginning_is_the_first_token(name):
    found = scores(KINDS[name], [3, 10, 11, 30], 8)
    assert found.argmax(1).tolist() == [4, 0, 0, 0]
    ordered = np.sort(found, 1)
    assert (ordered[:, -1] - ordered[:, -2]).min() > offset.GAP / 4


def test_drawn_offsets_differ_and_stay_within_reach():
    heads = Heads(8, 64, 64, 10000.0, 1.0, reach=24)
    drawn = offset.draw(heads, np.random.default_rng(0))
    assert len(set(drawn)) == 8
    assert min(drawn) >= 1
    assert max(drawn) <= 24
