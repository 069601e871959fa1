"""What is no text, or no boundaries of chunks, is named."""

import pytest

from lam_transformers import late_chunks


@pytest.mark.parametrize("boundaries", [None, 3.5, 0, -1, True, 2 + 1j, object, "words", [3], [(1, None)], {"a": 1}])
def test_boundaries_of_late_chunks_that_are_none(encoder, boundaries):
    with pytest.raises(ValueError, match=r"boundaries must be|A span must be") as caught:
        late_chunks(encoder, "A text. Another.", boundaries)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [None, 3, ["a"], b"a"])
def test_texts_of_late_chunks_that_are_none(encoder, text):
    with pytest.raises(ValueError, match="LAM embeds strings"):
        late_chunks(encoder, text)
