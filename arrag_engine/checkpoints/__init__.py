"""Model files: deepseek-ai, transformers, released FAiD, our single file.

`opening` finds out what a folder or file holds, `loading` makes a model of it, `convert` writes one
file; `adapter` reads and writes FAiD adapters.
"""

from .config import describe_config
from .convert import convert_checkpoint, write_checkpoint
from .dtype import DTYPES, resolve_dtype, resolve_storage
from .fingerprint import read_fingerprint
from .loading import Checkpoint, load_checkpoint, read_faid, read_model
from .opening import Opened, open_checkpoint, open_showo
from .shapes import check_shapes
from .tokenizer import read_tokenizer

__all__ = [
    "DTYPES",
    "Checkpoint",
    "Opened",
    "check_shapes",
    "convert_checkpoint",
    "describe_config",
    "load_checkpoint",
    "open_checkpoint",
    "open_showo",
    "read_faid",
    "read_fingerprint",
    "read_model",
    "read_tokenizer",
    "resolve_dtype",
    "resolve_storage",
    "write_checkpoint",
]
