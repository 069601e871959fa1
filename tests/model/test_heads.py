"""Heads: each learns a toy task with transformers' Trainer, is saved, loaded by strangers and run by pipelines."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from lam_transformers import LAMForMaskedLM, LAMForSequenceClassification, LAMForTokenClassification
from lam_transformers.checkpoints.export import SHIPPED_CODE, export_model
from lam_transformers.model.heads_lam import pool

from ..helpers import assert_close_rms, hidden

HEADS = {
    AutoModelForMaskedLM: LAMForMaskedLM,
    AutoModelForSequenceClassification: LAMForSequenceClassification,
    AutoModelForTokenClassification: LAMForTokenClassification,
}
ANIMALS, PEOPLE = ("dog", "cat"), ("man", "woman", "child")
VERBS = ("plays", "runs", "sleeps", "eats", "sings", "reads")


def sentences(count, seed=0):
    """[words, whether an animal does it], some longer than others."""
    g = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        animal = bool(g.integers(2))
        ends = (["in the house"], ["on the street"], ["quickly"], ["in the old red house", "and sings"])[g.integers(4)]
        words = ["the", g.choice(ANIMALS if animal else PEOPLE), g.choice(VERBS), *" ".join(ends).split()]
        found.append(([str(word) for word in words], int(animal)))
    return found


@pytest.fixture(scope="module")
def folder(tiny_model, tokenizer, tmp_path_factory):
    """A released folder of the tiny model."""
    root = tmp_path_factory.mktemp("heads")
    tiny_model.save_pretrained(root / "source")
    tokenizer.save_pretrained(root / "source")
    export_model(root / "source", root / "lam", torch.float32)
    return root / "lam"


@pytest.fixture
def train(tmp_path, fresh_accelerator):
    def run(model, rows, collator, steps=60, **options):
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "run"), max_steps=steps, per_device_train_batch_size=16, learning_rate=3e-3,
            use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=steps, seed=1,
            **options,
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator).train()
        return model.eval()

    return run


def test_sequence_classification_learns(folder, tokenizer, train, tmp_path):
    from transformers import DataCollatorWithPadding

    data = sentences(320)
    rows = [{**tokenizer(" ".join(words)), "label": label} for words, label in data]
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, classifier_dropout=0.1)
    train(model, rows[:256], DataCollatorWithPadding(tokenizer))
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    classify = pipeline("text-classification", str(tmp_path / "trained"), device="cpu")
    found = classify([" ".join(words) for words, _ in data[256:]], batch_size=8)
    assert np.mean([int(x["label"][-1]) == label for x, (_, label) in zip(found, data[256:], strict=True)]) > 0.95


def test_token_classification_learns(folder, tokenizer, train, tmp_path):
    from transformers import DataCollatorForTokenClassification

    kinds = dict.fromkeys(ANIMALS, 1) | dict.fromkeys(PEOPLE, 2)
    data = [words for words, _ in sentences(320)]
    rows = []
    for words in data:
        encoded = tokenizer(words, is_split_into_words=True)
        labels = [-100 if i is None else kinds.get(words[i], 0) for i in encoded.word_ids()]
        rows.append({**encoded, "labels": labels})
    names = {0: "O", 1: "ANIMAL", 2: "PERSON"}
    model = AutoModelForTokenClassification.from_pretrained(
        folder, id2label=names, label2id={n: i for i, n in names.items()}
    )
    train(model, rows[:256], DataCollatorForTokenClassification(tokenizer), gradient_accumulation_steps=2, steps=40)
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    tag = pipeline("token-classification", str(tmp_path / "trained"), device="cpu")
    for words in data[256:]:
        found = {x["word"]: x["entity"] for x in tag(" ".join(words))}
        assert found == {word: names[kinds[word]] for word in words if word in kinds}


def test_masked_words_are_learnt_with_the_embeddings_as_decoder(folder, tokenizer, train, tmp_path):
    from transformers import DataCollatorWithPadding

    # The word behind the mask is the verb again, which stood before it.
    rows, masked = [], []
    for words, _ in sentences(320):
        masked.append((" ".join([*words[:3], "and", "[MASK]"]), words[2]))
        ids = tokenizer(" ".join([*words[:3], "and", words[2]]))["input_ids"]
        labels = [-100] * len(ids)
        labels[-2] = ids[-2]
        ids[-2] = tokenizer.mask_token_id
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    model = AutoModelForMaskedLM.from_pretrained(folder)
    table = model.lam.embeddings.word_embeddings.weight
    assert model.decoder.weight is table is model.get_output_embeddings().weight
    before = table.detach().clone()
    train(model, rows[:256], DataCollatorWithPadding(tokenizer), steps=80)
    assert not torch.equal(table, before)
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    again, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "trained", output_loading_info=True)
    assert not any(info.values()), info
    assert again.decoder.weight is again.lam.embeddings.word_embeddings.weight
    fill = pipeline("fill-mask", str(tmp_path / "trained"), device="cpu")
    found = [fill(text)[0]["token_str"] for text, _ in masked[256:]]
    assert np.mean([x == word for x, (_, word) in zip(found, masked[256:], strict=True)]) > 0.9


def test_a_cross_encoder_learns_and_is_loaded_again(folder, tmp_path, fresh_accelerator):
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    # Relevant is a person who is asked for.
    rows = [
        {"sentence1": "people" if asked else "all", "sentence2": " ".join(words), "label": float(asked and not animal)}
        for (words, animal), (_, asked) in zip(sentences(320), sentences(320, 1), strict=True)
    ]
    model = CrossEncoder(str(folder), num_labels=1, device="cpu", trust_remote_code=True)
    assert model[0].model.config.num_labels == 1
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=80, per_device_train_batch_size=16, learning_rate=3e-3, seed=1,
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_list(rows[:256])
    CrossEncoderTrainer(model=model, args=arguments, train_dataset=data, loss=BinaryCrossEntropyLoss(model)).train()
    pairs = [(row["sentence1"], row["sentence2"]) for row in rows[256:]]
    scores = model.predict(pairs)
    assert np.mean([(score > 0.5) == row["label"] for score, row in zip(scores, rows[256:], strict=True)]) > 0.9
    assert np.abs(model.predict(pairs, batch_size=3) - scores).max() < 1e-5
    model.save_pretrained(str(tmp_path / "again"))
    again = CrossEncoder(str(tmp_path / "again"), device="cpu", trust_remote_code=True)
    assert np.abs(again.predict(pairs) - scores).max() < 1e-6


STRANGER = """
import sys
sys.modules["lam_transformers"] = None
import torch, transformers
for place in sys.argv[1].split(","):
    for name in sys.argv[2:]:
        model = getattr(transformers, name).from_pretrained(place, trust_remote_code=True).eval()
        assert "transformers_modules" in type(model).__module__, type(model)
        print(type(model).__name__, list(model(torch.tensor([[2, 5, 3]]))[0].shape))
