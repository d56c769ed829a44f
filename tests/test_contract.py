"""openapi.yaml, the error table, the core's reasons and the app, walked against each other."""

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gateway.errors import PROBLEMS, ErrorBody
from gateway.http import docs_page
from gateway.http.docs_page import read_contract
from gateway.http.routes import ModelEntry, TensorEntry
from gateway.inference.body import (
    InferBody,
    InferReply,
    InputTensor,
    OutputTensor,
    PhaseFigures,
    RequestedOutput,
    RequestParameters,
    SloFigures,
)
from gateway.inference.datatypes import DATATYPES
from gateway.inference.quoting import MAX_COUNT, QuoteBody, QuotedRefusal, QuoteReply
from gateway.inference.slo import MAX_SLO_MS
from gateway.inference.target import INFER_PATH, QUOTE_PATH, V2_INFER_PATHS
from gateway.live.messages import (
    LiveBar,
    LiveCounts,
    LiveDevice,
    LiveFigures,
    LiveFrame,
    LiveModel,
    LiveRequest,
    LiveSnapshot,
)
from gateway.observability.answered import KINDS
from gateway.observability.request_routes import RequestList
from gateway.observability.request_stories import Batch, Phase, RequestEntry, RequestStory
from gateway.tenants.guard import OPEN_PATHS, OPEN_PREFIXES
from gateway.v2.model_config import ModelConfiguration, TensorConfig
from gateway.v2.routes import ModelMetadata, ModelReady, ServerMetadata, TensorMetadata
from gateway.v2.statistics import BatchStats, Duration, InferenceStats, ModelStats, Statistics
from gateway.variants.groups_file import GroupSpec, MemberSpec
from gateway.variants.routes import FeedbackBody, FeedbackReply, GroupEntry, MemberEntry
from gateway.versions.reloading import Reloaded
from gateway.versions.repository import Entry, Loaded, Unloaded
from scheduler.device import WeightsState
from scheduler.events import Reason
from tests.gateway.http_doubles import (
    Bench,
    PuppetDevice,
    fp32,
    mlp_body,
    model_spec,
)
from tests.gateway.live_stage import parsed

