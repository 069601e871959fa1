"""The pool: every text of a data folder as token ids, the pairs among them, labels, long documents and dev sets.

    python -m lam_transformers.training.at_scale.pool --data DIR --out POOL

Files of the folder POOL:
    ids.npy [tokens] uint16, lengths.npy [texts], source.npy [texts]: the texts, without special tokens.
    pairs.npy [pairs, 4] int32: query, document, negative (-1: none), kind.
    nli.npy [pairs, 3] int32: premise, hypothesis, label.
    stsb_train.npy [pairs, 3] float32: sentence, sentence, score.
    long.npz: ids and lengths of whole books and essays.
    dev.npz: the dev sets (dev_sets.py).
    meta.json: names of the sources, kinds and labels by number, the special tokens' ids.
"""

import argparse
import json
import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...io.files import read_records
from ...io.loading import locate_model
from ..data import EVALUATION_FILES, read_file_list
from .dev_sets import DevSets
from .texts import say

PAIR_KINDS = (
    "arxiv_title", "medquad", "squad", "trecqa", "trivia", "altlex", "wikisplit", "simplify", "mrpc", "nli", "scitldr",
    "sentence_of_passage", "next_chunk", "leading_sentence", "stsb",
)  # fmt: skip
# The fields of evaluation sets (recipes/evaluation_files.txt) whose texts must not be trained on.
EVALUATION_FIELDS = ("sentence1", "sentence2", "text")
# The share of each file of single texts that is taken.
TEXT_SHARES = {
    "tatoeba_en": 0.35,
    "multi30k_captions": 0.8,
    "oewn_definitions_examples": 0.5,
    "queries_questions": 1.0,
    "intents_tech": 0.4,
    "dstc8_sgd_utterances": 0.25,
    "social_reddit_twitter": 0.5,
    "corpora_nltk_mixed": 0.6,
    "news_reuters_bbc": 0.9,
    "wiki_textbooks": 1.0,
    "book_sentences": 0.6,
}
# Queries of benchmarks, which nothing is trained on.
DROPPED_SOURCES = ("beir_query_", "dpr_", "squad_dev", "nq_open", "msmarco_query")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")


@dataclass(kw_only=True)
class PoolSettings:
    """What decides a pool; the defaults are those of the run in docs/TRAINING.md.

    Attributes:
        max_tokens: of a text, without special tokens; the rest of it is cut off.
        dev_titles, dev_questions, dev_summaries: rows of arXiv, MedQuAD and SciTLDR that become dev sets.
        dev_tokens: of a text of a dev set, without special tokens.
        seed: of every choice.
    """

    max_tokens: int = 254
    dev_titles: int = 2000
    dev_questions: int = 1000
    dev_summaries: int = 500
    dev_tokens: int = 510
    seed: int = 0


def letters_and_digits(text: str) -> str:
    """What decides whether two texts of the pool are the same one: ASCII letters and digits in lower case.

    `data.normalise` keeps letters of all scripts. The pool was built with this rule, and which of its texts are equal
    decides every number in it, so the rule stays.
    """
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def split_sentences(text: str) -> list[str]:
    """The sentences of a text that have more than 20 characters."""
    return [sentence for sentence in SENTENCE_END.split(" ".join(text.split())) if len(sentence) > 20]


