"""ComfyUI-ARRAG: retrieval-augmented autoregressive image generation (AR-RAG) for ComfyUI."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI calls this to get the extension. Imported here, so that the engine alone needs no
    ComfyUI around it."""
    from .nodes.extension import ArragExtension

    return ArragExtension()
