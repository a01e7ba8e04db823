"""The throughput model: other people's measurements, and what must hold for any."""

from dataclasses import replace

import pytest

from gemcut.engine import ContextOptions
from gemcut.gguf_file import GGUFFile
from gemcut.inspection import Origin, inspect
from gemcut.profile import Processor, Profile
from gemcut.runtime.memory.ledger import fixed
from gemcut.runtime.memory.tensors import Placed
from gemcut.runtime.speed.throughput import (
    active_shares,
    cache_seconds,
    decode_speed,
    hit,
    prefill_speed,
    starting_seconds,
    token_seconds,
)
from tests.weightless import metadata_of

GIB = 1 << 30
HOST = Processor("cpu", "host", 64 * GIB, 0, 50e9, {"q2_k": 20e9}, 1e12)
CARD = Processor("gpu0", "card", 16 * GIB, 0, 500e9, flops=50e12, link=25e9)
MACHINE = Profile("one card", HOST, (CARD,), operation=2e-6, sync=1e-4, doubt=0.2)


def model(blocks, experts, used, per_block, weights, on_host, n_ctx=256, **changes):
    """A model with nothing but routed experts: bytes and weights of a block's, and how many blocks'
    live on the host."""
    metadata = metadata_of(
        "qwen3moe",
        {"block_count": blocks, "expert_count": experts, "expert_used_count": used},
    )
    placed = []
    for block in range(blocks):
        placed.append(Placed(f"blk.{block}.attn_norm.weight", "f32", 0, 0, "gpu0"))
        place = "cpu" if block < on_host else "gpu0"
        name = f"blk.{block}.ffn_down_exps.weight"
        placed.append(Placed(name, "q4_k", per_block, weights, place))
    needs = fixed(metadata, ContextOptions(n_ctx=n_ctx, **changes))
    needs = replace(needs, reads=(0,) * blocks, attention=())
    return needs, placed, active_shares(metadata, [tensor.name for tensor in placed])


@pytest.mark.parametrize("on_host, measured", [(40, 51.0), (24, 69.6)])
def test_decoding_with_experts_on_the_host(on_host, measured):
    """Qwen3.5-35B-A3B in Q4_K_M on an RTX 5080 with DDR5-4800, as reported: 15.3 MB of a block's
    experts are read for a token, at 61 % of what the memory could do; all else takes 6.6 ms, in
    which the experts that fit onto the card take 2 % of it for a block."""
    host = replace(HOST, bandwidth=0.61 * 76.8e9, by_type={})
    card = replace(CARD, bandwidth=960e9)
    beside = (6.6e-3 - 40 * 15.3e6 / 960e9) / starting_seconds(Profile("", host, operation=1.0), 80)
    machine = Profile("reported", host, (card,), operation=beside)
    needs, placed, shares = model(40, 256, 8, int(15.3e6 * 32), 1, on_host)
    found = decode_speed(machine, needs, placed, shares)

    assert found.per_second == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize(
    "n_ubatch, on_host, measured",
    [(512, 26, 380), (2048, 25, 1112), (4096, 26, 1682), (8192, 28, 2091)],
)
def test_prompts_with_experts_on_the_host(n_ubatch, on_host, measured):
    """gpt-oss-120b in MXFP4 on an RTX 3090, as reported: a block's experts are handed to the card
    in 45.8 ms whatever the ubatch, and computing takes 304 us for a token."""
    size, weights = 128 * 3 * 2880 * 2880 * 17 // 32, 128 * 3 * 2880 * 2880
    active = 36 * weights * 4 / 128
    card = replace(CARD, bandwidth=936e9, flops=2 * active / 3.04e-4, link=size / 0.0458)
    needs, placed, shares = model(
        36, 128, 4, size, weights, on_host, n_ctx=16384, n_ubatch=n_ubatch
    )
    found = prefill_speed(Profile("reported", HOST, (card,)), needs, placed, shares)

    assert found.per_second == pytest.approx(measured, rel=0.05)


def test_a_token_reads_the_active_weights(bf16):
    """The shares are those by which `inspect` counts, but for a scale that each expert has."""
    with GGUFFile(bf16) as file:
        infos = list(file.tensors.values())
        shares = active_shares(file.metadata, [info.name for info in infos])
        found = inspect(Origin("gguf"), file.metadata, infos)

    assert sum(info.weights * shares[info.name] for info in infos) == pytest.approx(
        found.active, rel=1e-4
    )
    assert shares["token_embd.weight"] == 1  # it is the output, too


def test_shares():
    """Lookups and drafting blocks read nothing; experts what is used of them."""
    metadata = metadata_of(
        "qwen3moe",
        {
            "block_count": 2,
            "nextn_predict_layers": 1,
            "expert_count": 8,
            "expert_used_count": 2,
        },
    )
    wanted = {
        "token_embd.weight": 0.0,
        "output.weight": 1.0,
        "per_layer_token_embd.weight": 0.0,
        "blk.0.ffn_up_exps.weight": 0.25,
        "blk.0.ffn_up_shexp.weight": 1.0,
        "blk.0.ffn_gate_inp.weight": 1.0,
        "blk.1.attn_q.weight": 0.0,
    }
    assert active_shares(metadata, list(wanted)) == wanted


