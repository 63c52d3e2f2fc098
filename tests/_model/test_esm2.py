"""The network against fair-esm's own, number by number, and against itself in other company."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from checkpoints import bare_state, random_esm2
from esm.model.esm2 import ESM2
from exactness import assert_as_exact_as_fair_esm, opened, references_of, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

import esm2_features._model.linear
from esm2_features._checkpoints import open_checkpoint
from esm2_features._checkpoints.catalogue import OFFICIAL, Architecture
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, MASK, encode
from esm2_features._model.esm2 import ESM2Network
from esm2_features._model.packing import pack
from esm2_features.exceptions import CheckpointError

CPU = torch.device("cpu")
ATOL = RTOL = 1e-5

# Heads of 16, 20, 24, 32, 64 and 128: all that the official sizes have. The first is the
# real shape of esm2_t6_8M_UR50D.
SHAPES = [(6, 320, 20), (2, 60, 3), (2, 72, 3), (3, 64, 2), (2, 128, 2), (2, 256, 2)]

LENGTHS = (1, 2, 3, 17, 17, 17, 50, 50, 128, 300, 1022, 1500)


def sequences(lengths=LENGTHS, seed=0) -> list[str]:
    rng = np.random.default_rng(seed)
    letters = np.array(list(CANONICAL_RESIDUES))
    return ["".join(rng.choice(letters, n)) for n in lengths]


def network_of(reference: ESM2, precision: str = "float32") -> ESM2Network:
    shape = Architecture(reference.num_layers, reference.embed_dim, reference.attention_heads)
    return ESM2Network("random", shape, bare_state(reference), CPU, precision)


def run(network: ESM2Network, batch: list[str], layers) -> list[dict[int, torch.Tensor]]:
    """The tokens of each sequence, layer by layer, from one packed pass."""
    stops = np.cumsum([len(sequence) + 2 for sequence in batch])
    found: list[dict[int, torch.Tensor]] = [{} for _ in batch]
    for layer, x_TD in network.representations(pack(batch), layers):
        for i, part in enumerate(x_TD.split([len(s) + 2 for s in batch])):
            found[i][layer] = part
    assert stops[-1] == len(pack(batch).tokens)
    return found


def run_reference(reference: ESM2, sequence: str, layers):
    tokens = torch.from_numpy(encode(sequence)).long()[None]
    with torch.no_grad():
        result = reference(tokens, repr_layers=list(layers))
    return {k: v[0] for k, v in result["representations"].items()}, result["logits"][0]


def assert_parity(reference: ESM2, network: ESM2Network, batch: list[str]) -> None:
    exact, float32 = references_of(opened(reference))
    assert_as_exact_as_fair_esm(
        (ours, exact.layers(sequence), float32.layers(sequence))
        for sequence, ours in zip(batch, rows_of(network, batch), strict=True)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test__network__equals_fair_esm_on_a_mixed_batch(shape):
    reference = random_esm2(*shape, seed=1)
    assert_parity(reference, network_of(reference), sequences())


@pytest.mark.parametrize(
    "special",
    [
        MASK,
        "MKT" + MASK + "AYI",
        MASK * 5 + "W",
        "XBUZO",
        "M" + "X" * 40 + MASK + "BUZO" + MASK,
    ],
)
def test__network__equals_fair_esm_with_masks_and_rare_letters(special):
    reference = random_esm2(3, 64, 4, seed=2)
    assert_parity(reference, network_of(reference), ["MKTAYIAK", special, "GG"])


def test__network__equals_fair_esm_on_the_embedded_model():
    checkpoint = open_checkpoint("mini")
    shape = checkpoint.architecture
    network = ESM2Network("mini", shape, checkpoint.load(), CPU, "float32")
    exact, float32 = references_of(checkpoint)
    batch = [*sequences((1, 30, 30, 250, 1500)), "MK" + MASK + "XBUZO"]
    assert_as_exact_as_fair_esm(
        (ours, exact.layers(sequence), float32.layers(sequence))
        for sequence, ours in zip(batch, rows_of(network, batch), strict=True)
    )


def test__network__equals_fair_esm_when_outlier_dimensions_are_large():
    reference = random_esm2(4, 64, 4, seed=3)
    with torch.no_grad():
        for layer in reference.layers:
            layer.fc2.bias[[3, 40]] += 150.0
    assert_parity(reference, network_of(reference), sequences((5, 80, 200)))


def test__network__uses_the_rotary_frequencies_of_the_checkpoint():
    reference = random_esm2(2, 64, 2, seed=4)
    for layer in reference.layers:
        rotary = layer.self_attn.rot_emb
        rotary.inv_freq = rotary.inv_freq.half().float()
    assert_parity(reference, network_of(reference), sequences((200, 900)))


def test__network__computes_rotary_frequencies_where_the_checkpoint_has_none():
    reference = random_esm2(2, 64, 2, seed=5)
    tensors = {k: v for k, v in bare_state(reference).items() if "inv_freq" not in k}
    network = ESM2Network("random", Architecture(2, 64, 2), tensors, CPU, "float32")
    assert_parity(reference, network, sequences((200,)))


def test__network__refuses_rotary_frequencies_that_differ_between_layers():
    tensors = bare_state(random_esm2(2, 64, 2, seed=5))
    tensors["layers.1.self_attn.rot_emb.inv_freq"] = torch.ones(16)
    with pytest.raises(CheckpointError, match="different rotary frequencies"):
        ESM2Network("random", Architecture(2, 64, 2), tensors, CPU, "float32")


def test__network__equals_transformers():
    import transformers  # slow, and only here
    from checkpoints import hugging_face_config, hugging_face_state

    reference = random_esm2(3, 64, 4, seed=6)
    config = transformers.EsmConfig(**hugging_face_config(reference))
    theirs = transformers.EsmForMaskedLM(config).eval()
    missing, unexpected = theirs.load_state_dict(hugging_face_state(reference), strict=False)
    assert unexpected == ["esm.embeddings.position_ids"], "an old name that carries no weights"
    # One is tied to the embedding; the other is made by old versions, and not used.
    unused = {"lm_head.decoder.weight", "esm.embeddings.position_embeddings.weight"}
    assert set(missing) <= unused
    batch = [*sequences((4, 31, 31, 200)), "MKXBUZO", "MK" + MASK + "A"]
    for sequence, ours in zip(batch, run(network_of(reference), batch, [0, 1, 3]), strict=True):
        tokens = torch.from_numpy(encode(sequence)).long()[None]
        with torch.no_grad():
            result = theirs(
                tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True
            )
        for layer in (0, 1, 3):
            torch.testing.assert_close(
                ours[layer], result.hidden_states[layer][0], rtol=RTOL, atol=ATOL
            )


@pytest.fixture(scope="module")
def small() -> ESM2Network:
    return network_of(random_esm2(3, 64, 4, seed=8))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test__network__a_sequence_does_not_depend_on_its_batch_mates(small, lengths, seed, data):
    probe = "MKTAYIAKQRGSHMVLSEGEWQLVLHVWAKVEADVAGH"[: data.draw(st.integers(1, 38))]
    [alone] = run(small, [probe], [3])
    mates = sequences(lengths, seed)
    place = data.draw(st.integers(0, len(mates)))
    together = run(small, [*mates[:place], probe, *mates[place:]], [3])[place]
    # Where products are packed (x86), not by a bit; elsewhere, hardly.
    atol = 0 if esm2_features._model.linear._can_pack(torch.zeros(1, 1)) else 1e-6
    torch.testing.assert_close(together[3], alone[3], rtol=0, atol=atol)


@pytest.mark.skipif(
    not esm2_features._model.linear._can_pack(torch.zeros(1, 1)),
    reason="products are not packed here",
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test__network__gives_the_same_bytes_in_any_batch_order_and_company(threads, precision):
    """At a real width: batches are divided between threads in places that depend on their size."""
    network = network_of(random_esm2(2, 480, 20, seed=12), precision)
    lengths = (700, 300, 230, 230, 230, 129, 127, 126, 45, 45, 30, 5, 5, 1)
    every = [*sequences(lengths, seed=3), "MK" + MASK + "A" * 40]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = [run(network, [sequence], [2])[0][2] for sequence in every]
        for company in (every, every[::-1], every * 2, every[3:8], every[::2]):
            for sequence, found in zip(company, run(network, company, [2]), strict=True):
                assert torch.equal(found[2], alone[every.index(sequence)]), len(sequence)
    finally:
        torch.set_num_threads(before)


def test__network__runs_a_number_of_rows_of_which_there_are_few(small, monkeypatch):
    """oneDNN keeps a kernel for each: a stream of peptides would fill 0.1 GB with them."""
    seen = set()
    product = esm2_features._model.linear.Linear.__call__

    def record(self, x_TI, **options):
        seen.add(len(x_TI))
        return product(self, x_TI, **options)

    monkeypatch.setattr(esm2_features._model.linear.Linear, "__call__", record)
    unique_tokens = set()
    for length in range(30, 60):
        batch = sequences((length, 7, 7), seed=length)
        unique_tokens.add(len(pack(batch).unique_tokens.tokens))
        for tokens in run(small, batch, [0, 1, 3]):
            assert set(tokens) == {0, 1, 3}
    assert seen - unique_tokens == {64, 80}


def test__network__layers_stop_at_the_highest_and_only_the_last_is_normalised(small):
    assert [layer for layer, _ in small.representations(pack(["MK"]), {0, 2})] == [0, 2]
    [(_, last)] = small.representations(pack(["MKTA"]), [3])
    reference = random_esm2(3, 64, 4, seed=8)
    theirs, _ = run_reference(reference, "MKTA", [2, 3])
    [(_, second)] = small.representations(pack(["MKTA"]), [2])
    torch.testing.assert_close(second, theirs[2], rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(last, theirs[3], rtol=RTOL, atol=ATOL)


def test__network__takes_every_tensor_out_of_the_dictionary():
    tensors = bare_state(random_esm2(2, 32, 2, seed=9))
    ESM2Network("random", Architecture(2, 32, 2), tensors, CPU, "float32")
    assert tensors == {}, "what is left behind cannot be freed"


def test__network__without_a_head_gives_representations_and_no_logits():
    tensors = bare_state(random_esm2(2, 32, 2, seed=9))
    trunk = {name: t for name, t in tensors.items() if not name.startswith("lm_head")}
    network = ESM2Network("trunk", Architecture(2, 32, 2), trunk, CPU, "float32")
    [(_, x_TD)] = network.representations(pack(["MKT"]), [2])
    assert not network.has_head
    with pytest.raises(CheckpointError, match="trunk holds no language-model head"):
        network.logits(x_TD)


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 0.05), ("float16", 0.005)])
def test__network__half_precision_is_coarse_and_not_wrong(precision, bound):
    reference = random_esm2(3, 64, 4, seed=10)
    for ours, sequence in zip(
        run(network_of(reference, precision), sequences((5, 60, 60)), [3]),
        sequences((5, 60, 60)),
        strict=True,
    ):
        theirs, _ = run_reference(reference, sequence, [3])
        off = (ours[3] - theirs[3]).norm(dim=1) / theirs[3].norm(dim=1)
        assert ours[3].dtype == torch.float32
        assert 1e-5 < off.max() < bound, "half precision must differ, but not by a fault"


def test__network__works_without_the_private_kernels(monkeypatch):
    reference = random_esm2(3, 64, 4, seed=11)
    monkeypatch.setattr(esm2_features._model.linear, "_can_pack", lambda weight: False)
    assert_parity(reference, network_of(reference), sequences((1, 40, 200)))


@pytest.mark.parametrize("name", OFFICIAL)
def test__architecture__of_every_official_size_has_a_head_width_that_is_tested(name):
    assert OFFICIAL[name].architecture.head_dim in {dim // heads for _, dim, heads in SHAPES}


def test__run__has_one_layer_of_several_batches_in_memory_at_a_time(small):
    batches = [pack(["MKTA", "MK"]), pack(["GSHM" * 5]), pack(["W"])]
    expected = [dict(small.representations(batch, range(small.depth + 1))) for batch in batches]
    held = []
    for layer, parts in small.run(batches, range(small.depth + 1)):
        for of_batch, part in zip(expected, parts, strict=True):
            assert torch.equal(part, of_batch[layer])
        held.append([weakref.ref(part.untyped_storage()) for part in parts])
        del parts, part
        gc.collect()
        alive = [sum(ref() is not None for ref in refs) for refs in held[:-1]]
        assert sum(alive) == 0, alive
