"""sentence-transformers' own trainer, losses and model cards with a LAM, the way a BERT is trained with them."""

import numpy as np
import pytest
import torch

from lam_transformers.training.finetune import encoder_of

datasets = pytest.importorskip("datasets", reason="the train extra is not installed")

SUBJECTS = ("the dog", "the old cat", "a child", "the young woman", "a man")
VERBS = ("plays", "runs", "sleeps", "eats", "sings", "reads")
PLACES = ("in the house", "on the street", "in the red river", "in the house of music")
LONG = "the dog runs to the river and the cat sleeps in the house . " * 300  # 4,200 tokens, above the budget


def pairs(count, seed=0):
    """Sentences and their copies with the words in another order."""
    g = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        subject, verb, place = (str(g.choice(x)) for x in (SUBJECTS, VERBS, PLACES))
        rows.append({"anchor": f"{subject} {verb} {place}", "positive": f"{place} {verb} {subject}"})
    return rows


@pytest.fixture
def encoder(make_model, tokenizer):
    return encoder_of(make_model(), tokenizer)


@pytest.fixture
def make_trainer(tmp_path, fresh_accelerator):
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    def make(model, loss, data, **options):
        fresh_accelerator()
        arguments = {
            "output_dir": str(tmp_path), "max_steps": 3, "per_device_train_batch_size": 8, "use_cpu": True,
            "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-3, "seed": 1,
            "per_device_eval_batch_size": 8,
        } | options.pop("arguments", {})  # fmt: skip
        return SentenceTransformerTrainer(
            model=model,
            loss=loss,
            train_dataset=data,
            args=SentenceTransformerTrainingArguments(**arguments),
            **options,
        )

    return make


def train(trainer):
    """The losses of each step."""
    trainer.args.logging_steps = 1
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("prompt", [None, "the red book: "])
def test_a_streaming_data_set_trains_like_one_in_memory(make_model, tokenizer, make_trainer, prompt):
    """accelerate hands the batches of a stream out in slices of their rows."""
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    rows = pairs(24)
    losses = []
    for data in (datasets.Dataset.from_list(rows), datasets.Dataset.from_list(rows).to_iterable_dataset()):
        model = encoder_of(make_model(), tokenizer)
        model.set_pooling_include_prompt(False)
        trainer = make_trainer(model, MultipleNegativesRankingLoss(model), data, arguments={"prompts": prompt})
        # In memory the rows would be shuffled: take them in the order of the stream.
        trainer.get_batch_sampler = lambda *_, **__: torch.arange(24).view(3, 8).tolist()
        losses.append(train(trainer))
    assert np.isfinite(losses).all()
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_evaluation_loss_with_one_long_text_is_that_of_the_plain_loss(encoder, make_trainer):
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

    rows = pairs(8)
    rows[3]["positive"] = LONG
    data = datasets.Dataset.from_list(rows)
    losses = [
        make_trainer(encoder, loss, data, eval_dataset=data).evaluate()["eval_loss"]
        for loss in (
            MultipleNegativesRankingLoss(encoder),
            CachedMultipleNegativesRankingLoss(encoder, mini_batch_size=3),
        )
    ]
    assert np.isfinite(losses).all()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("guide", ["lam", "bert"])
@pytest.mark.parametrize("name", ["GISTEmbedLoss", "CachedGISTEmbedLoss"])
def test_guided_losses(encoder, make_model, tokenizer, tiny_bert, make_trainer, name, guide):
    from sentence_transformers import SentenceTransformer, losses
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    if guide == "lam":
        teacher = encoder_of(make_model(seed=5), tokenizer)
    else:
        module = Transformer(str(tiny_bert), max_seq_length=40)
        teacher = SentenceTransformer(modules=[module, Pooling(64), Normalize()], device="cpu")
    loss = getattr(losses, name)(encoder, teacher, **({"mini_batch_size": 3} if name.startswith("Cached") else {}))
    assert loss.must_retokenize == (guide != "lam")
    rows = pairs(24)
    columns = [[row[column] for row in rows[:8]] for column in ("anchor", "positive")]
    given = [encoder.preprocess(column) for column in columns]
    with torch.no_grad():
        value = loss(given, None)
        want = losses.GISTEmbedLoss(encoder, teacher)([encoder.preprocess(x) for x in columns], None)
    assert value.item() == pytest.approx(want.item(), rel=1e-4)
    assert np.isfinite(train(make_trainer(encoder, loss, datasets.Dataset.from_list(rows)))).all()


def test_the_model_card_counts_tokens(encoder, make_trainer, tmp_path):
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    rows = pairs(8)
    rows[3]["positive"] = LONG
    data = datasets.Dataset.from_list(rows)
    trainer = make_trainer(encoder, MultipleNegativesRankingLoss(encoder), data, eval_dataset=data)
    train(trainer)
    encoder.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model/README.md").read_text()
    assert "None tokens" not in card
    assert "1000000000 tokens" in card
    longest = len(encoder[0].text_tokenizer.encode([LONG])[0])
    assert f"max: {longest} tokens" in card
    assert "characters" not in card
