"""Every example of openapi.yaml: there is one wherever there can be, and it fits its schema.

The schemas' own members are tests/test_contract.py's.
"""

import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.http.docs_page import read_contract

CONTRACT = read_contract()
METHODS = {"get", "post", "put", "patch", "delete"}
JSON = ("application/json", "application/problem+json")


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        found: Any = CONTRACT
        for key in node["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        node = found
    return node


def nodes() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(where, kind, node) of every parameter, header and media type that a route reaches."""
    for path, item in CONTRACT["paths"].items():
        for method in METHODS & item.keys():
            operation = item[method]
            where = f"{method} {path}"
            for parameter in map(resolved, operation.get("parameters", [])):
                yield f"{where}: {parameter['name']}", "parameter", parameter
            bodies = {"request": resolved(operation.get("requestBody", {}))}
            bodies |= {status: resolved(r) for status, r in operation["responses"].items()}
            for name, body in bodies.items():
                for header, node in body.get("headers", {}).items():
                    yield f"{where}: {name}: {header}", "header", resolved(node)
                for media, node in body.get("content", {}).items():
                    yield f"{where}: {name}: {media}", media, node


def examples() -> Iterator[tuple[str, str, dict[str, Any], Any]]:
    """(where, kind, schema, value)."""
    for where, kind, node in nodes():
        if "example" in node:
            yield where, kind, node["schema"], node["example"]
        for name, example in node.get("examples", {}).items():
            yield f"{where}: {name}", kind, node["schema"], resolved(example)["value"]


def test_everything_that_can_have_an_example_has_one() -> None:
    bare = {where for where, _, node in nodes() if not node.keys() & {"example", "examples"}}
    assert not bare


def test_every_example_fits_its_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    root = {"$id": "contract", **CONTRACT}

    def complaints(schema: dict[str, Any], value: Any) -> list[str]:
        whole = {
            **root,
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "allOf": [schema],
        }
        found = jsonschema.Draft202012Validator(whole).iter_errors(value)
        return [error.message for error in found]

    assert complaints({"$ref": "#/components/schemas/Reason"}, "no such reason")
    seen = 0
    for where, kind, schema, value in examples():
        assert not complaints(schema, value), where
        seen += kind in JSON
    assert seen > 100


def test_binary_examples_have_the_lengths_that_they_speak_of() -> None:
    seen = 0
    for where, kind, _, value in examples():
        if kind != "application/octet-stream":
            continue
        text = value.encode("latin-1")
        header, _ = json.JSONDecoder().raw_decode(value)
        length = text.index(b"\0")  # the bytes of the examples begin with one
        assert json.loads(text[:length]) == header, where
        tensors = header.get("inputs") or header["outputs"]
        sizes = [tensor["parameters"]["binary_data_size"] for tensor in tensors]
        assert sizes == [4 * math.prod(tensor["shape"]) for tensor in tensors]
        assert len(text) == length + sum(sizes), where
        assert all(map(math.isfinite, struct.unpack(f"<{sum(sizes) // 4}f", text[length:])))
        lengths = {
            node["example"]
            for place, _, node in nodes()
            if place.endswith("inference-header-content-length")
            and (": 200: " in place) is (": 200: " in where)
        }
        assert lengths == {length}, where
        seen += 1
    assert seen == 6
