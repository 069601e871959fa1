"""What can be chosen about a bulk run."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Format = Literal["parquet", "npy"]
Precision = Literal["float32", "float16", "binary", "ubinary"]
OnError = Literal["stop", "skip"]
# What may change between a run and its resume: none of it changes what a row holds beyond rounding.
FREE = ("batch_size", "device", "on_error", "trust_remote_code")


@dataclass(frozen=True)
class EncodeOptions:
    """Options of a bulk run.

    Args:
        text_column: of JSON lines and Parquet; plain text has none.
        id_column: copied to the output as text, integers in decimal digits; None for no ids.
        format: "parquet", or "npy" with a file of rows beside each array.
        shard_rows: input rows to an output shard.
        batch_size: texts to a batch of `SentenceTransformer.encode`.
        normalize: embeddings of length 1.
        truncate_dim: number of leading dimensions to keep; None keeps all.
        precision: "float32", "float16", or one bit a dimension, packed as int8 ("binary") or uint8 ("ubinary"). int8
            embeddings are not offered: their scale would depend on the other texts of a call.
        prompt_name: a prompt of the model to put before every text.
        device: as torch names it; None chooses.
        on_error: "stop" at a row that cannot be encoded, or "skip" it and write it to skipped.jsonl.
        trust_remote_code: run code that comes with the model. LAM folders need none: they run on this package's.

    Raises ValueError that names the option, its value and the mend.
    """

    text_column: str = "text"
    id_column: str | None = None
    format: Format = "parquet"
    shard_rows: int = 100_000
    batch_size: int = 32
    normalize: bool = True
    truncate_dim: int | None = None
    precision: Precision = "float32"
    prompt_name: str | None = None
    device: str | None = None
    on_error: OnError = "stop"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("format", Format), ("precision", Precision), ("on_error", OnError)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} is '{getattr(self, name)}'; choose one of {', '.join(get_args(allowed))}.")
        for name in ("shard_rows", "batch_size", "truncate_dim"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} is {value}; give a whole number of at least 1.")
        if not self.text_column or self.text_column == self.id_column:
            raise ValueError(f"text_column is '{self.text_column}'; name a column that is not the id column.")

    def identity(self) -> dict[str, Any]:
        """What a resume must have in common with the run that it continues."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}
