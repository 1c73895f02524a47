"""A small server of the Open Inference Protocol V2, right but for the one defect it is told of.

Its tensors are numpy's, so that it shares no code with the kit that asks it.
"""

import gzip
import json
import math
import struct
import zlib
from collections import Counter

import numpy as np

JSON = "application/json"
MODELS = {
    "simple": {
        "platform": "stub",
        "versions": ["1", "3"],
        "inputs": [
            {"name": name, "datatype": "INT32", "shape": [-1, 16]} for name in ("INPUT0", "INPUT1")
        ],
        "outputs": [
            {"name": name, "datatype": "INT32", "shape": [-1, 16]}
            for name in ("OUTPUT0", "OUTPUT1")
        ],
    },
    "identity": {
        "platform": "stub",
        "inputs": [{"name": "IN", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "OUT", "datatype": "BYTES", "shape": [-1]}],
    },
    "length": {
        "platform": "stub",
        "inputs": [{"name": "IN", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "OUT", "datatype": "INT32", "shape": [-1]}],
    },
    "floats": {
        "platform": "stub",
        "inputs": [{"name": "IN", "datatype": "FP32", "shape": [-1, 3, 4, 4]}],
        "outputs": [{"name": "OUT", "datatype": "FP32", "shape": [-1, 3, 4, 4]}],
    },
    "pictures": {
        "platform": "stub",
        "inputs": [{"name": "IN", "datatype": "FP32", "shape": [-1, -1, -1, 3]}],
        "outputs": [{"name": "OUT", "datatype": "FP32", "shape": [-1, -1, -1, 3]}],
    },
}
EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "sequence",
    "sequence(string_id)",
    "statistics",
]
NUMBERS = {"INT32": np.dtype("<i4"), "FP32": np.dtype("<f4")}
# Of parameters, what they have to be.
PARAMETERS = {
    "sequence_id": (int, str),
    "sequence_start": bool,
    "sequence_end": bool,
    "priority": int,
    "timeout": int,
    "binary_data_output": bool,
    "binary_data_size": int,
    "binary_data": bool,
    "classification": int,
}


