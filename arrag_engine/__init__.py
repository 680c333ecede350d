"""Retrieval-augmented autoregressive image generation (AR-RAG, arXiv 2506.06962).

Knows nothing of ComfyUI: everything here runs from plain Python and from `python -m arrag_engine`.
"""