"""


@pytest.mark.slow
def test_a_stranger_loads_every_head_from_every_folder(folder, tokenizer, tmp_path):
    model = LAMForSequenceClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path / "classifier")
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "encoder")
    code = [name for name in SHIPPED_CODE if name not in ("sentence_transformers_module.py", "streaming_lam.py")]
    vocabulary = len(tokenizer)
    places = (folder, tmp_path / "classifier", tmp_path / "encoder")
    for place in places:
        assert all((place / name).exists() for name in code), place
    names = ["AutoModel", *(auto.__name__ for auto in HEADS)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", STRANGER, ",".join(map(str, places)), *names],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [
        "LAMModel [1, 3, 64]",
        f"LAMForMaskedLM [1, 3, {vocabulary}]",
        "LAMForSequenceClassification [1, 2]",
        "LAMForTokenClassification [1, 3, 2]",
    ]
    assert done.stdout.splitlines() == lines * len(places)


@pytest.mark.parametrize("auto", HEADS)
def test_padding_changes_nothing(folder, auto):
    torch.manual_seed(0)
    model = auto.from_pretrained(folder).eval()
    assert type(model) is HEADS[auto]
    ids = torch.tensor([[2, 9, 11, 30, 3], [2, 12, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        whole, alone = model(ids, attention_mask=mask), model(ids[1:, :3])
        left = model(ids[1:].roll(2, 1), attention_mask=mask[1:].roll(2, 1)).logits
        as_tuple = model(ids[1:, :3], return_dict=False, output_hidden_states=True)
        by_embeddings = model(inputs_embeds=model.get_input_embeddings()(ids[:1]), output_hidden_states=True)
    tokens = whole.logits.ndim == 3
    assert_close_rms("padded right", whole.logits[1:, :3] if tokens else whole.logits[1:], alone.logits, 1e-5)
    assert_close_rms("padded left", left[:, 2:] if tokens else left, alone.logits, 1e-5)
    assert torch.equal(as_tuple[0], alone.logits)
    assert len(as_tuple[1]) == len(by_embeddings.hidden_states) == 3
    assert_close_rms("embeddings", by_embeddings.logits, whole.logits[:1], 1e-5)


def test_a_text_is_pooled_by_its_mean_or_its_last_token():
    states = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    states = states * mask.unsqueeze(-1)
    assert torch.equal(pool(states, mask, "mean"), torch.stack([states[0, :2].mean(0), states[1, 1:].mean(0)]))
    assert torch.equal(pool(states, mask.bool(), "lasttoken"), torch.stack([states[0, 1], states[1, 3]]))
    assert torch.equal(pool(states, None, "mean"), states.mean(1))
    assert torch.equal(pool(states, None, "lasttoken"), states[:, 3])


def test_the_losses_are_those_of_the_problem(folder):
    ids, mask = torch.tensor([[2, 9, 3], [2, 12, 3]]), torch.ones(2, 3, dtype=torch.long)
    model = LAMForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    out = model(ids, labels=torch.tensor([0.5, 2.0]))
    assert out.loss.item() == pytest.approx((out.logits.squeeze() - torch.tensor([0.5, 2.0])).square().mean().item())
    model = LAMForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    labels = torch.tensor([[0.0, 1, 1], [1, 0, 0]])
    out = model(ids, labels=labels)
    assert out.loss.item() == pytest.approx(
        torch.nn.functional.binary_cross_entropy_with_logits(out.logits, labels).item()
    )
    model = LAMForTokenClassification.from_pretrained(folder, num_labels=3).eval()
    labels = torch.tensor([[-100, 2, -100], [-100, 1, 0]])
    out = model(ids, attention_mask=mask, labels=labels)
    want = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    assert out.loss.item() == pytest.approx(want.item())
    assert model(ids, labels=labels, num_items_in_batch=6).loss.item() == pytest.approx(want.item() / 2)


def test_packed_rows_are_for_tokens_and_states_for_the_encoder(folder, tiny_model):
    ids, bounds = torch.tensor([[2, 9, 3, 2, 12, 3]]), torch.tensor([0, 3, 6])
    model = LAMForTokenClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        row = model(ids, cu_seq_lens_q=bounds).logits
        assert_close_rms("packed", row.view(2, 3, -1), model(ids.view(2, 3)).logits, 1e-5)
    with pytest.raises(ValueError, match="one text a row"):
        LAMForSequenceClassification.from_pretrained(folder)(ids, cu_seq_lens_q=bounds)
    for given in ({"use_cache": True}, {"cache_params": tiny_model.new_state(1)}, {"past_key_values": object()}):
        with pytest.raises(ValueError, match=f"leave {next(iter(given))} out"):
            model(ids, **given)


def test_fewer_layers_are_the_first_ones(folder, make_model, tmp_path, ids):
    whole = AutoModel.from_pretrained(folder).eval()
    for load in (AutoModel, type(whole)):
        first = load.from_pretrained(folder, num_hidden_layers=1).eval()
        states = whole(ids, output_hidden_states=True).hidden_states
        assert_close_rms("first layer", hidden(first, ids), states[1], 1e-6)
    first.save_pretrained(tmp_path / "first")
    again = AutoModel.from_pretrained(tmp_path / "first")
    assert again.config.num_hidden_layers == len(again.layers) == 1
    head = AutoModelForSequenceClassification.from_pretrained(folder, num_hidden_layers=1)
    head.save_pretrained(tmp_path / "head")
    assert len(AutoModel.from_pretrained(tmp_path / "head").layers) == 1
    with pytest.raises(OSError, match="missing"):
        AutoModel.from_pretrained(folder, num_hidden_layers=3)
    # Nobody asks for fewer layers here: the folder's own files contradict each other.
    whole.save_pretrained(tmp_path / "wrong")
    path = tmp_path / "wrong/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 1}))
    with pytest.raises((OSError, ValueError), match=r"unknown \['layers\.1|num_hidden_layers is 1"):
        AutoModel.from_pretrained(tmp_path / "wrong")


def test_a_head_with_a_damaged_encoder_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    model = LAMForSequenceClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    lost = tensors.pop("lam.layers.1.memory.decay_bias")
    save_file(tensors, path, {"format": "pt"})
    for auto in (AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModel):
        with pytest.raises(OSError, match=r"missing \['layers\.1\.memory\.decay_bias'\]"):
            auto.from_pretrained(tmp_path)
    save_file(
        tensors | {"lam.layers.1.memory.decay_bias": lost, "lam.layers.1.more": lost.clone()}, path, {"format": "pt"}
    )
    with pytest.raises(OSError, match=r"unknown \['layers\.1\.more'\]"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("changes", [{"classifier_dropout": 1.0}, {"classifier_pooling": "cls"}])
def test_settings_that_do_not_fit_are_refused(tiny_config, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        tiny_config(**changes)
