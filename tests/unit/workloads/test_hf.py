"""`hf:` models: every kind of head trains, knobs reach the configuration, faults are one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from memprof.documents.workload_spec import WorkloadSpec
from memprof.errors import UsageError
from memprof.workloads.loader import LoadedWorkload, load_workload

transformers = pytest.importorskip("transformers")

DATA = Path(__file__).parents[2] / "data" / "hf"
MODELS = ["gpt2", "bert", "t5", "llama", "vit"]


def load(source: object, **knobs: Any) -> LoadedWorkload:
    return load_workload(WorkloadSpec(model=f"hf:{source}", knobs=knobs))


def built(loaded: LoadedWorkload) -> Any:
    return loaded.workload.model()


def edited(folder: Path, name: str, **fields: Any) -> Path:
    """Write a variant of one of the committed configurations; None takes a field out."""
    raw = {**json.loads((DATA / name / "config.json").read_text()), **fields}
    file = folder / "variant.json"
    file.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    return file


def train(loaded: LoadedWorkload) -> torch.nn.Module:
    torch.manual_seed(0)
    model = loaded.workload.model()
    loss = loaded.workload.loss(model, loaded.workload.batch(3))
    assert loss.shape == ()
    assert torch.isfinite(loss)
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_step_gives_a_finite_loss_and_every_gradient(name: str) -> None:
    loaded = load(DATA / name)
    model = train(loaded)
    assert type(model).__name__ == json.loads((DATA / name / "config.json").read_text())["architectures"][0]
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert loaded.knobs[loaded.scale or ""] == 2


@pytest.mark.parametrize("name", MODELS)
def test_a_step_reads_no_tensor_values(name: str) -> None:
    if name == "bert" and transformers.__version__ < "5":
        pytest.skip("before 5.0, BERT looks for padding among the values of the batch")
    real = load(DATA / name).workload.model()
    with FakeTensorMode():
        workload = load(DATA / name).workload
        model = workload.model()
        workload.loss(model, workload.batch(3)).backward()
    assert all(isinstance(p, FakeTensor) for p in model.parameters())
    assert [(n, p.shape) for n, p in model.named_parameters()] == [(n, p.shape) for n, p in real.named_parameters()]


@pytest.mark.parametrize(
    ("name", "architecture", "fields"),
    [
        ("bert", "BertForMaskedLM", {}),
        ("bert", "BertForSequenceClassification", {}),
        ("bert", "BertForSequenceClassification", {"num_labels": 1}),
        ("bert", "BertForSequenceClassification", {"problem_type": "multi_label_classification"}),
        ("bert", "BertForTokenClassification", {}),
        ("bert", "BertForQuestionAnswering", {}),
        ("gpt2", "GPT2ForSequenceClassification", {}),
        ("llama", "LlamaForSequenceClassification", {}),
        ("vit", "ViTForImageClassification", {"image_size": [32, 64]}),
    ],
)
def test_other_heads(tmp_path: Path, name: str, architecture: str, fields: dict[str, Any]) -> None:
    model = train(load(edited(tmp_path, name, architectures=[architecture], **fields)))
    assert type(model).__name__ == architecture


@pytest.mark.parametrize(
    ("name", "architectures", "chosen"),
    [
        ("gpt2", None, "GPT2LMHeadModel"),
        ("gpt2", ["GPT2Model"], "GPT2LMHeadModel"),
        ("bert", ["BertModel"], "BertForMaskedLM"),
        ("t5", None, "T5ForConditionalGeneration"),
        ("vit", ["ViTModel"], "ViTForImageClassification"),
    ],
)
def test_a_model_without_a_head_gets_one(tmp_path: Path, name: str, architectures: Any, chosen: str) -> None:
    assert type(train(load(edited(tmp_path, name, architectures=architectures)))).__name__ == chosen


def test_a_decoder_that_is_not_told_how_to_begin_begins_with_the_first_token(tmp_path: Path) -> None:
    train(load(edited(tmp_path, "t5", decoder_start_token_id=None)))


def test_half_of_a_model_of_images_and_text_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    file = tmp_path / "clip.json"
    file.write_text(json.dumps({"model_type": "clip", "architectures": ["CLIPModel"]}))
    with pytest.raises(UsageError, match="memprof makes no batches for CLIPModel"):
        load(file)


def test_a_configuration_without_an_image_size_takes_a_knob(tmp_path: Path) -> None:
    file = tmp_path / "resnet.json"
    raw = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "num_labels": 3,
    }
    file.write_text(json.dumps(raw))
    loaded = load(file, image_size=32)
    assert loaded.workload.batch(2)["pixel_values"].shape == (2, 3, 32, 32)
    assert load(file).knobs["image_size"] == 224
    train(loaded)


def test_file_folder_and_other_names(tmp_path: Path) -> None:
    knobs = load(DATA / "gpt2").knobs
    assert knobs == load(DATA / "gpt2" / "config.json").knobs == load(edited(tmp_path, "gpt2")).knobs
    assert knobs["seq_len"] == knobs["n_positions"] == 32
    assert load(DATA / "llama").knobs["seq_len"] == 512


def test_knobs_are_what_sizes_the_model() -> None:
    knobs = {"seq_len": 32, "vocab_size": 50, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    assert load(DATA / "gpt2").knobs == knobs
    assert load(DATA / "gpt2", bos_token_id=1).knobs == {**knobs, "bos_token_id": 1}


def test_knobs_reach_the_model() -> None:
    loaded = load(DATA / "gpt2", n_layer=3, seq_len=7)
    assert loaded.scale == "n_layer"
    assert (loaded.knobs["n_layer"], loaded.knobs["seq_len"]) == (3, 7)
    assert loaded.workload.batch(5)["input_ids"].shape == (5, 7)
    assert len(built(loaded).transformer.h) == 3
    assert load(DATA / "gpt2", num_hidden_layers=3).knobs == {**loaded.knobs, "seq_len": 32}
    assert load(DATA / "gpt2", resid_pdrop=0).knobs["resid_pdrop"] == 0.0
    assert load(DATA / "vit", image_size=64).workload.batch(1)["pixel_values"].shape == (1, 3, 64, 64)


def test_positions_that_begin_after_the_padding(tmp_path: Path) -> None:
    fields = {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "pad_token_id": 1}
    loaded = load(edited(tmp_path, "bert", **fields))
    assert loaded.knobs["seq_len"] == 24 - 2
    train(loaded)


def test_what_is_derived_is_derived_anew(tmp_path: Path) -> None:
    model = built(load(DATA / "llama", hidden_size=32))
    assert model.model.layers[0].self_attn.head_dim == 8
    assert len(built(load(DATA / "t5", num_layers=3)).decoder.block) == 3
    shallow = load(DATA / "t5", num_layers=3, num_decoder_layers=1)
    assert len(built(shallow).decoder.block) == 1
    kinds = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "layer_types": ["full_attention"] * 2,
    }
    train(load(edited(tmp_path, "llama", **kinds), num_hidden_layers=4))


def test_weights_tied_in_the_configuration_stay_tied_under_fake_tensors() -> None:
    with FakeTensorMode():
        model = built(load(DATA / "gpt2"))
    assert model.lm_head.weight is model.transformer.wte.weight


def test_generation_caches_are_off() -> None:
    model = load(DATA / "gpt2").workload.model()
    assert model(input_ids=torch.zeros(1, 4, dtype=torch.long)).past_key_values is None


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("gpt2", {"model_type": None}, "has no model_type, so it describes no transformers model"),
        (
            "gpt2",
            {"model_type": "gpt99"},
            "the installed transformers has no model_type 'gpt99'; a newer one may",
        ),
        (
            "gpt2",
            {"architectures": ["GPT2DoubleHeadsModel"]},
            "memprof makes no batches for GPT2DoubleHeadsModel",
        ),
        (
            "t5",
            {"architectures": ["T5ForSequenceClassification"]},
            "memprof makes no batches for T5ForSequence",
        ),
        ("llama", {"hidden_size": "wide"}, "transformers refuses the configuration of hf:"),
    ],
)
def test_configurations_that_do_not_work(tmp_path: Path, name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(edited(tmp_path, name, **fields)).workload.model()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"n_layrs": 3}, "has no knob 'n_layrs'; did you mean 'n_layer'?"),
        ({"seqlen": 3}, "has no knob 'seqlen'; did you mean 'seq_len'?"),
        ({"model_type": "bert"}, "has no knob 'model_type'"),
        ({"use_cache": True}, "has no knob 'use_cache'"),
        ({"n_layer": "two"}, "is an int, not 'two'"),
        ({"seq_len": "x"}, "is an int, not 'x'"),
        ({"seq_len": 0}, "must be at least 1, not 0"),
        ({"seq_len": 33}, "seq_len=33 is more than the 32 positions of"),
    ],
)
def test_knobs_that_do_not_fit(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(DATA / "gpt2", **knobs)
    assert message in str(caught.value)


def test_sources_that_are_no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    for source, message in [
        (tmp_path / "none.json", "there is no file"),
        (tmp_path / "empty", "there is no file"),
        (tmp_path / "broken.json", "cannot be read as JSON"),
        (tmp_path / "list.json", "holds a list, not a configuration"),
    ]:
        with pytest.raises(UsageError, match=message):
            load(source)
    with pytest.raises(UsageError, match="makes its own batches: drop --input"):
        load_workload(WorkloadSpec(model=f"hf:{DATA / 'gpt2'}", inputs=("float32[B]",)))


def test_a_hub_id_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = json.loads((DATA / "gpt2" / "config.json").read_text())
    asked = []

    def get_config_dict(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        asked.append(name)
        if name == "nobody/nothing":
            raise OSError("We couldn't connect\nto the hub")
        return (raw if name == "openai/gpt2" else {}), {}

    monkeypatch.setattr(transformers.PretrainedConfig, "get_config_dict", get_config_dict)
    assert load("openai/gpt2").knobs["n_layer"] == 2
    with pytest.raises(UsageError, match=r"the hub does not give its configuration: We couldn't connect to the hub$"):
        load("nobody/nothing")
    with pytest.raises(UsageError, match=r"someone/empty has no config.json on the hub"):
        load("someone/empty")
    assert asked == ["openai/gpt2", "nobody/nothing", "someone/empty"]


def test_builtins_have_the_parameters_of_transformers() -> None:
    def shapes(model: torch.nn.Module) -> list[tuple[int, ...]]:
        return sorted(tuple(p.shape) for p in model.parameters())

    large = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
    small = {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    llama = {**small, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True}
    with torch.device("meta"):
        for name, theirs in [
            ("bert-large", transformers.BertForPreTraining(transformers.BertConfig(**large))),
            ("llama", transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama))),
        ]:
            ours = load_workload(WorkloadSpec(model=name)).workload.model()
            assert shapes(ours) == shapes(theirs)