CONTRACT = read_contract()
SCHEMAS = CONTRACT["components"]["schemas"]
# Not part of the contract: they show it.
UNDOCUMENTED = docs_page.PATHS


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        found: Any = CONTRACT
        for key in node["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        node = found
    return node


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in CONTRACT["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def error_responses() -> Iterator[tuple[int, dict[str, Any]]]:
    for _, _, operation in operations():
        for status, response in operation["responses"].items():
            if status != "200":
                yield int(status), resolved(response)


def names_of(struct: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(struct)}


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    used = set(references(CONTRACT))
    for reference in used:
        assert resolved({"$ref": reference})
    for kind, members in CONTRACT["components"].items():
        for name in members if kind != "securitySchemes" else ():  # used by name
            assert f"#/components/{kind}/{name}" in used


def test_app_and_contract_have_the_same_routes() -> None:
    routes = {
        (route.path.replace(":path}", "}"), method.lower())  # type: ignore[attr-defined]
        for route in Bench().app.routes.routes
        for method in route.methods  # type: ignore[attr-defined]
        if method != "HEAD" and route.path not in UNDOCUMENTED  # type: ignore[attr-defined]
    }
    documented = {(path, method) for path, method, _ in operations()}
    assert documented == routes | {
        (path, "post") for path in (INFER_PATH, QUOTE_PATH, *V2_INFER_PATHS)
    }


def test_every_reason_is_in_the_table_the_schema_and_an_example() -> None:
    assert set(SCHEMAS["Reason"]["enum"]) == set(PROBLEMS)
    assert {reason.value for reason in Reason} <= set(PROBLEMS)
    infer = CONTRACT["paths"][INFER_PATH]["post"]["responses"]
    shown = {
        name
        for status, response in infer.items()
        if status != "200"
        for name in resolved(response)["content"]["application/problem+json"]["examples"]
    }
    assert shown == set(PROBLEMS)


def test_examples_of_errors_are_what_the_table_would_say() -> None:
    required = set(SCHEMAS["Error"]["required"])
    for status, response in error_responses():
        may_retry = False
        for reason, example in response["content"]["application/problem+json"]["examples"].items():
            row, value = PROBLEMS[reason], example["value"]
            assert (value["reason"], value["status"], value["title"]) == (
                reason,
                status,
                row.title,
            )
            assert row.status == status
            assert value["type"].endswith(f":{reason}")
            assert value["error"] == value["detail"]
            assert required <= set(value) <= names_of(ErrorBody)
            assert ("retry_after_ms" in value) is row.may_retry
            may_retry |= row.may_retry
        assert ("retry-after" in response["headers"]) is may_retry


def test_every_route_documents_the_errors_that_all_have() -> None:
    for _, _, operation in operations():
        assert {"200", "405", "500"} <= set(operation["responses"])


def test_every_route_but_the_probes_documents_keys() -> None:
    schemes = {name for entry in CONTRACT["security"] for name in entry}
    assert schemes == set(CONTRACT["components"]["securitySchemes"])
    for path, _, operation in operations():
        is_open = operation.get("security") == []
        assert is_open is (path in OPEN_PATHS or path.startswith(OPEN_PREFIXES))
        assert ({"401", "403"} <= set(operation["responses"])) is not is_open


@pytest.mark.parametrize(
    ("schema", "struct"),
    [
        ("InferRequest", InferBody),
        ("InputTensor", InputTensor),
        ("RequestedOutput", RequestedOutput),
        ("InferReply", InferReply),
        ("QuoteRequest", QuoteBody),
        ("Quote", QuoteReply),
        ("OutputTensor", OutputTensor),
        ("Error", ErrorBody),
        ("Model", ModelEntry),
        ("ModelTensor", TensorEntry),
        ("ServerMetadata", ServerMetadata),
        ("ModelMetadata", ModelMetadata),
        ("TensorMetadata", TensorMetadata),
        ("ModelReady", ModelReady),
        ("ModelConfiguration", ModelConfiguration),
        ("TensorConfig", TensorConfig),
        ("Statistics", Statistics),
        ("ModelStats", ModelStats),
        ("BatchStats", BatchStats),
        ("RepositoryEntry", Entry),
        ("LiveSnapshot", LiveSnapshot),
        ("LiveFrame", LiveFrame),
        ("LiveModel", LiveModel),
        ("LiveDevice", LiveDevice),
        ("LiveRequest", LiveRequest),
        ("Loaded", Loaded),
        ("Unloaded", Unloaded),
        ("Reloaded", Reloaded),
        ("Duration", Duration),
        ("Group", GroupEntry),
        ("GroupMember", MemberEntry),
        ("FeedbackRequest", FeedbackBody),
        ("Feedback", FeedbackReply),
        ("RequestEntry", RequestEntry),
        ("RequestList", RequestList),
        ("RequestStory", RequestStory),
    ],
)
def test_schemas_have_the_members_of_our_structs(schema: str, struct: type[msgspec.Struct]) -> None:
    assert set(SCHEMAS[schema]["properties"]) == names_of(struct)
    optional = {f.encode_name for f in msgspec.structs.fields(struct) if not f.required}
    assert set(SCHEMAS[schema]["required"]) - optional <= names_of(struct)


def test_inner_schemas_have_the_members_of_our_structs() -> None:
    reply, request = SCHEMAS["InferReply"]["properties"], SCHEMAS["InferRequest"]["properties"]
    assert set(reply["slo"]["required"]) == names_of(SloFigures)
    assert set(SCHEMAS["Quote"]["properties"]["refusal"]["properties"]) == names_of(QuotedRefusal)
    assert SCHEMAS["QuoteRequest"]["properties"]["count"]["maximum"] == MAX_COUNT
    assert set(reply["timing_ms"]["required"]) == names_of(PhaseFigures)
    story = SCHEMAS["RequestStory"]["properties"]
    assert set(story["timing_ms"]["properties"]) == names_of(PhaseFigures)
    assert set(story["batch"]["properties"]) == names_of(Batch)
    assert set(story["timeline"]["items"]["properties"]) == names_of(Phase)
    assert set(request["parameters"]["properties"]) == names_of(RequestParameters)
    stats = SCHEMAS["ModelStats"]["properties"]["inference_stats"]
    assert set(stats["properties"]) == set(stats["required"]) == names_of(InferenceStats)


def test_rows_of_the_live_page_have_a_place_for_each_member_of_our_structs() -> None:
    for schema, struct in (
        ("LiveCounts", LiveCounts),
        ("LiveFigures", LiveFigures),
        ("LiveBar", LiveBar),
    ):
        titles = [place["title"] for place in SCHEMAS[schema]["prefixItems"]]
        assert titles == [field.name for field in msgspec.structs.fields(struct)]


def test_values_that_have_names_are_those_of_the_code() -> None:
    assert SCHEMAS["Datatype"]["enum"] == list(DATATYPES)
    assert SCHEMAS["InferRequest"]["properties"]["slo_ms"]["maximum"] == MAX_SLO_MS
    assert SCHEMAS["RequestOutcome"]["enum"] == list(KINDS)
    states = SCHEMAS["Model"]["properties"]["devices"]["items"]["properties"]["state"]["enum"]
    assert states == [state.value for state in WeightsState]


def test_examples_of_requests_are_served_and_answered_like_the_example() -> None:
    async def story() -> None:
        for template in (INFER_PATH, *V2_INFER_PATHS):
            path = template.format(name="mlp", version="1")
            content = CONTRACT["paths"][template]["post"]["requestBody"]["content"]
            for example in content["application/json"]["examples"].values():
                body = example["value"]
                rows = body["inputs"][0]["shape"][0]
                outputs = ((rows, 2), fp32(*[0.5] * 2 * rows))
                answer = await Bench().served(body, outputs, path=path)
                check(answer, SCHEMAS["InferReply"], "reply")

    asyncio.run(story())
    operation = CONTRACT["paths"][INFER_PATH]["post"]
    examples = operation["responses"]["200"]["content"]["application/json"]["examples"]
    for name, example in examples.items():
        schema = SCHEMAS["Quote" if name == "dry_run" else "InferReply"]
        check(resolved(example)["value"], schema, "example")


def test_examples_of_questions_are_answered_like_the_example() -> None:
    operation = CONTRACT["paths"][QUOTE_PATH]["post"]
    told = operation["responses"]["200"]["content"]["application/json"]["examples"]

    async def story() -> None:
        for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
            answer = await Bench().post(example["value"], path=QUOTE_PATH)
            assert answer.status == 200
            check(answer.json, SCHEMAS["Quote"], "quote")

    asyncio.run(story())
    for example in told.values():
        check(resolved(example)["value"], SCHEMAS["Quote"], "example")


def test_answers_of_the_other_routes_fit_their_schemas_and_so_do_the_examples() -> None:
    async def story() -> None:
        members = (MemberSpec("mlp", 0.9), MemberSpec("bad", 0.8))
        bench = Bench(
            model_spec(),
            model_spec("bad", unavailable_reason="not ONNX"),
            groups={"g": GroupSpec(members=members, selection="exp3")},
        )
        bench.scheduler.devices["w#1-1"] = PuppetDevice({})
        for path, template in {
            "/livez": "/livez",
            "/readyz": "/readyz",
            "/models": "/models",
            "/models/mlp": "/models/{name}",
            "/models/bad": "/models/{name}",
            "/models/g": "/models/{name}",
            "/groups": "/groups",
            "/groups/g": "/groups/{name}",
            "/v2/models/g": "/v2/models/{name}",
            "/v2": "/v2",
            "/v2/health/live": "/v2/health/live",
            "/v2/health/ready": "/v2/health/ready",
            "/v2/models/mlp": "/v2/models/{name}",
            "/v2/models/mlp/versions/1": "/v2/models/{name}/versions/{version}",
            "/v2/models/mlp/ready": "/v2/models/{name}/ready",
            "/v2/models/mlp/config": "/v2/models/{name}/config",
            "/v2/models/mlp/stats": "/v2/models/{name}/stats",
            "/v2/models/stats": "/v2/models/stats",
        }.items():
            media = CONTRACT["paths"][template]["get"]["responses"]["200"]["content"]
            answer = await bench.get(path)
            assert answer.status == 200
            check(answer.json, media["application/json"]["schema"], path)
            for example in media["application/json"]["examples"].values():
                value = resolved(example)["value"]
                check(value, media["application/json"]["schema"], f"example of {path}")

    asyncio.run(story())


def test_examples_of_live_events_fit_their_schemas() -> None:
    media = CONTRACT["paths"]["/ui/events"]["get"]["responses"]["200"]["content"]
    [example] = media["text/event-stream"]["examples"].values()
    events = parsed(example["value"].encode())
    assert [event.name for event in events] == ["snapshot", "frame", "end"]
    check(events[0].data, SCHEMAS["LiveSnapshot"], "snapshot")
    check(events[1].data, SCHEMAS["LiveFrame"], "frame")


def test_stories_of_requests_fit_their_schema_and_so_do_the_examples() -> None:
    schemas = {name: SCHEMAS[name] for name in ("RequestList", "RequestStory")}

    async def story() -> None:
        bench = Bench()
        await bench.served(mlp_body(), ((1, 2), fp32(0.5, 0.25)))
        await bench.post(mlp_body(model="nope"), headers={"x-request-id": "mine"})
        listed = (await bench.get("/requests?worst=5")).json
        check(listed, schemas["RequestList"], "list")
        for request_id in ("mine", listed["requests"][0]["request_id"]):
            told = await bench.get(f"/requests/{request_id}")
            check(told.json, schemas["RequestStory"], "story")

    asyncio.run(story())
    for path, name in (("/requests", "RequestList"), ("/requests/{request_id}", "RequestStory")):
        content = CONTRACT["paths"][path]["get"]["responses"]["200"]["content"]
        for example in content["application/json"]["examples"].values():
            check(resolved(example)["value"], schemas[name], f"example of {path}")


def test_errors_fit_their_schema() -> None:
    async def story() -> None:
        bench = Bench()
        for client in (
            await bench.post(b""),
            await bench.post(mlp_body(model="nope")),
            await bench.get("/nope"),
            await bench.get("/readyz"),
            await bench.get("/v2/nope"),
            await bench.post(b"", path="/v2/models/mlp/infer"),
        ):
            assert client.status >= 400
            check(client.json, SCHEMAS["Error"], "error")

    asyncio.run(story())


def test_a_checker_that_finds_nothing_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        check({"live": 1}, CONTRACT["paths"]["/livez"]["get"]["responses"]["200"]["content"]
              ["application/json"]["schema"], "livez")  # fmt: skip
    with pytest.raises(AssertionError, match="model_version"):
        check({"model_name": "x"}, SCHEMAS["InferReply"], "reply")


def check(value: Any, schema: dict[str, Any], where: str) -> None:
    """The part of JSON Schema that our contract uses; objects have no undocumented members."""
    schema = resolved(schema)
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    assert not types or any(_is(value, name) for name in types), f"{where}: {value!r} is no {types}"
    if "enum" in schema:
        assert value in schema["enum"], where
    if "const" in schema:
        assert value == schema["const"], where
    if isinstance(value, dict):
        missing = set(schema.get("required", [])) - set(value)
        assert not missing, f"{where}: {missing} missing"
        properties = schema.get("properties", {})
        for key, member in value.items():
            other = schema.get("additionalProperties")
            assert key in properties or other, f"{where}: {key} is not in the contract"
            check(member, properties.get(key, other), f"{where}.{key}")
    elif isinstance(value, list) and "items" in schema:
        places = schema.get("prefixItems", [])  # `items` is for what comes after them
        assert len(value) == len(places) or not places, where
        for index, item in enumerate(value):
            place = places[index] if places else schema["items"]
            check(item, place, f"{where}[{index}]")


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    kinds: dict[str, type | tuple[type, ...]] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "null": type(None),
    }
    return name in kinds and isinstance(value, kinds[name])
