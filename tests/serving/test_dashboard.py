"""examples/serving/grafana.json against what the server exports."""

import json
import re

import pytest
from handbook import ROOT

pytest.importorskip("fastapi", reason="the serve extra is not installed")
PANELS = json.loads((ROOT / "examples/serving/grafana.json").read_text(encoding="utf-8"))["panels"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]


@pytest.fixture(scope="module")
def exported(server):
    """The labels of every sample that the server exports after a request that it answered and one that it refused."""
    with server.client() as client:
        assert client.post("/embed", json={"inputs": "the old house"}).status_code == 200
        assert client.post("/embed", json={"inputs": ""}).status_code == 400
        text = client.get("/metrics").text
    labels: dict[str, set[str]] = {}
    # Not with the parser of prometheus_client, which gives counters the suffix that TEI's have not.
    for name, of_sample in re.findall(r"(?m)^(\w+)(?:{(.*)})? \S+$", text):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', of_sample))
    return labels


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=[f"{title} {target['refId']}" for title, target in TARGETS])
def test_every_expression_asks_for_what_is_exported(exported, title, target):
    expression = target["expr"]
    without_labels_and_ranges = re.sub(r"by \([^)]*\)|\[[^]]*\]", "", expression)
    names = re.findall(r"\b[a-z_]+\b(?!\s*\()", without_labels_and_ranges)  # what is no function
    assert names, expression
    for name in names:
        assert name in exported, name
    grouped = [label for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(", ")]
    for label in grouped:
        assert all(label in exported[name] for name in names), label
    # A legend may name what the expression keeps, and the rate of a counter wants Grafana's interval.
    assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= set(grouped) - {"le"}
    assert set(re.findall(r"\[(.+?)\]", expression)) <= {"$__rate_interval"}


def test_the_panels_do_not_overlap():
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in PANELS
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