def test_a_token_takes_what_its_parts_take():
    """Every tensor at its place and in its type, caches at home, an exchange for each block."""
    needs, placed, shares = model(4, 8, 2, 8_000_000, 1, on_host=3)
    needs = replace(needs, reads=(1_000_000,) * 4)
    placed[1] = replace(placed[1], type="q2_k")
    found = decode_speed(MACHINE, needs, placed, shares)

    wanted = (
        starting_seconds(MACHINE, len(placed))
        + 3 * MACHINE.sync
        + token_seconds(HOST, "q2_k", 2e6)
        + 2 * token_seconds(HOST, "q4_k", 2e6)
        + token_seconds(CARD, "q4_k", 2e6)
        + 4 * cache_seconds(CARD, "f16", 1_000_000)
    )
    assert found.seconds == pytest.approx(wanted)
    assert found.se == pytest.approx(0.2 * wanted)
    assert token_seconds(HOST, "q2_k", 2e6) == 1e-4


@pytest.mark.parametrize("changes", [{"n_ubatch": 16}, {"op_offload": False}])
def test_small_batches_are_computed_where_the_experts_are(changes):
    """Then the host's FLOP count, or how fast it reads, and nothing is handed over."""
    needs, placed, shares = model(2, 8, 2, 800, 10**9, on_host=2, **changes)
    found = prefill_speed(MACHINE, needs, placed, shares)
    overhead = (starting_seconds(MACHINE, len(placed)) + 2 * MACHINE.sync) / needs.tokens

    assert found.seconds - overhead == pytest.approx(2 * 2 * 10**9 * 0.25 / HOST.flops)


def test_a_card_without_a_link_does_not_take_experts():
    """A profile that says nothing of it is not divided by: the host computes."""
    unlinked = replace(MACHINE, cards=(replace(CARD, link=0.0),))
    arguments = model(2, 8, 2, 800, 10**9, on_host=2)
    on_host = model(2, 8, 2, 800, 10**9, on_host=2, op_offload=False)
    assert prefill_speed(unlinked, *arguments) == prefill_speed(MACHINE, *on_host)


def test_larger_ubatches_read_prompts_faster():
    """With experts on the host; and the fewer are there, the faster, in both phases."""
    speeds = []
    for n_ubatch in (64, 512, 2048):
        by_blocks = [
            prefill_speed(
                MACHINE, *model(8, 128, 4, 10**8, 10**8, n, n_ctx=4096, n_ubatch=n_ubatch)
            ).per_second
            for n in (8, 4, 0)
        ]
        assert by_blocks == sorted(by_blocks)
        speeds.append(by_blocks[0])
    assert speeds == sorted(speeds)
    decoding = [decode_speed(MACHINE, *model(8, 128, 4, 10**8, 1, n)).seconds for n in range(9)]
    assert decoding == sorted(decoding)


def test_experts_hit():
    assert hit(4 / 128, 1) == pytest.approx(4 / 128)
    assert hit(4 / 128, 64) == pytest.approx(0.869, abs=1e-3)
    assert (hit(1.0, 1), hit(0.0, 512)) == (1, 0)


def test_a_longer_prompt_attends_to_more():
    """FLOP of attention grow with what came before, up to a sliding window's cells."""
    metadata = metadata_of(
        "gemma4",
        {
            "block_count": 2,
            "attention.head_count": 8,
            "attention.key_length": 512,
            "attention.value_length": 512,
            "attention.key_length_swa": 256,
            "attention.value_length_swa": 256,
            "attention.sliding_window": 1024,
            "attention.sliding_window_pattern": [True, False],
        },
    )
    needs = fixed(metadata, ContextOptions(n_ctx=8192, n_ubatch=512))
    machine = replace(MACHINE, sync=0.0)
    placed = [Placed(f"blk.{n}.attn_norm.weight", "f32", 0, 0, "gpu0") for n in range(2)]

    def beyond(prompt):
        """Seconds of a token beside its first ubatch's operations."""
        return prefill_speed(machine, needs, placed, dict.fromkeys(SHARES, 1.0), prompt).seconds

    assert needs.attention == (2 * 8 * 512, 2 * 8 * 1024)
    assert needs.spans == (1536, 8192)
    sliding = 2 * 8 * 512 * (512 + 1024 + 6 * 1536) / 8
    full = 2 * 8 * 1024 * 512 * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8) / 8
    once = 2 * 8 * 512 * 512 + 2 * 8 * 1024 * 512
    assert beyond(4096) - beyond(512) == pytest.approx((sliding + full - once) / CARD.flops)
    slower = replace(CARD, attention={"f16": CARD.flops / 4})
    before, machine = beyond(4096) - beyond(512), replace(machine, cards=(slower,))
    assert beyond(4096) - beyond(512) == pytest.approx(4 * before)


SHARES = [f"blk.{n}.attn_norm.weight" for n in range(2)]


def test_the_first_card_with_a_link_computes_prompts():
    """llama.cpp asks the cards in their order; devices of other machines refuse."""
    far, near = replace(CARD, link=0.0), replace(CARD, link=1e9)
    machine = replace(MACHINE, operation=0.0, sync=0.0).with_cards((far, near, CARD))
    needs, placed, shares = model(2, 8, 2, 800, 1000, on_host=2)
    found = prefill_speed(machine, needs, placed, shares)
    read = 2 * 800 * hit(0.25, 256)
    computing = 2 * max(2 * 1000 * 0.25 * 256 / near.flops, read / 2 / near.bandwidth)
    assert found.seconds * 256 == pytest.approx(read / near.link + computing)