class Refused(Exception):
    """An answer that is no 200."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Stub:
    """The server, as an ASGI application.

    Args:
        defect: what it does otherwise; "" for nothing.
        token: without which nothing is inferred.
    """

    def __init__(self, defect="", token=None):
        self.defect = defect
        self.token = token
        self.counts = Counter()
        self.moved = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            raise RuntimeError("there is HTTP alone")
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        try:
            status, given, content = self.route(scope["method"], scope["path"], headers, body)
        except Refused as error:
            status, given, content = self.error(error.status, str(error))
            status = {"refuses nothing": 200, "500 for a refusal": 500}.get(self.defect, status)
        start = {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
        }
        await send(start)
        await send({"type": "http.response.body", "body": content})

    def error(self, status, text):
        if self.defect == "tracebacks":
            return status, {"Content-Type": JSON}, b"Traceback:\n  \x1b[31m \xff" + b"x" * 10_000
        key = "detail" if self.defect == "detail" else "error"
        charset = "; charset=utf-8" if self.defect == "charset" else ""
        return status, {"Content-Type": JSON + charset}, json.dumps({key: text}).encode()

    # Paths.

    def route(self, method, path, headers, body):
        if (
            self.token
            and method == "POST"
            and headers.get("authorization") != f"Bearer {self.token}"
        ):
            raise Refused(401, "a token is wanted")
        parts = path.split("/")[1:]
        if parts[-1] == "" and (parts != ["v2", ""] or self.defect == "no slash"):
            raise Refused(404, "there is no such path")
        if parts == ["v2"] and self.defect == "redirect":
            return 307, {"Location": "/v2/"}, b""
        allowed, answer = self.found([part for part in parts if part])
        if method != allowed:
            status = 404 if self.defect == "404 for 405" else 405
            raise Refused(status, f"{path} takes {allowed} alone")
        return answer(headers, body)

    def found(self, parts):
        """The method of a path, and what answers there."""
        of_model = parts[1:2] == ["models"] and parts[2:3] != ["stats"]
        if self.defect == "infers alone" and not (
            of_model and (len(parts) == 3 or parts[-1] == "infer")
        ):
            raise Refused(404, "there is no such path")
        match parts:
            case ["v2"]:
                value = {"name": "stub", "version": "1", "extensions": EXTENSIONS}
                return "GET", self.telling(value)
            case ["v2", "health", "live"]:
                return "GET", self.health({"live": True})
            case ["v2", "health", "ready"]:
                if self.defect == "not ready":
                    raise Refused(503, "not ready")
                return "GET", self.health({"ready": True})
            case ["v2", "models"]:
                return "GET", self.telling({"models": list(MODELS)})
            case ["v2", "models", "stats"]:
                return "GET", self.statistics(*MODELS)
            case ["v2", "repository", "index"]:
                entries = [{"name": name, "state": "READY", "reason": ""} for name in MODELS]
                return "POST", self.telling(entries)
            case ["v2", "models", name, *rest]:
                if name not in MODELS:
                    status = 400 if self.defect == "400 for 404" else 404
                    raise Refused(status, f"there is no model {name}")
                if rest[:1] == ["versions"] and len(rest) > 1:
                    listed = MODELS[name].get("versions", [])
                    if rest[1] not in listed or self.defect == "no versions":
                        raise Refused(404, f"there is no version {rest[1]}")
                    rest = rest[2:]
                match rest:
                    case []:
                        return "GET", self.telling(self.metadata(name))
                    case ["ready"]:
                        return "GET", self.health({"name": name, "ready": True})
                    case ["config"] if self.defect == "nests":
                        nested = b"[" * 200_000 + b"]" * 200_000
                        return "GET", lambda headers, body: (200, {"Content-Type": JSON}, nested)
                    case ["config"]:
                        return "GET", self.telling({"name": name, "max_batch_size": 0})
                    case ["stats"]:
                        return "GET", self.statistics(name)
                    case ["infer"]:
                        return "POST", lambda headers, body: self.infer(name, headers, body)
        raise Refused(404, "there is no such path")

    def telling(self, value):
        return lambda headers, body: (200, {"Content-Type": JSON}, json.dumps(value).encode())

    def health(self, value):
        if self.defect == "empty health":
            return lambda headers, body: (200, {}, b"")
        return self.telling(value)

    def metadata(self, name):
        found = {"name": name, **MODELS[name]}
        if self.defect == "metadata without inputs":
            found["inputs"] = []
        if self.defect == "other outputs":
            found["outputs"] = [{**each, "shape": [-1, 8]} for each in found["outputs"]]
        if self.defect == "datatype of its own":
            found["outputs"] = [{**each, "datatype": "int32"} for each in found["outputs"]]
        return found

    def statistics(self, *names):
        counts = {} if self.defect == "counts nothing" else self.counts
        return self.telling(
            {
                "model_stats": [
                    {"name": name, "inference_count": counts.get(name, 0)} for name in names
                ]
            }
        )

    # Inferences.

    def infer(self, name, headers, body):
        if self.defect == "wants a type" and "content-type" not in headers:
            raise Refused(415, "Content-Type is missing")
        body = self.unpacked(headers, body)
        if self.defect == "no chunks" and "transfer-encoding" in headers:
            raise Refused(411, "Content-Length is missing")
        if headers.get("inference-header-content-length") == "0" and self.defect != "no raw body":
            request, tensors = {"parameters": {"binary_data_output": True}}, self.raw(name, body)
        else:
            request, tensors = self.read(name, headers, body)
        parameters = self.checked_parameters(request)
        if name == "simple":
            one = tensors["INPUT0"]
            other = np.resize(tensors["INPUT1"], one.shape)
            if self.defect == "moves once" and "id" in request:
                self.moved = 1
            answers = {"OUTPUT0": one + other + self.moved, "OUTPUT1": one - other}
        elif name == "length":
            answers = {"OUT": np.array([len(each) for each in tensors["IN"]], "<i4")}
        else:
            answers = {"OUT": tensors["IN"]}
        return self.written(name, request, parameters, answers, headers)

    def unpacked(self, headers, body):
        coding = headers.get("content-encoding", "identity")
        windows = {"gzip": 31, "deflate": 15}
        if coding == "identity":
            return body
        if coding not in windows or self.defect == f"no {coding}":
            if self.defect == "ignores encodings":
                return body
            raise Refused(415, f"{coding} is not known")
        packed = zlib.decompressobj(windows[coding])
        try:
            body = packed.decompress(body)
        except zlib.error as error:
            raise Refused(400, str(error)) from None
        if not packed.eof:
            raise Refused(400, "the compressed body ends early")
        return body

    def raw(self, name, body):
        if MODELS[name]["inputs"][0]["datatype"] != "BYTES":
            return self.tensors(name, [self.entry(name, body)], body)
        return {"IN": np.array([body], object)}

    def entry(self, name, body):
        entries = MODELS[name]["inputs"]
        if len(entries) != 1:
            raise Refused(400, "a raw request needs a model of one input")
        shape = [1, *entries[0]["shape"][1:]]
        return {**entries[0], "shape": shape, "parameters": {"binary_data_size": len(body)}}

    def read(self, name, headers, body):
        length = headers.get("inference-header-content-length")
        rest = b""
        if length is not None:
            if length == "-1" and self.defect == "500 at a negative header":
                raise Refused(500, "negative")
            if not (length.isascii() and length.isdigit()) or int(length) > len(body):
                raise Refused(400, f"Inference-Header-Content-Length is {length}")
            body, rest = body[: int(length)], body[int(length) :]
        try:
            request = json.loads(body, parse_constant=self.constant)
        except RecursionError:
            status = 500 if self.defect == "500 at deep JSON" else 400
            raise Refused(status, "the JSON is nested too deep") from None
        except ValueError:
            raise Refused(400, "the body is no JSON") from None
        if not isinstance(request, dict) or not isinstance(request.get("inputs"), list):
            raise Refused(400, "an object with inputs is due")
        known = {"id", "parameters", "inputs", "outputs"}
        if self.defect == "refuses keys" and not known.issuperset(request):
            raise Refused(400, "there is an unknown key")
        return request, self.tensors(name, request["inputs"], rest)

    def constant(self, name):
        if self.defect == "answers NaN":
            return math.nan
        raise ValueError(name)

    def tensors(self, name, entries, rest):
        declared = {each["name"]: each for each in MODELS[name]["inputs"]}
        found = {}
        for entry in entries:
            if not isinstance(entry, dict) or entry.get("name") not in declared:
                raise Refused(400, "there is an unknown input")
            due = declared[entry["name"]]
            if due["name"] in found or entry.get("datatype") != due["datatype"]:
                raise Refused(400, "an input comes twice, or has another datatype")
            found[due["name"]], rest = self.tensor(entry, due, rest)
        if set(found) != set(declared):
            raise Refused(400, "an input is missing")
        if rest and self.defect != "leaves bytes":
            raise Refused(400, f"{len(rest)} bytes belong to no input")
        return found

    def tensor(self, entry, due, rest):
        shape = entry.get("shape")
        least = -1 if self.defect == "takes -1" else 0
        if not isinstance(shape, list) or not all(
            type(size) is int and size >= least for size in shape
        ):
            raise Refused(400, "shape is no list of sizes")
        count = abs(math.prod(shape))
        if self.defect == "overflows":
            count %= 2**64
        if len(shape) != len(due["shape"]) or any(
            size not in (-1, given) for size, given in zip(due["shape"], shape, strict=True)
        ):
            raise Refused(400, f"shape is {shape}, {due['shape']} is due")
        parameters = self.checked_parameters(entry)
        size = parameters.get("binary_data_size")
        if size is None:
            elements = self.from_json(entry.get("data"), due["datatype"], shape, count)
        else:
            if not 0 <= size <= len(rest):
                raise Refused(400, f"binary_data_size is {size}")
            elements = self.from_bytes(rest[:size], due["datatype"], count)
            rest = rest[size:]
        if elements.size != math.prod(shape):  # a defect has let it pass
            return elements, rest
        try:
            return elements.reshape(shape), rest
        except ValueError:  # numpy bears no such sizes, even beside a 0
            status = 500 if self.defect == "500 at huge sizes" else 400
            raise Refused(status, f"shape is {shape}") from None

    def from_json(self, data, datatype, shape, count):
        if not isinstance(data, list):
            raise Refused(400, "data is no array")
        if any(isinstance(element, list) for element in data):
            if self.defect == "refuses nested data":
                raise Refused(400, "data is nested")
            data = self.flattened(data, shape)
        if len(data) != count:
            raise Refused(400, f"data has {len(data)} elements, shape {count}")
        kinds = {"BYTES": str, "INT32": int, "FP32": (int, float)}[datatype]
        if not all(isinstance(each, kinds) and not isinstance(each, bool) for each in data):
            raise Refused(400, f"data is not {datatype}")
        if datatype == "BYTES":
            return self.objects([each.encode() for each in data])
        try:
            return np.array(data, NUMBERS[datatype]).reshape(count)
        except (OverflowError, ValueError):
            raise Refused(400, f"data is beyond {datatype}") from None

    def flattened(self, data, shape):
        if not shape:
            return [data]
        if not isinstance(data, list) or len(data) != shape[0]:
            raise Refused(400, "data is nested otherwise than shape says")
        return [each for inner in data for each in self.flattened(inner, shape[1:])]

    def from_bytes(self, data, datatype, count):
        if datatype == "BYTES":
            elements = []
            while data:
                length = int.from_bytes(data[:4], "little")
                if len(data) < 4 + length and self.defect != "reads beyond":
                    raise Refused(400, "an element of BYTES ends early")
                elements.append(data[4 : 4 + length])
                data = data[4 + length :]
            if len(elements) != count:
                raise Refused(400, "there are more or fewer elements than shape says")
            return self.objects(elements)
        number = NUMBERS[datatype]
        size = count * number.itemsize
        if self.defect == "overflows in bytes":
            size %= 2**64
        if len(data) != size:
            raise Refused(400, f"{len(data)} bytes for {count} elements")
        if self.defect == "big-endian in":
            number = number.newbyteorder(">")
        return np.frombuffer(data, number).astype(NUMBERS[datatype])

    def objects(self, elements):
        found = np.empty(len(elements), object)
        found[:] = elements
        return found

    def checked_parameters(self, owner):
        """The parameters of a request, an input or an output."""
        parameters = owner.get("parameters", {})
        if not isinstance(parameters, dict):
            raise Refused(400, "parameters are no object")
        for name, value in parameters.items():
            if self.defect == "no scheduler" and name.startswith(("sequence", "priority")):
                raise Refused(400, f"{name} is not supported")
            if name not in PARAMETERS:
                if self.defect == "refuses parameters" and name.startswith("no_such"):
                    raise Refused(400, f"there is no parameter {name}")
                continue
            kinds = PARAMETERS[name]
            if name == "sequence_id" and self.defect == "sequences by number":
                kinds = int
            if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
                crashes = self.defect == "500 at parameters" and name != "binary_data_size"
                status = 500 if crashes else 400
                raise Refused(status, f"{name} is {value!r}")
        return parameters

    def written(self, name, request, parameters, answers, headers):
        asked = request.get("outputs", [{"name": each} for each in answers])
        if not isinstance(asked, list) or not all(isinstance(each, dict) for each in asked):
            raise Refused(400, "outputs are no array of objects")
        names = [each.get("name") for each in asked]
        if not set(names) <= set(answers):
            raise Refused(400, "there is an unknown output")
        if len(set(names)) < len(names):
            if self.defect != "answers twice":
                raise Refused(400, "an output is asked for twice")
        elif self.defect == "answers all":
            asked += [{"name": each} for each in answers if each not in names]
        entries, tail = [], b""
        for each in asked:
            of_output = self.checked_parameters(each)
            entry, data = self.output(each["name"], of_output, parameters, answers[each["name"]])
            entries.append(entry)
            tail += data
        self.counts[name] += 1
        value = {"model_name": name, "outputs": entries}
        if self.defect == "no model name":
            del value["model_name"]
        if "id" in request and self.defect != "no id":
            value["id"] = request["id"]
        content = json.dumps(value).encode()
        given = {"Content-Type": "text/plain" if self.defect == "plain text" else JSON}
        if tail:
            given = {
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": str(len(content)),
            }
        return 200, *self.packed(headers, given, content + tail)

    def packed(self, headers, given, content):
        coding = headers.get("accept-encoding")
        packing = {"gzip": gzip.compress, "deflate": zlib.compress}
        if coding not in packing or self.defect == "packs nothing":
            return given, content
        return {**given, "Content-Encoding": coding}, packing[coding](content)

    def output(self, name, of_output, parameters, values):
        """The entry of an output, and its bytes where it goes as such."""
        datatype = "BYTES"
        if (count := of_output.get("classification")) is not None:
            if values.dtype == object or not 0 < count <= values.shape[-1]:
                raise Refused(400, f"classification is {count}")
            values = self.classes(values, count)
        elif values.dtype != object:
            datatype = "FP32" if values.dtype.kind == "f" else "INT32"
        entry = {"name": name, "datatype": datatype, "shape": list(values.shape)}
        binary = parameters.get("binary_data_output", False)
        if self.defect != "ignores binary_data":
            binary = of_output.get("binary_data", binary)
        if not binary:
            elements = values.reshape(-1).tolist()
            if (
                datatype == "FP32"
                and not np.isfinite(values).all()
                and self.defect != "answers NaN"
            ):
                raise Refused(400, "JSON has no NaN")
            if datatype == "BYTES":
                elements = [each.decode(errors="replace") for each in elements]
            return {**entry, "data": elements}, b""
        if datatype == "BYTES":
            data = b"".join(struct.pack("<I", len(each)) + each for each in values.reshape(-1))
        else:
            order = ">" if self.defect == "big-endian out" else "<"
            data = values.astype(values.dtype.newbyteorder(order)).tobytes()
        return {**entry, "parameters": {"binary_data_size": len(data)}}, data

    def classes(self, values, count):
        order = np.argsort(-values, axis=-1, kind="stable")
        if self.defect == "lowest first":
            order = np.argsort(values, axis=-1, kind="stable")
        rows = [
            [f"{row[index]}:{index}:class-{index}".encode() for index in places[:count]]
            for row, places in zip(
                values.reshape(-1, values.shape[-1]),
                order.reshape(-1, values.shape[-1]),
                strict=True,
            )
        ]
        return self.objects([each for row in rows for each in row]).reshape(
            *values.shape[:-1], count
        )
