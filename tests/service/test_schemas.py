"""Schemathesis: the service answers whatever its own schema and the protocol's allow, as they say, and never with 5xx.

`NEGVAE_EXAMPLES=400 pytest tests/service/test_schemas.py` makes thousands of requests.
"""

import json
import os

import pytest

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = int(os.environ.get("NEGVAE_EXAMPLES", "6"))
TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string"},
        "parameters": {"type": "object"},
        "data": {
            "type": "array",
            "items": {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "boolean"}, {"type": "array"}]},
        },
    },
}


def tensors(*required):
    return {"type": "array", "items": {**TENSOR, "required": list(required)}}


def returns(schema=None):
    content = {"content": {"application/json": {"schema": schema}}} if schema else {}
    failure = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    wrong = {"description": "Bad Request", "content": {"application/json": {"schema": failure}}}
    return {"200": {"description": "OK", **content}, "400": wrong, "404": wrong}


def model_path(rest, method, **operation):
    names = {"name": {"enum": ["gray", "gray-onnx", "rows-onnx"]}, "version": {"enum": ["1", "2"]}}
    return {
        f"/v2/models/{{name}}{version}{rest}": {
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string", **names[name]}}
                for name in ("name", *(["version"] if version else []))
            ],
            method: operation,
        }
        for version in ("", "/versions/{version}")
    }


# The protocol, as its specification (KServe, version 2, REST) describes its routes.
PROTOCOL = {
    "openapi": "3.0.0",
    "info": {"title": "Open Inference Protocol", "version": "2.0"},
    "paths": {
        "/v2/health/live": {"get": {"responses": returns()}},
        "/v2/health/ready": {"get": {"responses": returns()}},
        "/v2/": {
            "get": {
                "responses": returns(
                    {
                        "type": "object",
                        "required": ["name", "version", "extensions"],
                        "properties": {"extensions": {"type": "array", "items": {"type": "string"}}},
                    }
                )
            }
        },
        **model_path("/ready", "get", responses=returns()),
        **model_path(
            "", "get",
            responses=returns(
                {
                    "type": "object",
                    "required": ["name", "platform"],
                    "properties": {
                        "inputs": tensors("name", "datatype", "shape"), "outputs": tensors("name", "datatype", "shape"),
                    },
                }
            ),
        ),
        **model_path(
            "/infer", "post",
            requestBody={
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["inputs"],
                            "properties": {
                                "id": {"type": "string"}, "parameters": {"type": "object"},
                                "inputs": {"type": "array", "items": TENSOR},
                                "outputs": tensors("name"),
                            },
                        }
                    }
                },
            },
            responses=returns(
                {
                    "type": "object",
                    "required": ["model_name", "outputs"],
                    "properties": {"model_name": {"type": "string"}, "outputs": {"type": "array", "items": TENSOR}},
                }
            ),
        ),
    },
}  # fmt: skip


@pytest.mark.parametrize("which", ["protocol", "own"])
def test_every_answer_is_one_that_the_schema_has(which, live):
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

    base = f"http://127.0.0.1:{live.port}"
    text = PROTOCOL if which == "protocol" else json.loads(live.ask("GET", "/openapi.json")[1])
    schema = schemathesis.openapi.from_dict(text)
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if "/repository/models/" in operation.path:
            continue  # unloading belongs to no other test's service

        @settings(
            max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def run(case):
            nonlocal asked
            asked += 1
            response = case.call(base_url=base)
            assert response.status_code < 500
            case.validate_response(
                response, checks=[not_a_server_error, content_type_conformance, response_schema_conformance]
            )

        run()
    assert asked > 20
    print(f"{which}: {asked} requests")