class PoolBuilder:
    """Reads the data folder once, in a fixed order, and collects texts, pairs, labels and dev sets.

    Args:
        data: the data folder.
        settings: see `PoolSettings`.
    """

    def __init__(self, data: Path, settings: PoolSettings) -> None:
        self.data = data
        self.settings = settings
        self.random = random.Random(settings.seed)
        self.texts: list[str] = []
        self.source: list[int] = []
        self.source_names: list[str] = []
        self.pairs: list[tuple[int, int, int, int]] = []
        self.nli: list[tuple[int, int, str]] = []
        self.stsb: list[tuple[int, int, float]] = []
        self.long_documents: list[str] = []
        self.dev_pairs: dict[str, list[tuple[str, str]]] = {}
        self._number_of: dict[str, int] = {}
        self._banned = {
            letters_and_digits(record[field])
            for file in read_file_list(EVALUATION_FILES)
            for record in self.records(file)
            for field in EVALUATION_FIELDS
            if field in record
        }

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        """The records of a file of the data folder."""
        return read_records(self.data / name)

    def build(self) -> None:
        """Collect everything. The order decides which of two equal texts is kept and what the random choices are."""
        self.read_arxiv()
        self.read_medquad()
        self.read_scitldr()
        self.read_question_answers()
        self.read_paraphrases()
        self.read_nli()
        self.read_stsb()
        self.read_book_passages()
        self.read_long_documents()
        self.read_single_texts()

    # Adding texts and pairs

    def add(self, text: str, source: str) -> int:
        """The number of a text in the pool; -1 for one that is too short or that belongs to an evaluation set."""
        text = " ".join(text.split())
        key = letters_and_digits(text)
        if len(key) < 3 or key in self._banned:
            return -1
        return self._numbered(text, key, source)

    def _numbered(self, text: str, key: str, source: str) -> int:
        if key not in self._number_of:
            self._number_of[key] = len(self.texts)
            self.texts.append(text)
            self.source.append(self._source_number(source))
        return self._number_of[key]

    def _source_number(self, name: str) -> int:
        if name not in self.source_names:
            self.source_names.append(name)
        return self.source_names.index(name)

    def add_pair(self, query: int, document: int, kind: str, negative: int = -1) -> None:
        """Keep a pair of texts by their numbers, unless one is not in the pool or both are one text."""
        if query >= 0 and document >= 0 and query != document:
            self.pairs.append((query, document, negative, PAIR_KINDS.index(kind)))

    def add_sentence_of_passage(self, text: str, source: str) -> None:
        """A pair of one sentence of the text and the rest of it (Lee et al. 2019, "inverse cloze task")."""
        sentences = split_sentences(text)
        if len(sentences) < 3:
            return
        chosen = self.random.randrange(len(sentences))
        rest = " ".join(sentences[:chosen] + sentences[chosen + 1 :])
        sentence = self.add(sentences[chosen], source)
        self.add_pair(sentence, self.add(rest, source), "sentence_of_passage")

    # One method a kind of data

    def read_arxiv(self) -> None:
        """Titles and abstracts; the first rows, in random order, are a dev set."""
        rows = list(self.records("pairs/arxiv_title_abstract.jsonl.gz"))
        self.random.shuffle(rows)
        held_out = rows[: self.settings.dev_titles]
        self.dev_pairs["arxiv"] = [(row["title"], row["abstract"]) for row in held_out]
        self._banned |= {letters_and_digits(row["title"]) for row in held_out}
        for row in rows[self.settings.dev_titles :]:
            abstract = self.add(row["abstract"], "arxiv")
            self.add_pair(self.add(row["title"], "arxiv_title"), abstract, "arxiv_title")
            sentences = split_sentences(row["abstract"])
            if len(sentences) <= 2:
                continue
            if self.random.random() < 0.5:
                first = self.add(sentences[0], "arxiv")
                self.add_pair(first, self.add(" ".join(sentences[1:]), "arxiv"), "leading_sentence")
            else:
                self.add_sentence_of_passage(row["abstract"], "arxiv")

    def read_medquad(self) -> None:
        """Medical questions and answers; no answer of the dev set is trained on under another question."""
        rows = list(self.records("pairs/medquad.jsonl.gz"))
        answered = [row for row in rows if row.get("answer")]
        self.random.shuffle(answered)
        dev = [(row["question"], row["answer"]) for row in answered[: self.settings.dev_questions]]
        self.dev_pairs["medquad"] = dev
        held_out = {letters_and_digits(answer)[:200] for _, answer in dev}
        held_out |= {letters_and_digits(question) for question, _ in dev}
        for row in answered[self.settings.dev_questions :]:
            question = letters_and_digits(row["question"])
            if letters_and_digits(row["answer"])[:200] in held_out or question in held_out:
                continue
            answer = self.add(row["answer"], "medquad_answer")
            self.add_pair(self.add(row["question"], "medquad_question"), answer, "medquad")
            if self.random.random() < 0.3:
                self.add_sentence_of_passage(row["answer"][:3000], "medquad_answer")
        for row in rows:
            if row.get("answer") or self.random.random() >= 0.4:
                continue
            if letters_and_digits(row["question"]) not in held_out:
                self.add(row["question"], "medquad_question")

    def read_scitldr(self) -> None:
        """Titles and one-sentence summaries of papers with their abstracts."""
        rows = list(self.records("pairs/scitldr.jsonl.gz"))
        self.random.shuffle(rows)
        held_out = rows[: self.settings.dev_summaries]
        self.dev_pairs["scitldr"] = [(row["tldr"][0], " ".join(row["abstract"])) for row in held_out]
        for row in rows[self.settings.dev_summaries :]:
            abstract = self.add(" ".join(row["abstract"]), "scitldr")
            self.add_pair(self.add(row["title"], "scitldr"), abstract, "scitldr")
            for summary in row["tldr"][:2]:
                self.add_pair(self.add(summary, "scitldr"), abstract, "scitldr")

    def read_question_answers(self) -> None:
        """Questions with the sentence or the words that answer them."""
        for row in self.records("pairs/squad_sentence_question_lower.jsonl.gz"):
            question = self.add(row["question"], "squad_question")
            self.add_pair(question, self.add(row["sentence"], "squad_sentence"), "squad")
        for row in self.records("pairs/trecqa_wang.jsonl.gz"):
            question = self.add(row["question"], "trecqa")
            sentence = self.add(row["sentence"], "trecqa")
            if row["label"] == 1:
                self.add_pair(question, sentence, "trecqa")
        for row in self.records("pairs/opentriviaqa.jsonl.gz"):
            if row.get("answer"):
                question = self.add(row["question"], "trivia")
                self.add_pair(question, self.add(row["answer"], "trivia"), "trivia")

    def read_paraphrases(self) -> None:
        """Sentences that say the same in other words."""
        for row in self.records("pairs/altlex_wiki_simplewiki.jsonl.gz"):
            sentence = self.add(row["sentence1"], "altlex")
            self.add_pair(sentence, self.add(row["sentence2"], "altlex"), "altlex")
        for row in self.records("pairs/wikisplit.jsonl.gz"):
            sentence = self.add(row["complex"], "wikisplit")
            self.add_pair(sentence, self.add(" ".join(row["simple"]), "wikisplit"), "wikisplit")
        for row in self.records("pairs/simplification_asset_turk.jsonl.gz"):
            original = self.add(row["original"], "simplify")
            for simple in self.random.sample(row["simplifications"], 2):
                self.add_pair(original, self.add(simple, "simplify"), "simplify")
        for row in self.records("pairs/mrpc.jsonl.gz"):
            first = self.add(row["sentence1"], "mrpc")
            second = self.add(row["sentence2"], "mrpc")
            if row["label"] in (1, "1"):
                self.add_pair(first, second, "mrpc")

    def read_nli(self) -> None:
        """Labelled pairs, for the cross-encoder, and triplets."""
        for row in self.records("nli/nli_pairs.jsonl.gz"):
            premise = self.add(row["premise"], "nli")
            hypothesis = self.add(row["hypothesis"], "nli")
            if premise >= 0 and hypothesis >= 0:
                self.nli.append((premise, hypothesis, str(row["label"])))
        for row in self.records("nli/nli_triplets.jsonl.gz"):
            anchor = self.add(row["anchor"], "nli")
            positive = self.add(row["positive"], "nli")
            self.add_pair(anchor, positive, "nli", self.add(row["negative"], "nli"))

    def read_stsb(self) -> None:
        """STS-B train, the official split: sentences that it shares with dev or test stay, as everybody's."""
        for row in self.records("sts/stsb_train.jsonl.gz"):
            numbers = []
            for field in ("sentence1", "sentence2"):
                sentence = " ".join(row[field].split())
                numbers.append(self._numbered(sentence, letters_and_digits(sentence), "stsb"))
            self.stsb.append((numbers[0], numbers[1], float(row["score"])))

    def read_book_passages(self) -> None:
        """Passages of books, and sentences out of most of them."""
        for row in self.records("text/book_passages.jsonl.gz"):
            self.add(row["text"], "book_passages")
            if self.random.random() < 0.7:
                self.add_sentence_of_passage(row["text"], "book_passages")

    def read_long_documents(self) -> None:
        """The first half of the books by _id, whole and in chunks of 150 words, and essays. The second half is kept
        for evaluation, as in `longtext.training_half`."""
        books = sorted(self.records("longdoc/books.jsonl.xz"), key=lambda row: row["_id"])
        for row in books[: len(books) // 2]:
            words = " ".join(row["text"].split()).split(" ")[200:-400]
            self.long_documents.append(" ".join(words[:400_000]))
            before = -1
            for start in range(0, len(words) - 150, 150):
                if self.random.random() >= 0.55:
                    before = -1
                    continue
                chunk = self.add(" ".join(words[start : start + 150]), "book_chunks")
                if before >= 0 and self.random.random() < 0.4:
                    self.add_pair(before, chunk, "next_chunk")
                before = chunk
        for row in self.records("longdoc/paul_graham_essays.jsonl.gz"):
            self.long_documents.append(" ".join(row["text"].split()))

    def read_single_texts(self) -> None:
        """Sentences, captions, questions and messages that belong to nothing else."""
        for name, share in TEXT_SHARES.items():
            for row in self.records(f"text/{name}.jsonl.gz"):
                source = str(row.get("source", ""))
                if source.startswith(DROPPED_SOURCES) or self.random.random() > share:
                    continue
                self.add(row["text"], source if name == "queries_questions" else name)

    # Writing

    def write(self, out: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Tokenise and write the folder. tokenizer: of transformers, with a vocabulary below 65,536."""
        encoder = TokenEncoder(tokenizer)
        out.mkdir(parents=True, exist_ok=True)
        rows: list[np.ndarray] = []
        for start in range(0, len(self.texts), 20000):
            # 4,000 characters hold more tokens than are kept.
            cut = [text[:4000] for text in self.texts[start : start + 20000]]
            rows += encoder(cut, self.settings.max_tokens)
        # A text of which the tokenizer leaves nothing is one unknown token.
        rows = [row if len(row) else np.array([tokenizer.unk_token_id], np.uint16) for row in rows]
        np.save(out / "ids.npy", np.concatenate(rows))
        np.save(out / "lengths.npy", np.array([len(row) for row in rows], np.uint16))
        np.save(out / "source.npy", np.array(self.source, np.uint8))
        np.save(out / "pairs.npy", np.array(self.pairs, np.int32))
        labels = {label: number for number, label in enumerate(sorted({label for *_, label in self.nli}))}
        np.save(out / "nli.npy", np.array([(a, b, labels[label]) for a, b, label in self.nli], np.int32))
        np.save(out / "stsb_train.npy", np.array(self.stsb, np.float32))
        documents = encoder(self.long_documents, None)
        lengths = np.array([len(row) for row in documents])
        np.savez_compressed(out / "long.npz", ids=np.concatenate(documents), lengths=lengths)
        DevSets(self.data, encoder, self.settings.dev_tokens).write(out / "dev.npz", self.dev_pairs)
        meta = {
            "sources": self.source_names,
            "kinds": PAIR_KINDS,
            "nli": labels,
            "special": {"cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id},
        }
        (out / "meta.json").write_text(json.dumps(meta, indent=1))
        say(f"{len(self.texts)} texts, {sum(map(len, rows))} tokens, {len(self.pairs)} pairs")


class TokenEncoder:
    """Texts to token ids without special tokens.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __call__(self, texts: Sequence[str], limit: int | None) -> list[np.ndarray]:
        """One array [tokens] uint16 a text, of at most `limit` tokens (None: all)."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids[:limit], dtype=np.uint16) for encoding in encodings]


def build_pool(data: Path, out: Path, base: str, settings: PoolSettings) -> None:
    """Write the pool of a data folder, tokenised as the model `base`."""
    builder = PoolBuilder(data, settings)
    builder.build()
    builder.write(out, AutoTokenizer.from_pretrained(locate_model(base), trust_remote_code=False))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description="Write the pool of texts that training at scale reads.")
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--base", default="all-MiniLM-L6-v2", help="model whose tokenizer is used")
    defaults = PoolSettings()
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--max-tokens", type=int, default=defaults.max_tokens)
    options = parser.parse_args(arguments)
    build_pool(options.data, options.out, options.base, PoolSettings(seed=options.seed, max_tokens=options.max_tokens))


if __name__ == "__main__":
    main()
