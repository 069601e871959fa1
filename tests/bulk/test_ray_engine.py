"""`lam encode --engine ray` on a cluster of two workers on this machine, one of which is killed on the way."""

import importlib.util
import json

import pytest

from lam_transformers.bulk import EncodeOptions, encode_files

from .bulk_helpers import RecordedProgress, assert_same_output, read_output, save_for_encoding, sentences, write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra `ray`)"),
]


@pytest.fixture(scope="module")
def model(tiny_model, tokenizer, tmp_path_factory):
    return save_for_encoding(tiny_model, tokenizer, tmp_path_factory.mktemp("ray") / "tiny-lam")


@pytest.fixture(scope="module")
def cluster():
    """A head that reads and writes, and two workers of one CPU each; the last test kills one."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, workers
    ray.shutdown()
    cluster.shutdown()


def test_a_run_goes_on_with_the_other_engine(cluster, model, tmp_path):
    path = write_lines(tmp_path / "a.txt", [text.encode() for text in sentences(300)])
    options, out = EncodeOptions(batch_size=1, shard_rows=50), tmp_path / "out"

    class Stop(Exception):
        pass

    def stop(blocks):
        if blocks >= 4:  # of at most 32 rows each, and none beyond the end of a shard
            raise Stop

    with pytest.raises(Stop):
        encode_files([path], out, str(model), options, "local", progress=RecordedProgress(stop))
    assert len(read_output(out)) == 100
    summary = encode_files([path], out, str(model), options, "ray", 2)
    assert (summary.rows, summary.resumed_rows) == (300, 100)
    encode_files([path], tmp_path / "local", str(model), options)
    assert_same_output(out, tmp_path / "local", 1e-6)


def test_what_ray_cannot_do_is_an_error_in_words(cluster, model, tmp_path):
    path = write_lines(tmp_path / "a.txt", [b"text"])
    with pytest.raises(OSError, match="nothing"):
        encode_files([path], tmp_path / "out", str(model), EncodeOptions(prompt_name="nothing"), "ray", 1)


def test_a_killed_worker_costs_no_row_and_the_result_is_the_local_one(cluster, model, tmp_path):
    import ray

    lines = [json.dumps({"text": text, "id": i}).encode() for i, text in enumerate(sentences(900))]
    lines[450] = b"broken"
    path = write_lines(tmp_path / "a.jsonl", lines)
    options = EncodeOptions(batch_size=1, shard_rows=100, id_column="id", on_error="skip")

    def kill_one_on_the_way(blocks):
        if blocks == 3:
            cluster[0].remove_node(cluster[1][0], allow_graceful=False)

    summary = encode_files(
        [path], tmp_path / "ray", str(model), options, "ray", 2, RecordedProgress(kill_one_on_the_way)
    )
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    assert (summary.rows, summary.skipped, summary.shards) == (899, 1, 9)
    assert summary.counts.tokens > 899 * 3
    encode_files([path], tmp_path / "local", str(model), options)
    assert_same_output(tmp_path / "ray", tmp_path / "local", 1e-6)
