"""What can be chosen about a bulk run, and what cannot."""

import pytest

from lam_transformers.bulk import EncodeOptions


@pytest.mark.parametrize(
    "options, message",
    [
        ({"format": "csv"}, "format is 'csv'; choose one of parquet, npy"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"on_error": "ask"}, "on_error is 'ask'"),
        ({"shard_rows": 0}, "shard_rows is 0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"truncate_dim": -1}, "truncate_dim is -1"),
        ({"text_column": ""}, "text_column is ''"),
    ],
)
def test_unfit_options(options, message):
    with pytest.raises(ValueError, match=message):
        EncodeOptions(**options)
