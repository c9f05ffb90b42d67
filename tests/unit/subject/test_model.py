"""The model agrees with the public implementation, and holds nothing that a checkpoint does not
name."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip(
    "transformers", reason="the test-only oracle (pip install transformers)"
)

from labkit.subject import plain  # noqa: E402
from labkit.subject.config import LlamaConfig  # noqa: E402
from labkit.subject.decode import generate  # noqa: E402
from labkit.subject.llama import Llama  # noqa: E402

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def oracle(kind: str):
    makers = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)),
        "llama-tied": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True)
        ),
        "llama-bias-headdim": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, head_dim=24)
        ),
        "llama3-scaling": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**SHAPE, rope_parameters=LLAMA3)
        ),
        "llama-linear": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **SHAPE,
                rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
            )
        ),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE)),
        "qwen2-tied": lambda: transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(**SHAPE, tie_word_embeddings=True)
        ),
        "mistral": lambda: transformers.MistralForCausalLM(
            transformers.MistralConfig(**SHAPE, sliding_window=None)
        ),
    }
    torch.manual_seed(5)
    model = makers[kind]().float().eval()
    with torch.no_grad():
        # biases start at zero and norms at one: make both matter
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(
    scope="module",
    params=[
        "llama",
        "llama-tied",
        "llama-bias-headdim",
        "llama3-scaling",
        "llama-linear",
        "qwen2",
        "qwen2-tied",
        "mistral",
    ],
)
def pair(request, tmp_path_factory):
    """(theirs, ours), ours loaded from what theirs saved."""
    directory = tmp_path_factory.mktemp("hf") / request.param
    theirs = oracle(request.param)
    theirs.save_pretrained(directory)
    with torch.device("meta"):
        ours = Llama(LlamaConfig.from_dir(directory), torch.float32)
    plain.load(ours, str(directory), "cpu")
    return theirs, ours.finish(256)


def test_logits_equal_transformers_to_1e_4_in_float32(pair):
    theirs, ours = pair
    ids = torch.randint(3, 300, (1, 90), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-4


def greedy(*arguments, **options):
    return [token for token, _ in generate(*arguments, **options)]


def test_greedy_tokens_with_our_cache_equal_transformers_own(pair):
    theirs, ours = pair
    ids = [0, 17, 230, 5]
    expected = theirs.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, 4, dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, len(ids) :].tolist()
    assert greedy(ours, ids, 12) == expected


def test_static_decode_step_gives_the_same_tokens_as_the_growing_one(pair):
    _, ours = pair
    cache = ours.new_cache(64)
    static = [t for t, _ in generate(ours, [0, 17, 230, 5], 12, cache=cache, step=ours.forward)]
    assert static == greedy(ours, [0, 17, 230, 5], 12)


def test_a_cache_used_before_does_not_change_the_answer(pair):
    _, ours = pair
    cache = ours.new_cache(64)
    first = greedy(ours, [0, 9, 8, 7, 6, 5], 20, cache=cache)
    greedy(ours, [0] + [100] * 30, 20, cache=cache)
    assert greedy(ours, [0, 9, 8, 7, 6, 5], 20, cache=cache) == first


def test_parameter_names_and_shapes_are_the_public_ones(pair):
    theirs, ours = pair
    tied = ours.config.tie_word_embeddings
    public = {
        n: tuple(p.shape)
        for n, p in theirs.state_dict().items()
        if not (tied and n == "lm_head.weight")
    }
    assert (
        {n: tuple(p.shape) for n, p in ours.state_dict().items()} == public == ours.config.shapes()
    )


def test_building_on_meta_loads_no_compiler():
    import subprocess
    import sys

    code = """
import sys, torch
from labkit.subject.presets import PRESETS
from labkit.subject.llama import Llama
before = set(sys.modules)
with torch.device("meta"):
    model = Llama(PRESETS["8b"], torch.bfloat16)
assert all(p.is_meta for p in model.parameters())
print(len(set(sys.modules) - before))
"""
    assert (
        int(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout
        )
        < 20
    )


def test_random_initialisation_is_torchs_own():
    from labkit.subject.presets import PRESETS

    torch.manual_seed(3)
    ours = Llama(PRESETS["tiny"]).model.layers[0].self_attn.q_proj
    torch.manual_seed(3)
    torch.nn.Embedding(PRESETS["tiny"].vocab_size, PRESETS["tiny"].hidden_size)
    theirs = torch.nn.Linear(128, 128, bias=False)
    assert torch.equal(ours.weight, theirs.weight)


def test_a_model_with_a_hole_is_refused_by_name():
    from labkit.errors import BadInput
    from labkit.subject.presets import PRESETS

    with torch.device("meta"):
        model = Llama(PRESETS["tiny"])
    with pytest.raises(BadInput, match=r"model\.embed_tokens\.weight"):
        model.finish()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("fmt", ["safetensors", "pickle"])
def test_the_public_library_loads_what_we_make_and_gives_the_same_logits_and_words(
    tmp_path, family, fmt
):
    from labkit.subject.checkpoint import make_checkpoint
    from labkit.subject.tokenizer import Tokenizer

    directory = tmp_path / "made"
    make_checkpoint(directory, "tiny", family=family, fmt=fmt, shards=2)
    with torch.device("meta"):
        ours = Llama(LlamaConfig.from_dir(directory), torch.float32)
    plain.load(ours, str(directory), "cpu")
    ours.finish(64)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    words = transformers.AutoTokenizer.from_pretrained(directory)
    ids = Tokenizer.from_dir(directory).encode("Where does the time go, and how sure are we?")
    assert words("Where does the time go, and how sure are we?").input_ids == ids
    with torch.no_grad():
        assert (theirs(torch.tensor([ids])).logits - ours(torch.tensor([ids]))).abs().max() < 1e-4
