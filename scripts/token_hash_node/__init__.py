"""A custom node for tests: shows the SHA-256 of the tokens of each drawn picture."""

import hashlib


class TokenHash:
    """An output node: its `ui` entry lists one hash for each picture."""

    CATEGORY = "AR-RAG tests"
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"tokens": ("ARRAG_TOKENS",)}}

    def show(self, tokens) -> dict:
        grids = tokens.codes.cpu().numpy().astype("<i8")  # [B, height, width]
        return {"ui": {"sha256": [hashlib.sha256(grid.tobytes()).hexdigest() for grid in grids]}}


NODE_CLASS_MAPPINGS = {"ARRAGTest_TokenHash": TokenHash}
