"""Bodies of requests and answers, as pydantic reads them and the OpenAPI file shows them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Text = Annotated[str, Field(description="A text of any length.")]
Ids = Annotated[list[int], Field(description="Token ids of a text, of this model's own tokenizer.", min_length=1)]
Inputs = Text | list[Text] | Ids | list[Ids]
Dimensions = Annotated[int | None, Field(ge=1, description="Keep this number of leading dimensions.")]
Span = Annotated[list[int], Field(min_length=2, max_length=2, description="Start and end in characters.")]
TokensOfAChunk = Annotated[int, Field(ge=1)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Body(BaseModel):
    """Types are taken as they are: "5" is no number. Unknown fields are ignored, as by the servers we stand in for."""

    model_config = ConfigDict(strict=True)


class OpenAIRequest(Body):
    input: Inputs
    model: ModelName | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions = None
    user: str | None = None


class OpenAIEmbedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class OpenAIUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class OpenAIAnswer(BaseModel):
    object: Literal["list"]
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class OpenAIModel(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAIModels(BaseModel):
    object: Literal["list"]
    data: list[OpenAIModel]


class OpenAIErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    error: OpenAIErrorBody


class TEIError(BaseModel):
    error: str
    error_type: str


class OllamaError(BaseModel):
    error: str


class EmbedRequest(Body):
    inputs: Inputs
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"
    prompt_name: str | None = None
    normalize: bool = True
    dimensions: Dimensions = None


class StreamRequest(Body):
    inputs: Text
    truncate: bool | None = None
    prompt_name: str | None = None
    normalize: bool = True
    dimensions: Dimensions = None


class SimilarityParameters(Body):
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"
    prompt_name: str | None = None


class SimilarityInputs(Body):
    source_sentence: Text
    sentences: list[Text]


class SimilarityRequest(Body):
    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class TokenizeRequest(Body):
    inputs: Text | list[Text]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class Token(BaseModel):
    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class DecodeRequest(Body):
    ids: Ids | list[Ids]
    skip_special_tokens: bool = True


class Info(BaseModel):
    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    dimensions: int


class OllamaRequest(Body):
    model: ModelName
    input: str | list[str]
    truncate: bool = True
    dimensions: Dimensions = None
    keep_alive: Any = None
    options: dict[str, Any] | None = None


class OllamaAnswer(BaseModel):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    truncated: list[int] | None = None


class LateChunksRequest(Body):
    text: Text
    boundaries: Literal["sentence", "paragraph"] | TokensOfAChunk | list[Span] = "sentence"
    encoding_format: Literal["float", "base64"] = "float"


class LateChunk(BaseModel):
    start: int
    end: int
    embedding: list[float] | str


class LateChunks(BaseModel):
    chunks: list[LateChunk]
    tokens: int


class SessionRequest(Body):
    saved: str | None = Field(default=None, description="The name of a saved session to go on from.")


class AppendRequest(Body):
    text: Text


class SaveRequest(Body):
    name: str


class SessionAnswer(BaseModel):
    id: str
    characters: int
    tokens: int


class SessionEmbedding(SessionAnswer):
    embedding: list[float] | str
