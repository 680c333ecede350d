"""What nodes are handed by hostile API workflows: constants for wires, wires past every widget."""

import pytest

from scripts.comfyui_client import node_of

INDEX, OPTIONS = "ARRAG_LoadIndex", "ARRAG_RetrievalOptions"
SAMPLER = "ARRAG_DAiDSampler"
CONSTANTS = {
    "text": "pocket",
    "number": 5,
    "null": None,
    "object": {"a": 1},
    "list": {"__value__": ["a", 1, None]},
}
OPTIONAL = ("retrieval", "images", "mask")
"""Where null means that nothing is connected."""
WIRES = [
    (SAMPLER, "model"),
    (SAMPLER, "retrieval"),
    (OPTIONS, "index"),
    (OPTIONS, "retrieval"),
    (OPTIONS, "mask"),
    ("ARRAG_VQEncode", "model"),
    ("ARRAG_VQEncode", "image"),
    ("ARRAG_VQDecode", "tokens"),
    ("ARRAG_LoadAdapter", "model"),
    ("ARRAG_BuildIndex", "images"),
    ("ARRAG_SaveWithAttribution", "image"),
    ("ARRAG_SaveWithAttribution", "trace"),
    ("ARRAG_RetrievalMap", "image"),
    ("ARRAG_RetrievalMap", "trace"),
]


def refused(result):
    """The one sentence that the run ended with, which is our own error's."""
    assert result.ending == "execution_error"
    [failure] = result.of("execution_error")
    assert failure["exception_type"].endswith(".InputError"), failure
    assert "\n" not in result.error.strip()
    return result.error


def first_of(body, target):
    """Only what leads to a node and to an output behind it, so that it is what fails."""
    outputs = [key for key in body if body[key]["class_type"].startswith(("Preview", "Save"))]

    def needs(key):
        links = [v[0] for v in body[key]["inputs"].values() if isinstance(v, list)]
        return {key}.union(*map(needs, links)) if links else {key}

    kept = next(needs(key) for key in outputs if target in needs(key))
    return {key: node for key, node in body.items() if key in kept}


@pytest.mark.parametrize(
    ("node", "field", "constant"),
    [
        pytest.param(*wire, constant, id=f"{wire[0]}-{wire[1]}-{name}")
        for wire in WIRES
        for name, constant in CONSTANTS.items()
        if constant is not None or wire[1] not in OPTIONAL
    ],
)
def test_a_constant_for_a_wire_is_one_sentence(client, every_node, node, field, constant):
    key = node_of(every_node, node)
    body = first_of(every_node, key)
    body[key]["inputs"][field] = constant
    sentence = refused(client.run(body))
    assert sentence.strip().startswith(f"{field} is ")
    assert "; connect " in sentence


LINKED = [
    (
        "ARRAG_RetrievalMap",
        "larger_than",
        "PrimitiveInt",
        -1,
        "larger_than is -1; choose 0 to 65536",
    ),
    ("ARRAG_RetrievalMap", "opacity", "PrimitiveFloat", 2.0, "opacity is 2.0; choose 0 to 1"),
    (SAMPLER, "batch", "PrimitiveInt", 10**9, "batch is 1000000000; choose 1 to 64"),
    (SAMPLER, "batch", "PrimitiveInt", 0, "batch is 0; choose 1 to 64"),
    (SAMPLER, "preview_every", "PrimitiveInt", -1, "preview_every is -1; choose 0 to 256"),
    (SAMPLER, "window", "PrimitiveInt", 10**9, "window is 1000000000; choose 0 to 4096"),
    (SAMPLER, "top_k", "PrimitiveInt", -1, "top_k is -1; choose 0 to 1000000"),
    (SAMPLER, "cfg", "PrimitiveFloat", 1e9, "cfg is 1000000000.0; choose 0 to 100"),
    (SAMPLER, "temperature", "PrimitiveFloat", 1e9, "temperature is 1000000000.0; choose 0.0001"),
    (SAMPLER, "top_p", "PrimitiveFloat", 7.0, "top_p is 7.0; choose more than 0, at most 1"),
    (OPTIONS, "neighbours", "PrimitiveInt", 10**9, "neighbours is 1000000000; choose 1 to"),
    (OPTIONS, "weight", "PrimitiveFloat", 2.0, "retrieval weight is 2.0; choose 0 to 1"),
    (INDEX, "position_weight", "PrimitiveFloat", -9.0, "position weight is -9.0; choose 0 to 100"),
    ("ARRAG_FAiDSampler", "strength", "PrimitiveFloat", 9.0, "adapter strength is 9.0; choose 0"),
    ("ARRAG_FAiDSampler", "candidates", "PrimitiveInt", -1, "candidates is -1; choose 0 to 1000"),
    ("ARRAG_BuildIndex", "recall_target", "PrimitiveFloat", 0.0, "recall target is 0.0; choose"),
]


@pytest.mark.parametrize(
    ("node", "field", "source", "value", "sentence"),
    LINKED,
    ids=[f"{field} {value:g}" for _, field, _, value, _ in LINKED],
)
def test_limits_hold_for_linked_values(client, every_node, node, field, source, value, sentence):
    key = node_of(every_node, node)
    body = first_of(every_node, key)
    body["p"] = {"class_type": source, "inputs": {"value": value}}
    body[key]["inputs"][field] = ["p", 0]
    assert sentence in refused(client.run(body))


@pytest.mark.parametrize(
    "node", [SAMPLER, OPTIONS, INDEX, "ARRAG_FAiDSampler", "ARRAG_VQDecode", "ARRAG_BuildIndex"]
)
def test_a_link_to_an_input_that_is_not_there_is_one_sentence(client, every_node, node):
    key = node_of(every_node, node)
    body = first_of(every_node, key)
    body["p"] = {"class_type": "PrimitiveInt", "inputs": {"value": 1}}
    body[key]["inputs"]["later"] = ["p", 0]
    assert "has no input 'later'; disconnect it" in refused(client.run(body))


def test_the_next_run_draws(client, every_node):
    result = client.run(every_node)
    assert result.ending == "execution_success", result.error
