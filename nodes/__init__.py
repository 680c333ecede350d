"""ComfyUI nodes: a schema and one engine call each."""
