"""config.json, tokenizer and request bodies as hostile input."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import BadInput
from labkit.subject import api, tokenizer
from labkit.subject.config import LlamaConfig
from labkit.subject.presets import PRESETS, config_of

GOOD = PRESETS["8b"].to_json()
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_written_and_read_again_is_the_same(preset):
    assert (
        LlamaConfig.from_json(json.loads(json.dumps(PRESETS[preset].to_json()))) == PRESETS[preset]
    )


def test_the_8b_shape_is_llama_3_1_8b():
    assert PRESETS["8b"].parameters == 8_030_261_248


@given(
    st.dictionaries(
        st.sampled_from(
            [*sorted(GOOD), "rope_parameters", "sliding_window", "quantization_config"]
        ),
        ANY,
        max_size=6,
    )
)
@settings(max_examples=400, deadline=None)
def test_any_fields_give_a_config_or_one_bad_input(fields):
    try:
        made = LlamaConfig.from_json({**GOOD, **fields})
    except BadInput as error:
        assert "config.json" in error.what
    else:
        assert made.num_attention_heads % made.num_key_value_heads == 0 and made.head_dim % 2 == 0


@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_config_or_one_bad_input(raw):
    with pytest.raises(BadInput):
        LlamaConfig.from_bytes(raw)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "dynamic"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "longrope"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "without a factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, "yarn with factor 0.5"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4, "truncate": False}}, "truncate"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_key_value_heads": 5}, "5 key/value"),
        ({"use_sliding_window": True, "sliding_window": 4096}, "sliding_window"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "hidden_size"),
        ({"head_dim": 7}, "head_dim"),
    ],
)
def test_what_cannot_be_reproduced_is_refused_by_name(change, named):
    with pytest.raises(BadInput, match=named):
        LlamaConfig.from_json({**GOOD, **change})


@pytest.mark.parametrize(
    "settings, attention_factor, original",
    [
        ({}, 0.1 * math.log(4) + 1, 131_072),
        ({"original_max_position_embeddings": 32_768, "attention_factor": 1.5}, 1.5, 32_768),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0, 131_072),
    ],
)
@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_yarn_is_read_with_what_it_leaves_out(name, settings, attention_factor, original):
    rope = {"rope_type": "yarn", "factor": 4.0, **settings}
    found = LlamaConfig.from_json({**GOOD, "rope_scaling": None, name: rope})
    assert found.rope.attention_factor == attention_factor
    assert found.rope.original_max_position == original
    assert LlamaConfig.from_json(found.to_json()) == found


def test_deep_nesting_is_refused():
    with pytest.raises(BadInput):
        LlamaConfig.from_bytes(b'{"a":' * 100_000)


@given(st.integers(1_000_000, 10**12), st.sampled_from(["llama", "qwen2"]))
@settings(deadline=None)
def test_a_size_asked_for_is_met_within_two_percent(size, family):
    config = config_of(size_bytes=size, family=family)
    assert abs(config.parameters * 2 / size - 1) < 0.02
    assert LlamaConfig.from_json(config.to_json()).shapes() == config.shapes()


@pytest.fixture(scope="module")
def words():
    return tokenizer.Tokenizer.from_bytes(tokenizer.tokenizer_json(2048))


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_from_the_made_tokenizer(words, text):
    ids = words.encode(text)
    assert ids[0] == 0 and words.decode(ids) == "".join(text) and max(ids) < 2048


@pytest.mark.parametrize("size", [300, 4096, 32_000])
def test_the_made_vocabulary_is_padded_to_the_models(size):
    assert tokenizer.Tokenizer.from_bytes(tokenizer.tokenizer_json(size)).size == size


@given(
    ANY
    | st.fixed_dictionaries(
        {"prompt": ANY},
        optional=dict.fromkeys(
            (
                "max_tokens",
                "temperature",
                "top_p",
                "top_k",
                "seed",
                "logit_bias",
                "stream",
                "stop",
                "n",
                "echo",
                "stream_options",
                "logprobs",
                "ignore_eos",
                "model",
            ),
            ANY,
        ),
    )
)
@settings(max_examples=100, deadline=None)
def test_any_request_is_understood_or_refused_with_a_4xx(doc):
    try:
        made = api.parse(json.dumps(doc).encode(), vocabulary=100)
    except api.APIError as error:
        assert 400 <= error.status < 500 and error.body()["error"]["message"]
    else:
        assert made.max_tokens >= 1 or made.echo


@pytest.mark.parametrize(
    "generation, ids",
    [
        (None, (1,)),
        ({"eos_token_id": [1, 8, 9]}, (1, 8, 9)),
        ({"eos_token_id": 7}, (7,)),
        ({"eos_token_id": None, "temperature": 0.6}, (1,)),
        ({}, (1,)),
    ],
)
def test_an_answer_ends_at_the_tokens_of_the_generation_config(tmp_path, generation, ids):
    (tmp_path / "config.json").write_text(json.dumps({**GOOD, "eos_token_id": 1}))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert LlamaConfig.from_dir(tmp_path).eos_token_ids == ids


def test_a_generation_config_that_cannot_be_read_is_refused_by_its_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GOOD))
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(BadInput, match=r"generation_config\.json: not JSON"):
        LlamaConfig.from_dir(tmp_path)


@pytest.mark.parametrize("status, ids", [(200, (7,)), (404, (1,)), (403, (1,)), (500, None)])
def test_a_store_may_lack_a_generation_config_but_not_fail_to_give_it(status, ids):
    from labkit.net.message import text
    from labkit.net.server import HTTPServer

    def store(asked):
        if asked.path.endswith("/config.json"):
            return text(200, json.dumps({**GOOD, "eos_token_id": 1}))
        return text(status, '{"eos_token_id": 7}')

    with HTTPServer(store) as server:
        if ids is None:
            with pytest.raises(BadInput, match="HTTP 500"):
                LlamaConfig.from_dir(f"{server.url}/models/tiny")
        else:
            assert LlamaConfig.from_dir(f"{server.url}/models/tiny").eos_token_ids == ids


@pytest.mark.parametrize("name", ["tokenizer.model", "merges.txt"])
def test_a_tokenizer_in_another_form_is_refused_with_the_way_to_make_one(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(BadInput, match=name) as caught:
        tokenizer.Tokenizer.from_dir(tmp_path)
    assert "save_pretrained" in caught.value.fix
