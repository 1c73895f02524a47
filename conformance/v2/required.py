"""What the protocol requires of a server that has its HTTP part.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md, and the document
before it, kserve/kserve, docs/predict-api/v2/required_api.md.
"""

from collections.abc import Iterator
from urllib.parse import quote

from conformance.v2.asking import Kit, NotApplicable, NotAsked, is_declared, tensors
from conformance.v2.checks import REQUIRED, Checks
from conformance.v2.server import Answer, Failed, told

UNKNOWN_MODEL = "no-such-model"
ID = "kit-1 é"

CHECKS = Checks(REQUIRED)


@CHECKS.add("live", "GET /v2/health/live answers 200")
def live(kit: Kit) -> None:
    kit.server.get("/v2/health/live").expect(200)


@CHECKS.add("ready", "GET /v2/health/ready answers 200")
def ready(kit: Kit) -> None:
    kit.server.get("/v2/health/ready").expect(200)


@CHECKS.add("model-ready", "GET of the model's /ready answers 200")
def model_ready(kit: Kit) -> None:
    kit.server.get(kit.path("/ready")).expect(200)


@CHECKS.add("server-metadata", "GET /v2 tells name, version, extensions, without a redirect")
def server_metadata(kit: Kit) -> None:
    found = kit.server.get("/v2").expect(200).object()
    for key in ("name", "version"):
        if not isinstance(found.get(key), str):
            raise Failed(f"{key} is {told(found.get(key))}; a string is due")
    extensions = found.get("extensions")
    if not isinstance(extensions, list) or not all(isinstance(each, str) for each in extensions):
        raise Failed(f"extensions is {told(extensions)}; an array of strings is due")


@CHECKS.add("model-metadata", "GET of the model tells its name, platform and tensors")
def model_metadata(kit: Kit) -> None:
    found = kit.server.get(kit.path()).expect(200).object()
    if found.get("name") != kit.name:
        raise Failed(f"name is {told(found.get('name'))}; {kit.name!r} is due")
    if not isinstance(found.get("platform"), str):
        raise Failed(f"platform is {told(found.get('platform'))}; a string is due")
    versions = found.get("versions") or []
    if not isinstance(versions, list) or not all(isinstance(each, str) for each in versions):
        raise Failed(f"versions is {told(versions)}; an array of strings is due")
    for key in ("inputs", "outputs"):
        entries = found.get(key, [])
        if not isinstance(entries, list):
            raise Failed(f"{key} is {told(entries)}; an array is due")
        for entry in entries:
            if not is_declared(entry):
                raise Failed(f"{key} has {told(entry)}; name, datatype and shape (-1: any) are due")


@CHECKS.add("infer", "POST of the model's /infer answers with outputs")
def infer(kit: Kit) -> None:
    answer = kit.send(kit.inference())
    if 400 <= answer.status < 500:
        raise Failed(
            f"{answer}; 200 is due (what BYTES elements have to be, --bytes FILE says, and which "
            "sizes: --dim and --input)"
        )
    found = tensors(answer.expect(200))
    if not found:
        raise Failed(f"{answer}; at least one output is due")


@CHECKS.add("model-name", "an inference's answer names the model")
def model_name(kit: Kit) -> None:
    name = kit.answer(kit.inference()).object().get("model_name")
    if name != kit.name:
        raise Failed(f"model_name is {told(name)}; {kit.name!r} is due")


@CHECKS.add("outputs", "where none is asked for, the outputs are those of the metadata")
def outputs(kit: Kit) -> None:
    found = tensors(kit.answer(kit.inference()))
    expected = {each.name: each for each in kit.outputs}
    if not expected:
        raise NotApplicable("the model metadata names no outputs")
    if set(found) != set(expected):
        raise Failed(f"outputs are {told(sorted(found))}; {sorted(expected)} are due")
    for name, tensor in found.items():
        due = expected[name]
        if tensor.datatype != due.datatype or not due.allows(tensor.shape):
            raise Failed(f"{name} is {tensor.datatype} {list(tensor.shape)}; {due} is due")


@CHECKS.add("output-asked", "of the outputs only those come that are asked for")
def output_asked(kit: Kit) -> None:
    last = list(kit.plain)[-1]
    request = kit.inference()
    request.body["outputs"] = [{"name": last}]
    kit.same(kit.answer(request), [last])


@CHECKS.add("nested-data", "data as nested arrays is the same as flat")
def nested_data(kit: Kit) -> None:
    if not any(tensor.has_json and len(tensor.shape) > 1 for tensor in kit.inputs):
        raise NotApplicable("no input has two dimensions and a form in JSON")
    kit.same(kit.answer(kit.inference(nested=True)))


@CHECKS.add("id", "a request's id comes back")
def id_comes_back(kit: Kit) -> None:
    request = kit.inference()
    request.body["id"] = ID
    found = kit.answer(request).object().get("id")
    if found != ID:
        raise Failed(f"id is {told(found)}; {ID!r} is due")


@CHECKS.add("versions", "a version that the metadata lists has paths of its own")
def versions(kit: Kit) -> None:
    listed = kit.metadata.get("versions") or []
    if not isinstance(listed, list):
        raise NotAsked("the versions of the model metadata cannot be read")
    if not listed:
        raise NotApplicable("the model metadata lists no versions")
    version = f"/versions/{quote(str(listed[-1]), safe='')}"
    kit.server.get(kit.path(version)).expect(200)
    kit.server.get(kit.path(f"{version}/ready")).expect(200)
    kit.same(kit.answer(kit.inference(), f"{version}/infer"))


@CHECKS.add("refusal", "what cannot be answered has a 4xx: an unknown model, no JSON")
def refusal(kit: Kit) -> None:
    for answer in _refused(kit):
        answer.expect_refusal()


@CHECKS.add("error-object", 'an error is told as {"error": …}')
def error_object(kit: Kit) -> None:
    for answer in _refused(kit):
        if answer.status >= 400 and not isinstance(answer.object().get("error"), str):
            raise Failed(f'{answer}; {{"error": "…"}} is due')


def _refused(kit: Kit) -> Iterator[Answer]:
    yield kit.server.get(kit.path(name=UNKNOWN_MODEL))
    yield kit.server.send(
        "POST",
        kit.path("/infer", name=UNKNOWN_MODEL),
        b'{"inputs":[]}',
        {"Content-Type": "application/json"},
    )
    yield kit.send_content(b'{"inputs":')
