"""schemathesis: whatever its OpenAPI file allows, and what it does not, every endpoint answers as the file says."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from lam_transformers.serving.settings import Settings

pytest.importorskip("fastapi", reason="the serve extra is not installed")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from lam_transformers.serving.app import create_app


def operations(**options):
    """The endpoints of a server with these settings, by name."""
    api = schemathesis.openapi.from_dict(create_app(Settings(model="tiny-lam", **options)).openapi())
    return {operation.label: operation for operation in (made.ok() for made in api.get_all_operations())}


OPERATIONS = operations()
OF_A_MEMORY = {name: x for name, x in operations(memory="memory.db").items() if name not in OPERATIONS}


def test_every_endpoint_is_in_the_file():
    assert len(OPERATIONS) == 23
    assert len(OF_A_MEMORY) == 19


@pytest.mark.parametrize("kind", ["positive", "negative"])
@pytest.mark.parametrize("label", OPERATIONS)
def test_an_endpoint(server, label, kind):
    check(server, OPERATIONS[label], kind, 20)


@pytest.fixture(scope="module")
def open_memory(start_server, tmp_path_factory):
    """A server with a memory that needs no key."""
    return start_server(memory=str(tmp_path_factory.mktemp("open") / "memory.db"), memory_open=True)


@pytest.mark.parametrize("kind", ["positive", "negative"])
@pytest.mark.parametrize("label", OF_A_MEMORY)
def test_an_endpoint_of_a_memory(open_memory, label, kind):
    check(open_memory, OF_A_MEMORY[label], kind, 10)


def check(server, operation, kind, examples):
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    mode = GenerationMode.POSITIVE if kind == "positive" else GenerationMode.NEGATIVE
    takes_nothing = not operation.body and not operation.path_parameters and not operation.query
    if kind == "negative" and not operation.body and not operation.query:
        pytest.skip("Nothing that is sent there could be of a wrong type.")
    checks = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=3 if takes_nothing else examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
        phases=[Phase.generate],
    )
    def ask(case):
        case.call_and_validate(base_url=server.url, timeout=60, checks=checks)

    ask()
