"""What a client is told when a request cannot be answered."""

LIMIT = "limit"  # kinds of errors: they name the failure in the metrics and in the body of an answer
VALIDATION = "validation"


class ServeError(Exception):
    """An error that a client can understand and mend.

    Attributes:
        status: HTTP status.
        kind: one word for the metrics and for TEI's `error_type`.
        message: what is wrong and what to do. It never holds a text of a client.
        param: the field of the request that is wrong, if it is one.
        code: OpenAI's code of the error, if it has one.
        retry_after: seconds after which the same request may be answered.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after


class InvalidInput(ServeError):
    """A request that is wrong in itself: 400 where OpenAI's and Ollama's clients expect that, 422 elsewhere."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(422, VALIDATION, message, param)


class Overloaded(ServeError):
    """More tokens wait than the server promises to hold."""

    def __init__(self, message: str, retry_after: int):
        super().__init__(429, "overloaded", message, code="rate_limit_exceeded", retry_after=retry_after)


class TooLarge(ServeError):
    """A body, or the tokens of a request, above the limit."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(413, "too_large", message, param, code="request_too_large")


STILL_LOADING = "The model is still loading; ask again in a few seconds."


class NotReady(ServeError):
    """The model is still loading, or the server is stopping."""

    def __init__(self, message: str, retry_after: int = 5):
        super().__init__(503, "unhealthy", message, code="not_ready", retry_after=retry_after)


class Cancelled(Exception):
    """The client has gone, or the server gave up on the work."""
